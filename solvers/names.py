"""Methods and gradients by name, for configuration files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from solvers.gradients import Adjoint, Checkpoint, Direct, Gradient
from solvers.methods import (
    RK4,
    AdaptiveHeun,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Heun,
    Method,
    Midpoint,
    TorchDiffEq,
)

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (Euler, Midpoint, Heun, RK4, Dopri5, Bosh3, AdaptiveHeun, Dopri8, TorchDiffEq)
}
GRADIENTS: dict[str, type[Gradient]] = {cls.name: cls for cls in (Direct, Checkpoint, Adjoint)}

_Options = TypeVar("_Options", Method, Gradient)


def method_from_name(name: str, **options: Any) -> Method:
    """The method of that name, with its options.

    Args:
        name: ``euler``, ``midpoint``, ``heun``, ``rk4``, ``dopri5``, ``bosh3``, ``adaptive_heun``,
            ``dopri8`` or ``torchdiffeq``.
        options: the fields of the class: ``steps`` (an integer, or a list or tuple of one per
            output interval), or ``rtol``, ``atol`` and ``max_steps``; for ``torchdiffeq`` all of
            these, ``solver`` and ``options``.

    Raises:
        ValueError: an unknown name or option (the message lists those allowed), or a value that is
            out of range.
        TypeError: a value of the wrong type.

    >>> method_from_name("rk4", steps=[1, 2])
    RK4(steps=(1, 2))
    """
    if isinstance(options.get("steps"), list):  # YAML has no tuples
        options["steps"] = tuple(options["steps"])
    return _build("method", METHODS, name, options)


def gradient_from_name(name: str, **options: Any) -> Gradient:
    """The gradient of that name, with its options.

    Args:
        name: ``direct``, ``checkpoint`` or ``adjoint``.
        options: the fields of the class: none; ``every``; or ``rtol``, ``atol``, ``seminorm`` and
            ``method`` (a method, its name, or a mapping of its name and options).

    Raises:
        ValueError: an unknown name or option (the message lists those allowed), or a value that is
            out of range.
        TypeError: a value of the wrong type.

    >>> gradient_from_name("adjoint", method={"name": "dopri5", "rtol": 0.001}).method.rtol
    0.001
    """
    method = options.get("method")
    if isinstance(method, Mapping):
        if "name" not in method:
            raise ValueError(f"the method of gradient {name!r} has no name, got {dict(method)}")
        options["method"] = method_from_name(**method)
    elif isinstance(method, str):
        options["method"] = method_from_name(method)
    return _build("gradient", GRADIENTS, name, options)


def to_dict(options: Method | Gradient) -> dict[str, Any]:
    """Name and options as plain numbers, texts, lists and dicts, to be written to a file.

    The inverse of :func:`method_from_name` and :func:`gradient_from_name`:
    ``method_from_name(**to_dict(method)) == method``.

    >>> from solvers import RK4
    >>> to_dict(RK4(steps=2))
    {'name': 'rk4', 'steps': 2}
    """
    result: dict[str, Any] = {"name": options.name}
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Method):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        result[field.name] = value
    return result


def _build(
    kind: str, classes: dict[str, type[_Options]], name: str, options: dict[str, Any]
) -> _Options:
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"unknown {kind} {name!r}; allowed are {', '.join(classes)}")
    allowed = [field.name for field in fields(classes[name])]
    for key in options:
        if key not in allowed:
            raise ValueError(
                f"{kind} {name!r} has no option {key!r}; allowed are {', '.join(allowed) or 'none'}"
            )
    return classes[name](**options)
