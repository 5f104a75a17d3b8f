"""The calls of torchdiffeq, with the arguments that keep it out of its traps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torchdiffeq
from jaxtyping import Float
from torch import Tensor

from solvers.checkpoint import integrate_in_segments
from solvers.errors import SolverError, explain
from solvers.field import CountedField, Field
from solvers.gradients import Adjoint, Checkpoint
from solvers.grid import step_grid
from solvers.guard import StepGuard, Stopped
from solvers.methods import AdaptiveMethod, FixedMethod, Heun, Method
from solvers.solution import State, Stats


@dataclass(frozen=True)
class Problem:
    """What to integrate, its arguments checked. ``values`` are ``times`` on the host."""

    field: Field
    z0: State
    times: Float[Tensor, " n"]
    values: list[float]
    method: Method
    stats: Stats

    @property
    def direction(self) -> float:
        """1.0 forwards in time, -1.0 backwards."""
        return 1.0 if self.values[-1] > self.values[0] else -1.0

    def counted_field(self, *methods: Method) -> CountedField:
        """The field, to be evaluated by these methods."""
        may_leave = any(isinstance(m, AdaptiveMethod | Heun) for m in methods)
        span = (min(self.values), max(self.values)) if may_leave else None
        return CountedField(self.field, self.z0, self.stats, span)


def integrate_direct(problem: Problem) -> State:
    """Integrate; autograd records the operations of every step.

    Raises:
        Stopped: an adaptive method could not go on.
    """
    field = problem.counted_field(problem.method)
    forward = _forward(problem, field)
    ys: State = torchdiffeq.odeint(field, problem.z0, problem.times, **forward)
    _finish(problem, field)
    return ys


def integrate_adjoint(problem: Problem, gradient: Adjoint, parameters: tuple[Tensor, ...]) -> State:
    """Integrate without recording; a second integration, backwards, gives the gradients.

    Raises:
        Stopped: an adaptive method could not go on (``SolverError`` if that is on the way back).
    """
    back = problem.method if gradient.method is None else gradient.method
    field = problem.counted_field(problem.method, back)
    forward = _forward(problem, field)
    backward, restart = _backward(problem, field, back, gradient)
    ys: State = torchdiffeq.odeint_adjoint(
        field, problem.z0, problem.times, adjoint_params=parameters, **forward, **backward
    )
    _finish(problem, field)
    for y in ys if isinstance(ys, tuple) else (ys,):
        if y.requires_grad:
            y.register_hook(restart)
    return ys


def integrate_checkpoint(
    problem: Problem, gradient: Checkpoint, parameters: tuple[Tensor, ...]
) -> State:
    """Integrate, keeping only the starts of segments, which are integrated again for gradients."""
    method, stats, is_tuple = problem.method, problem.stats, isinstance(problem.z0, tuple)
    assert isinstance(method, FixedMethod)
    field = problem.counted_field(method)

    def segment(z: tuple[Tensor, ...], grid: Tensor) -> tuple[Tensor, ...]:
        if field.backward:
            stats.backward_steps += len(grid) - 1
        start = z if is_tuple else z[0]
        rows = torchdiffeq.odeint(field, start, grid, method=method.torchdiffeq_name)
        return rows if isinstance(rows, tuple) else (rows,)

    intervals = len(problem.values) - 1
    steps = (method.steps,) * intervals if isinstance(method.steps, int) else method.steps
    grid = step_grid(problem.times, method.steps)
    if bool((grid.detach().diff() == 0).any()):  # no matter elsewhere, but a segment cannot start
        raise ValueError(
            f"an interval of ts is too small for {method.steps} steps in {grid.dtype}: step times "
            "coincide; take fewer steps"
        )
    ys = integrate_in_segments(
        segment,
        problem.z0 if isinstance(problem.z0, tuple) else (problem.z0,),
        grid,
        list(accumulate(steps, initial=0)),
        gradient.every,
        parameters,
    )
    _finish(problem, field)
    return ys if is_tuple else ys[0]


def _finish(problem: Problem, field: CountedField) -> None:
    field.backward = True
    if isinstance(problem.method, FixedMethod):
        # Known beforehand: a callback in every step would only cost time.
        n = problem.method.steps
        stats = problem.stats
        stats.steps = n * (len(problem.values) - 1) if isinstance(n, int) else sum(n)
        stats.accepted = stats.steps


def _forward(problem: Problem, field: CountedField) -> dict[str, Any]:
    method, stats = problem.method, problem.stats
    arguments: dict[str, Any] = {"method": method.torchdiffeq_name}
    if isinstance(method, FixedMethod):
        steps = method.steps
        arguments["options"] = {"grid_constructor": lambda _f, _z, ts: step_grid(ts, steps)}
    elif isinstance(method, AdaptiveMethod):
        arguments |= {"rtol": method.rtol, "atol": method.atol}
        # Steps then end on the output times. Otherwise they end somewhere behind, the field is
        # evaluated there, and the output is interpolated, less accurately than the method is.
        arguments["options"] = {"step_t": problem.times[1:].detach(), "norm": _norm}

        def attempted() -> None:
            stats.steps += 1

        def accepted(_t: Tensor, _z: State, _dt: Tensor) -> None:
            stats.accepted += 1

        def rejected(_t: Tensor, _z: State, _dt: Tensor) -> None:
            stats.rejected += 1

        guard = StepGuard(attempted, method.max_steps, problem.direction, problem.values)
        field.callback_step = guard.step
        field.callback_accept_step = accepted
        field.callback_reject_step = rejected
    return arguments


@torch.no_grad()
def _norm(z: State) -> Tensor:
    """Root mean square of a tensor, the largest of them for a tuple.

    As torchdiffeq's own, with two differences. A NaN in any part of a tuple gives NaN, so that the
    step is rejected. And it is no part of the graph: the size of the first step is not what a
    gradient should follow (at an entry of 0, moreover, the square root's is infinite).
    """
    if isinstance(z, tuple):
        return torch.stack([_norm(part) for part in z if part.numel()]).max()
    return z.square().mean().sqrt()


def _backward(
    problem: Problem, field: CountedField, method: Method, gradient: Adjoint
) -> tuple[dict[str, Any], Callable[[Tensor], None]]:
    """Arguments of the integration backwards, and what to call before each time it is run."""
    stats, sign = problem.stats, problem.direction
    # torchdiffeq's adjoint runs on times made to increase, interval by interval from the last.
    # Options that it copied from the forward integration would not fit that.
    times = sign * problem.times.detach()
    options: dict[str, Any] = {}
    arguments: dict[str, Any] = {
        "adjoint_method": method.torchdiffeq_name,
        "adjoint_options": options,
    }

    def attempted() -> None:
        stats.backward_steps += 1

    if isinstance(method, FixedMethod):
        steps = method.steps

        def grid(_f: Any, _z: Any, ts: Tensor) -> Tensor:
            if isinstance(steps, int):
                return step_grid(ts, steps)
            interval = int(torch.searchsorted(times, ts[-1].detach()))
            return step_grid(ts, steps[interval])

        options["grid_constructor"] = grid
        field.callback_step_adjoint = lambda _t, _z, _dt: attempted()
        return arguments, lambda _gradient: None

    assert isinstance(method, AdaptiveMethod)
    arguments["adjoint_rtol"] = method.rtol if gradient.rtol is None else gradient.rtol
    arguments["adjoint_atol"] = method.atol if gradient.atol is None else gradient.atol
    options["step_t"] = times
    if gradient.seminorm:
        options["norm"] = "seminorm"
    guard = StepGuard(attempted, method.max_steps, direction=-1.0)

    def step(t: Tensor, z: State, dt: Tensor) -> None:
        try:
            guard.step(t, z, dt)
        except Stopped as stopped:
            time = sign * stopped.time
            message = explain(
                stopped.status, time, problem.values[0], method, problem.times.dtype, "the adjoint"
            )
            raise SolverError(message, stopped.status, time, stats) from None

    field.callback_step_adjoint = step
    # max_steps is for one way back, and the same graph may be gone through several times.
    return arguments, lambda _gradient: guard.restart()
