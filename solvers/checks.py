"""Checks of what a caller hands in, and of what a vector field returns."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from solvers.registry import Registry, suggest
from solvers.surroundings import name_field
from solvers.types import Parts, State, Stats, VectorField

TRIAL_EVALUATIONS = 4

Options = TypeVar("Options")


# ---- options


def check_positive_int(where: str, value: object) -> None:
    """Refuse what is not an integer of at least 1 (a bool is not an integer)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where} must be an integer >= 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{where} must be an integer >= 1, got {value}")


def check_positive(where: str, value: object) -> None:
    """Refuse what is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        # YAML 1.1 reads 1e-5, without a dot, as text: the commonest way to end up here.
        hint = "; in YAML write a dot: 1.0e-5" if isinstance(value, str) else ""
        raise TypeError(f"{where} must be a positive number, got {value!r}{hint}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where} must be positive and finite, got {value}")


def check_finite(where: str, value: object) -> None:
    """Refuse what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{where} must be finite numbers, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{where} must be finite numbers, got {value}")


def check_kind(where: str, value: object, kind: type, example: str) -> None:
    """Refuse what is not an instance of ``kind``.

    Args:
        where: the name of the argument.
        value: what was given.
        kind: its class.
        example: an instance as one would write it, for the message.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{where} must be a {kind.__name__} such as {example}, got {value!r}")


def build(registry: Registry[type[Options]], name: str, options: Mapping[str, Any]) -> Options:
    """Return the registered class called ``name``, made with its options.

    Raises:
        ValueError: an unknown name (``UnknownNameError``) or option, or a value out of range.
        TypeError: a value of the wrong type.
    """
    cls = registry[name]
    allowed = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in options:
        if key not in allowed:
            raise ValueError(
                f"the {registry.kind} {name!r} has no option {key!r}; {suggest(key, allowed)}"
            )
    return cls(**options)


# ---- arguments of solve


def check_state(z0: object) -> Parts:
    """Return the parts of a state: one tensor of real or complex numbers, or a tuple of such."""
    parts = z0 if isinstance(z0, tuple) else (z0,)
    for i, part in enumerate(parts):
        where = f"z0[{i}]" if isinstance(z0, tuple) else "z0"
        if not isinstance(part, Tensor):
            kind = "a tensor" if isinstance(z0, tuple) else "a tensor or a tuple of tensors"
            raise TypeError(f"{where} must be {kind}, got {type(part).__name__}")
        if real_dtype(part.dtype) not in (torch.float32, torch.float64):
            raise TypeError(
                f"{where} must be float32, float64, complex64 or complex128, got {part.dtype}; "
                f"integrate {where}.float(), and convert the result"
            )
        real, first = real_dtype(part.dtype), real_dtype(parts[0].dtype)
        if real != first or part.device != parts[0].device:
            raise ValueError(
                f"{where} is {part.dtype} on {part.device}, but z0[0] is {parts[0].dtype} on "
                f"{parts[0].device}; all tensors of a state must agree in precision and device"
            )
    if not parts:
        raise ValueError("z0 is an empty tuple; give at least one tensor")
    return parts


def check_times(
    ts: Tensor | Sequence[float | int | Tensor], like: Tensor
) -> tuple[Float[Tensor, "*b n"], list[float]]:
    """Return the output times in the precision and on the device of ``like``, and on the host."""
    times = convert_times("ts", ts, like)
    if isinstance(ts, Tensor) and times.ndim == 2 and len(like.shape) and times.shape[1]:
        check_sample_times(times, like)
        return times, [math.nan] * times.shape[1]
    if times.ndim != 1 or not len(times):
        raise ValueError(
            f"ts must be one-dimensional with at least one time, got shape {tuple(times.shape)}"
        )
    plain = unwrap(times)
    if plain.ndim != 1:
        raise ValueError("ts cannot differ between the samples of a vmap; put them into the field")
    if torch.compiler.is_compiling() and not isinstance(ts, Tensor):
        values = [float(t) for t in ts]  # constants, where those of a tensor would end the graph
    else:
        values = plain.tolist()
    if not all(map(math.isfinite, values)):
        raise ValueError(f"ts must be finite, got {values}")
    for i, (a, b) in enumerate(pairwise(values)):
        if a == b or (b > a) != (values[1] > values[0]):
            raise ValueError(
                f"ts must be strictly increasing or strictly decreasing in the state's "
                f"{times.dtype}, but ts[{i}] = {a} is followed by {b}"
            )
    return times, values


def check_sample_times(times: Float[Tensor, "b n"], like: Tensor) -> None:
    """Refuse times of each sample that are not as those of a single one, with NaN behind them."""
    if len(times) != len(like):
        raise ValueError(
            f"ts has a row for {len(times)} samples, but the state has {len(like)}: shapes "
            f"{tuple(times.shape)} and {tuple(like.shape)}"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(times):
        raise ValueError("ts of each sample does not work within torch.func; give shared ones")
    plain = times.detach()
    given, differences = ~plain.isnan(), plain.diff(dim=1)
    wrong = plain.isinf().any(1) | ~given[:, 0] | (given[:, 1:] & ~given[:, :-1]).any(1)
    both_ways = (differences > 0).any(1) & (differences < 0).any(1)
    wrong |= both_ways | (differences == 0).any(1)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"ts[{i}] must be strictly increasing or strictly decreasing in the state's "
            f"{times.dtype}, with NaN only behind the last time, got {plain[i].tolist()}"
        )


def convert_times(
    where: str, ts: float | Tensor | Sequence[float | int | Tensor], like: Tensor
) -> Tensor:
    """Return times as a real tensor in the precision and on the device of ``like``.

    Gradients pass through a tensor, or through the tensors among numbers.
    """
    dtype = real_dtype(like.dtype)
    try:
        if not isinstance(ts, Tensor | float | int) and any(isinstance(t, Tensor) for t in ts):
            # Made of numbers, the result would not carry the gradient of these tensors.
            return torch.stack([torch.as_tensor(t).to(like.device, dtype) for t in ts])
        kind = torch.as_tensor(ts).dtype
        if kind == torch.bool or kind.is_complex:
            raise TypeError(f"got {kind}")
        return torch.as_tensor(ts, dtype=dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{where} must be real numbers or a tensor, got {ts!r}") from error


def collect_parameters(
    field: VectorField, parameters: Iterable[Tensor] | None, gradient: object
) -> tuple[Tensor, ...]:
    """Return the tensors, each once, by which a backward integration differentiates."""
    if parameters is None:
        owner = field.__self__ if inspect.ismethod(field) else field
        if not isinstance(owner, nn.Module):
            raise ValueError(
                f"parameters: {gradient} cannot know which tensors the field depends on, as it is "
                "neither an nn.Module nor a method of one; list them, or give ()"
            )
        # A weight that somebody has replaced by a plain tensor is an attribute, no parameter.
        plain = (x for m in owner.modules() for x in vars(m).values() if isinstance(x, Tensor))
        parameters = (*owner.parameters(), *plain)
    # Listed twice, a tensor would receive its gradient twice.
    unique = {id(p): p for p in parameters}
    if isinstance(parameters, Tensor) or not all(isinstance(p, Tensor) for p in unique.values()):
        raise TypeError("parameters must be several tensors, such as (weight, bias)")
    return tuple(p for p in unique.values() if p.requires_grad)


def check_batch(z0: Parts) -> None:
    """Refuse a state whose parts do not all have the same batch in front."""
    for i, part in enumerate(z0):
        if torch._C._functorch.is_batchedtensor(part):
            raise ValueError("per_sample does not work within vmap; put the batch into the state")
        if part.ndim == 0 or len(part) != len(z0[0]):
            raise ValueError(
                f"per_sample needs the same batch in front of all parts of z0, but part {i} has "
                f"shape {tuple(part.shape)} and part 0 {tuple(z0[0].shape)}"
            )


# ---- precision

WITHOUT_FLOAT64 = {"mps"}
"""The types of devices that have no float64."""


_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of real and imaginary part; of a real type itself."""
    return _REAL.get(dtype, dtype)  # torch's own to_real would cut a compiled graph


def widest(device: torch.device) -> torch.dtype:
    """Return the most precise floating-point type that a device has."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def widen(x: Tensor) -> Tensor:
    """Return a real tensor in the most precise type that its device has."""
    return x.to(widest(x.device))


# ---- within transforms


def unwrap(x: Tensor) -> Tensor:
    """Return the plain values of a tensor, also within ``torch.func.vmap`` and the like."""
    x = x.detach()
    if torch.compiler.is_compiling():  # which sees through the transforms by itself
        return x
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def is_plain(parts: Parts) -> bool:
    """Return whether tensors are outside of transforms, graphs and forward-mode derivatives."""
    return not torch.compiler.is_compiling() and not any(
        torch._C._functorch.is_functorch_wrapped_tensor(x)
        or torch.autograd.forward_ad.unpack_dual(x).tangent is not None
        for x in parts
    )


def needs_gradient(times: Tensor) -> bool:
    """Return whether a derivative with respect to the output times may be asked for."""
    if times.requires_grad or torch.compiler.is_compiling():
        return times.requires_grad
    return bool(
        torch._C._functorch.is_functorch_wrapped_tensor(times)
        or torch.autograd.forward_ad.unpack_dual(times).tangent is not None
    )


# ---- what a field returns


class CountedField:
    """A field on parts: counted, its results checked, and kept apart from the state.

    A derivative of another shape or dtype is refused: broadcast or converted silently, it would
    change the state. A field that writes into its argument gets a copy, and the result of one that
    returns the same memory again and again is copied. Both show in the first evaluations, for which
    copies are made in any case; a field that begins to write later is refused.

    Args:
        field: the caller's field.
        z0: the caller's state.
        stats: where evaluations are counted.

    Attributes:
        backward: whether evaluations count as those of gradients; set once the integration is done.
        function: the caller's field.
        is_tuple: whether the caller's states are tuples.
        name: what to call the field in messages.
    """

    def __init__(self, field: VectorField, z0: State, stats: Stats) -> None:
        self.backward = False
        self.function = field
        self.name = name_field(field)
        self._stats = stats
        self.is_tuple = isinstance(z0, tuple)
        self._like = [(z.shape, z.dtype) for z in (z0 if isinstance(z0, tuple) else (z0,))]
        device = (z0[0] if isinstance(z0, tuple) else z0).device.type
        self._autocast = (
            torch.autocast(device, torch.get_autocast_dtype(device))
            if torch.is_autocast_enabled(device)
            else None
        )
        self._lends_copies = self._takes_copies = True
        self._first: list[Tensor] = []  # what the first evaluations returned
        self._trials = TRIAL_EVALUATIONS
        self._last: list[tuple[Tensor, int]] = []  # what the last one returned, and its version
        self._ready: tuple[Tensor, Parts, Parts] | None = None

    def __call__(self, t: Float[Tensor, "*b"], z: Parts) -> Parts:
        """Return ``dz/dt`` at ``(t, z)``, in the shapes and dtype of the state."""
        if self._ready is not None:
            (time, start, slopes), self._ready = self._ready, None
            if torch.equal(time, t) and all(map(torch.equal, start, z)):
                return slopes
        self.count(1)
        watched = not _hides_writes(z)
        lent = z if watched and not self._lends_copies else tuple(part.clone() for part in z)
        versions = [part._version for part in lent] if watched else []
        state: State = lent if self.is_tuple else lent[0]
        if self.backward and self._autocast is not None:
            with self._autocast:  # gradients are computed where autocast is off again
                value = self.function(t, state)
        else:
            value = self.function(t, state)
        if watched and versions != [part._version for part in lent]:
            if lent is z:
                raise ValueError(
                    f"{self.name} wrote into its argument z at t = {float(t.reshape(-1)[0])}, "
                    "which it had not at first; let it work on z.clone()"
                )
        elif watched and self._trials == TRIAL_EVALUATIONS:
            self._lends_copies = False
        if not self.is_tuple:
            return self._take((self._check(value, 0, ""),))
        if not isinstance(value, tuple) or len(value) != len(self._like):
            got = f"{len(value)} tensors" if isinstance(value, tuple) else type(value).__name__
            raise TypeError(
                f"field(t, z) must return a tuple of {len(self._like)} tensors, as z is one; it "
                f"returned {got}"
            )
        return self._take(tuple(self._check(v, i, f"[{i}]") for i, v in enumerate(value)))

    def count(self, evaluations: int) -> None:
        """Count evaluations."""
        if self.backward:
            self._stats.backward_evaluations += evaluations
        else:
            self._stats.evaluations += evaluations

    def remember(self, t: Tensor, z: Parts, slopes: Parts) -> None:
        """Let the next call, if it is at the same point, return what is known already."""
        self._ready = (t, z, slopes)

    def _take(self, values: Parts) -> Parts:
        """Return the values, in memory that the field will not write to."""
        if _hides_writes(values):
            return tuple(value.clone() for value in values)
        if any(value._version != version for value, version in self._last):
            raise ValueError(
                f"{self.name} wrote into a derivative that it had returned before; let it return "
                "a new tensor"
            )
        if self._trials:
            self._trials -= 1
            self._first += values
            places = [value.untyped_storage().data_ptr() for value in self._first]
            self._takes_copies = self._trials > 0 or len(set(places)) < len(places)
            if not self._trials:
                self._first = []
            return tuple(value.clone() for value in values)
        if self._takes_copies:
            return tuple(value.clone() for value in values)
        self._last = [(value, value._version) for value in values]
        return values

    def _check(self, value: object, i: int, where: str) -> Tensor:
        shape, dtype = self._like[i]
        if not isinstance(value, Tensor):
            raise TypeError(f"field(t, z){where} must be a tensor, got {type(value).__name__}")
        if value.shape != shape:
            raise ValueError(
                f"field(t, z){where} has shape {tuple(value.shape)}, but the state has shape "
                f"{tuple(shape)}; return dz/dt in the shape of z"
            )
        if value.dtype != dtype:
            if self._autocast is not None:
                return value.to(dtype)
            raise TypeError(
                f"field(t, z){where} has dtype {value.dtype}, but the state has {dtype}; "
                "convert one of them"
            )
        return value


def _hides_writes(parts: Parts) -> bool:
    """Return whether writing into tensors leaves no trace, as in inference mode."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return True
    # A loop, as this is asked twice at every evaluation.
    for x in parts:
        if x.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return True
    return False
