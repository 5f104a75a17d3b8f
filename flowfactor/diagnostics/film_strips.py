"""Film strips: the true frames of a transformation above those decoded along the flow."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from flowfactor.data import Sequences
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


@dataclasses.dataclass(frozen=True, eq=False)
class FilmStrips:
    """True and decoded frames of some sequences.

    Sizes: B sequences, N times.

    Attributes:
        names: the transformation of each sequence.
        times: in frames, ``(N,)``; negative ones run the flow backwards.
        truth: true frames ``(B, N, C, H, W)``; NaN at times of which no truth is known.
        flow: frames decoded along the flow, ``(B, N, C, H, W)``.
        last: the last frame that the model was trained on.
    """

    names: tuple[str, ...]
    times: Float[np.ndarray, "n"]
    truth: Float[Tensor, "b n c h w"]
    flow: Float[Tensor, "b n c h w"]
    last: int


def film_strip_data(
    model: SequenceModel, sequences: Sequences, *, before: int = 0, beyond: int = 0
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
        >>> from flowfactor.data import Sequences
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> films = Sequences.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> film_strip_data(model, films, before=1).times.tolist()
        [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    """
    if before < 0 or beyond < 0:
        raise ValueError(f"before and beyond must be at least 0; they are {before} and {beyond}")
    frames = sequences.frames
    known = torch.arange(frames.shape[1], device=sequences.times.device)
    if not len(sequences) or not bool((sequences.times == known).all()):
        raise ValueError("a film strip needs at least one sequence, with all frames from t = 0 on")
    factor = sequences.factor
    if bool((factor < 0).any() | (factor >= len(model.names)).any()):
        raise ValueError(
            f"the factors of the sequences must be in 0..{len(model.names) - 1}, the "
            f"transformations of the model; they are {factor.tolist()}"
        )
    with evaluating(model):
        z0 = encode_means(model, frames[:, 0])
        times = torch.arange(-before, frames.shape[1] + beyond).to(z0)
        path = positions(model, z0, factor.to(z0.device), times)
        decoded = decode_all(model, path).transpose(0, 1).float().cpu()
    truth = torch.full_like(decoded, torch.nan)
    truth[:, before : before + frames.shape[1]] = frames.float().cpu()
    names = tuple(model.names[int(k)] for k in factor)
    return FilmStrips(names, np.asarray(times.double().cpu()), truth, decoded, model.last)


def plot_film_strips(
    model: SequenceModel,
    sequences: Sequences,
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
    rows = [("truth", data.truth), ("flow", data.flow)]
    if difference:
        rows.append(("|difference|", (data.truth - data.flow).abs()))
    count, columns = len(data.names), len(data.times)
    outside = _outside(data).any()
    # Cells are laid out by hand: all must have one size, and nothing else may take their room.
    left, right, between = 0.95 if difference else 0.72, 0.05, 0.07
    bottom = 0.4 + 0.22 * outside
    height, width_px = data.flow.shape[-2:]
    strip = (width - left - right) / columns * height / width_px * len(rows)
    tall = (strip + between) * count + bottom
    figure = new_figure(width, tall)
    figure.set_layout_engine("none")
    for i in range(count):
        low = tall - (strip + between) * (i + 1) + between / 2
        axes = figure.add_axes(
            (left / width, low / tall, (width - left - right) / width, strip / tall)
        )
        _draw_strip(axes, data, rows, i)
        figure.text(
            0.13 / width,
            (low + strip / 2) / tall,
            data.names[i],
            rotation=90,
            ha="center",
            va="center",
            fontsize=8.5,
        )
        if i == count - 1:
            axes.set_xlabel("time $t$ (frames)")
            axes.tick_params(labelbottom=True)
    if outside:
        handles = [
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=colour, linestyle=dash, label=label)
            for label, (colour, dash), there in (
                ("before the first frame", _BEFORE, data.times.min() < 0),
                (f"beyond training ($t$ > {data.last})", _BEYOND, data.times.max() > data.last),
            )
            if there
        ]
        figure.legend(handles=handles, loc="lower center", ncols=2, handlelength=1.6)
    return figure


def _outside(data: FilmStrips) -> np.ndarray:
    return (data.times < 0) | (data.times > data.last)


def _draw_strip(axes: Axes, data: FilmStrips, rows: list[tuple[str, Tensor]], i: int) -> None:
    """Draw the frames of one sequence, one unit wide, with narrow gaps between them."""
    height, width = data.flow.shape[-2:]
    aspect = height / width
    gap = 0.03
    for row, (_, frames) in enumerate(rows):
        top = -row * aspect
        for column, t in enumerate(data.times):
            left = column - 0.5 + gap
            known = not bool(frames[i, column].isnan().any())
            if not known:
                axes.text(
                    column, top - aspect / 2, "–", ha="center", va="center", color=MUTED, fontsize=8
                )
            else:
                axes.imshow(
                    as_pixels(frames[i, column]),
                    extent=(left, column + 0.5 - gap, top - aspect + gap, top - gap),
                    cmap="gray",
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                )
            if (t < 0 or t > data.last) and known:
                colour, dash = _BEFORE if t < 0 else _BEYOND
                axes.add_patch(
                    Rectangle(
                        (left, top - aspect + gap),
                        1 - 2 * gap,
                        aspect - 2 * gap,
                        fill=False,
                        edgecolor=colour,
                        linestyle=dash,
                        linewidth=1.5,
                        zorder=3,
                    )
                )
    axes.set_xlim(-0.5, len(data.times) - 0.5)
    axes.set_ylim(-aspect * len(rows), 0)
    axes.set_aspect("equal")
    axes.set_yticks([-(row + 0.5) * aspect for row in range(len(rows))], [name for name, _ in rows])
    axes.set_xticks(range(len(data.times)), [number(float(t)) for t in data.times])
    axes.tick_params(length=0, labelsize=8, labelbottom=False, colors=INK)
    axes.spines[:].set_visible(False)
