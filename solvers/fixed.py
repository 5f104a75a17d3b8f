"""Integration by a method with a given number of steps in every output interval."""

from __future__ import annotations

from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.control import carries_gradient
from solvers.methods import FixedMethod
from solvers.problem import Observer, Problem
from solvers.stepping import Parts, Step, steps_on_grid, take_step


def integrate_fixed(problem: Problem, observe: Observer | None = None) -> list[Parts]:
    """The states at the output times; fewer if ``observe`` ended the integration."""
    method, stats, z = problem.method, problem.stats, problem.z0
    assert isinstance(method, FixedMethod)
    values = grid_values(problem.values, method)
    outputs = set(output_places(problem.values, method))
    rows = [z]
    for i, step in enumerate(_steps(problem, method, values), start=1):
        after, _ = take_step(method.tableau, problem.field, step, z)
        stats.steps += 1
        stats.accepted += 1
        ended = observe is not None and observe(values[i - 1], z, values[i], after)
        z = after
        if i in outputs:
            rows.append(z)
        if ended:
            break
    return rows


def _steps(problem: Problem, method: FixedMethod, values: list[float]) -> list[Step]:
    """All steps of the integration, between the ``values`` of its grid."""
    if carries_gradient(problem.times):
        return steps_on_grid(method.tableau, step_grid(problem.times, method.steps), [])
    return steps_on_grid(method.tableau, problem.times, values)


def output_places(values: list[float], method: FixedMethod) -> list[int]:
    """Where in the grid of steps the output times are."""
    return list(accumulate(_per_interval(values, method), initial=0))


def grid_values(values: list[float], method: FixedMethod) -> list[float]:
    """:func:`step_grid` on the host."""
    points = values[:1]
    for a, b, n in zip(values, values[1:], _per_interval(values, method), strict=False):
        points += [a + (b - a) * (j / n) for j in range(1, n)]
        points.append(b)
    return points


def _per_interval(values: list[float], method: FixedMethod) -> tuple[int, ...]:
    intervals = len(values) - 1
    return (method.steps,) * intervals if isinstance(method.steps, int) else method.steps


def step_grid(ts: Float[Tensor, " n"], steps: int | tuple[int, ...]) -> Float[Tensor, " m"]:
    """All step boundaries, each output time among them exactly.

    Interval ``i`` is divided evenly into ``steps[i]`` (or ``steps``) parts. A step *size* instead
    of a number of steps would put output times between step boundaries, where torchdiffeq
    interpolates linearly (2nd order at best), and rounding would now and then add a step.

    Differentiable with respect to ``ts``.
    """
    if steps == 1 or len(ts) == 1:
        return ts
    start, length = ts[:-1], ts[1:] - ts[:-1]
    if isinstance(steps, int):
        fraction = torch.arange(steps, dtype=ts.dtype, device=ts.device) / steps
        inner = (start[:, None] + length[:, None] * fraction).reshape(-1)
    else:
        counts = torch.tensor(steps, device=ts.device)
        fraction = torch.cat([torch.arange(n, dtype=ts.dtype, device=ts.device) / n for n in steps])
        inner = start.repeat_interleave(counts) + length.repeat_interleave(counts) * fraction
    return torch.cat([inner, ts[-1:]])
