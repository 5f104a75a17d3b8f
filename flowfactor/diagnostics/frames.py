"""Frames in figures: one image of a cell, with a coloured rim outside of the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from flowfactor.diagnostics.sampling import to_pixels
from flowfactor.diagnostics.style import INK, MUTED, PALETTE

# Colour and dashes of the rim of frames that no training has seen.
_BEFORE: tuple[str, Any] = (PALETTE[4], (0, (2.5, 1.2)))
_BEYOND: tuple[str, Any] = (PALETTE[1], "solid")

# Between frames, in widths of a frame, on each side.
_GAP = 0.03


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
        centre = left + 0.5, top - aspect / 2
        axes.text(*centre, "–", ha="center", va="center", color=MUTED, fontsize=8)
        return
    low, width, height = top - aspect + _GAP, 1 - 2 * _GAP, aspect - 2 * _GAP
    axes.imshow(
        to_pixels(frame),
        extent=(left + _GAP, left + _GAP + width, low, low + height),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    if 0 <= t <= horizon:
        return
    colour, dash = _BEFORE if t < 0 else _BEYOND
    look: dict[str, Any] = {"edgecolor": colour, "linestyle": dash, "linewidth": rim}
    axes.add_patch(Rectangle((left + _GAP, low), width, height, fill=False, zorder=3, **look))


def draw_rows(
    axes: Axes,
    frames: Float[Tensor, "r n c h w"],
    times: Float[np.ndarray, "n"],
    horizon: int,
    *,
    left: float = 0.0,
    rim: float = 1.5,
    pitch: float | None = None,
) -> None:
    """Draw R rows of frames at the same times, downwards from 0, each frame one unit wide.

    Args:
        axes: see :func:`add_frame_axes`.
        frames, times: of the rows.
        horizon: the last frame of the training.
        left: where they begin.
        rim: see :func:`draw_frame`.
        pitch: from the top of a row to that of the next; the height of a frame by default.
    """
    if pitch is None:
        pitch = frames.shape[-2] / frames.shape[-1]
    for row, strip in enumerate(torch.unbind(frames)):
        for column, (t, frame) in enumerate(zip(times.tolist(), strip, strict=True)):
            place = left + column, -row * pitch
            draw_frame(axes, frame, *place, t=t, horizon=horizon, rim=rim)


def add_frame_axes(
    figure: Figure,
    corner: tuple[float, float],
    columns: float,
    rows: int,
    cell: tuple[float, float],
) -> Axes:
    """Add axes without ticks or spines whose units are widths of a frame.

    Args:
        figure: laid out by hand, so that all frames have one size.
        corner: the lower left one, in inches.
        columns: how many frames fit beside each other.
        rows: how many fit below each other.
        cell: width and height of a frame in inches.
    """
    width, height = figure.get_size_inches()
    (x, y), (w, h) = corner, cell
    axes = figure.add_axes((x / width, y / height, columns * w / width, rows * h / height))
    axes.set_xlim(0, columns)
    axes.set_ylim(-rows * h / w, 0)
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[:].set_visible(False)
    return axes


def make_rim_handles(times: Float[np.ndarray, "*b n"], horizon: int) -> list[Rectangle]:
    """Return what a legend shows for the rims that frames at some times have."""
    handles = []
    if times.min() < 0:
        handles.append((_BEFORE, "before the first frame"))
    if times.max() > horizon:
        handles.append((_BEYOND, f"beyond training ($t$ > {horizon})"))
    return [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=colour, linestyle=dash, label=label)
        for (colour, dash), label in handles
    ]
