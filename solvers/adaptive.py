"""Integration by an adaptive method whose steps are shared by the whole state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from solvers.control import LARGEST, carries_gradient, error_ratio, magnitudes, resized
from solvers.errors import Stopped
from solvers.methods import AdaptiveMethod
from solvers.problem import Observer, Problem
from solvers.solution import Status
from solvers.stepping import Parts, Step, advance, stage_time, stage_times, take_step


def integrate_adaptive(problem: Problem, observe: Observer | None = None) -> list[Parts]:
    """The states at the output times; fewer if ``observe`` ended the integration.

    Args:
        problem: its method is adaptive.
        observe: called with start, state, end and state of every accepted step; ends the
            integration by returning True.

    Raises:
        Stopped: the integration could not go on.
    """
    method, stats, values = problem.method, problem.stats, problem.values
    assert isinstance(method, AdaptiveMethod)
    tableau, field, z = method.tableau, problem.field, problem.z0
    resolution = torch.finfo(z[0].dtype).eps
    shifts = _shifts(problem)
    rows: list[Parts] = [z]

    t = values[0]
    start = stage_time(t, z[0])
    first: Parts | None = field(start if shifts[0] is None else start + shifts[0], z)
    assert first is not None
    h = _first_step(problem, z, first)
    after_rejection = last_was_nan = False
    for i, target in enumerate(values[1:]):
        while t != target:
            if stats.steps == method.max_steps:
                raise Stopped(Status.MAX_STEPS, t, rows)
            remaining = target - t
            is_last = abs(h) >= abs(remaining)
            if is_last:
                size, end = remaining, target
            else:
                # Two equal steps rather than one and a rest.
                size = remaining / 2 if abs(h) > abs(remaining) / 2 else h
                end = t + size
                if abs(size) <= resolution * abs(t) or size == 0.0:
                    status = Status.NON_FINITE if last_was_nan else Status.DT_UNDERFLOW
                    raise Stopped(status, t, rows)

            step = Step(stage_times(tableau, t, end, z[0]), size)
            shift = shifts[i]
            if shift is not None:
                step = _shifted(step, tableau.c, shift, shifts[i + 1] if is_last else None)
            stats.steps += 1
            after, stages = take_step(tableau, field, step, z, first)
            first = stages[0]
            ratio = abs(size) * error_ratio(method, z, after, stages).item()
            last_was_nan = not math.isfinite(ratio)
            factor = resized(method, ratio, after_rejection)
            after_rejection = not ratio <= 1.0  # a NaN is not
            if after_rejection:
                stats.rejected += 1
                h = size * factor
                continue
            stats.accepted += 1
            # A step cut short by an output may be too short to tell how long the next can be.
            longest = factor == LARGEST and abs(h) > abs(size * factor)
            h = h if longest else size * factor
            ended = observe is not None and observe(t, z, end, after)
            t, z = end, after
            first = stages[-1] if tableau.first_same_as_last else None
            if ended:
                return rows
        rows.append(z)
    return rows


def _first_step(problem: Problem, z: Parts, first: Parts) -> float:
    """The size of the first step, after one more evaluation (HNW II.4)."""
    method, values, field = problem.method, problem.values, problem.field
    assert isinstance(method, AdaptiveMethod)
    span = abs(values[-1] - values[0])
    with torch.no_grad():
        size, slope = torch.stack(magnitudes(method, z, (z, first))).tolist()
        small = size < 1e-5 or slope < 1e-5
        h = min(1e-6 if small else 0.01 * size / slope, span)
        if not math.isfinite(size + slope):
            raise Stopped(Status.NON_FINITE, values[0], [problem.z0])
        ahead = values[0] + problem.direction * h
        trial = advance(z, [first], (1.0,), problem.direction * h)
        there = field(stage_time(min(max(ahead, min(values)), max(values)), z[0]), trial)
        change = tuple(b - a for a, b in zip(first, there, strict=True))
        bend = magnitudes(method, z, (change,))[0].item() / h
    steepest = max(slope, bend)
    if not math.isfinite(bend):
        return problem.direction * h
    is_flat = steepest <= 1e-15
    longer = max(1e-6, 1e-3 * h) if is_flat else (0.01 / steepest) ** (1 / method.order)
    return problem.direction * min(100 * h, longer, span)


def _shifts(problem: Problem) -> list[Tensor | None]:
    """Zeros that carry the gradients with respect to the output times, if there are any."""
    if not carries_gradient(problem.times):
        return [None] * len(problem.values)
    return list((problem.times - problem.times.detach()).unbind())


def _shifted(step: Step, nodes: Sequence[float], start: Tensor, end: Tensor | None) -> Step:
    """The step as a function of the output times around it.

    It moves with the one before; and if it ends on the one behind, it also stretches to that.
    """
    stretch = torch.zeros_like(start) if end is None else end - start
    times = [t + start + c * stretch for t, c in zip(step.times, nodes, strict=True)]
    return Step(times, stretch + step.size)
