"""What the flows of a run make of held-out images, alone and between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

import flowfactor
from experiments.plots import FIGURES, one_of_each_class
from experiments.runs import load_measured, read_run_config
from flowfactor import diagnostics
from flowfactor.data import SequenceDataset, round_robin
from flowfactor.diagnostics.saving import FORMATS
from flowfactor.errors import DataError, RunError
from flowfactor.models import SequenceModel


def explore_latent(
    run: Path,
    *,
    images: int = 4,
    weights: tuple[str, str] | None = None,
    times: Sequence[float] | None = None,
    out: Path | None = None,
) -> list[Path]:
    """Draw held-out images under every flow of a run, and one of them between two flows.

    Where the training has random starts, the images have undergone every transformation at random.

    Args:
        run: the folder.
        images: how many held-out images, of different classes where there are classes.
        weights: the names of the two flows; None is the model's first two, if it has two.
        times: in frames, increasing; None is five from 0 to the model's last frame.
        out: the file of the first figure, that of the second lies beside it; None is
            ``figures/latent_grid.png`` in the run.

    Returns:
        The paths of the figures.

    Raises:
        RunError, DataError: the run or its data cannot be read, or a file not be written; a flow,
            a time or a number of images that there is not.
    """
    if out is not None and out.suffix.lower() not in FORMATS:
        raise RunError(f"{out} must end in {', '.join(FORMATS)}, the formats of figures.")
    config = read_run_config(run)
    model = flowfactor.load(run)
    pair = _pair(model, weights)
    data = load_measured(config, config.evaluation.split, model)
    chosen = different_samples(data, images)
    clock = torch.zeros(len(chosen), 1, dtype=torch.long)
    start = None
    if config.data.start == "random":
        generator = torch.Generator().manual_seed(config.seed)
        start = torch.rand(len(chosen), data.start_size, generator=generator)
    first = data.sample(chosen, round_robin(data, chosen), clock, start).frames[:, 0]
    target = out or run / FIGURES / "latent_grid.png"
    try:
        grid = diagnostics.explore_latent(model, first, times=times)
        found = [diagnostics.save(grid, target)]
        if pair is not None:
            between = diagnostics.plot_weights(model, first[0], pair, times=times)
            beside = target.with_name(f"latent_weights_{pair[0]}_{pair[1]}{target.suffix}")
            found.append(diagnostics.save(between, beside))
    except ValueError as error:  # times that do not increase, images of another shape
        raise RunError(f"{error}.") from error
    return found


def different_samples(data: SequenceDataset, count: int) -> Int[Tensor, "b"]:
    """Return numbers of samples, those of different classes first.

    Raises:
        DataError: there are not as many samples.
    """
    if not 1 <= count <= len(data):
        raise DataError(
            f"There are {len(data)} samples; {count} were asked for, which must be in "
            f"1..{len(data)}."
        )
    first = one_of_each_class(data).cpu()
    rest = torch.arange(len(data))
    return torch.cat([first, rest[~torch.isin(rest, first)]])[:count]


def _pair(model: SequenceModel, weights: tuple[str, str] | None) -> tuple[str, str] | None:
    if weights is None:
        return (model.names[0], model.names[1]) if len(model.names) > 1 else None
    if weights[0] == weights[1] or not set(weights) <= set(model.names):
        raise RunError(
            f"The weights are of two different flows of the model, which are "
            f"{', '.join(model.names)}; {weights[0]} and {weights[1]} were asked for."
        )
    return weights
