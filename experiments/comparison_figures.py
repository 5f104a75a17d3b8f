"""Figures of several methods: how low their errors are, and how soon."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.comparison import (
    Curve,
    Method,
    error_columns,
    lowest,
    metric_columns,
    reference_column,
)
from experiments.samples import choose_few
from flowfactor.diagnostics.style import (
    FAINT,
    INK,
    MUTED,
    PAGE_WIDTH,
    LineStyle,
    draw_grid,
    line_styles,
    new_figure,
    plain_text,
    styled,
)
from flowfactor.names import one_line
from flowfactor.records import Evaluation
from flowfactor.tables import Column

# Beyond the palette, which repeats after seven; both stand apart from it in grey as well.
_MORE_COLOURS = ("#8A8A8A", "#7A4B1E", "#5B3FA0")

# Letters of a label or a heading in one line.
_LINE = 22

# Panels side by side.
_ACROSS = 4

_DASHED, _FLOOR = (0, (4, 2)), "|"


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A column as dots.

    Attributes:
        column: of the dots.
        title: of the panel.
        floor: a column of short strokes, if there is one.
        identity: where to draw a dashed line.
    """

    column: Column
    title: str
    floor: Column | None = None
    identity: float | None = None


def method_styles(methods: Sequence[Method]) -> list[LineStyle]:
    """Return colour, marker and dashes of each method, by its place; all differ up to 20 or so."""
    usual = line_styles([str(i) for i in range(len(methods))])
    palette = [usual[str(i)].colour for i in range(min(7, len(methods)))]
    palette += _MORE_COLOURS
    return [
        LineStyle(palette[i % len(palette)], style.marker, style.dash)
        for i, style in enumerate(usual.values())
    ]


@styled
def error_figure(methods: Sequence[Method]) -> Figure:
    """Draw the equivariance errors of all methods, a panel for each transformation and the mean.

    Each method is a dot, with bars of its standard deviation over seeds where there are several.
    Of more than ten transformations, ten are shown. A dashed line is the error of not moving at
    all, the lowest of all methods; a short stroke is a method's floor, its reconstruction error.

    Args:
        methods: from top to bottom.
    """
    panels = []
    floors, identities = [], []
    columns = error_columns(methods)
    shown = choose_few([column.key for column in columns])
    for column in columns:
        name = column.key.removeprefix("error.")
        floors.append(reference_column(name, "floor"))
        identities.append(lowest(methods, reference_column(name, "identity")))
        if column.key not in shown:
            continue
        panels.append(_Panel(column, plain_text(name, _LINE), floors[-1], identities[-1]))
    if len(columns) != 1:
        title = "mean" if len(shown) == len(columns) else f"mean of all {len(columns)}"
        known = [identity for identity in identities if identity is not None]
        mean = sum(known) / len(known) if known else None
        panels.append(_Panel(_mean_column(columns), title, _mean_column(floors), mean))
    figure = _draw_panels(methods, panels, "error $E$")
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


@styled
def column_figure(methods: Sequence[Method], columns: Sequence[Column]) -> Figure | None:
    """Draw the numbers of metrics other than equivariance errors, a panel for each.

    Args:
        methods: from top to bottom.
        columns: of the table; what is no number of a metric is left out.

    Returns:
        The figure; None if nothing is left.
    """
    panels = [
        _Panel(column, _wrap(column.title))
        for column in metric_columns(methods, columns)
        if any(method.spread(column) for method in methods)
    ]
    return _draw_panels(methods, panels) if panels else None


def _mean_column(columns: Sequence[Column]) -> Column:
    """Return the column of the means of those columns that an evaluation has numbers for."""

    def value(evaluation: Evaluation) -> float | None:
        numbers = [column.value(evaluation) for column in columns if column.value]
        known = [number for number in numbers if number is not None]
        return sum(known) / len(known) if known and len(known) == len(numbers) else None

    return Column("mean", value=value)


def _draw_panels(methods: Sequence[Method], panels: Sequence[_Panel], xlabel: str = "") -> Figure:
    """Draw panels whose rows are the methods."""
    across = len(panels) if len(panels) <= _ACROSS else min(_ACROSS, -(-len(panels) // 2))
    down = -(-len(panels) // across)
    labels = [_wrap(method.label) for method in methods]
    # In lines of text, with half a line between two labels.
    heights = np.array([label.count("\n") + 1.5 for label in labels])
    centres = heights.cumsum() - heights / 2
    titles = 0.125 * max(panel.title.count("\n") for panel in panels)
    height = (0.125 * max(heights.sum(), 3.0) + 0.5 + titles) * down + 0.35
    figure = new_figure(PAGE_WIDTH, height)
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for i, axes in enumerate(grid.flat):
        if i >= len(panels):
            axes.set_axis_off()
            continue
        _draw_panel(axes, methods, centres, panels[i])
        if i + across >= len(panels):
            axes.set_xlabel(xlabel)
    grid[0, 0].set_yticks(centres, labels)
    grid[0, 0].set_ylim(heights.sum() or 1.0, 0)
    return figure


def _draw_panel(axes: Axes, methods: Sequence[Method], centres: np.ndarray, panel: _Panel) -> None:
    ends = []
    for y, method, style in zip(centres, methods, method_styles(methods), strict=True):
        spread = method.spread(panel.column)
        if spread is None or not math.isfinite(spread.mean):
            text = "not finite" if spread else "failed" if method.failed else "no result"
            axes.annotate(
                text,
                (0.02, y),
                xycoords=("axes fraction", "data"),
                va="center",
                color=MUTED,
                fontstyle="italic",
            )
            continue
        axes.axhline(y, color=FAINT, linewidth=0.5, zorder=0.3)
        floor = method.spread(panel.floor) if panel.floor else None
        if floor is not None:
            axes.plot(floor.mean, y, _FLOOR, color=MUTED, markersize=7, markeredgewidth=1.0)
        axes.errorbar(
            spread.mean,
            y,
            xerr=spread.deviation or None,
            color=style.colour,
            marker=style.marker,
            markersize=4,
            elinewidth=1.0,
            capsize=2.2,
            capthick=0.9,
        )
        ends += [spread.mean - (spread.deviation or 0.0), spread.mean + (spread.deviation or 0.0)]
    if panel.identity is not None:
        axes.axvline(panel.identity, color=INK, linewidth=0.9, linestyle=_DASHED, zorder=0.5)
        ends.append(panel.identity)
    if ends and min(ends) >= 0:
        axes.set_xlim(0, 1.06 * max(ends) or 1.0)
    axes.set_title(panel.title)
    axes.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=3))
    percent = "%" if panel.column.format.endswith("%") else ""
    scale = 100 if percent else 1
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{scale * x:,g}{percent}"))
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=8)


@styled
def time_figure(methods: Sequence[Method]) -> Figure | None:
    """Draw validation errors against the minutes of training; None if no method has a curve.

    A line is the mean over the seeds of a method, for the time that all of them have; the curve of
    each seed is faint behind it.

    Args:
        methods: in the order of the legend.
    """
    curves = [[_finite(curve) for curve in method.curves] for method in methods]
    if not any(len(curve) for own in curves for curve in own):
        return None
    figure = new_figure(PAGE_WIDTH, max(2.6, 0.24 * len(methods) + 0.8))
    axes = figure.subplots()
    handles, values = [], []
    styles = method_styles(methods)
    for i, (method, own, style) in enumerate(zip(methods, curves, styles, strict=True)):
        drawn = [curve for curve in own if len(curve)]
        if not drawn:
            continue
        values += [value for curve in drawn for value in curve[:, 1]]
        if len(drawn) > 1:
            for curve in drawn:
                axes.plot(*curve.T, color=style.colour, linewidth=0.6, alpha=0.35)
        times, mean = _mean_curve(drawn)
        spacing = max(1, len(times) // 7)
        (line,) = axes.plot(
            times,
            mean,
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            # Markers of different methods do not lie in one column.
            markevery=(i * spacing // len(methods), spacing),
            label=_wrap(method.label),
        )
        handles.append(line)
    _log_if_wide(axes, values)
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("validation error $E$,\nmean of the transformations")
    draw_grid(axes)
    figure.legend(handles=handles, loc="outside right center", handlelength=3.2)
    return figure


def _finite(curve: Curve) -> np.ndarray:
    points = np.asarray(curve, dtype=float).reshape(-1, 2)
    finite: np.ndarray = points[np.isfinite(points).all(1)]
    return finite


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


def _wrap(label: str) -> str:
    """Return a label of a few short lines."""
    return "\n".join(map(plain_text, textwrap.wrap(one_line(label, 4 * _LINE), _LINE)))
