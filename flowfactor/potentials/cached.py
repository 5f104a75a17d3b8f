"""Values that are computed once, when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached_property(Generic[T]):  # noqa: N801 (stands for the one of functools)
    """As :func:`functools.cached_property`, without a lock, which would cut a compiled graph.

    Python has no lock there either from 3.12 on.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        value = self.function(instance)
        # From now on found on the instance, as this class has no __set__.
        setattr(instance, self.name, value)
        return value
