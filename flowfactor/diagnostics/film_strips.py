"""Film strips: the true frames of a transformation above those decoded along the flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from flowfactor.data import SequenceBatch
from flowfactor.diagnostics.sampling import (
    as_pixels,
    decode_all,
    encode_means,
    evaluating,
    positions,
)
from flowfactor.diagnostics.style import INK, MUTED, PAGE_WIDTH, PALETTE, new_figure, number, styled
from flowfactor.models.base import SequenceModel

# Colour and dashes of the rim of frames that no training has seen.
_BEFORE, _BEYOND = (PALETTE[4], (0, (2.5, 1.2))), (PALETTE[1], (0, None))

# The line where a second flow takes over from a first.
_TURN: dict[str, Any] = {"color": PALETTE[2], "linewidth": 2.0}

# Between frames, in widths of a frame, on each side.
_GAP = 0.03

# More columns than this are so narrow that the usual rims would touch each other.
_MANY = 13


@dataclasses.dataclass(frozen=True, eq=False)
class FilmStrips:
    """True and decoded frames of some sequences.

    Sizes: B sequences, N times.

    Attributes:
        names: the transformation of each sequence.
        times: in frames, ``(N,)``; negative ones run the flow backwards.
        truth: true frames ``(B, N, C, H, W)``; NaN at times of which no truth is known.
        flow: frames decoded along the flow, ``(B, N, C, H, W)``.
        horizon: the last frame that the model was trained on.
    """

    names: tuple[str, ...]
    times: Float[np.ndarray, "n"]
    truth: Float[Tensor, "b n c h w"]
    flow: Float[Tensor, "b n c h w"]
    horizon: int


def film_strip_data(
    model: SequenceModel, sequences: SequenceBatch, *, before: int = 0, beyond: int = 0
) -> FilmStrips:
    """Encode frame 0 of each sequence and decode its flow at every frame.

    ``flow[i, n] = decode(z_n)`` with ``dz/dt = grad u^k(z, t)``, ``z_0`` the posterior mean of
    frame 0 and k the sequence's factor.

    Args:
        model: any sequence model.
        sequences: all frames of each sequence; those after the model's last one show how far the
            flow extrapolates.
        before: how many frames before the first to decode; there is no truth for these.
        beyond: how many frames after those given to decode, without truth.

    Raises:
        ValueError: frames are missing or of another shape, or a factor or number out of range.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> film_strip_data(model, films, before=1).times.tolist()
        [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    """
    if before < 0 or beyond < 0:
        raise ValueError(f"before and beyond must be at least 0; they are {before} and {beyond}")
    frames = sequences.frames
    known = torch.arange(frames.shape[1], device=sequences.times.device)
    if not len(sequences) or not bool((sequences.times == known).all()):
        raise ValueError("a film strip needs at least one sequence, with all frames from t = 0 on")
    labels = sequences.labels
    if bool((labels < 0).any() | (labels >= len(model.names)).any()):
        raise ValueError(
            f"the factors of the sequences must be in 0..{len(model.names) - 1}, the "
            f"transformations of the model; they are {labels.tolist()}"
        )
    with evaluating(model):
        z0 = encode_means(model, frames[:, 0])
        times = torch.arange(-before, frames.shape[1] + beyond).to(z0)
        path = positions(model, z0, labels.to(z0.device), times)
        decoded = decode_all(model, path).transpose(0, 1).float().cpu()
    truth = torch.full_like(decoded, torch.nan)
    truth[:, before : before + frames.shape[1]] = frames.float().cpu()
    names = tuple(model.names[int(k)] for k in labels)
    return FilmStrips(names, np.asarray(times.double().cpu()), truth, decoded, model.horizon)


def plot_film_strips(
    model: SequenceModel,
    sequences: SequenceBatch,
    *,
    difference: bool = False,
    before: int = 0,
    beyond: int = 0,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw the true frames of sequences above the frames decoded along the flow.

    Frames outside of the times that the model was trained on, 0 to T, have a coloured rim.

    Args:
        model: any sequence model.
        sequences: all frames of each sequence, which is one strip.
        difference: add a row with the absolute difference of each pixel.
        before: frames to decode before the first, running the flow backwards.
        beyond: frames to decode after those given.
        width: of the figure in inches.

    Raises:
        ValueError: as of :func:`film_strip_data`.
    """
    data = film_strip_data(model, sequences, before=before, beyond=beyond)
    return draw_film_strips(data, difference=difference, width=width)


@styled
def draw_film_strips(
    data: FilmStrips, *, difference: bool = False, width: float = PAGE_WIDTH
) -> Figure:
    """Draw computed film strips; see :func:`plot_film_strips`."""
    strips = []
    for name, truth, flow in zip(data.names, data.truth, data.flow, strict=True):
        rows = [("truth", truth), ("flow", flow)]
        if difference:
            rows.append(("|difference|", (truth - flow).abs()))
        strips.append(Strip(name, rows))
    return draw_strips(
        strips, data.times, data.horizon, width=width, left=0.95 if difference else 0.72
    )


# ---- shared by all figures of rows of frames


@dataclasses.dataclass(frozen=True, eq=False)
class Strip:
    """Rows of frames at the same times, to be drawn below one another.

    Attributes:
        label: what they show, written along their left side.
        rows: the name of each row and its frames ``(N, C, H, W)``; NaN where there is none.
        turn: the place of the frame at which one flow takes over from another; None if none does.
    """

    label: str
    rows: Sequence[tuple[str, Float[Tensor, "n c h w"]]]
    turn: int | None = None


def draw_strips(
    strips: Sequence[Strip],
    times: Float[np.ndarray, "n"],
    horizon: int,
    *,
    width: float,
    left: float,
    across: int = 1,
) -> Figure:
    """Draw strips below one another, all of as many rows, on one axis of time.

    Args:
        strips: at least one; with several side by side, line by line.
        times: in frames, of the columns.
        horizon: the last frame of the training; frames outside of 0 to it have a rim.
        width: of the figure in inches.
        left: room for the labels in inches.
        across: how many are side by side, all with the rows and the label of the first of them.
    """
    rows = strips[0].rows
    count, columns = -(-len(strips) // across), len(times)
    outside = bool(((times < 0) | (times > horizon)).any())
    turns = any(strip.turn is not None for strip in strips)
    # Cells are laid out by hand: all must have one size, and nothing else may take their room.
    right, between, beside = 0.05, 0.07, 0.12
    bottom = 0.4 + 0.22 * (outside or turns)
    height, width_px = rows[0][1].shape[-2:]
    strip_width = (width - left - right - beside * (across - 1)) / across
    strip_height = strip_width / columns * height / width_px * len(rows)
    tall = (strip_height + between) * count + bottom
    figure = new_figure(width, tall)
    figure.set_layout_engine("none")
    for i, strip in enumerate(strips):
        line, place = divmod(i, across)
        low = tall - (strip_height + between) * (line + 1) + between / 2
        begin = left + (strip_width + beside) * place
        axes = figure.add_axes(
            (begin / width, low / tall, strip_width / width, strip_height / tall)
        )
        _draw_strip(axes, strip, times, horizon)
        if i + across >= len(strips):
            axes.set_xlabel("time $t$ (frames)")
            axes.tick_params(labelbottom=True)
        if place:
            axes.tick_params(labelleft=False)
            continue
        lines = strip.label.count("\n") + 1
        figure.text(
            (0.13 + 0.06 * (lines - 1)) / width,
            (low + strip_height / 2) / tall,
            strip.label,
            rotation=90,
            ha="center",
            va="center",
            multialignment="center",
            linespacing=1.1,
            fontsize=8.5 if lines == 1 else 8,
        )
    handles: list[Artist] = list(rim_handles(times, horizon))
    if turns:
        handles.append(Line2D([], [], **_TURN, label="the second flow takes over"))
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), handlelength=1.6)
    return figure


def rim_handles(times: Float[np.ndarray, "n"], horizon: int) -> list[Rectangle]:
    """Return what a legend shows for those rims that frames at some times have."""
    return [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=colour, linestyle=dash, label=label)
        for label, (colour, dash), there in (
            ("before the first frame", _BEFORE, times.min() < 0),
            (f"beyond training ($t$ > {horizon})", _BEYOND, times.max() > horizon),
        )
        if there
    ]


def draw_frame(
    axes: Axes,
    frame: Float[Tensor, "c h w"],
    left: float,
    top: float,
    *,
    t: float = 0.0,
    horizon: int = 0,
    rim: float = 1.5,
) -> None:
    """Draw a frame one unit wide, with a narrow gap around it and a rim outside of the training.

    Args:
        axes: of equal aspect.
        frame: pixels in [0, 1], or NaN where nothing is known.
        left: where it begins.
        top: where it ends.
        t: its time.
        horizon: the last frame of the training.
        rim: its line width in points.
    """
    aspect = frame.shape[-2] / frame.shape[-1]
    if bool(frame.isnan().any()):
        middle = left + 0.5, top - aspect / 2
        axes.text(*middle, "–", ha="center", va="center", color=MUTED, fontsize=8)
        return
    axes.imshow(
        as_pixels(frame),
        extent=(left + _GAP, left + 1 - _GAP, top - aspect + _GAP, top - _GAP),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    if t < 0 or t > horizon:
        colour, dash = _BEFORE if t < 0 else _BEYOND
        axes.add_patch(
            Rectangle(
                (left + _GAP, top - aspect + _GAP),
                1 - 2 * _GAP,
                aspect - 2 * _GAP,
                fill=False,
                edgecolor=colour,
                linestyle=dash,
                linewidth=rim,
                zorder=3,
            )
        )


def _draw_strip(axes: Axes, strip: Strip, times: Float[np.ndarray, "n"], horizon: int) -> None:
    """Draw the frames of one sequence, one unit wide."""
    height, width = strip.rows[0][1].shape[-2:]
    aspect = height / width
    rim = 1.5 if len(times) <= _MANY else 0.9
    for row, (_, frames) in enumerate(strip.rows):
        for column, t in enumerate(times):
            place = column - 0.5, -row * aspect
            draw_frame(axes, frames[column], *place, t=float(t), horizon=horizon, rim=rim)
    if strip.turn is not None:
        axes.axvline(strip.turn + 0.5, **_TURN, zorder=4)
    axes.set_xlim(-0.5, len(times) - 0.5)
    axes.set_ylim(-aspect * len(strip.rows), 0)
    axes.set_aspect("equal")
    axes.set_yticks(
        [-(row + 0.5) * aspect for row in range(len(strip.rows))], [name for name, _ in strip.rows]
    )
    axes.set_xticks(range(len(times)), [number(float(t)) for t in times])
    axes.tick_params(length=0, labelsize=8, labelbottom=False, colors=INK)
    axes.spines[:].set_visible(False)
