"""Errors a user can cause, so that one `except FlowFactorError` catches them all."""


class FlowFactorError(Exception):
    """Base of every error that a user's input, files or settings can cause."""


class ConfigError(FlowFactorError, ValueError):
    """Options that cannot be used: an unknown key, a wrong type, an impossible combination."""


class DataError(FlowFactorError):
    """Data that is missing, damaged, or not of the expected shape, type or range."""


class RunError(FlowFactorError):
    """A run folder or a checkpoint that cannot be written, read or continued."""
