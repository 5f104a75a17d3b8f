"""Checks of option values, shared by methods and gradients."""

from __future__ import annotations

import math


def positive_int(where: str, value: object) -> None:
    """Refuse what is not an integer of at least 1 (a bool is not an integer)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where} must be an integer >= 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{where} must be an integer >= 1, got {value}")


def step_counts(where: str, value: object) -> None:
    """Refuse what is not a positive integer or a tuple of them."""
    if not isinstance(value, tuple):
        positive_int(where, value)
        return
    if not value:
        raise ValueError(f"{where} is an empty tuple; give one integer, or one per interval")
    for i, n in enumerate(value):
        positive_int(f"{where}[{i}]", n)


def positive_float(where: str, value: object) -> None:
    """Refuse what is not a finite number above 0."""
    if isinstance(value, str):
        # YAML 1.1 reads 1e-5, without a dot, as text: the commonest way to end up here.
        raise TypeError(
            f"{where} must be a positive number, got the text {value!r}; "
            "in YAML write a number with a dot, such as 1.0e-5"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{where} must be a positive number, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where} must be positive and finite, got {value}")
