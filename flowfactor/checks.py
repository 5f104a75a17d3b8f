"""Checks of arguments from Python: what is wrong, what it is, what is allowed, what to do.

Public functions call these once, where a value enters. Nothing here is called in a training step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Rounding of pixels that were resized, or stored in half precision.
_ROUNDING = 0.01


def kind_of(value: Any) -> str:
    """Return what a value is, in a few words: its type, and dtype and shape where it has them.

    Example:
        >>> import numpy, torch
        >>> kind_of(torch.zeros(2, 3)), kind_of(numpy.zeros(4)), kind_of([1, 2]), kind_of("seven")
        ('a tensor (2, 3) of float32', 'a numpy array (4,) of float64', 'a list of 2', "'seven'")
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        module = type(value).__module__.partition(".")[0]
        name = "tensor" if isinstance(value, Tensor) else f"{module} array"
        return f"a {name} {_sizes(value.shape)} of {_plain(value.dtype)}"
    if value is None or isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Sequence):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def check_type(name: str, value: Any, allowed: type | tuple[type, ...], wanted: str = "") -> None:
    """Require an object of a type.

    Raises:
        TypeError: it is of another one; the message names the argument.
    """
    if not isinstance(value, allowed):
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        wanted = wanted or " or ".join(f"a {kind.__name__}" for kind in kinds)
        raise TypeError(f"{name} must be {wanted}; it is {kind_of(value)}")


def check_method(name: str, value: Any, method: str) -> None:
    """Require an object that has a method.

    Raises:
        TypeError: it has none; the message names the argument.
    """
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise TypeError(f"{name} must have a method {method}; it is {kind_of(value)}")


def check_integer(name: str, value: Any, low: float = 1, high: float = math.inf) -> None:
    """Require an integer in ``[low, high]``.

    Raises:
        TypeError: it is no integer; the message names the argument.
        ValueError: it is out of range.
    """
    limit = f"at least {low}" if high == math.inf else f"in {low}..{high}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, {limit}; it is {kind_of(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {limit}; it is {int(value)}")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Require a finite number in ``[low, high]``.

    Raises:
        TypeError: it is no number; the message names the argument.
        ValueError: it is not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number; it is {kind_of(value)}")
    if not (math.isfinite(value) and low <= value <= high):
        limit = f" in [{low:g}, {high:g}]" if (low, high) != (-math.inf, math.inf) else ""
        raise ValueError(f"{name} must be a finite number{limit}; it is {value}")


def check_tensor(
    name: str,
    value: Any,
    shape: Sequence[str | int],
    like: Tensor | None = None,
    *,
    pixels: bool = False,
    values: bool = True,
) -> None:
    """Require a tensor of floating-point numbers that a model can take.

    Args:
        name: of the argument.
        value: what was given.
        shape: the sizes; a letter is any size from 1.
        like: has the dtype and the device; None: any. Under autocast any dtype goes.
        pixels: whether values are in [0, 1].
        values: whether to look at the values, which must be finite.

    Raises:
        TypeError: no tensor, or another dtype; the message names the argument and says what to do.
        ValueError: another shape, an empty one, another device, values that are not allowed.
    """
    dtype = _plain(like.dtype) if like is not None else "floating-point numbers"
    wanted = f"{name} must be a tensor {_sizes(shape)} of {dtype}" + " in [0, 1]" * pixels
    if not isinstance(value, Tensor):
        target = "" if like is None else f", dtype={like.dtype}"
        hint = f"make one: torch.as_tensor({name}{target})"
        raise TypeError(f"{wanted}; it is {kind_of(value)}: {hint}")
    if not value.is_floating_point():
        scaled = f"{name}.float() / 255" if pixels and value.dtype == torch.uint8 else ""
        hint = f": convert it, {scaled}" if scaled else ""
        raise TypeError(f"{wanted}; it is {kind_of(value)}{hint}")
    if value.ndim != len(shape) or any(
        size < 1 if isinstance(want, str) else size != want
        for size, want in zip(value.shape, shape, strict=False)
    ):
        missing = value.ndim == len(shape) - 1 and isinstance(shape[0], str)
        hint = f": the batch dimension is missing, {name}[None] has one" if missing else ""
        raise ValueError(f"{wanted}; it is {kind_of(value)}{hint}")
    if like is not None and value.device != like.device:
        hint = f"move it, {name}.to({str(like.device)!r})"
        raise ValueError(f"{wanted} on {like.device}; it is on {value.device}: {hint}")
    if like is not None and value.dtype != like.dtype and not _autocasts(value):
        raise TypeError(f"{wanted}; it is {kind_of(value)}: convert it, {name}.to({like.dtype})")
    if values:
        _check_values(wanted, name, value, pixels)


def _check_values(wanted: str, name: str, value: Tensor, pixels: bool) -> None:
    try:
        low, high = (float(bound) for bound in torch.aminmax(value.detach()))
    except RuntimeError:  # no values: under torch.func.vmap, or on the meta device
        return
    # NaN is both the least and the greatest of values that hold one.
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = ~value.detach().isfinite()
        place = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must be finite; {int(bad.sum())} of {value.numel()} values are not, the first "
            f"at {place} (it is {kind_of(value)})"
        )
    if pixels and not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        hint = ": divide it by 255" if low >= 0 and 2 < high <= 255 else ""
        raise ValueError(f"{wanted}; its values are in [{low:g}, {high:g}]{hint}")


def check_indices(name: str, value: Tensor, count: int) -> None:
    """Require numbers of samples: integers ``(n,)``, at least one, each in ``0..count-1``.

    Raises:
        TypeError, ValueError: they are not; the message names the argument.
    """
    wanted = f"{name} must be integers (n,) in 0..{count - 1}, at least one"
    whole = not (value.dtype == torch.bool or value.is_floating_point() or value.is_complex())
    if value.numel() and not whole:
        raise TypeError(f"{wanted}; it is {kind_of(value)}")
    if value.ndim != 1 or not len(value):
        raise ValueError(f"{wanted}; it is {kind_of(value)}")
    low, high = (int(bound) for bound in torch.aminmax(value))
    if low < 0 or high >= count:
        raise ValueError(f"{wanted}; they are in {low}..{high}")


def check_names(name: str, names: Any) -> None:
    """Require different, non-empty texts.

    Raises:
        TypeError: something else than a sequence of texts; the message names the argument.
        ValueError: an empty text, or one that repeats.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"{name} must be a sequence of texts, ('a', 'b'); it is {kind_of(names)}")
    for each in names:
        check_type(f"each of {name}", each, str, "a text")
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"{name} must be different texts, none empty; they are {brief(names)}")


def check_times(t: Any, *, ordered: bool = True, each: bool = False) -> None:
    """Require a time, or times ``(T,)``, finite.

    Args:
        t: the times.
        ordered: whether they must increase, or decrease.
        each: whether a tensor ``(B, T)``, times of each sample, is allowed; the flow checks them.

    Raises:
        TypeError: no numbers.
        ValueError: times that are not finite, none, in no order or of another shape than ``(T,)``.
    """
    if each and isinstance(t, Tensor) and t.ndim == 2 and t.shape[1]:
        return
    wanted = "t must be a number, or times (T,)" + " that increase or decrease" * ordered
    try:
        times = torch.as_tensor(t)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{wanted}; it is {kind_of(t)}") from None
    if times.is_complex() or times.dtype == torch.bool:
        raise TypeError(f"{wanted}; it is {kind_of(t)}")
    if times.ndim > 1 or not times.numel():
        raise ValueError(f"{wanted}; t has the shape {tuple(times.shape)}")
    try:
        values = [float(value) for value in times.detach().reshape(-1).tolist()]
    except RuntimeError:  # no values: under torch.func.vmap
        return
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{wanted}, all finite; they are {brief(values)}")
    steps = [b - a for a, b in itertools.pairwise(values)]
    if ordered and not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        raise ValueError(f"{wanted}, none twice: sort them; they are {brief(values)}")


def brief(values: Sequence[Any], most: int = 10) -> str:
    """Return the first of some values for a message.

    Example:
        >>> brief(["a", "b", "c"], most=2), brief([0.5, 1.0])
        ("['a', 'b', ...]", '[0.5, 1]')
    """
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else repr(v)[:80] for v in values[:most])
    return f"[{shown}{', ...' if len(values) > most else ''}]"


def _sizes(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _plain(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _autocasts(value: Tensor) -> bool:
    return torch.is_autocast_enabled(value.device.type)
