"""Training curves from a run's ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flowfactor.diagnostics.style import (
    MUTED,
    PAGE_WIDTH,
    PALETTE,
    draw_grid,
    new_figure,
    plain_text,
    styled,
)

Row = Mapping[str, Any]

_NATS = ("loss", "reconstruction", "kl", "path_kl")
_NOT_TERMS = ("step", "split", "seconds", "epoch")
_TITLES = {"kl": "KL", "path_kl": "path KL", "hamilton_jacobi": "Hamilton–Jacobi"}


@styled
def plot_training(rows: Sequence[Row]) -> Figure:
    """Draw every term of the loss over the steps of a training, each in a panel of its own scale.

    Training is a faint line under its running mean, validation a line with marks. A positive term
    that changes by more than a factor of 5 has a logarithmic axis. Terms are weighted and per
    sequence.

    Args:
        rows: the lines of a run's ``metrics.jsonl``, as :func:`flowfactor.training.read_metrics`
            reads them: each has the keys ``step`` and ``split`` (``train`` or ``validation``) and
            a number for each term.

    Raises:
        ValueError: no row has a term, or one lacks ``step`` or ``split``.
    """
    for place, row in enumerate(rows, start=1):
        if not {"step", "split"} <= row.keys():
            raise ValueError(f"row {place} of the metrics lacks 'step' or 'split': {dict(row)}")
    terms = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in _NOT_TERMS and _series(rows, key, None)[1].size
    ]
    if not terms:
        raise ValueError("no row of the metrics has a number for any term")
    # The learning rate explains the others, and is no term of the loss.
    terms.sort(key=lambda term: term == "learning_rate")
    columns = min(3, len(terms))
    lines = -(-len(terms) // columns)
    figure = new_figure(PAGE_WIDTH * columns / 3, 1.65 * lines + 0.3)
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(terms):
            axes.set_axis_off()
            continue
        _draw_term(axes, rows, terms[place])
        if place + columns >= len(terms):
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _series(rows: Sequence[Row], term: str, split: str | None) -> tuple[np.ndarray, np.ndarray]:
    points = [
        (row["step"], row[term])
        for row in rows
        if split in (None, row["split"]) and isinstance(row.get(term), (int, float))
    ]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _draw_term(axes: Axes, rows: Sequence[Row], term: str) -> None:
    steps, values = _series(rows, term, "train")
    noisy = term != "learning_rate" and len(values) >= 20
    if values.size:
        axes.plot(
            steps,
            values,
            color=PALETTE[0],
            linewidth=0.7 if noisy else 1.3,
            alpha=0.35 if noisy else 1.0,
            label=None if noisy else "training",
        )
    if noisy:
        window = max(3, len(values) // 20)
        mean = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(
            steps[window - 1 :],
            mean,
            color=PALETTE[0],
            label=f"training (mean of {window} values)",
        )
    checked, validated = _series(rows, term, "validation")
    if validated.size and term != "learning_rate":
        axes.plot(
            checked,
            validated,
            color=PALETTE[1],
            linestyle=(0, (5, 1.6)),
            marker="s",
            markersize=3,
            markevery=max(1, len(validated) // 10),
            label="validation",
        )
    both = np.concatenate([values, validated])
    finite = both[np.isfinite(both)]
    if term != "learning_rate" and finite.size and 0 < 5 * finite.min() < finite.max():
        axes.set_yscale("log")
        if finite.max() < 100 * finite.min():
            # Within two decades, powers of ten alone are too few to read a value by.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    unit = " (nats)" if term in _NATS else ""
    axes.set_title(_TITLES.get(term, plain_text(term.replace("_", " "), 28)) + unit)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if not finite.size:
        axes.text(0.5, 0.5, "not finite", transform=axes.transAxes, ha="center", color=MUTED)
    draw_grid(axes)
