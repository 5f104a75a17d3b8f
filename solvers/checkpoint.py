"""Integration that keeps few states, and is done once more, piece by piece, for gradients."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from solvers.adaptive import integrate_adaptive
from solvers.fixed import integrate_fixed, output_places, step_grid
from solvers.methods import FixedMethod
from solvers.problem import Problem
from solvers.stepping import Parts, steps_on_grid, take_step


def integrate_checkpoint(
    problem: Problem, every: int, parameters: tuple[Tensor, ...]
) -> list[Parts]:
    """The states at the output times, differentiable in start, times and parameters.

    Raises:
        Stopped: an adaptive method could not go on.
    """
    n = len(problem.z0)
    record = _Record(problem, every)
    flat = _Segments.apply(record, n, *problem.z0, problem.times, *parameters)
    return [problem.z0, *(tuple(flat[i : i + n]) for i in range(0, len(flat), n))]


@dataclass
class _Record:
    """What the way forward leaves for the way back."""

    problem: Problem
    every: int
    grid: list[float] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    starts: list[Parts] = field(default_factory=list)

    def integrate(self) -> list[Parts]:
        """Integrate, keeping the states at the starts of segments; the outputs after the first."""
        problem, method = self.problem, self.problem.method
        self.grid.append(problem.values[0])

        def observe(_t: float, z: Parts, end: float, _after: Parts) -> bool:
            if (len(self.grid) - 1) % self.every == 0:
                self.starts.append(z)
            self.grid.append(end)
            return False

        if isinstance(method, FixedMethod):
            rows = integrate_fixed(problem, observe)
            self.outputs = output_places(problem.values, method)
        else:
            rows = integrate_adaptive(problem, observe)
            places = {t: i for i, t in enumerate(self.grid)}
            self.outputs = [places[t] for t in problem.values]
        return rows[1:]

    def grid_of(self, ts: Tensor) -> Tensor:
        """The grid as a function of the output times."""
        method = self.problem.method
        if isinstance(method, FixedMethod):
            return step_grid(ts, method.steps)
        # The points between two outputs move with the first of them.
        place = torch.tensor([bisect_right(self.outputs, i) - 1 for i in range(len(self.grid))])
        grid = torch.tensor(self.grid, dtype=ts.dtype, device=ts.device)
        return grid + (ts - ts.detach())[place.to(ts.device)]

    def segments(self) -> list[tuple[int, int]]:
        """First and last grid point of every segment."""
        last = len(self.grid) - 1
        return list(pairwise([*range(0, last, self.every), last]))


class _Segments(torch.autograd.Function):
    # Segments are recomputed by a Function of their own, not by hooks on saved tensors as in
    # torch.utils.checkpoint: that leaves the field free to call autograd itself.

    @staticmethod
    def forward(ctx: Any, record: _Record, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows = record.integrate()
        ctx.record, ctx.n = record, n
        ctx.set_materialize_grads(False)
        starts = [part for start in record.starts for part in start]
        ctx.save_for_backward(*tensors[n:], *starts)
        ctx.kept = len(starts)
        record.starts.clear()  # saved tensors are watched for changes, those of a list are not
        return tuple(part for row in rows for part in row)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        n, record = ctx.n, ctx.record
        problem = record.problem
        tableau = problem.tableau
        saved = ctx.saved_tensors
        split = len(saved) - ctx.kept
        ts, parameters, states = saved[0], saved[1:split], saved[split:]
        moving = ctx.needs_input_grad[2 + n]
        with torch.enable_grad():
            leaf = ts.detach().requires_grad_(moving)
            grid = record.grid_of(leaf) if moving else ts

        # Gradients with respect to the outputs, by their place in the grid.
        arriving = {place: grads[n * i : n * (i + 1)] for i, place in enumerate(record.outputs[1:])}
        carry = [torch.zeros_like(z) for z in states[:n]]
        total: list[Tensor | None] = [None] * len(parameters)
        grad_grid = torch.zeros_like(grid)
        for i, (a, b) in reversed(list(enumerate(record.segments()))):
            with torch.enable_grad():
                start = tuple(s.detach().requires_grad_() for s in states[n * i : n * (i + 1)])
                points = grid[a : b + 1].detach().requires_grad_(moving)
                steps = steps_on_grid(tableau, points, record.grid[a : b + 1])
                z, first, ends = start, None, []
                for j, step in enumerate(steps, start=a + 1):
                    z, stages = take_step(tableau, problem.field, step, z, first)
                    first = stages[-1] if tableau.first_same_as_last else None
                    ends += [(e, g) for e, g in zip(z, arriving.get(j, ()), strict=False)]
                problem.stats.backward_steps += len(steps)
                ends += list(zip(z, carry, strict=True))
            wanted = [(e, g) for e, g in ends if g is not None and e.requires_grad]
            inputs = (*start, *((points,) if moving else ()), *parameters)
            found = torch.autograd.grad(
                [e for e, _ in wanted], inputs, [g for _, g in wanted], allow_unused=True
            )
            carry = [_or_zeros(g, z) for g, z in zip(found[:n], start, strict=True)]
            if moving:
                grad_grid[a : b + 1] += _or_zeros(found[n], points)
            of_parameters = found[len(inputs) - len(parameters) :]
            total = [_sum(a, b) for a, b in zip(total, of_parameters, strict=True)]
        grad_ts = torch.autograd.grad(grid, leaf, grad_grid)[0] if moving else None
        return (None, None, *carry, grad_ts, *total)


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
