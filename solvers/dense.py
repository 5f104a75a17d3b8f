"""The solution between the output times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from solvers.control import carries_gradient, underlying
from solvers.methods import FixedMethod
from solvers.problem import Problem
from solvers.stepping import Parts, Step, take_step


class DenseOutput(ABC):
    """The states from which a step of the method leads to any time of the integration.

    The accuracy between the steps is then that of the steps: a step from the last one before
    ``t`` is shorter than the one that was accepted, and of the same order. A polynomial through the
    stages would cost no evaluation, but its order is lower: 4 for the 5th-order pair.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def at(self, t: float | Sequence[float | Tensor] | Tensor) -> Parts:
        """The parts of the state at ``t``, in rows if there are several times.

        Raises:
            TypeError, ValueError: ``t`` is no number and no row of numbers, or outside.
        """
        times = self._times(t)
        if times.ndim > 1:
            raise ValueError(
                f"t must be a number or one-dimensional, got shape {tuple(times.shape)}"
            )
        low, high = sorted((self._problem.values[0], self._problem.values[-1]))
        values = underlying(times).reshape(-1).tolist()
        for value in values:
            if not low <= value <= high:
                raise ValueError(
                    f"t = {value} is outside of the integration, which went from "
                    f"{self._problem.values[0]} to {self._problem.values[-1]}"
                )
        found = [self._one(time, v) for time, v in zip(times.reshape(-1), values, strict=True)]
        if times.ndim == 0:
            return found[0]
        if not found:
            return tuple(z.new_empty(0, *z.shape) for z in self._problem.z0)
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _times(self, t: float | Sequence[float | Tensor] | Tensor) -> Tensor:
        like = self._problem.z0[0]
        try:
            if not isinstance(t, Tensor | float | int) and any(isinstance(x, Tensor) for x in t):
                # Made of numbers, the result would not carry the gradient of these tensors.
                t = torch.stack([torch.as_tensor(x).to(like.device, like.dtype) for x in t])
            times = torch.as_tensor(t)
            if times.dtype == torch.bool or times.is_complex():
                raise TypeError(f"got {times.dtype}")
            return torch.as_tensor(t, dtype=like.dtype, device=like.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"t must be a number or a sequence of numbers, got {t!r}") from error

    def _moving(self, starts: Tensor) -> Tensor:
        """Times at which steps start, as functions of the output times that they move with."""
        problem = self._problem
        if not carries_gradient(problem.times):
            return starts
        sign, plain = problem.direction, underlying(problem.times).double()
        place = (sign * plain <= sign * starts.detach()[..., None]).sum(-1) - 1
        shifts = problem.times - problem.times.detach()
        if isinstance(problem.method, FixedMethod):  # these stretch with the interval around
            after = (place + 1).clamp(max=len(plain) - 1)
            length = (plain[after] - plain[place]).where(after > place, 1.0)
            part = ((starts - plain[place]) / length).to(shifts.dtype)
            return starts + shifts[place] + part * (shifts[after] - shifts[place])
        return starts + shifts[place]

    @abstractmethod
    def _one(self, t: Tensor, value: float) -> Parts:
        """The state at one time, given as a scalar and on the host."""

    def _stepped(self, start: Tensor, t: Tensor, z: Parts) -> Parts:
        tableau = self._problem.tableau
        start = self._moving(start)
        size = (t - start).to(z[0].dtype)
        start = start.to(z[0].dtype)
        times = [t.expand_as(start) if c == 1.0 else start + c * size for c in tableau.c]
        return take_step(tableau, self._problem.field, Step(times, size), z)[0]


class SharedDenseOutput(DenseOutput):
    """For steps that are shared by the whole state."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._starts = [problem.values[0]]
        self._states = [problem.z0]

    def observe(self, _t: float, _z: Parts, end: float, after: Parts) -> bool:
        """Keep the end of a step."""
        self._starts.append(end)
        self._states.append(after)
        return False

    def _one(self, t: Tensor, value: float) -> Parts:
        sign = self._problem.direction
        step = bisect_right(self._starts, sign * value, key=lambda start: sign * start) - 1
        start = self._starts[step]
        if value == start and not (carries_gradient(t) or carries_gradient(self._problem.times)):
            return self._states[step]
        return self._stepped(torch.full_like(t, start, dtype=torch.float64), t, self._states[step])


class PerSampleDenseOutput(DenseOutput):
    """For steps that every sample has for itself."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._starts: list[Tensor] = []
        self._states: list[Parts] = []

    def observe(self, t: Tensor, z: Parts) -> None:
        """Keep the times and states of all samples before an attempt."""
        self._starts.append(t)
        self._states.append(z)

    def _one(self, t: Tensor, value: float) -> Parts:
        sign = self._problem.direction
        if not self._starts:  # there was nothing to integrate
            return self._problem.z0
        starts = torch.stack(self._starts)
        step = (sign * starts <= sign * value).sum(0) - 1
        rows = torch.arange(len(step), device=step.device)
        z = tuple(torch.stack(parts)[step, rows] for parts in zip(*self._states, strict=True))
        return self._stepped(starts[step, rows], t, z)
