"""Options that make any configuration tiny, and the files that some of them read."""

from pathlib import Path

import yaml

from experiments.config import read_config
from flowfactor.options import dump

TRAINING = {
    "training.steps": 4,
    "training.max_minutes": None,
    "training.batch_size": 6,
    "training.log_every": 1,
    "training.validate_every": 2,
    "training.checkpoint_every": 2,
    "training.validation_sequences": 6,
    "training.accelerator": "cpu",
    "training.precision": "32-true",
    "training.threads": 1,
    "evaluation.images": 8,
    "evaluation.metrics.log_likelihood": {"sequences": 4, "samples": 2},
}
MODEL = {"latent_dim": 4, "width": 8, "discriminator_width": 8, "capsules": 2}
NETWORK = {"channels": [4, 8], "width": 8, "pose_width": 4, "pose_hidden": 16, "code": 1}


def settings(config: str, folder: Path | None = None) -> dict[str, object]:
    """Return values by ``key.path`` that make a configuration tiny.

    Args:
        config: its name, or its file.
        folder: where to write the files that it reads, if it reads any.
    """
    content = read_config(config)[1]
    short = {"horizon": 3} if (getattr(content.data, "horizon", None) or 0) > 3 else {}
    data = {f"data.{key}": value for key, value in (short | content.data.tiny(folder)).items()}
    options = dump(content.model)
    model = {f"model.{key}": size for key, size in MODEL.items() if key in options}
    if "capsules" in options:
        model["model.latent_dim"] = 12
    if isinstance(options.get("inference"), dict):
        model["model.inference"] = options["inference"] | {"warmup": 1, "anneal": 0}
    if content.training.initial_weights is not None:  # a run of another configuration
        model |= {"training.initial_weights": None, "model.inference.estimator": "enumerate"}
    if "stages" in options:
        model["model.stages"] = {"autoencoder": 1, "fields": 0, "anneal": 0}
    for network in ("encoder", "decoder"):
        if network in options:
            shipped = options[network]
            sizes = {key: size for key, size in NETWORK.items() if key in shipped}
            if "hidden" in shipped:
                sizes["hidden"] = 16 if isinstance(shipped["hidden"], int) else [16]
            if "code" in shipped:
                model["model.latent_dim"] = 8  # of four squares, and of the whole
            model[f"model.{network}"] = {"kind": shipped["kind"], **sizes}
    return TRAINING | data | model


def sets_of(config: str, folder: Path | None = None, *changes: str) -> list[str]:
    """Return command-line options that make a configuration tiny, then change it."""
    values = [f"{key}={write(value)}" for key, value in settings(config, folder).items()]
    return [word for change in [*values, *changes] for word in ("--set", change)]


def sets(*changes: str) -> list[str]:
    """Return command-line options that make the demo's configuration tiny, then change it."""
    return sets_of("demo", None, *changes)


def write(value: object) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
