"""How signatures are checked while the tests run, and how to step around it."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# An int is accepted where a float is asked for, as type checkers do.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function or bound method beneath its checks: what a user without them calls."""
    inner = getattr(function, "__wrapped__", function)
    owner = getattr(function, "__self__", None)
    return inner if owner is None or inner is function else inner.__get__(owner)
