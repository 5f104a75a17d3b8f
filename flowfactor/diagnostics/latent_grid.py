"""Exploring the latent space: images under every flow, and between two flows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowfactor.diagnostics.film_strips import draw_frame, rim_handles
from flowfactor.diagnostics.sampling import (
    chosen_names,
    decode_all,
    encode_means,
    evaluating,
    positions,
)
from flowfactor.diagnostics.style import INK, PAGE_WIDTH, new_figure, number, styled
from flowfactor.models.base import SequenceModel

# Inches that a decoded image should have at least, before the blocks go on in another band.
_SMALLEST = 0.34

# Between blocks, in widths of an image.
_BETWEEN = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class LatentGrid:
    """Images decoded along the flow of every transformation.

    Sizes: B images, K transformations, N times.

    Attributes:
        names: of the transformations.
        times: in frames, ``(N,)``; at negative ones the flow has run backwards.
        starts: the images that were encoded, ``(B, C, H, W)``.
        images: ``decode(flow(z_0, k, t))``, ``(B, K, N, C, H, W)``.
        horizon: the last frame that the model was trained on.
    """

    names: tuple[str, ...]
    times: Float[np.ndarray, "n"]
    starts: Float[Tensor, "b c h w"]
    images: Float[Tensor, "b k n c h w"]
    horizon: int


def latent_grid_data(
    model: SequenceModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    times: Sequence[float] | None = None,
) -> LatentGrid:
    """Encode images and decode the flow of each transformation at some times.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; default: all of the model.
        times: in frames, increasing; default: five from 0 to the model's last frame.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, or times that are
            not finite or do not increase.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> grid = latent_grid_data(model, torch.rand(3, 3, 28, 28), times=[-1, 0, 4])
        >>> grid.images.shape
        torch.Size([3, 2, 3, 3, 28, 28])
    """
    shown = chosen_names(model, names)
    chosen = _times(model, times)
    with evaluating(model):
        z0 = encode_means(model, images)
        at = chosen.to(z0)
        blocks = [decode_all(model, positions(model, z0, model.potentials[k], at)) for k in shown]
        decoded = torch.stack(blocks).permute(2, 0, 1, 3, 4, 5).float().cpu()
    return LatentGrid(
        shown, np.asarray(chosen.double()), images.float().cpu(), decoded, model.horizon
    )


def explore_latent(
    model: SequenceModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    times: Sequence[float] | None = None,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw what every flow makes of some images: a row for each image, a block for each flow.

    The first column holds the images themselves, each block the times. Blocks that have no room
    beside one another go on below. Images at times outside of the training have a coloured rim.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; default: all of the model.
        times: in frames, increasing; default: five from 0 to the model's last frame.
        width: of the figure in inches.

    Raises:
        ValueError: as of :func:`latent_grid_data`.
    """
    return draw_latent_grid(latent_grid_data(model, images, names=names, times=times), width=width)


@styled
def draw_latent_grid(data: LatentGrid, *, width: float = PAGE_WIDTH) -> Figure:
    """Draw a computed grid; see :func:`explore_latent`."""
    count, blocks, columns, _, height, width_px = data.images.shape
    aspect = height / width_px
    side = 0.06
    # As many blocks in a band as leave the images large enough, in bands of nearly one length.
    room = int(((width - 2 * side) / _SMALLEST - 1) // (columns + _BETWEEN))
    bands = math.ceil(blocks / min(max(room, 1), blocks))
    in_band = math.ceil(blocks / bands)
    units = 1 + in_band * (columns + _BETWEEN)
    cell = min((width - 2 * side) / units, 0.75)
    head, foot, gap = 0.24, 0.2, 0.1
    handles = rim_handles(data.times, data.horizon)
    bottom = 0.2 + 0.24 * bool(handles)
    band = head + count * cell * aspect + foot
    tall = bands * band + (bands - 1) * gap + bottom
    figure = new_figure(width, tall)
    figure.set_layout_engine("none")
    for number_of_band in range(bands):
        low = tall - (number_of_band + 1) * band - number_of_band * gap + foot
        part = range(number_of_band * in_band, min((number_of_band + 1) * in_band, blocks))
        axes = figure.add_axes(
            (side / width, low / tall, units * cell / width, count * cell * aspect / tall)
        )
        axes.set_xlim(0, units)
        axes.set_ylim(-count * aspect, 0)
        _draw_band(axes, data, part, aspect)
    figure.text(
        (side + units * cell / 2) / width,
        (bottom - 0.12) / tall,
        "time $t$ (frames)",
        ha="center",
        va="center",
        fontsize=8,
    )
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), handlelength=1.6)
    return figure


def _draw_band(axes: Axes, data: LatentGrid, blocks: range, aspect: float) -> None:
    """Draw the images and some of the blocks beside them."""
    columns = len(data.times)
    ticks, labels = [0.5], ["image"]
    for row, start in enumerate(data.starts):
        draw_frame(axes, start, 0, -row * aspect)
    for place, k in enumerate(blocks):
        left = 1 + _BETWEEN + place * (columns + _BETWEEN)
        for column, t in enumerate(data.times):
            for row in range(len(data.starts)):
                draw_frame(
                    axes,
                    data.images[row, k, column],
                    left + column,
                    -row * aspect,
                    t=float(t),
                    horizon=data.horizon,
                    rim=1.0,
                )
            ticks.append(left + column + 0.5)
            labels.append(number(float(t)))
        axes.annotate(
            data.names[k],
            (left + columns / 2, 0),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            annotation_clip=False,
        )
    axes.set_aspect("auto")
    axes.set_xticks(ticks, labels)
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[:].set_visible(False)


# ---- between two transformations


@dataclasses.dataclass(frozen=True, eq=False)
class LatentWeights:
    """An image decoded along flows between two transformations.

    Sizes: S weights, N times.

    Attributes:
        pair: the two transformations.
        weights: s, ``(S,)``; 0 is the first transformation alone, 1 the second.
        times: in frames, ``(N,)``.
        images: decoded along ``(1 - s) u^a + s u^b``, ``(S, N, C, H, W)``.
        horizon: the last frame that the model was trained on.
    """

    pair: tuple[str, str]
    weights: Float[np.ndarray, "s"]
    times: Float[np.ndarray, "n"]
    images: Float[Tensor, "s n c h w"]
    horizon: int


def weights_data(
    model: SequenceModel,
    image: Float[Tensor, "c h w"],
    pair: tuple[str, str],
    *,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    times: Sequence[float] | None = None,
) -> LatentWeights:
    r"""Decode one image along flows between two transformations.

    .. code-block:: text

        dz/dt = (1 - s) grad u^a(z, t) + s grad u^b(z, t)

    Args:
        model: any sequence model.
        image: the first frame ``(C, H, W)``, pixels in [0, 1].
        pair: the names a and b.
        weights: s, one or more numbers in [0, 1].
        times: in frames, increasing; default: five from 0 to the model's last frame.

    Raises:
        ValueError: an image of another shape than the model's, names that are not two of its
            transformations, weights out of range, times that are not finite or do not increase.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> data = weights_data(model, torch.rand(3, 28, 28), ("rotation", "hue"))
        >>> data.images.shape
        torch.Size([5, 5, 3, 28, 28])
    """
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"the weights are of two different transformations, not {tuple(pair)}")
    a, b = chosen_names(model, pair)
    if not len(weights) or not all(0 <= s <= 1 for s in weights):
        raise ValueError(f"weights must be one or more numbers in [0, 1]; they are {list(weights)}")
    chosen = _times(model, times)
    with evaluating(model):
        z0 = encode_means(model, image[None])
        at = chosen.to(z0)
        rows = [
            decode_all(
                model,
                positions(model, z0, (1 - s) * model.potentials[a] + s * model.potentials[b], at),
            )[:, 0]
            for s in map(float, weights)
        ]
    return LatentWeights(
        (a, b),
        np.asarray(weights, dtype=np.float64),
        np.asarray(chosen.double()),
        torch.stack(rows).float().cpu(),
        model.horizon,
    )


def plot_weights(
    model: SequenceModel,
    image: Float[Tensor, "c h w"],
    pair: tuple[str, str],
    *,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    times: Sequence[float] | None = None,
    width: float = PAGE_WIDTH / 2,
) -> Figure:
    """Draw one image along flows between two transformations: weights downwards, time to the right.

    Args:
        model: any sequence model.
        image: the first frame ``(C, H, W)``, pixels in [0, 1].
        pair: the names of the two transformations, of the first and of the last row.
        weights: of the second, in [0, 1]; those of the first are the rest to 1.
        times: in frames, increasing; default: five from 0 to the model's last frame.
        width: of the figure in inches.

    Raises:
        ValueError: as of :func:`weights_data`.
    """
    data = weights_data(model, image, pair, weights=weights, times=times)
    return draw_weights(data, width=width)


@styled
def draw_weights(data: LatentWeights, *, width: float = PAGE_WIDTH / 2) -> Figure:
    """Draw computed images between two transformations; see :func:`plot_weights`."""
    rows, columns, _, height, width_px = data.images.shape
    aspect = height / width_px
    a, b = data.pair
    names = {0.0: f"0  ({a})", 1.0: f"1  ({b})"}
    labels = [names.get(float(s), number(float(s))) for s in data.weights]
    handles = rim_handles(data.times, data.horizon)
    left = 0.3 + 0.06 * max(map(len, labels))
    right, head = 0.05, 0.26
    bottom = 0.4 + 0.19 * len(handles)
    cell = (width - left - right) / columns
    tall = head + rows * cell * aspect + bottom
    figure = new_figure(width, tall)
    figure.set_layout_engine("none")
    axes = figure.add_axes(
        (left / width, bottom / tall, columns * cell / width, rows * cell * aspect / tall)
    )
    for row in range(rows):
        for column, t in enumerate(data.times):
            draw_frame(
                axes,
                data.images[row, column],
                column - 0.5,
                -row * aspect,
                t=float(t),
                horizon=data.horizon,
            )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(-rows * aspect, 0)
    axes.set_aspect("auto")
    axes.set_xticks(range(columns), [number(float(t)) for t in data.times])
    axes.set_yticks([-(row + 0.5) * aspect for row in range(rows)], labels)
    axes.set_xlabel("time $t$ (frames)")
    axes.set_ylabel("weight $s$")
    axes.set_title(f"flow of (1 − $s$) $u$({a}) + $s$ $u$({b})", fontsize=8)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[:].set_visible(False)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=1, handlelength=1.6)
    return figure


def _times(model: SequenceModel, times: Sequence[float] | None) -> Float[Tensor, "n"]:
    """Check times in frames, or return five within the training."""
    if times is None:
        return torch.linspace(0, model.horizon, 5, dtype=torch.float64)
    chosen = torch.as_tensor(times, dtype=torch.float64)
    if chosen.ndim != 1 or not len(chosen):
        raise ValueError("times must be one or more numbers")
    if not bool(chosen.isfinite().all() and (chosen.diff() > 0).all()):
        raise ValueError(f"times must be finite and increase; they are {chosen.tolist()}")
    return chosen
