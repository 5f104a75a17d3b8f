"""The calls of torchdiffeq, with the arguments that keep it out of its traps.

It integrates the continuous adjoints, and the methods that have no class here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from jaxtyping import Float
from torch import Tensor

from solvers.errors import SolverError, Stopped, explain
from solvers.field import CountedField
from solvers.fixed import step_grid
from solvers.gradients import Adjoint
from solvers.guard import StepGuard
from solvers.methods import AdaptiveMethod, FixedMethod, Method, TorchDiffEq
from solvers.problem import Problem
from solvers.solution import State, Status
from solvers.stepping import Parts


def integrate_torchdiffeq(problem: Problem) -> list[Parts]:
    """The states at the output times, by a :class:`TorchDiffEq`; autograd records every step.

    Raises:
        Stopped: an adaptive method could not go on.
    """
    field = _WatchedField(problem)
    forward = _forward(problem, field)
    ys = torchdiffeq.odeint(field, _state(problem, problem.z0), problem.times, **forward)
    return _rows(problem, ys)


def integrate_adjoint(
    problem: Problem, gradient: Adjoint, parameters: tuple[Tensor, ...]
) -> list[Parts]:
    """Integrate without recording; a second integration, backwards, gives the gradients.

    Raises:
        Stopped: an adaptive method could not go on (``SolverError`` if that is on the way back).
    """
    back = problem.method if gradient.method is None else gradient.method
    field = _WatchedField(problem)
    forward = _forward(problem, field)
    backward, restart = _backward(problem, field, back, gradient)
    ys = torchdiffeq.odeint_adjoint(
        field,
        _state(problem, problem.z0),
        problem.times,
        adjoint_params=parameters,
        **forward,
        **backward,
    )
    for y in ys if isinstance(ys, tuple) else (ys,):
        if y.requires_grad:
            y.register_hook(restart)
    return _rows(problem, ys)


Callback = Callable[[Tensor, State, Tensor], None]


class _WatchedField:
    """The field as torchdiffeq calls it, with the callbacks that it looks for.

    The times of evaluation are clamped to the interval, which its methods leave: by rounding
    (``heun2``: ``t0 + (t1 - t0)`` need not be ``t1``), or in the guess of the first step.
    """

    # torchdiffeq warns about callbacks that a method does not use; so they are set only where
    # they are wanted.
    callback_step: Callback
    callback_accept_step: Callback
    callback_reject_step: Callback
    callback_step_adjoint: Callback

    def __init__(self, problem: Problem) -> None:
        self._field: CountedField = problem.field
        self._low, self._high = min(problem.values), max(problem.values)
        method = translated(problem.method)
        self._stats = problem.stats
        # SciPy's integrators know no limit of their own.
        self._limit = 20 * method.max_steps if method.kind == "other" else None
        self._start = (problem.values[0], problem.z0)
        self._dtype = problem.z0[0].dtype

    def __call__(self, t: Float[Tensor, ""], z: State) -> State:
        """``dz/dt`` at ``(t, z)``, in the structure of the state."""
        if self._limit is not None and self._stats.evaluations >= self._limit:
            start, z0 = self._start
            raise Stopped(Status.MAX_STEPS, start, [z0])
        parts = z if isinstance(z, tuple) else (z,)
        # torchdiffeq's guess of the first step promotes a 0-dimensional float32 state.
        parts = tuple(part.to(self._dtype) for part in parts)
        t = t.to(self._dtype)
        inside = t.clamp(self._low, self._high)
        # Where a clamp acts its derivative is 0, which would lose gradients with respect to ts.
        t = t + (inside - t).detach() if t.requires_grad else inside
        value = self._field(t, parts)
        return value if self._field.is_tuple else value[0]


def _state(problem: Problem, parts: Parts) -> State:
    return parts if problem.field.is_tuple else parts[0]


def _rows(problem: Problem, ys: State) -> list[Parts]:
    columns = ys if isinstance(ys, tuple) else (ys,)
    method, stats = translated(problem.method), problem.stats
    if method.kind == "fixed":
        # Known beforehand: a callback in every step would only cost time.
        n = method.steps
        stats.steps = n * (len(problem.values) - 1) if isinstance(n, int) else sum(n)
        stats.accepted = stats.steps
    return list(zip(*(column.unbind() for column in columns), strict=True))


def translated(method: Method) -> TorchDiffEq:
    """The method as torchdiffeq knows it."""
    if isinstance(method, FixedMethod):
        return TorchDiffEq(method.torchdiffeq_name, steps=method.steps)
    if isinstance(method, AdaptiveMethod):
        return TorchDiffEq(
            method.torchdiffeq_name,
            rtol=method.rtol,
            atol=method.atol,
            max_steps=method.max_steps,
        )
    assert isinstance(method, TorchDiffEq)
    return method


def _forward(problem: Problem, field: _WatchedField) -> dict[str, Any]:
    method, stats = translated(problem.method), problem.stats
    options: dict[str, Any] = dict(method.options)
    arguments: dict[str, Any] = {"method": method.solver, "options": options}
    # Fixed methods that iterate, such as implicit_adams, do so to the tolerance.
    arguments |= {"rtol": method.rtol, "atol": method.atol}
    if method.kind == "fixed":
        options["grid_constructor"] = lambda _f, _z, ts: step_grid(ts, method.steps)
        return arguments
    if method.kind == "adaptive":
        # Steps then end on the output times. Otherwise they end somewhere behind, the field is
        # evaluated there, and the output is interpolated, less accurately than the method is.
        options |= {"step_t": problem.times[1:].detach(), "norm": _norm}

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
    problem: Problem, field: _WatchedField, back: Method, gradient: Adjoint
) -> tuple[dict[str, Any], Callable[[Tensor], None]]:
    """Arguments of the integration backwards, and what to call before each time it is run."""
    method = translated(back)
    stats, sign = problem.stats, problem.direction
    # torchdiffeq's adjoint runs on times made to increase, interval by interval from the last.
    # Options that it copied from the forward integration would not fit that.
    times = sign * problem.times.detach()
    options: dict[str, Any] = dict(method.options)
    arguments: dict[str, Any] = {"adjoint_method": method.solver, "adjoint_options": options}

    arguments["adjoint_rtol"] = method.rtol if gradient.rtol is None else gradient.rtol
    arguments["adjoint_atol"] = method.atol if gradient.atol is None else gradient.atol

    def attempted() -> None:
        stats.backward_steps += 1

    if method.kind == "fixed":
        steps = method.steps

        def grid(_f: Any, _z: Any, ts: Tensor) -> Tensor:
            if isinstance(steps, int):
                return step_grid(ts, steps)
            interval = int(torch.searchsorted(times, ts[-1].detach()))
            return step_grid(ts, steps[interval])

        options["grid_constructor"] = grid
        field.callback_step_adjoint = lambda _t, _z, _dt: attempted()
        return arguments, lambda _gradient: None

    if method.kind == "other":
        return arguments, lambda _gradient: None
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
                stopped.status, time, problem.values[0], back, problem.times.dtype, "the adjoint"
            )
            raise SolverError(message, stopped.status, time, stats) from None

    field.callback_step_adjoint = step
    # max_steps is for one way back, and the same graph may be gone through several times.
    return arguments, lambda _gradient: guard.restart()
