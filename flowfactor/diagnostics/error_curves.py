"""Equivariance error over time, between doing nothing and the best the decoder can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowfactor.diagnostics.style import (
    INK,
    PAGE_WIDTH,
    PALETTE,
    draw_grid,
    new_figure,
    plain_text,
    styled,
)


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorCurve:
    """Errors of one transformation, each a mean over images of a sum over channels and pixels.

    Attributes:
        flow: ``|x_t - decode(flow(z_0, k, t))|`` for t = 1..T, ``(T,)``.
        identity: ``|x_t - decode(z_0)|``, the error of not moving at all, ``(T,)``.
        floor: ``|x_0 - decode(z_0)|``, the error of the reconstruction alone.

    Raises:
        ValueError: the curves are empty, of different lengths, or not finite.
    """

    flow: Sequence[float]
    identity: Sequence[float]
    floor: float

    def __post_init__(self) -> None:
        if not 0 < len(self.flow) == len(self.identity):
            raise ValueError(
                f"flow and identity must have the same positive length; theirs are "
                f"{len(self.flow)} and {len(self.identity)}"
            )
        if not np.isfinite([*self.flow, *self.identity, self.floor]).all():
            raise ValueError("flow, identity and floor must be finite")


@styled
def plot_errors(
    curves: Mapping[str, ErrorCurve],
    *,
    times: Sequence[float] | None = None,
    horizon: float | None = None,
) -> Figure:
    """Draw the error of each frame over time, a panel with limits of its own for each.

    The flow's error lies between two references: above the floor, which is the reconstruction
    error of frame 0, and well below the error of not moving at all.

    Args:
        curves: by the name of the transformation.
        times: of the frames, ``(T,)``; default 1..T.
        horizon: the last frame of the training; later times are shaded grey.

    Raises:
        ValueError: no curve, or curves that do not match the times.
    """
    if not curves:
        raise ValueError("curves is empty; there is nothing to draw")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(max(3.3, PAGE_WIDTH * columns / 3), 1.9 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False)
    identity: dict[str, Any] = {"color": INK, "linestyle": (0, (5, 1.6))}
    floor: dict[str, Any] = {"color": INK, "linestyle": (0, (1.2, 1.2)), "linewidth": 0.9}
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        t = np.arange(1, len(curve.flow) + 1) if times is None else np.asarray(times, dtype=float)
        if len(t) != len(curve.flow):
            raise ValueError(
                f"times must be as many as the errors of {name}, {len(curve.flow)}; there are "
                f"{len(t)}"
            )
        if horizon is not None and t[-1] > horizon:
            axes.axvspan(horizon, t[-1], color="#EFEFEF", linewidth=0, label="beyond training")
        axes.plot(t, curve.identity, label="identity ($z_t = z_0$)", **identity)
        axes.plot(t, curve.flow, color=PALETTE[0], marker="o", label="flow")
        axes.axhline(curve.floor, label="floor", **floor)
        axes.set_title(plain_text(name, 28))
        axes.set_xlabel("time $t$ (frames)")
        axes.set_ylim(bottom=0)
        draw_grid(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("error per frame\n(sum over pixels)")
    for axes in list(panels.flat)[len(curves) :]:
        axes.set_axis_off()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4 if columns > 1 else 2)
    return figure
