"""Named things that others may add to: methods here, models, data sets and metrics above."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_plugin: contextvars.ContextVar[str | None] = contextvars.ContextVar("plugin", default=None)


class UnknownNameError(ValueError):
    """A name that nothing is registered under."""


class Registry(Generic[T]):
    """A mapping from names to classes or functions, filled by a decorator.

    Args:
        kind: what is registered, in the singular, for error messages: ``"model"``.

    Example:
        >>> shapes = Registry[type]("shape")
        >>> @shapes.register("circle")
        ... class Circle: ...
        >>> shapes["circle"] is Circle, shapes.name_of(Circle), list(shapes)
        (True, 'circle', ['circle'])
        >>> shapes["cirlce"]
        Traceback (most recent call last):
        solvers.registry.UnknownNameError: unknown shape 'cirlce'; did you mean 'circle'? ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._plugins: dict[str, str | None] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under ``name``.

        Raises:
            ValueError: the name is taken by something else.
        """

        def decorate(item: T) -> T:
            taken = self._items.get(name)
            if taken is not None and _identity(taken) != _identity(item):
                raise ValueError(
                    f"the {self.kind} {name!r} is registered already, by {_identity(taken)}; "
                    f"choose another name"
                )
            self._items[name] = item
            self._plugins[name] = _plugin.get()
            return item

        return decorate

    def unregister(self, name: str) -> None:
        """Forget a name, such as that of an example."""
        del self._items[name], self._plugins[name]

    def name_of(self, item: object) -> str | None:
        """Return the name that an item is registered under, or None."""
        return next((name for name, each in self._items.items() if each is item), None)

    def plugin_of(self, name: str) -> str | None:
        """Return the plug-in that registered a name, or None if it is built in."""
        self[name]
        return self._plugins[name]

    def items(self) -> Iterable[tuple[str, T]]:
        """Return all pairs of a name and what it stands for, in the order of registration."""
        return self._items.items()

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except (KeyError, TypeError):
            hint = suggest(name, self._items)
            if not hint.startswith("known"):
                hint += f" Known are {', '.join(self._items)}"
            raise UnknownNameError(f"unknown {self.kind} {name!r}; {hint}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def suggest(word: object, known: Iterable[str]) -> str:
    """Return a hint for a misspelt word: the closest known one, or all of them.

    Example:
        >>> suggest("rotatoin", ["rotation", "hue"]), suggest("x", ["rotation", "hue"])
        ("did you mean 'rotation'?", 'known are rotation, hue')
    """
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"


@contextlib.contextmanager
def registering_for(plugin: str) -> Iterator[None]:
    """Attribute everything registered in this context to a plug-in."""
    token = _plugin.set(plugin)
    try:
        yield
    finally:
        _plugin.reset(token)


def _identity(item: object) -> str:
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', repr(item))}"
