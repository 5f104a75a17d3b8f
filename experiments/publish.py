"""Runs as folders to share, and the models that ship as runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments import runs
from experiments.config import CONFIG_FILE, Config, to_yaml
from experiments.reference import Listing
from flowfactor import checkpoints, hub, pretrained
from flowfactor.errors import RunError
from flowfactor.metrics import Equivariance
from flowfactor.records import Evaluation

PRETRAINED = Path("runs") / "pretrained"
"""Where the models that ship become run folders."""


def publish(
    folder: Path,
    out: Path,
    *,
    half: bool = False,
    title: str | None = None,
    device: str | None = None,
    plugin_names: Iterable[str] = (),
    on_stage: Callable[[str], None] | None = None,
) -> Path:
    """Write a run into a folder to share: its model with a card, its configuration and records.

    Args:
        folder: of the run.
        out: the new folder.
        half: store the weights in half of the bytes, and measure what that changes.
        title: of the card.
        device: what measures; None is what the configuration says.
        plugin_names: plug-ins besides those that the run names.
        on_stage: called with what is being measured.

    Returns:
        The new folder, which is a run folder too, without the state of the training.

    Raises:
        RunError, DataError, ConfigError: the run cannot be read, or the folder not be written.
    """
    if out.exists() and (not out.is_dir() or not checkpoints.is_empty(out)):
        raise RunError(f"{out} exists and is not empty. Choose another folder with --out.")
    run = runs.open_run(folder, plugin_names, device)
    model, training = run.model, runs.read_training(folder)
    measured = (folder / runs.EVALUATION_FILE).is_file()
    evaluation = runs.read_evaluation(folder) if measured and not half else None
    checkpoints.save_model(model, out, half=half)
    checkpoints.write_file(out / CONFIG_FILE, to_yaml(run.config))
    if training:
        runs.write_json(out / runs.TRAINING_FILE, training)
    if measured and half:
        runs.evaluate(out, device=device, plugin_names=plugin_names, on_stage=on_stage)
        evaluation = runs.read_evaluation(out)
    if evaluation is not None:
        evaluation = dataclasses.replace(evaluation, weights=checkpoints.digest(out))
        evaluation.write(out / runs.EVALUATION_FILE)
    checkpoints.write_file(out / CONFIG_FILE, to_yaml(_without_places(run.config)))
    return hub.save_pretrained(
        model, out, evaluation=evaluation, training=training, title=title, half=half
    )


def _without_places(config: Config) -> Config:
    """Return a configuration that looks for its data where others have it, not where I do."""
    changes: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(config.data)
        if field.name == "root" and field.default is not dataclasses.MISSING
    }
    return config.replace(data=dataclasses.replace(config.data, **changes))


def list_models() -> Listing:
    """Return the models that ship: what each is for, its error and its size."""
    rows = []
    for name in pretrained.names():
        folder = pretrained.folder(name)
        config = runs.read_run_config(folder)
        errors = Evaluation.read(folder / runs.EVALUATION_FILE).result(Equivariance)
        size = (folder / checkpoints.MODEL_FILE).stat().st_size / 1e6
        rows.append(
            (name, f"{errors.mean_error:.1f}", f"{size:.1f} MB", config.general.description)
        )
    return Listing("", ("model", "E", "size", "what it is"), tuple(rows))


def find_run(run: str) -> Path:
    """Return a run folder as it is; of a model that ships, a copy in ``runs/pretrained``.

    Args:
        run: a folder, or the name of a model that ships.

    Raises:
        RunError: the copy cannot be written, or is another model than the one that ships.
    """
    path = Path(run)
    if path.exists() or run not in pretrained.names():
        return path
    shipped, copy = pretrained.folder(run), PRETRAINED / run
    for file in sorted(shipped.iterdir()):
        if not (copy / file.name).exists():
            checkpoints.write_file(copy / file.name, file.read_bytes())
    if checkpoints.digest(copy) != checkpoints.digest(shipped):
        raise RunError(
            f"{copy} holds another model than the {run} that ships. Remove it, or give its path."
        )
    return copy
