"""Methods with a given number of steps in every output interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.checks import check_positive_int, needs_gradient
from solvers.step import RungeKutta, Step, make_steps, take_step
from solvers.types import Parts, Problem

Counts = int | tuple[int, ...]
"""A number of steps for every interval, or one for each."""


@dataclass(frozen=True)
class FixedMethod(RungeKutta):
    """A method with a given number of steps; see its subclasses.

    Args:
        steps: steps in every output interval, of equal size within an interval. A tuple gives
            every interval its own number.

    Raises:
        TypeError: ``steps`` is not an integer or a tuple of integers.
        ValueError: a number of steps is below 1, or the tuple is empty.
    """

    steps: Counts = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(f"{type(self).__name__}.steps", self.steps)

    @property
    def is_adaptive(self) -> bool:
        """False."""
        return False

    def check(self, values: Sequence[float], where: str) -> None:
        """Refuse numbers of steps for another number of intervals."""
        check_intervals(self.steps, len(values) - 1, where)

    def limit(self, max_steps: int, intervals: int) -> FixedMethod:
        """Return the method itself, or refuse its steps."""
        check_limit(self.steps, max_steps, intervals)
        return self

    def restrict(self, interval: int) -> FixedMethod:
        """Return the method with the number of steps of one interval."""
        return self if isinstance(self.steps, int) else replace(self, steps=self.steps[interval])

    def integrate(self, problem: Problem) -> list[Parts]:
        """Return the states at the output times; fewer if the observer ended the integration."""
        observe, stats, z = problem.observe, problem.stats, problem.z0
        counts = spread(self.steps, len(problem.values) - 1)
        if problem.times.ndim == 2:
            return self._integrate_own_times(problem, counts)
        values = _divide(problem.values, counts)
        if needs_gradient(problem.times):
            steps = make_steps(self.tableau, divide_intervals(problem.times, self.steps), [])
        else:
            steps = make_steps(self.tableau, problem.times, values)
        outputs = set(accumulate(counts))
        rows = [z]
        for i, step in enumerate(steps, start=1):
            after, stages = take_step(self.tableau, problem.field, step, z)
            stats.steps += 1
            stats.accepted += 1
            ended = observe is not None and observe(values[i - 1], z, values[i], after, stages)
            z = after
            if problem.report is not None:
                problem.report(values[i - 1], values[i] - values[i - 1], True, None, z)
            if i in outputs:
                rows.append(z)
            if ended:
                break
        return rows

    def _integrate_own_times(self, problem: Problem, counts: Sequence[int]) -> list[Parts]:
        """Return the states at the times that every sample has for itself."""
        c, stats, z = self.tableau.c, problem.stats, problem.z0
        rows = [z]
        for (a, b), n in zip(pairwise(fill_times(problem.times).unbind(1)), counts, strict=True):
            points = [a, *(a + (b - a) * (j / n) for j in range(1, n)), b]
            for start, end in pairwise(points):
                size = end - start
                times = [end if x == 1.0 else start + x * size if x else start for x in c]
                step = Step(torch.stack(times), size)
                z, _ = take_step(self.tableau, problem.field, step, z)
                stats.steps += 1
                stats.accepted += 1
                if problem.report is not None:
                    moves = torch.ones_like(start, dtype=torch.bool)
                    problem.report(start.detach(), size.detach(), moves, None, z)
            rows.append(z)
        return rows


def fill_times(times: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """Return times in which the last one of every sample stands in place of the NaN behind it."""
    last = times.isfinite().sum(-1, keepdim=True) - 1
    places = torch.arange(times.shape[-1], device=times.device).expand(times.shape)
    return times.gather(-1, torch.minimum(places, last))


def spread(steps: Counts, intervals: int) -> tuple[int, ...]:
    """Return the number of steps of every interval."""
    return (steps,) * intervals if isinstance(steps, int) else steps


def divide_intervals(ts: Float[Tensor, "n"], steps: Counts) -> Float[Tensor, "m"]:
    """Return all step boundaries, each output time among them exactly.

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


def _divide(values: list[float], counts: Sequence[int]) -> list[float]:
    """:func:`divide_intervals` on the host."""
    points = values[:1]
    for (a, b), n in zip(pairwise(values), counts, strict=True):
        points += [a + (b - a) * (j / n) for j in range(1, n)]
        points.append(b)
    return points


def check_counts(where: str, steps: object) -> None:
    """Refuse what is not a positive integer or a tuple of them."""
    for n in steps if isinstance(steps, tuple) else (steps,):
        check_positive_int(where, n)
    if steps == ():
        raise ValueError(f"{where} is an empty tuple; give one integer, or one per interval")


def check_intervals(steps: Counts, intervals: int, where: str) -> None:
    """Refuse numbers of steps for another number of intervals."""
    if len(spread(steps, intervals)) != intervals:
        raise ValueError(
            f"{where}.steps has {len(spread(steps, intervals))} entries, but ts has {intervals} "
            "intervals; give one integer, or one per interval"
        )


def check_limit(steps: Counts, max_steps: int, intervals: int) -> None:
    """Refuse more steps than are allowed."""
    needed = sum(spread(steps, intervals))
    if needed > max_steps:
        raise ValueError(
            f"max_steps = {max_steps}, but steps = {steps} in {intervals} intervals are {needed}"
        )
