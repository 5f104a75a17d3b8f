"""``solve``: check the arguments, integrate, check the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers.adaptive import AdaptiveMethod
from solvers.checks import (
    CountedField,
    check_batch,
    check_kind,
    check_positive_int,
    check_state,
    check_times,
    collect_parameters,
    unwrap,
)
from solvers.dense import DenseOutput, PerSampleDenseOutput, SharedDenseOutput
from solvers.errors import SolverError, Stopped, explain
from solvers.gradients import Direct, Gradient, check_steps
from solvers.methods import RK4
from solvers.per_sample import fail_non_finite, integrate_per_sample, rest
from solvers.step import Method, RungeKutta, select
from solvers.types import (
    Attempt,
    Observer,
    Parts,
    Problem,
    Solution,
    State,
    Stats,
    Status,
    VectorField,
)


def solve(
    field: VectorField,
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
    observer: Observer | None = None,
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
            ``t`` is a real scalar tensor in the precision of ``z``. Under autocast a result of
            lower precision is converted to the dtype of the state, which is integrated in its own.
        z0: the state at ``ts[0]``: a tensor of any shape, float32, float64, complex64 or
            complex128, or a tuple of such with one precision and device. Dtype and device are kept.
            Gradients with respect to complex tensors follow autograd's convention.
        ts: the output times ``(n,)``, ``n >= 1``, strictly increasing or strictly decreasing
            (backwards in time), a tensor or numbers. Converted to the precision of the state.
            Gradients by a tensor (or by tensors among the numbers) are computed. A tensor
            ``(B, n)`` gives every sample its own times, each row like ``(n,)`` and filled up by
            NaN, for fixed methods, and adaptive ones with ``per_sample``; the field is then called
            with a time for each sample.
        method: how to step. The default takes one 4th-order step in every interval.
        gradient: how to differentiate.
        parameters: the tensors, leaves or not, with respect to which :class:`Adjoint` and
            :class:`Checkpoint` differentiate, beside ``z0`` and ``ts``. By default those of
            the field if it is an ``nn.Module`` or a method of one. :class:`Direct` reaches every
            tensor by itself, and ignores them.
        max_steps: the largest number of attempted steps, in place of that of an adaptive method;
            with fixed steps a bound on what ``method`` asks for.
        per_sample: give every sample of a batch its own steps, for adaptive methods with
            :class:`Direct`. A sample's result then does not depend on its neighbours; what became
            of each is in ``Solution.samples``. All parts of the state have the batch in front, and
            the field is called with a time for each sample, ``t`` of shape ``(B,)``.
        dense: keep the steps, for :meth:`Solution.interpolate`.
        throw: raise if the integration fails; otherwise the returned ``status`` says so, and
            outputs that were not reached are NaN.
        observer: called with an :class:`Attempt` after each step that is tried, accepted or
            rejected, on the way forward (of any method but :class:`TorchDiffEq`): for progress bars
            and recordings. What it returns is ignored; what it raises ends the integration.

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

    Source: HNW, see :mod:`solvers.methods`.

    Example:
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
    call = prepare(field, z0, ts, method, gradient, parameters, max_steps, observer)
    problem, method = call.problem, call.method
    first, values = problem.z0, problem.values
    own_times = problem.times.ndim == 2
    if dense or per_sample or own_times:
        check_features(method, gradient, problem, per_sample, dense)
    status, reached, samples = Status.SUCCESS, values[-1], None
    kept: DenseOutput | None = None
    try:
        if per_sample:
            assert isinstance(method, AdaptiveMethod)
            each = kept = PerSampleDenseOutput(method, problem) if dense else None
            if is_still(problem):
                rows, samples = rest(problem)
            else:
                observe = None if each is None else each.observe
                rows, samples = integrate_per_sample(method, problem, observe)
        else:
            if dense:
                assert isinstance(method, RungeKutta)
                kept = SharedDenseOutput(method, problem)
                problem = replace(problem, observe=kept.observe)
            if is_still(problem):
                rows = [first] * len(values)
            else:
                rows = gradient.integrate(method, problem, call.parameters)
    except Stopped as stopped:
        status, reached, rows = stopped.status, stopped.time, list(stopped.reached)
        if not isinstance(gradient, Direct):  # the outputs come without a graph: let z0 have none
            rows = [tuple(z.detach() for z in row) for row in rows]
    call.field.backward = True

    what = "the integration"
    if samples is not None:
        asked = problem.times.isfinite() if own_times else None
        samples = fail_non_finite(samples, rows, asked)
        failed = [i for i, one in enumerate(samples.status) if one is not Status.SUCCESS]
        if failed:
            i = failed[0]
            status, reached = samples.status[i], samples.time[i].item()
            what = f"sample {i}, the first of {len(failed)} of {len(samples.status)} that failed,"
    elif status is Status.SUCCESS:
        finite = _count_finite(rows, throw)
        if finite < len(values):
            status, reached = Status.NON_FINITE, values[max(finite - 1, 0)]
            if own_times:
                reached = problem.times.detach()[:, max(finite - 1, 0)].nan_to_num().min().item()
    if own_times:
        rows = [
            select(asked, row, tuple(torch.full_like(part, torch.nan) for part in row))
            for asked, row in zip(problem.times.isfinite().unbind(1), rows, strict=True)
        ]
    if throw and status is not Status.SUCCESS:
        end = problem.times.detach().nan_to_num().max().item() if own_times else values[-1]
        message = explain(status, reached, end, method, first[0].dtype, what)
        raise SolverError(message, status, reached, problem.stats)
    columns = tuple(_stack(list(column), len(values)) for column in zip(*rows, strict=True))
    ys = columns if isinstance(z0, tuple) else columns[0]
    return Solution(problem.times, ys, status, problem.stats, samples, kept)


@dataclass(frozen=True)
class Call:
    """The checked arguments of an integration.

    Attributes:
        problem: what is integrated.
        field: its field.
        method: how to step.
        parameters: what a gradient differentiates by that must know it.
    """

    problem: Problem
    field: CountedField
    method: Method
    parameters: tuple[Tensor, ...]


def prepare(
    field: VectorField,
    z0: State,
    ts: Tensor | Sequence[float | int | Tensor],
    method: Method,
    gradient: Gradient,
    parameters: Iterable[Tensor] | None,
    max_steps: int | None,
    observer: Observer | None,
) -> Call:
    """Check the arguments of an integration.

    Raises:
        TypeError, ValueError: see :func:`solve`.
    """
    if not callable(field):
        raise TypeError(f"field must be callable as field(t, z), got {type(field).__name__}")
    parts = check_state(z0)
    times, values = check_times(ts, parts[0])
    check_kind("method", method, Method, "RK4(steps=2)")
    check_kind("gradient", gradient, Gradient, "Direct()")
    method.check(values, "method")
    if max_steps is not None:
        check_positive_int("max_steps", max_steps)
        method = method.limit(max_steps, len(values) - 1)
    gradient.check(method, values)
    through: tuple[Tensor, ...] = ()
    if gradient.needs_parameters:
        through = collect_parameters(field, parameters, gradient)
    report = None
    if observer is not None:
        if not callable(observer):
            raise TypeError(f"observer must be callable, got {type(observer).__name__}")
        check_steps("observer", method)
        report = _make_report(observer, isinstance(z0, tuple))
    stats = Stats()
    counted = CountedField(field, z0, stats)
    problem = Problem(counted, parts, times, values, stats, report=report)
    return Call(problem, counted, method, through)


def _make_report(observer: Observer, is_tuple: bool) -> Callable[..., None]:
    def report(t: Any, size: Any, accepted: Any, error: Any, z: Parts) -> None:
        copies = tuple(part.detach().clone() for part in z)
        observer(Attempt(t, size, accepted, error, copies if is_tuple else copies[0]))

    return report


def check_features(
    method: Method, gradient: Gradient, problem: Problem, per_sample: bool, dense: bool
) -> None:
    """Refuse dense output, steps and times of each sample, where they are not available."""
    what = "per_sample" if per_sample else "dense" if dense else "ts of each sample, (B, n),"
    kind = AdaptiveMethod if per_sample else RungeKutta
    if not isinstance(method, kind) or not isinstance(gradient, Direct):
        raise ValueError(
            f"{what} needs the gradient Direct() and {'an adaptive' if per_sample else 'a'} "
            f"method such as Dopri5(), got {gradient} and {method}"
        )
    if problem.times.ndim == 2 and not per_sample:
        if method.is_adaptive:
            raise ValueError(f"ts of each sample, (B, n), needs per_sample=True with {method}")
        if dense:
            raise ValueError("dense with ts of each sample, (B, n), needs per_sample=True")
    if per_sample or problem.times.ndim == 2:
        check_batch(problem.z0)


def is_still(problem: Problem) -> bool:
    """Return whether nothing moves: one time, or no entries, whose error norm would be NaN."""
    return len(problem.values) == 1 or not any(z.numel() for z in problem.z0)


def _stack(states: list[Tensor], n: int) -> Tensor:
    unreached = [torch.full_like(states[0], torch.nan)] * (n - len(states))
    return torch.stack(states + unreached)


def _count_finite(rows: Sequence[Parts], throw: bool) -> int:
    """Count the output times, from the first on, that have a finite state."""
    flags = [torch.isfinite(unwrap(z)).all() for row in rows for z in row]
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
