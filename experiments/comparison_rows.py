"""What is put side by side: the evaluations of a method, one of each seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfactor.training import read_metrics

Result = dict[str, Any]
"""The content of an ``evaluation.json``."""

Curve = list[tuple[float, float]]
"""Minutes of training and the validation error then, in the order of time."""


@dataclass(frozen=True)
class Row:
    """One method of a comparison.

    Attributes:
        label: what tables and figures call it.
        results: evaluations, one of each seed that is finished.
        failed: how many seeds failed.
        curves: of each seed, minutes of training and validation errors; may be left empty.
    """

    label: str
    results: tuple[Result, ...]
    failed: int = 0
    curves: tuple[Curve, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the results as far as these say, in order."""
        found = {result.get("training", {}).get("seed") for result in self.results}
        return tuple(sorted(seed for seed in found if isinstance(seed, int)))


@dataclass(frozen=True)
class Spread:
    """Values of several seeds.

    Attributes:
        mean: of them.
        deviation: the standard deviation of the sample; None of a single value.
        count: how many.
    """

    mean: float
    deviation: float | None
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean and deviation of those values that are there; None if none is.

    Example:
        >>> spread([1.0, None, 3.0])
        Spread(mean=2.0, deviation=1.4142135623730951, count=2)
    """
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    if not all(map(math.isfinite, known)):
        return Spread(math.nan, None, len(known))
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, len(known))


def error_of(result: Result, name: str, key: str = "error") -> float | None:
    """Return a number of a transformation's equivariance error, None if there is none."""
    value: float | None = result.get("errors", {}).get(name, {}).get(key)
    return value


def transformations(rows: Sequence[Row]) -> list[str]:
    """Return the transformations of all results; what spare flows may have learned is left out."""
    names = (name for row in rows for result in row.results for name in result.get("errors", {}))
    return [name for name in dict.fromkeys(names) if not name.startswith("spare ")]


def lowest(rows: Sequence[Row], name: str, key: str) -> float | None:
    """Return the lowest of a number over all methods, each the mean of its seeds."""
    found = (spread(error_of(result, name, key) for result in row.results) for row in rows)
    return min((each.mean for each in found if each and math.isfinite(each.mean)), default=None)


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
