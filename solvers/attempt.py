"""One attempt of an adaptive step: operation by operation, or as one compiled graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.checks import CountedField, is_plain
from solvers.error_norm import estimate_error
from solvers.graphs import translate
from solvers.step import Step, Tableau, combine, interpolate, make_time, make_times, take_step
from solvers.types import Parts, Problem


class Trial(NamedTuple):
    """What an attempt gives.

    Attributes:
        after: the state behind the step.
        stages: the derivatives at its stages, at least at the first and the last.
        error: the error of a step of size 1 over what is allowed.
        quartic: what :func:`interpolate` needs, if outputs are interpolated.
    """

    after: Parts
    stages: Sequence[Parts]
    error: Tensor
    quartic: Parts | None = None

    def interpolate(self, z: Parts, size: float | Tensor, place: float | Tensor) -> Parts:
        """Return the state inside the step that began at ``z``."""
        slopes = (self.stages[0], self.stages[-1])
        return interpolate(z, self.after, slopes, size, place, self.quartic)


Try = Callable[[Step, Parts, Parts | None], Trial]
"""``attempt(step, z, first)`` tries a step from ``z``, where the derivative may be known."""

MOST_GRAPHS = 64
"""Of one field and tableau: for other kinds of tensors there are others."""


def prepare_attempt(method: Any, problem: Problem, per_sample: bool = False) -> Try:
    """Return the function that attempts a step of an adaptive method."""
    tableau, field = method.tableau, problem.field
    tolerance, controlled = (method.rtol, method.atol), problem.controlled
    quartic = tableau.quartic if method.interpolate else ()

    def attempt(step: Step, z: Parts, first: Parts | None) -> Trial:
        after, stages = take_step(tableau, field, step, z, first)
        error = estimate_error(tableau.error, tolerance, z, after, stages, controlled, per_sample)
        return Trial(after, stages, error, combine(quartic, stages) if quartic else None)

    if not method.compile or not isinstance(field, CountedField) or not is_plain(problem.z0):
        return attempt

    code: Any = getattr(field.function, "__code__", type(field.function))
    graph = _compile(tableau, field.is_tuple, controlled, per_sample, bool(quartic), code)
    # As a tensor: numbers would become constants of the graph.
    limits = make_times(tolerance, problem.z0[0])

    def attempt_compiled(step: Step, z: Parts, first: Parts | None) -> Trial:
        size = step.size if isinstance(step.size, Tensor) else make_time(step.size, z[0])
        if torch.is_grad_enabled():
            z, first = _require_gradients(z, first)
        field.count(len(tableau.c) - (first is not None))
        given = (field.function, step.times, size, limits, z, first)
        after, begin, last, error, inner = graph(*given)
        if any(a.shape != b.shape for a, b in zip(after, z, strict=True)):
            raise ValueError(f"{field.name} does not return dz/dt in the shape of z")
        return Trial(after, (first or begin, last), error, inner)

    return attempt_compiled


@lru_cache(maxsize=256)
def _compile(
    tableau: Tableau,
    is_tuple: bool,
    controlled: int | None,
    per_sample: bool,
    inside: bool,
    _code: object,
) -> Callable[..., Any]:
    """Return a step as a graph; for each kind of field a cache of its own."""

    def step(
        function: Callable[..., Any],
        times: Tensor,
        size: Tensor,
        limits: Tensor,
        z: Parts,
        first: Parts | None,
    ) -> tuple[Parts, Parts | None, Parts, Tensor, Parts | None]:
        def field(t: Tensor, at: Parts) -> Parts:
            # Copies, as the field may write to both; where it does not, the graph loses them.
            lent = tuple(x.clone() for x in at)
            value = function(t, lent) if is_tuple else (function(t, lent[0]),)
            # Under autocast it has less precision.
            return tuple(v.to(x.dtype).clone() for v, x in zip(value, at, strict=True))

        after, stages = take_step(tableau, field, Step(times, size), z, first)
        rtol, atol = limits.unbind()
        error = estimate_error(
            tableau.error, (rtol, atol), z, after, stages, controlled, per_sample
        )
        begin = stages[0] if first is None else None
        return after, begin, stages[-1], error, combine(tableau.quartic, stages) if inside else None

    options: dict[str, Any] = {"recompile_limit": MOST_GRAPHS, "isolate_recompiles": True}
    known = inspect.signature(torch.compile).parameters  # older releases lack them
    compiled: Callable[..., Any] = torch.compile(
        step,
        backend=translate,
        **{name: value for name, value in options.items() if name in known},
    )
    return compiled


def _require_gradients(z: Parts, first: Parts | None) -> tuple[Parts, Parts | None]:
    """Let all parts require gradients if any does: one graph for the first step and the others."""

    def require(parts: Parts) -> Parts:
        return tuple(x if x.requires_grad else x.detach().requires_grad_() for x in parts)

    if not any(x.requires_grad for x in (*z, *(first or ()))):
        return z, first
    return require(z), None if first is None else require(first)
