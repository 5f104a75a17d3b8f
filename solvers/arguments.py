"""Checks of what a caller hands to ``solve``, with messages that say how to put it right."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from solvers._validate import positive_int
from solvers.control import underlying
from solvers.field import Field
from solvers.gradients import Adjoint, Checkpoint, Direct, Gradient
from solvers.methods import AdaptiveMethod, FixedMethod, Method, TorchDiffEq
from solvers.solution import State


def check_state(z0: object) -> None:
    """Refuse a state that is not one float32 or float64 tensor, or a tuple of such."""
    if isinstance(z0, Tensor):
        _check_dtype("z0", z0)
        return
    if not isinstance(z0, tuple):
        raise TypeError(f"z0 must be a tensor or a tuple of tensors, got {type(z0).__name__}")
    if not z0:
        raise ValueError("z0 is an empty tuple; give at least one tensor")
    for i, part in enumerate(z0):
        if not isinstance(part, Tensor):
            raise TypeError(f"z0[{i}] must be a tensor, got {type(part).__name__}")
        _check_dtype(f"z0[{i}]", part)
        if part.dtype != z0[0].dtype or part.device != z0[0].device:
            raise ValueError(
                f"z0[{i}] is {part.dtype} on {part.device}, but z0[0] is {z0[0].dtype} on "
                f"{z0[0].device}; all tensors of a state must agree"
            )


def _check_dtype(where: str, z: Tensor) -> None:
    if z.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"{where} is {z.dtype}, in which the sums of an integration lose their digits; "
            f"integrate {where}.float() and convert the result"
        )
    if z.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{where} must be float32 or float64, got {z.dtype}")


def checked_times(
    ts: Tensor | Sequence[float | int | Tensor], like: Tensor
) -> tuple[Float[Tensor, " n"], list[float]]:
    """The output times in dtype and on the device of ``like``, and the same on the host."""
    times = _as_times(ts, like)
    if times.ndim != 1:
        raise ValueError(f"ts must be one-dimensional, got shape {tuple(times.shape)}")
    plain = underlying(times)
    if plain.ndim != 1:
        raise ValueError("ts cannot differ between the samples of a vmap; put them into the field")
    if torch.compiler.is_compiling() and not isinstance(ts, Tensor):
        values = [float(t) for t in ts]  # constants, where those of a tensor would end the graph
    else:
        values = plain.tolist()
    if not values:
        raise ValueError("ts is empty; give at least the start time")
    for i, t in enumerate(values):
        if not math.isfinite(t):
            raise ValueError(f"ts[{i}] is {t}; all times must be finite")
    if len(values) > 1:
        increases = values[1] > values[0]
        for i, (a, b) in enumerate(pairwise(values)):
            if a == b:
                raise ValueError(
                    f"ts[{i}] and ts[{i + 1}] are both {a} in the state's {times.dtype}; "
                    "times must not repeat"
                )
            if (b > a) != increases:
                raise ValueError(
                    "ts must be strictly increasing or strictly decreasing, but it turns at "
                    f"ts[{i}] = {a}, ts[{i + 1}] = {b}"
                )
    return times, values


def _as_times(ts: Tensor | Sequence[float | int | Tensor], like: Tensor) -> Tensor:
    if isinstance(ts, Tensor):
        if ts.dtype == torch.bool or ts.is_complex():
            raise TypeError(f"ts must hold real numbers, got {ts.dtype}")
        return ts.to(like.device, like.dtype)
    try:
        if any(isinstance(t, Tensor) for t in ts):
            # Made of numbers, the result would not carry the gradient of these tensors.
            return torch.stack([torch.as_tensor(t).to(like.device, like.dtype) for t in ts])
        return torch.as_tensor(ts, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"ts must be a tensor or a sequence of numbers, got {ts!r}") from error


def check_method(method: object, intervals: int, where: str = "method") -> None:
    """Refuse what is not a method, and steps that do not match the number of intervals."""
    if isinstance(method, str):
        raise TypeError(
            f"{where} must be a method such as RK4(steps=2), got the text {method!r}; "
            "method_from_name turns names into methods"
        )
    if isinstance(method, type) and issubclass(method, Method):
        name = method.__name__
        raise TypeError(f"{where} is the class {name}; give an instance, {name}()")
    is_concrete = type(method) not in (FixedMethod, AdaptiveMethod)
    if not isinstance(method, FixedMethod | AdaptiveMethod | TorchDiffEq) or not is_concrete:
        raise TypeError(f"{where} must be a method such as RK4(steps=2), got {method!r}")
    steps = 1 if isinstance(method, AdaptiveMethod) else method.steps
    if isinstance(steps, tuple) and len(steps) != intervals:
        raise ValueError(
            f"{where}.steps has {len(steps)} entries, but ts has {intervals} intervals; "
            "give one integer, or one per interval"
        )


def limited(method: Method, max_steps: int | None, intervals: int) -> Method:
    """The method with its number of steps limited."""
    if max_steps is None:
        return method
    positive_int("max_steps", max_steps)
    if isinstance(method, AdaptiveMethod) or (
        isinstance(method, TorchDiffEq) and method.kind != "fixed"
    ):
        return replace(method, max_steps=max_steps)
    assert isinstance(method, FixedMethod | TorchDiffEq)
    needed = method.steps * intervals if isinstance(method.steps, int) else sum(method.steps)
    if needed > max_steps:
        raise ValueError(
            f"{method} takes {needed} steps in {intervals} intervals, more than max_steps = "
            f"{max_steps}"
        )
    return method


def check_gradient(gradient: object, method: Method, intervals: int) -> None:
    """Refuse what is not a gradient, and options that its backward method does not have."""
    if isinstance(gradient, type) and issubclass(gradient, Gradient):
        name = gradient.__name__
        raise TypeError(f"gradient is the class {name}; give an instance, {name}()")
    if not isinstance(gradient, Direct | Checkpoint | Adjoint):
        raise TypeError(
            f"gradient must be Direct() or another gradient, got {gradient!r}; "
            "gradient_from_name turns names into gradients"
        )
    if isinstance(gradient, Checkpoint) and isinstance(method, TorchDiffEq):
        raise ValueError(
            f"Checkpoint does not know the steps of {method}; use a method such as RK4() or "
            "Dopri5(), or Direct() or Adjoint() as the gradient"
        )
    if isinstance(gradient, Adjoint):
        back = method if gradient.method is None else gradient.method
        if gradient.method is not None:
            check_method(gradient.method, intervals, "Adjoint.method")
        tuned = gradient.rtol is not None or gradient.atol is not None or gradient.seminorm
        adaptive = isinstance(back, AdaptiveMethod) or (
            isinstance(back, TorchDiffEq) and back.kind == "adaptive"
        )
        if tuned and not adaptive:
            raise ValueError(
                f"Adjoint's rtol, atol and seminorm need an adaptive method on the way back, "
                f"which is {type(back).__name__}; drop them, or give Adjoint(method=Dopri5())"
            )


def check_spacing(method: Method, values: list[float]) -> None:
    """Refuse unequal steps for methods that take them for equal."""
    if not isinstance(method, TorchDiffEq) or "adams" not in method.solver or len(values) < 3:
        return
    counts = method.steps if isinstance(method.steps, tuple) else (method.steps,) * len(values)
    sizes = [(b - a) / n for (a, b), n in zip(pairwise(values), counts, strict=False)]
    if max(map(abs, sizes)) > (1 + 1e-4) * min(map(abs, sizes)):
        raise ValueError(
            f"torchdiffeq's {method.solver} takes all steps for equally long, but here they are "
            f"between {min(map(abs, sizes)):g} and {max(map(abs, sizes)):g}; give equally spaced "
            "times, steps=(...) that make up for it, or another method"
        )


def check_features(
    z0: State, method: Method, gradient: Gradient, per_sample: bool, dense: bool
) -> None:
    """Refuse steps per sample, and dense output, where they are not to be had."""
    if dense and (isinstance(method, TorchDiffEq) or not isinstance(gradient, Direct)):
        raise ValueError(
            f"dense output needs a method such as RK4() or Dopri5() and the gradient Direct(), "
            f"got {method} and {gradient}"
        )
    if not per_sample:
        return
    if not isinstance(method, AdaptiveMethod):
        raise ValueError(
            f"per_sample is for adaptive methods such as Dopri5(), got {method}; with fixed steps "
            "no sample depends on its neighbours"
        )
    if not isinstance(gradient, Direct):
        raise ValueError(f"per_sample needs the gradient Direct(), got {gradient}")
    parts = z0 if isinstance(z0, tuple) else (z0,)
    for i, part in enumerate(parts):
        where = f"z0[{i}]" if isinstance(z0, tuple) else "z0"
        if torch._C._functorch.is_batchedtensor(part):
            raise ValueError("per_sample does not work within vmap; put the batch into the state")
        if part.ndim == 0:
            raise ValueError(f"per_sample needs a batch in front, but {where} is a scalar")
        if len(part) != len(parts[0]):
            raise ValueError(
                f"per_sample needs the same batch in front of all parts of the state, but {where} "
                f"has {len(part)} samples and z0[0] has {len(parts[0])}"
            )


def checked_parameters(
    field: Field, parameters: Iterable[Tensor] | None, gradient: Gradient
) -> tuple[Tensor, ...]:
    """The tensors, each once, with respect to which a backward integration differentiates."""
    if parameters is None:
        owner = field.__self__ if inspect.ismethod(field) else field
        if not isinstance(owner, nn.Module):
            raise ValueError(
                f"{type(gradient).__name__} cannot know which tensors the field depends on, as "
                "the field is neither an nn.Module nor a method of one; list them as "
                "solve(..., parameters=(...,)), or give parameters=() if there are none"
            )
        parameters = owner.parameters()
    elif isinstance(parameters, Tensor):
        raise TypeError("parameters must be several tensors; wrap a single one as (tensor,)")
    # Listed twice, a tensor would receive its gradient twice.
    unique = {id(p): p for p in parameters}
    for p in unique.values():
        if not isinstance(p, Tensor):
            raise TypeError(f"parameters must be tensors, got {type(p).__name__}")
    return tuple(p for p in unique.values() if p.requires_grad)
