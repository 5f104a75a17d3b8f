"""Evaluations of several methods side by side: as one table."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfactor.errors import ConfigError, RunError
from flowfactor.metrics import Equivariance, LogLikelihood, Traversals
from flowfactor.records import Evaluation, evaluation_columns
from flowfactor.tables import Column, Row, Spread, Table
from flowfactor.training import read_metrics
from solvers.registry import suggest

Curve = list[tuple[float, float]]
"""Minutes of training and the validation error then, in the order of time."""

_ERROR = "error."


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of a comparison.

    Attributes:
        label: what tables and figures call it.
        evaluations: one of each seed that is finished.
        failed: number of seeds that failed.
        curves: of each seed; may be left empty.
    """

    label: str
    evaluations: tuple[Evaluation, ...] = ()
    failed: int = 0
    curves: tuple[Curve, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the evaluations, in order."""
        return tuple(sorted(evaluation.seed for evaluation in self.evaluations))

    def spread(self, column: Column) -> Spread | None:
        """Return the numbers of a column; None if no seed has one."""
        assert column.value is not None
        values = [(each.seed, column.value(each)) for each in self.evaluations]
        known = [(seed, float(value)) for seed, value in values if value is not None]
        if not known:
            return None
        seeds, numbers = zip(*known, strict=True)
        return Spread(numbers, seeds)


# ---- columns


def _minutes(evaluation: Evaluation) -> float | None:
    seconds = evaluation.training.get("seconds")
    return None if seconds is None else seconds / 60


def _step_milliseconds(evaluation: Evaluation) -> float | None:
    steps, seconds = (evaluation.training.get(key) for key in ("steps", "seconds"))
    return 1000 * seconds / steps if steps and seconds is not None else None


_TRAINING_COLUMNS = (
    Column(
        "parameters",
        format=",.0f",
        value=lambda evaluation: evaluation.training.get("parameters"),
        deviates=False,
    ),
    Column(
        "steps",
        format=",.0f",
        value=lambda evaluation: evaluation.training.get("steps"),
        shown=False,
    ),
    Column("minutes", value=_minutes),
    Column("step_ms", "ms per step", "lower", value=_step_milliseconds),
)


def choose_columns(methods: Sequence[Method], names: Sequence[str] | None = None) -> list[Column]:
    """Return the columns of a table; their ``value`` takes an evaluation.

    Args:
        methods: of the table. Without a single evaluation nothing is known of transformations, and
            ``error.NAME`` of any name is accepted.
        names: keys of columns, in order; ``errors`` stands for one of each transformation. None is
            every column that is shown by default and that some method has a value for.

    Raises:
        ConfigError: a name is not known.
    """
    known = {column.key: column for column in _columns(methods)}
    if names is None:
        columns = known.values()
        filled = [c for c in columns if c.shown and any(method.spread(c) for method in methods)]
        return filled or [known["mean_error"]]
    errors = {key: column for key, column in known.items() if key.startswith(_ERROR)}
    chosen: dict[str, Column] = {}
    for name in names:
        if name == "errors":
            chosen |= errors
        elif name in known:
            chosen[name] = known[name]
        elif errors or not name.startswith(_ERROR):
            hint = suggest(name, ["errors", *known])
            raise ConfigError(f"columns: there is no column {name}; {hint}")
    return list(chosen.values()) or [known["mean_error"]]


def error_columns(methods: Sequence[Method]) -> list[Column]:
    """Return the column of the error of each transformation."""
    return [column for column in _columns(methods) if column.key.startswith(_ERROR)]


def metric_columns(methods: Sequence[Method], columns: Sequence[Column]) -> list[Column]:
    """Return those columns that are numbers of metrics, other than equivariance errors."""
    apart = {column.key for column in _TRAINING_COLUMNS} | {"mean_error"}
    return [
        column
        for column in columns
        if column.key not in apart and not column.key.startswith(_ERROR)
    ]


def reference_column(name: str, key: str) -> Column:
    """Return the column of the identity error or the floor of a transformation."""

    def value(evaluation: Evaluation) -> float | None:
        errors = evaluation.result(Equivariance)
        error = None if errors is None else errors.errors.get(name)
        return None if error is None else getattr(error, key)

    return Column(f"{key}.{name}", value=value)


def transformations(methods: Sequence[Method]) -> list[str]:
    """Return the transformations of all evaluations."""
    return [column.key.removeprefix(_ERROR) for column in error_columns(methods)]


def lowest(methods: Sequence[Method], column: Column) -> float | None:
    """Return the lowest mean of all methods; None if none has one."""
    spreads = filter(None, (method.spread(column) for method in methods))
    return min((each.mean for each in spreads if math.isfinite(each.mean)), default=None)


def _columns(methods: Sequence[Method]) -> list[Column]:
    evaluations = [evaluation for method in methods for evaluation in method.evaluations]
    return [*evaluation_columns(evaluations), *_TRAINING_COLUMNS]


# ---- the table


def comparison_table(
    methods: Sequence[Method], columns: Sequence[Column], title: str = ""
) -> Table:
    """Return methods below each other: means over seeds, with notes on how they were measured.

    Args:
        methods: a row each.
        columns: from :func:`choose_columns`.
        title: of the table.
    """
    most = max((len(method.evaluations) for method in methods), default=0)
    seeds = {seed for method in methods for seed in method.seeds}
    rows = []
    for method in methods:
        failed = bool(method.failed) and not method.evaluations
        values = ["failed" if failed else method.spread(column) for column in columns]
        complete = len(method.evaluations) == most and set(method.seeds) == seeds
        rows.append(Row(method.label, values, "" if failed else _footnote(method, complete)))
    notes = " ".join(_notes(methods, columns))
    return Table(columns, rows, title, "method", notes, missing="–")


def _footnote(method: Method, complete: bool) -> str:
    count = len(method.evaluations)
    if not count:
        return "Not run."
    if complete and not method.failed:
        return ""
    listed = ", ".join(map(str, method.seeds))
    text = f"Mean of seeds {listed}." if count > 1 else f"Only seed {listed}."
    if method.failed:
        text = f"{method.failed} of {count + method.failed} seeds failed. {text}"
    return text


def _notes(methods: Sequence[Method], columns: Sequence[Column]) -> list[str]:
    """Return sentences on how the numbers were measured."""
    evaluations = [evaluation for method in methods for evaluation in method.evaluations]
    if not evaluations:
        return []
    notes = []
    spreads = (method.spread(column) for column in columns if column.deviates for method in methods)
    if any(spread and spread.deviation is not None for spread in spreads):
        notes.append("± is the standard deviation over seeds.")
    seeds = sorted({evaluation.seed for evaluation in evaluations})
    split = _alternatives(evaluation.split for evaluation in evaluations)
    measured = [
        f"{split[:1].upper()}{split[1:]} split",
        f"{_alternatives(f'{evaluation.images:,}' for evaluation in evaluations)} images",
        f"frames 1 to {_alternatives(evaluation.frames for evaluation in evaluations)}",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
    ]
    bounds = [bound for each in evaluations if (bound := each.result(LogLikelihood))]
    if bounds and any(column.key.startswith("log_likelihood") for column in columns):
        measured.append(
            f"log p by {_alternatives(bound.samples for bound in bounds)} IWAE samples of each of "
            f"{_alternatives(bound.sequences for bound in bounds)} sequences, in nats per sequence"
        )
    notes.append(f"{'; '.join(measured)}.")
    for key in ("identity", "floor"):
        values = {
            name: lowest(methods, reference_column(name, key)) for name in transformations(methods)
        }
        listed = [f"{name} {value:.1f}" for name, value in values.items() if value is not None]
        if listed:
            kind = "identity error" if key == "identity" else key
            notes.append(f"Lowest {kind}: {', '.join(listed)}.")
    traversals: dict[str, dict[str, None]] = {}
    for method in methods:
        for evaluation in method.evaluations:
            if result := evaluation.result(Traversals):
                traversals.setdefault(result.chosen, {})[method.label] = None
    if len(traversals) == 1:
        (traversal,) = traversals
        notes.append(f"Methods without flows move latents by the traversal {traversal}.")
    else:
        notes += [
            f"Latents moved by the traversal {traversal}: {'; '.join(labels)}."
            for traversal, labels in traversals.items()
        ]
    hardware = dict.fromkeys(filter(None, map(_hardware, evaluations)))
    if hardware:
        notes.append(f"Trained on: {'; '.join(hardware)}.")
    return notes


def _alternatives(values: Iterable[object]) -> str:
    """Return the value that all share, or all values."""
    return " or ".join(dict.fromkeys(map(str, values)))


def _hardware(evaluation: Evaluation) -> str:
    known = evaluation.training.get("hardware", {})
    threads = known.get("threads")
    parts = [
        known.get("processor"),
        f"{threads} thread{'s' * (threads > 1)}" if threads else None,
        known.get("accelerator") if known.get("accelerator") != "none" else None,
    ]
    return ", ".join(str(part) for part in parts if part)


# ---- files


def curve_of(run: Path) -> Curve:
    """Return minutes of training and validation errors of a run, from its ``metrics.jsonl``.

    The curve is empty if the run was trained without ``training.validation_errors``.

    Raises:
        RunError: the file is damaged.
    """
    return [
        (line["seconds"] / 60, line["error"])
        for line in read_metrics(run)
        if line.get("split") == "validation" and "error" in line and "seconds" in line
    ]


def read_methods(path: Path) -> list[Method]:
    """Return the methods in a ``table.json``, or in another file of ``cells``.

    A cell has a ``label``, an ``evaluation``, and possibly a ``curve`` and a ``status``, by default
    ``finished``.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = content["cells"]
        labels = content.get("table", {}).get("methods") or [cell["label"] for cell in cells]
        return methods_of(cells, labels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} holds no table of evaluations: {error}") from error


def methods_of(cells: Iterable[Mapping[str, Any]], labels: Iterable[str]) -> list[Method]:
    """Return methods of cells as :func:`read_methods` describes them.

    Args:
        cells: in any order.
        labels: of the methods, in order; one that has no cells is a method all the same.
    """
    by_label: dict[str, list[Mapping[str, Any]]] = {label: [] for label in labels}
    for cell in cells:
        by_label.setdefault(cell["label"], []).append(cell)
    methods = []
    for label, own in by_label.items():
        done = [cell for cell in own if cell.get("status", "finished") == "finished"]
        methods.append(
            Method(
                label,
                tuple(Evaluation.from_dict(cell["evaluation"]) for cell in done),
                sum(cell.get("status") == "failed" for cell in own),
                tuple([(t, e) for t, e in cell["curve"]] for cell in done if cell.get("curve")),
            )
        )
    return methods
