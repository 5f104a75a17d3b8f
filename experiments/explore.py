"""What the flows of a run make of held-out images, alone and between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from experiments.runs import FIGURES, open_run
from experiments.samples import choose_few, different_samples, first_frames
from flowfactor import diagnostics
from flowfactor.diagnostics.io import FORMATS
from flowfactor.errors import RunError
from flowfactor.models import PotentialModel, SequenceModel
from flowfactor.names import file_names


def explore_latent(
    folder: Path,
    *,
    images: int = 4,
    samples: Sequence[int] | None = None,
    weights: tuple[str, str] | None = None,
    times: Sequence[float] | None = None,
    out: Path | None = None,
    device: str | None = None,
    plugin_names: Iterable[str] = (),
    on_stage: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw held-out images under every flow of a run, and one of them between two flows.

    Of more than ten flows, ten are drawn.

    Where the training has random starts, the images have undergone every transformation at random.

    Args:
        folder: of the run.
        images: how many held-out images, of different classes where there are classes.
        samples: which ones instead, by number.
        weights: the names of the two flows; None is the model's first two, if it has two.
        times: in frames, increasing; None is five from 0 to the model's last frame.
        out: the file of the first figure, that of the second lies beside it; None is
            ``figures/latent_grid.png`` in the run. A ``.gif`` is an animation of all flows.
        device: what computes; None is what the configuration says.
        plugin_names: plug-ins besides those that the run names.
        on_stage: called with what is being done.

    Returns:
        The paths of the figures.

    Raises:
        RunError, DataError: the run or its data cannot be read, or a file not be written; a flow,
            a time or a number of images that does not exist.
    """
    animated = out is not None and out.suffix.lower() == ".gif"
    if out is not None and not animated and out.suffix.lower() not in FORMATS:
        raise RunError(f"{out} must end in {', '.join(FORMATS)} or .gif, the formats of figures.")
    report = on_stage or (lambda _: None)
    run = open_run(folder, plugin_names, device)
    model, pair = run.model, _pair(run.model, weights)
    data = run.data()
    indices = torch.tensor(samples) if samples else different_samples(data, images)
    starts = None
    if data.initial_state == "random":
        generator = torch.Generator().manual_seed(run.config.seed)
        starts = data.random_starts(len(indices), generator)
    if animated:
        assert out is not None
        report("the animation")
        pictures = first_frames(data, indices)
        diagnostics.animate(model, pictures, names=choose_few(model.names)).save(out)
        return [out]
    first = first_frames(data, indices, starts)
    target = out or folder / FIGURES / "latent_grid.png"
    report("latent grid")
    try:
        grid = diagnostics.explore_latent(model, first, names=choose_few(model.names), times=times)
        files = [diagnostics.save(grid, target)]
        if pair is not None:
            report("what lies between two flows")
            between = diagnostics.plot_weights(run.potential_model, first[0], pair, times=times)
            names = file_names(run.model.names)
            ends = f"{names[pair[0]]}_{names[pair[1]]}"
            beside = target.with_name(f"latent_weights_{ends}{target.suffix}")
            files.append(diagnostics.save(between, beside))
    except ValueError as error:  # times that do not increase, images of another shape
        raise RunError(f"{error}") from error
    return files


def _pair(model: SequenceModel, weights: tuple[str, str] | None) -> tuple[str, str] | None:
    if weights is None:
        several = isinstance(model, PotentialModel) and len(model.names) > 1
        return (model.names[0], model.names[1]) if several else None
    if weights[0] == weights[1] or not set(weights) <= set(model.names):
        raise RunError(
            f"--weights takes two different flows of {', '.join(model.names)}, not "
            f"{' '.join(weights)}."
        )
    return weights
