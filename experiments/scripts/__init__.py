"""Short uses of the library on a trained run."""
