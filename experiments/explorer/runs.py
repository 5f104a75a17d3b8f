"""The models and the held-out images that a page works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from experiments.explorer.session import Samples, Session
from experiments.runs import Run, open_run
from experiments.samples import different_samples, first_frames
from flowfactor.diagnostics.explorer import Explorer
from flowfactor.errors import DataError, MissingExtraError, RunError

# Images to choose from by a click.
_SHOWN = 24


def open_runs(
    folders: Sequence[Path],
    *,
    split: str | None = None,
    device: str | None = None,
    plugin_names: Iterable[str] = (),
    on_stage: Callable[[str], None] | None = None,
) -> Callable[[], Session]:
    """Return what makes the session of a page.

    Args:
        folders: of one run, or of several to be put side by side, whose images have one shape.
        split: of the samples; None is that of the evaluation.
        device: what computes; None is what the configuration of each run says.
        plugin_names: plug-ins besides those that the runs name.
        on_stage: called with what is being read.

    Raises:
        RunError: a run cannot be read or is named twice, or their images differ in shape.
        ConfigError: a plug-in is missing.
    """
    report = on_stage or (lambda _: None)
    runs = {}
    for folder in folders:
        report(folder.name)
        if str(folder) in runs:
            raise RunError(f"{folder} is named twice; two runs side by side must be different.")
        runs[str(folder)] = open_run(folder, plugin_names, device)
    explorers = {name: Explorer(run.model) for name, run in runs.items()}
    shapes = {name: each.model.image_shape for name, each in explorers.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise RunError(f"Runs side by side must take images of one shape; these take {listed}.")
    report("held-out samples")
    first, run = next(iter(explorers.values())), next(iter(runs.values()))
    samples = _held_out(run, split) or _drawn(first)
    return lambda: Session(explorers, samples)


def _held_out(run: Run, split: str | None) -> Samples | None:
    """Return held-out samples; None if the data is not on this machine."""
    try:
        data = run.model.match_precision(run.config.data.load(split or "test", run.config.seed))
        numbers = different_samples(data, min(_SHOWN, len(data)))
        images = first_frames(data, numbers)
    except (DataError, MissingExtraError, OSError):
        return None
    return Samples(
        numbers.tolist(),
        images,
        len(data),
        lambda number: first_frames(data, torch.tensor([number]))[0],
        "",
    )


def _drawn(explorer: Explorer) -> Samples:
    """Return images of latents that are drawn at random."""
    images = explorer.draw(_SHOWN)
    return Samples(
        range(_SHOWN),
        images,
        _SHOWN,
        lambda number: images[number],
        "The data of the run is not on this machine: the model has made up this image.",
    )
