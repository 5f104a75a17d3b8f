"""What a model finds to happen in sequences, and when: beside the truth, and below the frames."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from flowfactor.activity import Activity
from flowfactor.data import SequenceBatch
from flowfactor.diagnostics.film_strips import FilmStrips, Marks
from flowfactor.diagnostics.sampling import decode_latents, evaluating, to_numpy
from flowfactor.diagnostics.style import (
    FAINT,
    INK,
    PAGE_WIDTH,
    PALETTE,
    new_figure,
    plain_text,
    styled,
)
from flowfactor.matching import ActivityMatching
from flowfactor.metrics.activity_scores import arrange
from flowfactor.models import SequenceModel

SIGNED = LinearSegmentedColormap.from_list("signed", [PALETTE[5], "#FFFFFF", PALETTE[0]])
"""Colour map of signed speeds: orange backwards, white at rest, blue forwards, darker in grey."""

# Height in inches of a row of the raster.
_ROW = 0.17

# Where nothing is known to be true, the part of what was inferred that has colours of its own.
_QUANTILE = 0.99


@dataclasses.dataclass(frozen=True, eq=False)
class ActivityRaster:
    """Inferred and true activity of some sequences.

    Sizes: B sequences, n steps, K fields, M transformations.

    Attributes:
        kinds: the kind of each sequence; those of one kind follow each other.
        names: of the K fields, those of the M transformations first.
        inferred: signed speeds ``(B, n, K)``, the posterior mean.
        truth: signed speeds ``(B, n, M)``, None if they are not known.
    """

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    inferred: Float[np.ndarray, "b n k"]
    truth: Float[np.ndarray, "b n m"] | None


def activity_data(
    model: SequenceModel,
    sequences: Mapping[str, SequenceBatch],
    matching: ActivityMatching | None = None,
    names: Sequence[str] | None = None,
) -> ActivityRaster:
    """Infer the activity of sequences.

    Args:
        model: with ``infer_activity``.
        sequences: complete ones by their kind, with their activity if it is known.
        matching: which field is which transformation; by default as they are.
        names: of the transformations; by default those of the model's fields.

    Raises:
        ValueError: there are no sequences, or their activity is known of some kinds only.
    """
    if not sequences:
        raise ValueError("sequences must hold at least one kind")
    activities = [_infer(model, batch, matching) for batch in sequences.values()]
    inferred = torch.cat([each.coefficients for each in activities])
    truths = [batch.activity for batch in sequences.values()]
    known = [truth.cpu() for truth in truths if truth is not None]
    if known and len(known) < len(truths):
        raise ValueError("sequences must all have their activity, or none of them")
    kinds = [[kind] * len(batch) for kind, batch in sequences.items()]
    return ActivityRaster(
        tuple(itertools.chain.from_iterable(kinds)),
        field_names(names or model.names, inferred.shape[-1]),
        to_numpy(inferred),
        to_numpy(torch.cat(known)) if known else None,
    )


def activity_strips(
    model: SequenceModel,
    sequences: Mapping[str, SequenceBatch],
    matching: ActivityMatching | None = None,
    names: Sequence[str] | None = None,
) -> FilmStrips:
    """Decode sequences along the activity that is inferred from them, both with what acts.

    ``frames[n] = decode(z_n)``, where ``z`` follows the fields from the posterior mean of frame 0
    at the posterior mean of their speeds. Below frames are the fields that act with a probability
    above 1/2.

    Args:
        model: with ``infer_activity`` and ``trace_activity``.
        sequences, matching, names: as for :func:`activity_data`.

    Raises:
        ValueError: there are no sequences.
    """
    if not sequences:
        raise ValueError("sequences must hold at least one kind")
    labels, truths, decoded, true_speeds, found = [], [], [], [], []
    for kind, batch in sequences.items():
        activity = _infer(model, batch, None)
        with evaluating(model):
            z0 = model.represent(batch.frames[:, 0].to(model.device))
            path: Tensor = model.trace_activity(z0, activity.coefficients.to(z0))  # type: ignore[operator]
            decoded.append(decode_latents(model, rearrange(path, "n b d -> b n d")))
        labels += [kind] * len(batch)
        truths.append(batch.frames.float().cpu())
        shown = activity if matching is None else arrange(activity, matching)
        found.append(to_numpy(shown.coefficients * (shown.active > 0.5)))
        if batch.activity is not None:
            true_speeds.append(to_numpy(batch.activity.cpu()))
    inferred = np.concatenate(found)
    speeds = {"inferred": inferred}
    if len(true_speeds) == len(sequences):
        truth = np.concatenate(true_speeds)
        spare = max(0, inferred.shape[-1] - truth.shape[-1])
        speeds["truth"] = np.pad(truth, ((0, 0), (0, 0), (0, spare)))
    frames = torch.cat(truths)
    return FilmStrips(
        tuple(labels),
        np.arange(frames.shape[1], dtype=np.float64),
        frames,
        {"inferred": torch.cat(decoded)},
        frames.shape[1] - 1,
        marks=Marks(field_names(names or model.names, inferred.shape[-1]), speeds),
    )


def field_names(names: Sequence[str], fields: int) -> tuple[str, ...]:
    """Return the names of fields, of which those without a transformation are spare.

    Example:
        >>> field_names(("x", "hue"), 4)
        ('x', 'hue', 'spare 1', 'spare 2')
    """
    spare = [f"spare {i + 1}" for i in range(fields - len(names))]
    return (*names, *spare)


def _infer(
    model: SequenceModel, batch: SequenceBatch, matching: ActivityMatching | None
) -> Activity:
    with evaluating(model):
        activity: Activity = model.infer_activity(batch.frames.to(model.device))  # type: ignore[operator]
    parts: Any = (part.cpu() for part in vars(activity).values())
    return Activity(*parts) if matching is None else arrange(Activity(*parts), matching)


@styled
def draw_activity(data: ActivityRaster, *, width: float = PAGE_WIDTH) -> Figure:
    """Draw true above inferred activity: a row for each field, a column for each step.

    Sequences are side by side, those of one kind under its name.

    Args:
        data: from :func:`activity_data`.
        width: of the figure in inches.
    """
    count, steps, fields = data.inferred.shape
    blocks = {"inferred": data.inferred}
    if data.truth is not None:
        missing = max(0, fields - data.truth.shape[-1])
        truth = np.pad(data.truth, ((0, 0), (0, 0), (0, missing)), constant_values=np.nan)
        blocks = {"truth": truth, **blocks}
    # What is true has the whole range of colours; a few values that were inferred may be beyond.
    scale = np.abs(data.inferred if data.truth is None else data.truth)
    largest = float(scale.max() if data.truth is not None else np.quantile(scale, _QUANTILE)) or 1.0
    beyond = bool((np.abs(data.inferred) > largest).any())
    height = 0.62 + (fields * _ROW + 0.12) * len(blocks)
    figure = new_figure(width, height)
    panels = figure.subplots(len(blocks), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, values) in zip(panels, blocks.items(), strict=True):
        picture = rearrange(values, "b n k -> k (b n)")
        image = axes.imshow(
            picture,
            cmap=SIGNED.with_extremes(bad=FAINT),
            vmin=-largest,
            vmax=largest,
            aspect="auto",
            interpolation="nearest",
            extent=(0, count * steps, len(picture), 0),
        )
        axes.set_yticks(
            np.arange(len(picture)) + 0.5, [plain_text(name, 24) for name in data.names]
        )
        axes.set_ylabel(title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        _draw_borders(axes, data.kinds, steps, len(picture))
    _write_kinds(panels[0], data.kinds, steps)
    ticks = [0, steps] if count == 1 else []
    panels[-1].set_xticks(ticks)
    panels[-1].set_xlabel(f"sequences of {steps} steps")
    bar = figure.colorbar(
        image,
        ax=list(panels),
        pad=0.01,
        fraction=0.03,
        aspect=8 * len(blocks),
        extend="both" if beyond else "neither",
    )
    bar.set_label("signed speed")
    bar.outline.set_linewidth(0.6)
    return figure


def _draw_borders(axes: Axes, kinds: Sequence[str], steps: int, rows: int) -> None:
    """Draw lines between fields, faint ones between sequences, stronger ones between kinds."""
    for row in range(1, rows):
        axes.axhline(row, color=FAINT, linewidth=0.5)
    for i in range(1, len(kinds)):
        changes = kinds[i] != kinds[i - 1]
        look: dict[str, Any] = (
            {"color": INK, "linewidth": 1.2} if changes else {"color": FAINT, "linewidth": 0.5}
        )
        axes.axvline(i * steps, **look)


def _write_kinds(axes: Axes, kinds: Sequence[str], steps: int) -> None:
    """Write the name of each kind above its sequences."""
    first = 0
    for kind, group in itertools.groupby(kinds):
        count = len(list(group))
        middle = (first + count / 2) * steps
        axes.annotate(
            plain_text(kind, 24),
            (middle, 0),
            (0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
        )
        first += count


def plot_activity(
    model: SequenceModel,
    sequences: Mapping[str, SequenceBatch],
    matching: ActivityMatching | None = None,
    names: Sequence[str] | None = None,
    *,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw the inferred activity of sequences below the true one; see :func:`activity_data`."""
    return draw_activity(activity_data(model, sequences, matching, names), width=width)
