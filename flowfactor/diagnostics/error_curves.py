"""Equivariance error over time, between doing nothing and the best the decoder can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from flowfactor.diagnostics.style import (
    INK,
    PAGE_WIDTH,
    PALETTE,
    new_figure,
    quiet_grid,
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

    flow: Float[np.ndarray, "t"]
    identity: Float[np.ndarray, "t"]
    floor: float

    @classmethod
    def of(cls, values: ErrorCurve | Mapping[str, Any]) -> ErrorCurve:
        """Return the curve of a mapping with the keys ``flow``, ``identity`` and ``floor``.

        Example:
            >>> ErrorCurve.of({"flow": [2, 3], "identity": [5, 9], "floor": 1}).flow
            array([2., 3.])
        """
        if isinstance(values, ErrorCurve):
            return values
        missing = {"flow", "identity", "floor"} - values.keys()
        if missing:
            raise ValueError(f"an error curve lacks {', '.join(sorted(missing))}")
        flow, identity = (np.asarray(values[key], dtype=float) for key in ("flow", "identity"))
        if flow.ndim != 1 or flow.shape != identity.shape or not flow.size:
            raise ValueError(
                f"flow and identity must be two curves (T,) of one length; their shapes are "
                f"{flow.shape} and {identity.shape}"
            )
        curve = cls(flow, identity, float(values["floor"]))
        if not (np.isfinite(flow).all() and np.isfinite(identity).all()):
            raise ValueError("an error curve has a value that is not finite")
        return curve


@styled
def plot_errors(
    errors: Mapping[str, ErrorCurve | Mapping[str, Any]],
    *,
    times: Sequence[float] | None = None,
    horizon: float | None = None,
) -> Figure:
    """Draw the error of each frame over time, one panel for each transformation.

    The flow's error lies between two references: above the floor, which is the reconstruction
    error of frame 0, and well below the error of not moving at all.

    Args:
        errors: a curve for each transformation.
        times: of the frames, ``(T,)``; default 1..T.
        horizon: the last frame of the training; what is beyond has a grey ground.

    Raises:
        ValueError: no curve, or curves that do not match each other or the times.
    """
    curves = {name: ErrorCurve.of(values) for name, values in errors.items()}
    if not curves:
        raise ValueError("there are no error curves to draw")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(max(3.3, PAGE_WIDTH * columns / 3), 1.9 * rows + 0.3)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        t = np.arange(1, len(curve.flow) + 1) if times is None else np.asarray(times, dtype=float)
        if t.shape != curve.flow.shape:
            raise ValueError(
                f"{name} has errors of {len(curve.flow)} frames, but there are {t.size} times"
            )
        if horizon is not None and t[-1] > horizon:
            axes.axvspan(horizon, t[-1], color="#EFEFEF", linewidth=0, label="beyond training")
        axes.plot(
            t, curve.identity, color=INK, linestyle=(0, (5, 1.6)), label="identity ($z_t = z_0$)"
        )
        axes.plot(t, curve.flow, color=PALETTE[0], marker="o", label="flow")
        axes.axhline(
            curve.floor, color=INK, linewidth=0.9, linestyle=(0, (1.2, 1.2)), label="floor"
        )
        axes.set_title(name)
        axes.set_xlabel("time $t$ (frames)")
        axes.set_ylim(bottom=0)
        quiet_grid(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("error per frame\n(sum over pixels)")
    for axes in list(panels.flat)[len(curves) :]:
        axes.set_axis_off()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4 if columns > 1 else 2)
    return figure
