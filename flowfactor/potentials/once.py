"""Properties that are computed when first read, and then kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801 (used as a decorator, like property)
    """``functools.cached_property`` without the lock of Python 3.11, which ``torch.compile`` and
    ``torch.func`` cannot see through.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.key = function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: Any = None) -> once[T]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> T: ...
    def __get__(self, instance: object | None, owner: Any = None) -> once[T] | T:
        """Compute and keep the value; from then on the instance's own attribute is found first."""
        if instance is None:
            return self
        value = self.function(instance)
        setattr(instance, self.key, value)
        return value
