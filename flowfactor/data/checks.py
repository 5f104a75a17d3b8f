"""Checks that several data sets share."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from flowfactor.errors import DataError
from flowfactor.options import shorten
from solvers.registry import suggest


def check_choice(name: str, value: object, allowed: Collection[Any]) -> None:
    """Require a value to be one of those that are allowed.

    Raises:
        DataError: it is not; the message names the argument.
    """
    if value not in allowed:
        hint = suggest(value, map(str, allowed))
        raise DataError(f"{name}: unknown value {shorten(repr(value))}; {hint}.")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Require a number to be in ``[low, high]``.

    Raises:
        DataError: it is not; the message names the argument.
    """
    if not low <= value <= high:
        limit = f"at least {low}" if high == float("inf") else f"in [{low}, {high}]"
        raise DataError(f"{name} must be {limit}, but it is {value}.")


def check_distinct(name: str, values: Sequence[Any]) -> None:
    """Require one value or more, no two of them equal.

    Raises:
        DataError: they are not; the message names the argument.
    """
    if not values or len(set(values)) < len(values):
        raise DataError(
            f"{name} must be one or more, no two equal, but they are {shorten(str(list(values)))}."
        )


def check_frame_times(name: str, times: Sequence[float], count: int) -> None:
    """Require a time of each frame of a sequence, finite, the first 0 and each after the last one.

    Raises:
        DataError: they are not; the message names the argument and the first bad time.
    """
    bad = f"there are {len(times)}"
    if len(times) == count:
        wrong = (
            number
            for number, time in enumerate(times)
            if not math.isfinite(time) or (time <= times[number - 1] if number else time != 0)
        )
        if (number := next(wrong, None)) is None:
            return
        before = f", after {times[number - 1]:g}" if number else ""
        bad = f"number {number} is {times[number]:g}{before}"
    raise DataError(f"{name} must be {count} finite numbers that increase from 0, but {bad}.")
