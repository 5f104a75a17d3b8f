"""Figures of several methods: how low their errors are, and how soon."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.comparison_rows import (
    Curve,
    Row,
    Spread,
    error_of,
    lowest,
    spread,
    transformations,
)
from flowfactor.diagnostics.style import (
    FAINT,
    INK,
    MUTED,
    PAGE_WIDTH,
    LineStyle,
    line_styles,
    new_figure,
    quiet_grid,
    styled,
)

# Beyond the palette, which repeats after seven; both stand apart from it in grey as well.
_MORE_COLOURS = ("#8A8A8A", "#7A4B1E", "#5B3FA0")

# Letters of a label in one line.
_LINE = 22

# Panels side by side.
_ACROSS = 4

_MEAN = "mean"

_DASHED, _FLOOR = (0, (4, 2)), "|"


def method_styles(rows: Sequence[Row]) -> list[LineStyle]:
    """Return colour, marker and dashes of each method, by its place; all differ up to 20 or so."""
    usual = line_styles([str(i) for i in range(len(rows))])
    palette = [usual[str(i)].colour for i in range(min(7, len(rows)))]
    palette += _MORE_COLOURS
    return [
        LineStyle(palette[i % len(palette)], style.marker, style.dash)
        for i, style in enumerate(usual.values())
    ]


@styled
def error_figure(rows: Sequence[Row]) -> Figure:
    """Draw the equivariance errors of all methods, a panel for each transformation and the mean.

    Each method is a dot, with bars of its standard deviation over seeds where there are several.
    A dashed line is the error of not moving at all, the lowest of all methods; a short stroke is a
    method's floor, its reconstruction error.

    Args:
        rows: from top to bottom.
    """
    names = transformations(rows)
    panels = [*names, _MEAN] if len(names) != 1 else names
    across = len(panels) if len(panels) <= _ACROSS else min(_ACROSS, -(-len(panels) // 2))
    down = -(-len(panels) // across)
    labels = [_wrapped(row.label) for row in rows]
    # In lines of text, with half a line between two labels.
    heights = np.array([label.count("\n") + 1.5 for label in labels])
    ends = heights.cumsum()
    places = ends - heights / 2
    figure = new_figure(PAGE_WIDTH, (0.125 * max(heights.sum(), 3.0) + 0.5) * down + 0.35)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for i, axes in enumerate(grid.flat):
        if i >= len(panels):
            axes.set_axis_off()
            continue
        _draw_panel(axes, rows, places, names, panels[i])
        if i + across >= len(panels):
            axes.set_xlabel("error $E$")
    grid[0, 0].set_yticks(places, labels)
    grid[0, 0].set_ylim(heights.sum() or 1.0, 0)
    figure.legend(
        handles=[
            Line2D(
                [], [], color=INK, linewidth=0.9, linestyle=_DASHED, label="identity (the lowest)"
            ),
            Line2D(
                [], [], color=MUTED, linestyle="none", marker=_FLOOR, label="floor of the method"
            ),
        ],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def _draw_panel(
    axes: Axes, rows: Sequence[Row], places: np.ndarray, names: Sequence[str], panel: str
) -> None:
    of = list(names) if panel == _MEAN and panel not in names else [panel]
    seen = []
    for y, row, style in zip(places, rows, method_styles(rows), strict=True):
        error, floor = (_mean_spread(row, of, key) for key in ("error", "floor"))
        if error is None or not math.isfinite(error.mean):
            said = "not finite" if error else "failed" if row.failed else "no result"
            axes.annotate(
                said,
                (0.02, y),
                xycoords=("axes fraction", "data"),
                va="center",
                color=MUTED,
                fontstyle="italic",
            )
            continue
        axes.axhline(y, color=FAINT, linewidth=0.5, zorder=0.3)
        if floor is not None:
            axes.plot(floor.mean, y, _FLOOR, color=MUTED, markersize=7, markeredgewidth=1.0)
        axes.errorbar(
            error.mean,
            y,
            xerr=error.deviation or None,
            color=style.colour,
            marker=style.marker,
            markersize=4,
            elinewidth=1.0,
            capsize=2.2,
            capthick=0.9,
        )
        seen += [error.mean + (error.deviation or 0.0), error.mean]
    references = [lowest(rows, name, "identity") for name in of]
    known = [value for value in references if value is not None]
    if known:
        identity = sum(known) / len(known)
        axes.axvline(identity, color=INK, linewidth=0.9, linestyle=_DASHED, zorder=0.5)
        seen.append(identity)
    if seen:
        axes.set_xlim(0, 1.06 * max(seen))
    axes.set_title(panel)
    axes.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=8)


def _mean_spread(row: Row, names: Sequence[str], key: str) -> Spread | None:
    """Return mean and deviation over seeds of what is the mean of transformations in each."""
    values = []
    for result in row.results:
        found = [error_of(result, name, key) for name in names]
        known = [value for value in found if value is not None]
        if found and len(known) == len(found):
            values.append(sum(known) / len(known))
    return spread(values)


@styled
def quality_against_time(rows: Sequence[Row]) -> Figure | None:
    """Draw validation errors against the minutes of training; None if no row has a curve.

    A line is the mean over the seeds of a method, for the time that all of them have; the curve of
    each seed is faint behind it.

    Args:
        rows: in the order of the legend.
    """
    curves = [[_finite(curve) for curve in row.curves] for row in rows]
    if not any(len(curve) for each in curves for curve in each):
        return None
    figure = new_figure(PAGE_WIDTH, max(2.6, 0.24 * len(rows) + 0.8))
    axes = figure.subplots()
    handles, values = [], []
    for place, (row, each, style) in enumerate(zip(rows, curves, method_styles(rows), strict=True)):
        drawn = [curve for curve in each if len(curve)]
        if not drawn:
            continue
        values += [value for curve in drawn for value in curve[:, 1]]
        if len(drawn) > 1:
            for curve in drawn:
                axes.plot(*curve.T, color=style.colour, linewidth=0.6, alpha=0.35)
        times, mean = _mean_curve(drawn)
        every = max(1, len(times) // 7)
        (line,) = axes.plot(
            times,
            mean,
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            # Marks of different methods are not to lie in one column.
            markevery=(place * every // max(1, len(rows)), every),
            label=_wrapped(row.label),
        )
        handles.append(line)
    _log_if_wide(axes, values)
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("validation error $E$,\nmean of the transformations")
    quiet_grid(axes)
    figure.legend(handles=handles, loc="outside right center", handlelength=3.2)
    return figure


def _finite(curve: Curve) -> np.ndarray:
    points = np.asarray(curve, dtype=float).reshape(-1, 2)
    kept: np.ndarray = points[np.isfinite(points).all(1)]
    return kept


def _mean_curve(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of curves, each linear between its points, where all of them are known."""
    start, end = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    times = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    times = times[(times >= start) & (times <= end)]
    mean = np.mean([np.interp(times, *curve.T) for curve in curves], axis=0)
    return times, mean


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if not 0 < 4 * low < high:
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    if high < 100 * low:
        # Within two decades, powers of ten alone are too few to read a value by.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, _LINE)) or label
