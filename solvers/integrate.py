"""``solve``: check the arguments, integrate, check the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from solvers.arguments import (
    check_gradient,
    check_method,
    check_state,
    checked_parameters,
    checked_times,
)
from solvers.backend import Problem, integrate_adjoint, integrate_checkpoint, integrate_direct
from solvers.errors import SolverError, explain
from solvers.field import Field
from solvers.gradients import Adjoint, Checkpoint, Direct, Gradient
from solvers.guard import Stopped
from solvers.methods import RK4, Method
from solvers.solution import Solution, State, Stats, Status


def solve(
    field: Field,
    z0: State,
    ts: Tensor | Sequence[float | int | Tensor],
    method: Method = RK4(steps=1),
    gradient: Gradient = Direct(),
    *,
    parameters: Iterable[Tensor] | None = None,
    throw: bool = True,
) -> Solution:
    r"""Integrate ``dz/dt = field(t, z)`` from ``z(ts[0]) = z0``, and return ``z`` at all ``ts``.

    .. math:: z(t_i) = z_0 + \int_{t_0}^{t_i} f(t, z(t)) \, dt

    The field is never evaluated outside the interval that ``ts`` spans. Nothing is drawn at random,
    and no state is kept between calls. Works under ``no_grad`` and ``inference_mode``; a field that
    itself is a gradient must switch autograd on by ``torch.enable_grad()`` there.
    ``torch.func``'s ``jvp``, ``jacfwd``, ``jacrev`` and ``hessian`` go
    through methods with fixed steps and :class:`Direct`; ``vmap`` does not, so put a batch into
    the state instead.

    Args:
        field: ``field(t, z)`` returns ``dz/dt`` with the structure, shapes and dtype of ``z``;
            ``t`` is a scalar tensor in the dtype of ``z``. Under autocast a result of lower
            precision is converted to the dtype of the state, which is integrated in its own.
        z0: the state at ``ts[0]``: a float32 or float64 tensor of any shape, or a tuple of such
            with one dtype and device. Dtype and device are kept.
        ts: the output times ``(n,)``, ``n >= 1``, strictly increasing or strictly decreasing
            (backwards in time), a tensor or numbers. Converted to the dtype of the state. Gradients
            with respect to a tensor (or to tensors among the numbers) are computed.
        method: how to step. The default takes one 4th-order step in every interval.
        gradient: how to differentiate.
        parameters: the tensors, leaves or not, with respect to which :class:`Adjoint` and
            :class:`Checkpoint` differentiate, beside ``z0`` and ``ts``. By default those of
            the field if it is an ``nn.Module`` or a method of one. :class:`Direct` reaches every
            tensor without being told, and ignores them.
        throw: raise if the integration fails; otherwise the returned ``status`` says so, and
            outputs that were not reached are NaN.

    Returns:
        Times, states, status and statistics, see :class:`Solution`.

    Raises:
        SolverError: the field or state became NaN or infinite, or an adaptive method ran out of
            steps or reached the smallest possible one. Also with ``throw=False`` if that
            happens to an :class:`Adjoint` on its way back.
        TypeError: an argument, or what the field returns, is of the wrong kind or dtype.
        ValueError: times that repeat, turn or are not finite; shapes, numbers of steps, or options
            that do not fit together; :class:`Adjoint` or :class:`Checkpoint` without knowing the
            parameters.

    Sources: HNW (see :mod:`solvers.methods`) for the methods; the integrations are carried out by
    torchdiffeq (Chen, https://github.com/rtqichen/torchdiffeq).

    A damped oscillation, as a state of position and velocity:

    >>> import torch
    >>> from solvers import RK4, solve
    >>> def field(t, z):
    ...     position, velocity = z
    ...     return velocity, -position - 0.1 * velocity
    >>> _ = torch.manual_seed(0)
    >>> z0 = (torch.randn(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    >>> solution = solve(field, z0, [0.0, 1.0, 2.0], RK4(steps=8))
    >>> solution.ys[0].shape, solution.stats.evaluations
    (torch.Size([3, 3]), 64)
    >>> end = (solution.ys[0][-1], solution.ys[1][-1])
    >>> back = solve(field, end, [2.0, 0.0], RK4(steps=16))
    >>> torch.allclose(back.ys[0][-1], z0[0], atol=1e-5)
    True
    """
    if not callable(field):
        raise TypeError(f"field must be callable as field(t, z), got {type(field).__name__}")
    check_state(z0)
    like = z0[0] if isinstance(z0, tuple) else z0
    times, values = checked_times(ts, like)
    check_method(method, len(values) - 1)
    check_gradient(gradient, method, len(values) - 1)
    through: tuple[Tensor, ...] = ()
    if not isinstance(gradient, Direct):
        through = checked_parameters(field, parameters, gradient)
    problem = Problem(field, z0, times, values, method, Stats())

    status, reached = Status.SUCCESS, values[-1]
    try:
        if len(values) == 1 or not any(z.numel() for z in _parts(z0)):
            # Nothing moves (and the error norm of a state without entries would be NaN).
            ys = _rows(z0, [z0] * len(values), len(values))
        elif isinstance(gradient, Adjoint):
            ys = integrate_adjoint(problem, gradient, through)
        elif isinstance(gradient, Checkpoint):
            ys = integrate_checkpoint(problem, gradient, through)
        else:
            ys = integrate_direct(problem)
    except Stopped as stopped:
        status, reached = stopped.status, stopped.time
        ys = _rows(z0, stopped.reached, len(values))
        if isinstance(gradient, Adjoint):  # its outputs come without a graph, so z0 alone has one
            ys = tuple(y.detach() for y in ys) if isinstance(ys, tuple) else ys.detach()
    if status is Status.SUCCESS:
        finite = _finite_rows(ys)
        if finite < len(values):
            status, reached = Status.NON_FINITE, values[max(finite - 1, 0)]
    if throw and status is not Status.SUCCESS:
        message = explain(status, reached, values[-1], method, like.dtype, "the integration")
        raise SolverError(message, status, reached, problem.stats)
    return Solution(times, ys, status, problem.stats)


def _parts(z: State) -> tuple[Tensor, ...]:
    return z if isinstance(z, tuple) else (z,)


def _rows(z0: State, states: Sequence[State], n: int) -> State:
    """The states as the first of ``n`` rows, the others NaN."""
    if isinstance(z0, tuple):
        columns = zip(*(_parts(z) for z in states), strict=True)
        return tuple(_stack(list(column), n) for column in columns)
    return _stack([z for z in states if isinstance(z, Tensor)], n)


def _stack(states: list[Tensor], n: int) -> Tensor:
    unreached = [torch.full_like(states[0], torch.nan)] * (n - len(states))
    return torch.stack(states + unreached)


def _finite_rows(ys: State) -> int:
    """How many output times from the first on have a finite state."""
    n = len(_parts(ys)[0])
    finite = [torch.isfinite(y.detach()) for y in _parts(ys)]
    if all(bool(f.all()) for f in finite):  # the usual case, and the only wait for the device
        return n
    rows = torch.stack([f.reshape(n, -1).all(dim=1) for f in finite]).all(dim=0)
    return int(rows.long().cumprod(0).sum())
