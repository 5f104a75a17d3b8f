"""Exploring the latent space: images under every flow, and between two flows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowfactor.diagnostics.film_strips import FilmStrips, draw_film_strips
from flowfactor.diagnostics.frames import add_frame_axes, draw_frame, draw_rows, make_rim_handles
from flowfactor.diagnostics.sampling import (
    decode_latents,
    encode_images,
    evaluating,
    select_names,
    trace_latents,
)
from flowfactor.diagnostics.style import (
    PAGE_WIDTH,
    format_number,
    new_figure,
    plain_text,
    styled,
)
from flowfactor.models.base import PotentialModel, SequenceModel

# Inches that a decoded image should have at least, before the blocks continue in another band.
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
        times: in frames, increasing; default: five from 0 to the model's horizon.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, or times that are
            not finite or do not increase.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8)
        >>> grid = latent_grid_data(model, torch.rand(3, 3, 28, 28), times=[-1, 0, 4])
        >>> grid.images.shape
        torch.Size([3, 2, 3, 3, 28, 28])
    """
    names = select_names(model, names)
    grid_times = _check_times(model, times)
    with evaluating(model):
        z0 = encode_images(model, images)
        at = grid_times.to(z0)
        paths = torch.stack([trace_latents(model, z0, name, at) for name in names])
        decoded = decode_latents(model, rearrange(paths, "k n b d -> b k n d"))
    return LatentGrid(names, grid_times.numpy(), images.float().cpu(), decoded, model.horizon)


def explore_latent(
    model: SequenceModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    times: Sequence[float] | None = None,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw what every flow makes of some images: a row for each image, a block for each flow.

    The first column holds the images themselves, each block the times. Blocks that do not fit
    beside each other continue below. Images at times outside of the training have a coloured rim.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; default: all of the model.
        times: in frames, increasing; default: five from 0 to the model's horizon.
        width: of the figure in inches.

    Raises:
        ValueError: as of :func:`latent_grid_data`.
    """
    return draw_latent_grid(latent_grid_data(model, images, names=names, times=times), width=width)


@styled
def draw_latent_grid(data: LatentGrid, *, width: float = PAGE_WIDTH) -> Figure:
    """Draw a computed grid; see :func:`explore_latent`."""
    rows, blocks, columns, _, pixels_high, pixels_wide = data.images.shape
    side, head, foot, gap = 0.06, 0.24, 0.2, 0.1
    # As many blocks in a band as leave the images large enough, in bands of nearly one length.
    fitting = int(((width - 2 * side) / _SMALLEST - 1) // (columns + _BETWEEN))
    bands = math.ceil(blocks / min(max(fitting, 1), blocks))
    in_band = math.ceil(blocks / bands)
    units = 1 + in_band * (columns + _BETWEEN)
    cell_width = min((width - 2 * side) / units, 0.75)
    cell = cell_width, cell_width * pixels_high / pixels_wide
    handles = make_rim_handles(data.times, data.horizon)
    bottom = 0.2 + 0.24 * bool(handles)
    tall = head + rows * cell[1] + foot
    height = bands * (tall + gap) - gap + bottom
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    for band in range(bands):
        low = height - (band + 1) * tall - band * gap + foot
        axes = add_frame_axes(figure, (side, low), units, rows, cell)
        _draw_band(axes, data, range(blocks)[band * in_band : (band + 1) * in_band])
    middle = (side + units * cell_width / 2) / width
    caption = "time $t$ (frames)"
    figure.text(middle, (bottom - 0.12) / height, caption, ha="center", va="center", fontsize=8)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), handlelength=1.6)
    return figure


def _draw_band(axes: Axes, data: LatentGrid, blocks: range) -> None:
    """Draw the images and some of the blocks beside them."""
    columns = len(data.times)
    aspect = data.starts.shape[-2] / data.starts.shape[-1]
    ticks, labels = [0.5], ["image"]
    for row, start in enumerate(data.starts):
        draw_frame(axes, start, 0, -row * aspect)
    for place, k in enumerate(blocks):
        left = 1 + _BETWEEN + place * (columns + _BETWEEN)
        draw_rows(axes, data.images[:, k], data.times, data.horizon, left=left, rim=1.0)
        ticks += [left + column + 0.5 for column in range(columns)]
        labels += [format_number(t) for t in data.times.tolist()]
        axes.annotate(
            plain_text(data.names[k], 24),
            (left + columns / 2, 0),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            annotation_clip=False,
        )
    axes.set_xticks(ticks, labels)


# ---- between two transformations


def weights_data(
    model: PotentialModel,
    image: Float[Tensor, "c h w"],
    pair: tuple[str, str],
    *,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    times: Sequence[float] | None = None,
) -> FilmStrips:
    r"""Decode one image along flows between two transformations.

    .. math::

        \frac{dz}{dt} = (1 - s) \nabla u^a(z, t) + s \nabla u^b(z, t)

    Args:
        model: any model with potentials.
        image: the first frame ``(C, H, W)``, pixels in [0, 1].
        pair: the names a and b.
        weights: s, one or more different numbers in [0, 1].
        times: in frames, increasing; default: five from 0 to the model's horizon.

    Returns:
        One strip without truth, with a flow for each weight.

    Raises:
        ValueError: an image of another shape than the model's, names that are not two of its
            transformations, weights out of range, times that are not finite or do not increase.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8)
        >>> strips = weights_data(model, torch.rand(3, 28, 28), ("rotation", "hue"))
        >>> list(strips.flows), strips.flows["0.5"].shape
        (['0  (rotation)', '0.25', '0.5', '0.75', '1  (hue)'], torch.Size([1, 5, 3, 28, 28]))
    """
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"pair must be two different transformations; it is {tuple(pair)}")
    a, b = select_names(model, pair)
    if not len(weights) or not all(0 <= s <= 1 for s in weights):
        raise ValueError(f"weights must be one or more numbers in [0, 1]; they are {list(weights)}")
    strip_times = _check_times(model, times)
    ends = {0.0: f"0  ({a})", 1.0: f"1  ({b})"}
    flows = {}
    with evaluating(model):
        z0 = encode_images(model, image[None])
        for s in map(float, weights):
            potential = (1 - s) * model.potentials[a] + s * model.potentials[b]
            path = trace_latents(model, z0, potential, strip_times.to(z0))
            frames = decode_latents(model, rearrange(path, "n b d -> b n d"))
            flows[ends.get(s, format_number(s))] = frames
    label = f"(1 − s) u({a}) + s u({b})"
    return FilmStrips((label,), strip_times.numpy(), None, flows, model.horizon)


def plot_weights(
    model: PotentialModel,
    image: Float[Tensor, "c h w"],
    pair: tuple[str, str],
    *,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    times: Sequence[float] | None = None,
    width: float = PAGE_WIDTH / 2,
) -> Figure:
    """Draw one image along flows between two transformations: weights downwards, time to the right.

    Args:
        model: any model with potentials.
        image: the first frame ``(C, H, W)``, pixels in [0, 1].
        pair: the names of the two transformations, of the first and of the last row.
        weights: of the second, in [0, 1]; those of the first are the rest to 1.
        times: in frames, increasing; default: five from 0 to the model's horizon.
        width: of the figure in inches.

    Raises:
        ValueError: as of :func:`weights_data`.
    """
    data = weights_data(model, image, pair, weights=weights, times=times)
    return draw_film_strips(data, width=width)


def _check_times(model: SequenceModel, times: Sequence[float] | None) -> Float[Tensor, "n"]:
    """Return times in frames, by default five from 0 to the horizon."""
    if times is None:
        return torch.linspace(0, model.horizon, 5, dtype=torch.float64)
    checked = torch.as_tensor(times, dtype=torch.float64)
    if checked.ndim != 1 or not len(checked):
        raise ValueError("times must be one or more numbers")
    if not bool(checked.isfinite().all() and (checked.diff() > 0).all()):
        raise ValueError(f"times must be finite and increase; they are {checked.tolist()}")
    return checked
