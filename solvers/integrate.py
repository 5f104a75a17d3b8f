"""``solve``: check the arguments, integrate, check the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from solvers.adaptive import integrate_adaptive
from solvers.arguments import (
    check_features,
    check_gradient,
    check_method,
    check_spacing,
    check_state,
    checked_parameters,
    checked_times,
    limited,
)
from solvers.backend import integrate_adjoint, integrate_torchdiffeq
from solvers.checkpoint import integrate_checkpoint
from solvers.control import underlying
from solvers.dense import PerSampleDenseOutput, SharedDenseOutput
from solvers.errors import SolverError, Stopped, explain
from solvers.field import CountedField, Field
from solvers.fixed import integrate_fixed
from solvers.gradients import Adjoint, Checkpoint, Direct, Gradient
from solvers.methods import RK4, FixedMethod, Method, TorchDiffEq
from solvers.per_sample import integrate_per_sample
from solvers.problem import Problem
from solvers.solution import Samples, Solution, State, Stats, Status
from solvers.stepping import Parts


def solve(
    field: Field,
    z0: State,
    ts: Tensor | Sequence[float | int | Tensor],
    method: Method = RK4(steps=1),
    gradient: Gradient = Direct(),
    *,
    parameters: Iterable[Tensor] | None = None,
    max_steps: int | None = None,
    per_sample: bool = False,
    dense: bool = False,
    throw: bool = True,
) -> Solution:
    r"""Integrate ``dz/dt = field(t, z)`` from ``z(ts[0]) = z0``, and return ``z`` at all ``ts``.

    .. math:: z(t_i) = z_0 + \int_{t_0}^{t_i} f(t, z(t)) \, dt

    The field is never evaluated outside the interval that ``ts`` spans. Nothing is drawn at random,
    and no state is kept between calls. Works under ``no_grad`` and ``inference_mode``; a field that
    itself is a gradient must switch autograd on by ``torch.enable_grad()`` there.
    ``torch.func``'s ``grad``, ``jvp``, ``jacfwd``, ``jacrev``, ``hessian`` and ``vmap`` go through
    all methods of this package with :class:`Direct`; the samples of a ``vmap`` share their steps.

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
        max_steps: the largest number of attempted steps, in place of that of an adaptive method;
            with fixed steps a bound on what ``method`` asks for.
        per_sample: give every sample of a batch its own steps, for adaptive methods with
            :class:`Direct`. A sample's result then does not depend on its neighbours; what became
            of each is in ``Solution.samples``. All parts of the state have the batch in front, and
            the field is called with a time for each sample, ``t`` of shape ``(B,)``.
        dense: keep the steps, for :meth:`Solution.interpolate`.
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

    Sources: HNW (see :mod:`solvers.methods`) for the methods; :class:`Adjoint` and
    :class:`TorchDiffEq` call torchdiffeq (Chen, https://github.com/rtqichen/torchdiffeq).

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
    problem, through = prepared(
        field, z0, ts, method, gradient, parameters, max_steps, per_sample, dense
    )
    n, first = len(problem.values), problem.z0
    status, reached, samples = Status.SUCCESS, problem.values[-1], None
    kept = None
    if dense:
        kept = PerSampleDenseOutput(problem) if per_sample else SharedDenseOutput(problem)
    try:
        if n == 1 or not any(z.numel() for z in first):
            # Nothing moves (and the error norm of a state without entries would be NaN).
            rows = [first] * n
            samples = Samples.at_rest(first[0], problem.values[-1]) if per_sample else None
        elif isinstance(gradient, Adjoint):
            rows = integrate_adjoint(problem, gradient, through)
        elif isinstance(gradient, Checkpoint):
            rows = integrate_checkpoint(problem, gradient.every, through)
        elif isinstance(problem.method, TorchDiffEq):
            rows = integrate_torchdiffeq(problem)
        elif per_sample:
            observe = kept.observe if isinstance(kept, PerSampleDenseOutput) else None
            rows, samples = integrate_per_sample(problem, observe)
        else:
            integrate = (
                integrate_fixed if isinstance(problem.method, FixedMethod) else integrate_adaptive
            )
            rows = integrate(problem, kept.observe if isinstance(kept, SharedDenseOutput) else None)
    except Stopped as stopped:
        status, reached, rows = stopped.status, stopped.time, list(stopped.reached)
        if not isinstance(gradient, Direct):  # the outputs come without a graph: let z0 have none
            rows = [tuple(z.detach() for z in row) for row in rows]
    problem.field.backward = True

    what = "the integration"
    if samples is not None:
        samples = samples.checked(rows)
        failed = [i for i, each in enumerate(samples.status) if each is not Status.SUCCESS]
        if failed:
            i = failed[0]
            status, reached = samples.status[i], samples.time[i].item()
            what = f"sample {i}, the first of {len(failed)} of {len(samples.status)} that failed,"
    elif status is Status.SUCCESS:
        finite = _finite_rows(rows, throw)
        if finite < n:
            status, reached = Status.NON_FINITE, problem.values[max(finite - 1, 0)]
    if throw and status is not Status.SUCCESS:
        dtype = first[0].dtype
        message = explain(status, reached, problem.values[-1], problem.method, dtype, what)
        raise SolverError(message, status, reached, problem.stats)
    columns = tuple(_stack(list(column), n) for column in zip(*rows, strict=True))
    ys = columns if isinstance(z0, tuple) else columns[0]
    return Solution(problem.times, ys, status, problem.stats, samples, kept)


def prepared(
    field: Field,
    z0: State,
    ts: Tensor | Sequence[float | int | Tensor],
    method: Method,
    gradient: Gradient,
    parameters: Iterable[Tensor] | None,
    max_steps: int | None,
    per_sample: bool,
    dense: bool,
) -> tuple[Problem, tuple[Tensor, ...]]:
    """The problem, and the tensors that a gradient has to be told."""
    if not callable(field):
        raise TypeError(f"field must be callable as field(t, z), got {type(field).__name__}")
    check_state(z0)
    parts = z0 if isinstance(z0, tuple) else (z0,)
    times, values = checked_times(ts, parts[0])
    intervals = len(values) - 1
    check_method(method, intervals)
    method = limited(method, max_steps, intervals)
    check_spacing(method, values)
    check_gradient(gradient, method, intervals)
    check_features(z0, method, gradient, per_sample, dense)
    through: tuple[Tensor, ...] = ()
    if not isinstance(gradient, Direct):
        through = checked_parameters(field, parameters, gradient)
    stats = Stats()
    return Problem(CountedField(field, z0, stats), parts, times, values, method, stats), through


def _stack(states: list[Tensor], n: int) -> Tensor:
    unreached = [torch.full_like(states[0], torch.nan)] * (n - len(states))
    return torch.stack(states + unreached)


def _finite_rows(rows: Sequence[Parts], throw: bool) -> int:
    """How many output times from the first on have a finite state."""
    flags = [torch.isfinite(underlying(z)).all() for row in rows for z in row]
    if throw and torch.compiler.is_compiling():
        # Reading the flags would cut the graph in two; this stays in it.
        message = "the integration became NaN or infinite; uncompiled, it would say where"
        torch._assert_async(torch.stack(flags).all(), message)
        return len(rows)
    if bool(torch.stack(flags).all()):  # the usual case, and the only wait for the device
        return len(rows)
    width = len(rows[0])
    finite = torch.stack(flags).view(len(rows), width).all(dim=1)
    return int(finite.long().cumprod(0).sum())
