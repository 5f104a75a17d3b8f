"""Dense output: the solution between the output times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.adaptive import AdaptiveMethod
from solvers.checks import convert_times, needs_gradient, unwrap, widen, widest
from solvers.fixed import FixedMethod, fill_times
from solvers.step import RungeKutta, Step, select, take_step
from solvers.types import Parts, Problem


class DenseOutput(ABC):
    """Keeps the states from which a step of the method leads to any time of the integration.

    The accuracy between the steps is then that of the steps: a step from the last one before
    ``t`` is shorter than the one that was accepted, and of the same order. A polynomial through the
    stages would cost no evaluation, but its order is lower: 4 for the 5th-order pair.
    """

    def __init__(self, method: RungeKutta, problem: Problem) -> None:
        self._method = method
        self._problem = problem
        self._jumps = method.breakpoints if isinstance(method, AdaptiveMethod) else ()

    def __call__(self, t: float | Sequence[float | Tensor] | Tensor) -> Parts:
        """Return the parts of the state at ``t``, in rows if there are several times.

        Raises:
            TypeError: ``t`` is no number and no row of numbers.
            ValueError: a time is outside of the integration.
        """
        start, end = self._problem.values[0], self._problem.values[-1]
        times = convert_times("t", t, self._problem.z0[0])
        if self._problem.times.ndim == 2:
            return self._reach_own_times(times)
        values = unwrap(times).reshape(-1).tolist()
        if times.ndim > 1:
            raise ValueError(f"t must be one-dimensional, got shape {tuple(times.shape)}")
        if not all(min(start, end) <= value <= max(start, end) for value in values):
            raise ValueError(f"t must be within the integration, {start} to {end}, got {values}")
        times, values = self._step_aside(times, values)
        rows = [self._reach(at, v) for at, v in zip(times.reshape(-1), values, strict=True)]
        if times.ndim == 0:
            return rows[0]
        if not rows:
            return tuple(z.new_empty(0, *z.shape) for z in self._problem.z0)
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    def _step_aside(self, times: Tensor, values: list[float]) -> tuple[Tensor, list[float]]:
        """Return the times, just before it where they are at a breakpoint."""
        if not self._jumps:
            return times, values
        points = torch.tensor(self._jumps, dtype=times.dtype, device=times.device)
        problem, plain = self._problem, times.detach()
        own = problem.times.ndim == 2
        start = problem.times.detach()[:, 0] if own else problem.times.detach()[0]
        start = start.reshape(start.shape + (1,) * (plain.ndim - 1) * own)
        moved = torch.where(torch.isin(plain, points), plain.nextafter(start), plain)
        return times + (moved - plain), moved.reshape(-1).tolist()

    def _reach_own_times(self, times: Tensor) -> Parts:
        """Return the state of every sample at its own times."""
        batch = len(self._problem.z0[0])
        if times.ndim not in (1, 2) or len(times) != batch:
            raise ValueError(
                f"t must have the shape ({batch},) or ({batch}, m), as every sample has its own "
                f"times; got {tuple(times.shape)}"
            )
        within = fill_times(self._problem.times.detach())[:, [0, -1]]
        shape = (batch, *(1,) * (times.ndim - 1))
        low, high = within.amin(1).reshape(shape), within.amax(1).reshape(shape)
        plain, given = times.detach(), ~times.detach().isnan()
        if not bool(((low <= plain) & (plain <= high) | ~given).all()):
            raise ValueError("t must be within the integration of its sample")
        filled = torch.where(given, times, within[:, 0].reshape(shape))
        filled, _ = self._step_aside(filled, [])
        columns = [filled] if times.ndim == 1 else filled.unbind(1)
        wanted = [given] if times.ndim == 1 else given.unbind(1)
        states = []
        for column, want in zip(columns, wanted, strict=True):
            row = self._reach(column, widen(column.detach()))
            states.append(select(want, row, tuple(torch.full_like(z, torch.nan) for z in row)))
        if times.ndim == 1:
            return states[0]
        if not states:
            return tuple(z.new_empty(0, *z.shape) for z in self._problem.z0)
        return tuple(torch.stack(parts) for parts in zip(*states, strict=True))

    def _shift(self, starts: Tensor) -> Tensor:
        """Return the starts of steps as functions of the output times that they move with."""
        problem, method = self._problem, self._method
        if not needs_gradient(problem.times):
            return starts
        times = fill_times(problem.times) if problem.times.ndim == 2 else problem.times
        plain, shifts = widen(unwrap(times)), times - times.detach()
        sign = torch.where(plain[..., -1:] >= plain[..., :1], 1.0, -1.0)
        if isinstance(method, FixedMethod):  # these stretch with the interval around
            place = (sign * plain <= sign * starts.detach()[..., None]).sum(-1) - 1
            after = (place + 1).clamp(max=len(plain) - 1)
            length = (plain[after] - plain[place]).where(after > place, 1.0)
            part = ((starts - plain[place]) / length).to(shifts.dtype)
            return starts + shifts[place] + part * (shifts[after] - shifts[place])
        # Steps move with the last time before them at which one of them ended; breakpoints do not.
        jumps = (
            plain.new_tensor(self._jumps).to(times.dtype).to(plain).expand(*plain.shape[:-1], -1)
        )
        points = torch.cat([plain, jumps], dim=-1)
        ends = torch.ones_like(points, dtype=torch.bool)
        if isinstance(method, AdaptiveMethod) and method.interpolate:
            outer = (plain == plain[..., :1]) | (plain == plain[..., -1:])
            ends[..., : plain.shape[-1]] = outer | torch.isin(plain, jumps)
        ends[..., plain.shape[-1] :] = ~(jumps[..., None] == plain[..., None, :]).any(-1)
        shifts = torch.cat([shifts, torch.zeros_like(jumps, dtype=shifts.dtype)], dim=-1)
        behind = sign * points <= sign * starts.detach()[..., None]
        place = torch.where(ends & behind, sign * points, -torch.inf).argmax(-1, keepdim=True)
        return starts + shifts.expand(*starts.shape, -1).gather(-1, place)[..., 0]

    @abstractmethod
    def _reach(self, t: Tensor, value: Any) -> Parts:
        """Return the state at one time, given as a scalar and on the host.

        Or at one of every sample, given with gradients and without.
        """

    def _step(self, start: Tensor, t: Tensor, z: Parts) -> Parts:
        tableau = self._method.tableau
        start = self._shift(start)
        size, start = (t - start).to(t.dtype), start.to(t.dtype)
        times = [t.expand_as(start) if c == 1.0 else start + c * size for c in tableau.c]
        step = Step(torch.stack(times), size)
        return take_step(tableau, self._problem.field, step, z)[0]


class SharedDenseOutput(DenseOutput):
    """Dense output for steps that are shared by the whole state."""

    def __init__(self, method: RungeKutta, problem: Problem) -> None:
        super().__init__(method, problem)
        self._starts = [problem.values[0]]
        self._states = [problem.z0]

    def observe(
        self, t: float, _z: Parts, end: float, after: Parts, _stages: Sequence[Parts]
    ) -> bool:
        """Keep the end of a step."""
        self._starts[-1] = t  # behind a breakpoint, if the step before ended at one
        self._starts.append(end)
        self._states.append(after)
        return False

    def _reach(self, t: Tensor, value: Any) -> Parts:
        sign = self._problem.direction
        step = bisect_right(self._starts, sign * value, key=lambda start: sign * start) - 1
        step = max(step, 0)
        start = self._starts[step]
        if value == start and not (needs_gradient(t) or needs_gradient(self._problem.times)):
            return tuple(part.clone() for part in self._states[step])
        return self._step(torch.full_like(t, start, dtype=widest(t.device)), t, self._states[step])


class PerSampleDenseOutput(DenseOutput):
    """Dense output for steps that every sample has for itself."""

    def __init__(self, method: RungeKutta, problem: Problem) -> None:
        super().__init__(method, problem)
        self._starts: list[Tensor] = []
        self._states: list[Parts] = []

    def observe(self, t: Tensor, z: Parts) -> None:
        """Keep the times and states of all samples before an attempt."""
        self._starts.append(t)
        self._states.append(z)

    def _reach(self, t: Tensor, value: Any) -> Parts:
        own = self._problem.times.ndim == 2
        sign = _directions(self._problem) if own else self._problem.direction
        if not self._starts:  # there was nothing to integrate
            return tuple(part.clone() for part in self._problem.z0)
        starts = torch.stack(self._starts)
        step = ((sign * starts <= sign * value).sum(0) - 1).clamp(min=0)
        rows = torch.arange(len(step), device=step.device)
        z = tuple(torch.stack(parts)[step, rows] for parts in zip(*self._states, strict=True))
        return self._step(starts[step, rows], t, z)


def _directions(problem: Problem) -> Tensor:
    """Return 1.0 for samples that go forwards in time, -1.0 for others."""
    times = fill_times(problem.times.detach())
    return torch.where(times[:, -1] >= times[:, 0], 1.0, -1.0)
