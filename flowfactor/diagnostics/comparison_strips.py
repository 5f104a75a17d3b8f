"""Film strips of several models below the truth: which of them moves the image as it should."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from flowfactor.data import SequenceBatch
from flowfactor.diagnostics.film_strips import Strip, draw_strips, film_strip_data
from flowfactor.diagnostics.style import PAGE_WIDTH, styled
from flowfactor.models.base import SequenceModel

# Of frames, side by side on a page; and how large one becomes at most, in inches.
_COLUMNS, _LARGEST = 20, 0.45

# Letters of a label in one line, and the width of one in inches.
_LINE, _LETTER = 20, 0.066


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonStrips:
    """True frames of some sequences, and what several models decode along their flows.

    Sizes: B sequences, N times.

    Attributes:
        names: the transformation of each sequence.
        times: in frames, ``(N,)``.
        truth: true frames ``(B, N, C, H, W)``.
        flows: by the label of each model, the frames that it decodes, ``(B, N, C, H, W)``.
        horizon: the last frame that the models were trained on.
    """

    names: tuple[str, ...]
    times: Float[np.ndarray, "n"]
    truth: Float[Tensor, "b n c h w"]
    flows: Mapping[str, Float[Tensor, "b n c h w"]]
    horizon: int


def comparison_strip_data(
    models: Mapping[str, SequenceModel], sequences: SequenceBatch, names: Sequence[str]
) -> ComparisonStrips:
    """Encode frame 0 of each sequence and decode its flow at every frame, by each model.

    Args:
        models: by their labels; any that know these transformations, also those that move by a
            rule.
        sequences: all frames of each sequence.
        names: the transformations that the sequences' factors count; a model may have them in
            another order, and more of them.

    Raises:
        ValueError: there is no model, one lacks a transformation or was trained up to another
            frame than the first, or as of :func:`film_strip_data`.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> _ = torch.manual_seed(0)
        >>> models = {
        ...     f"width {width}": flowfactor.FlowVAE.build(("hue",), latent_dim=8, width=width)
        ...     for width in (8, 16)
        ... }
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 0]))
        >>> data = comparison_strip_data(models, films, ("hue",))
        >>> list(data.flows), data.names
        (['width 8', 'width 16'], ('hue', 'hue'))
    """
    if not models:
        raise ValueError("there is no model to compare")
    labels = sequences.labels
    if bool((labels < 0).any() | (labels >= len(names)).any()):
        raise ValueError(
            f"the factors of the sequences must be in 0..{len(names) - 1}, for "
            f"{', '.join(names)}; they are {labels.tolist()}"
        )
    undergone = tuple(names[int(k)] for k in labels)
    found = {}
    for label, model in models.items():
        missing = [name for name in dict.fromkeys(undergone) if name not in model.names]
        if missing:
            raise ValueError(
                f"{label} has no transformation {', '.join(map(repr, missing))}; it has "
                f"{', '.join(model.names)}"
            )
        own = torch.tensor([model.names.index(name) for name in undergone], device=labels.device)
        found[label] = film_strip_data(model, dataclasses.replace(sequences, labels=own))
    first = next(iter(found.values()))
    for label, data in found.items():
        if data.horizon != first.horizon:
            raise ValueError(
                f"{label} was trained up to frame {data.horizon}, {next(iter(found))} up to frame "
                f"{first.horizon}; models side by side share one"
            )
    flows = {label: data.flow for label, data in found.items()}
    return ComparisonStrips(undergone, first.times, first.truth, flows, first.horizon)


def plot_comparison(
    models: Mapping[str, SequenceModel],
    sequences: SequenceBatch,
    names: Sequence[str],
    *,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw the true frames of sequences above the frames that each model decodes.

    Sequences of one transformation are side by side as far as the page is wide enough. Frames that
    are beyond the training have a coloured rim.

    Args:
        models: by their labels, in the order of the rows.
        sequences: all frames of each sequence.
        names: the transformations that the sequences' factors count.
        width: of the figure in inches, at most.

    Raises:
        ValueError: as of :func:`comparison_strip_data`.
    """
    return draw_comparison(comparison_strip_data(models, sequences, names), width=width)


@styled
def draw_comparison(data: ComparisonStrips, *, width: float = PAGE_WIDTH) -> Figure:
    """Draw computed strips of several models; see :func:`plot_comparison`."""
    labels = {label: _in_two_lines(label) for label in data.flows}
    longest = max(len(line) for label in ("truth", *labels.values()) for line in label.split("\n"))
    left = 0.36 + _LETTER * longest
    places: dict[str, list[int]] = {}
    for i, name in enumerate(data.names):
        places.setdefault(name, []).append(i)
    columns = len(data.times)
    # Lines are full, so that each holds one transformation only.
    shared = math.gcd(*map(len, places.values()))
    across = max(
        a for a in range(1, shared + 1) if a == 1 or (a * columns <= _COLUMNS and not shared % a)
    )
    strips = [
        Strip(
            name,
            [
                ("truth", data.truth[i]),
                *((labels[label], flow[i]) for label, flow in data.flows.items()),
            ],
        )
        for name, found in places.items()
        for i in found
    ]
    widest = left + 0.17 + _LARGEST * columns * across
    return draw_strips(
        strips, data.times, data.horizon, width=min(width, widest), left=left, across=across
    )


def _in_two_lines(label: str) -> str:
    """Break a long label once; there is no room for a third line beside a frame."""
    width = _LINE
    while len(lines := textwrap.wrap(label, width)) > 2:
        width += 1
    return "\n".join(lines)
