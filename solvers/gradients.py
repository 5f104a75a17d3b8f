"""How derivatives travel back through an integration."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.checks import (
    CountedField,
    build,
    check_kind,
    check_positive,
    check_positive_int,
)
from solvers.errors import SolverError, Stopped, explain
from solvers.fixed import FixedMethod, divide_intervals
from solvers.methods import METHODS, method_from_name
from solvers.registry import Registry
from solvers.step import Method, RungeKutta, make_steps, take_step
from solvers.surroundings import Surroundings, find_tensors, mark
from solvers.types import Parts, Problem, Stats


@dataclass(frozen=True)
class Gradient(ABC):
    """A way to differentiate an integration. Use one of its subclasses.

    Attributes:
        needs_parameters: whether it must know the tensors that the field depends on.
    """

    needs_parameters: ClassVar[bool] = True

    @abstractmethod
    def check(self, method: Method, values: Sequence[float]) -> None:
        """Refuse a method, or output times, that do not fit.

        Raises:
            ValueError: they do not.
        """

    @abstractmethod
    def integrate(
        self, method: Method, problem: Problem, parameters: tuple[Tensor, ...]
    ) -> list[Parts]:
        """Return the states at the output times, differentiable.

        Args:
            method: how to step.
            problem: what to integrate.
            parameters: tensors to differentiate by, beside those of the problem.

        Raises:
            Stopped: the integration could not go on.
        """


GRADIENTS: Registry[type[Gradient]] = Registry("gradient")
"""The gradients by the names that configuration files give them."""


def gradient_from_name(name: str, **options: Any) -> Gradient:
    """Return the gradient of that name, with its options.

    Args:
        name: one of ``GRADIENTS``: ``direct``, ``checkpoint`` or ``adjoint``.
        options: the fields of the class: none; ``every``; or ``rtol``, ``atol``, ``seminorm`` and
            ``method`` (a method, its name, or a mapping of its name and options).

    Raises:
        ValueError: an unknown name (``UnknownNameError``) or option, or a value out of range.
        TypeError: a value of the wrong type.

    Example:
        >>> gradient_from_name("adjoint", method={"name": "dopri5", "rtol": 0.001}).method.rtol
        0.001
    """
    method = options.get("method")
    if isinstance(method, str):
        method = {"name": method}
    if isinstance(method, Mapping):
        if "name" not in method:
            raise ValueError(f"the method of gradient {name!r} has no name, got {dict(method)}")
        options["method"] = method_from_name(**method)
    return build(GRADIENTS, name, options)


def to_dict(options: Method | Gradient) -> dict[str, Any]:
    """Return name and options as plain numbers, texts, lists and dicts, to be written to a file.

    The inverse of :func:`method_from_name` and :func:`gradient_from_name`:
    ``method_from_name(**to_dict(method)) == method``.

    Raises:
        ValueError: the class is not registered.

    Example:
        >>> from solvers import RK4
        >>> to_dict(RK4(steps=2))
        {'name': 'rk4', 'steps': 2}
    """
    registry: Registry[Any] = METHODS if isinstance(options, Method) else GRADIENTS
    name = registry.name_of(type(options))
    if name is None:
        kind = type(options).__name__
        raise ValueError(f"{kind} has no name; register the class as a {registry.kind}")
    result: dict[str, Any] = {"name": name}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Method):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        result[field.name] = value
    return result


@GRADIENTS.register("direct")
@dataclass(frozen=True)
class Direct(Gradient):
    """Autograd through the operations of every step ("discretise, then optimise").

    The exact gradient of what was computed, also at large steps, with respect to the initial state,
    the times, and every tensor that the field uses. Memory grows with the number of evaluations.
    For an adaptive method the sequence of step sizes is taken as given.
    """

    needs_parameters: ClassVar[bool] = False

    def check(self, method: Method, values: Sequence[float]) -> None:
        """Accept any method."""

    def integrate(
        self, method: Method, problem: Problem, parameters: tuple[Tensor, ...]
    ) -> list[Parts]:
        """Return the states at the output times; autograd records every step."""
        return method.integrate(problem)


@GRADIENTS.register("checkpoint")
@dataclass(frozen=True)
class Checkpoint(Gradient):
    """The gradient of :class:`Direct` in less memory, at the cost of a second integration.

    Only the states at every ``every``-th step are kept; on the way back each segment between them
    is integrated once more, with recording, and differentiated. So ``n`` steps keep ``n / every``
    states and the operations of ``every`` steps: about ``every = sqrt(n)`` needs the least memory.
    Every step is re-evaluated exactly once, also if the field itself is a gradient computed by
    autograd, for which ``torch.utils.checkpoint`` would recompute quadratically often. Gradients of
    second order are not available.

    Source: Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016
    (arXiv 1604.06174); Gholami, Keutzer, Biros, "ANODE", IJCAI 2019 (arXiv 1902.10298).

    Args:
        every: steps in a segment.

    Raises:
        TypeError: ``every`` is not an integer.
        ValueError: ``every`` is below 1.
    """

    every: int = 1

    def __post_init__(self) -> None:
        check_positive_int("Checkpoint.every", self.every)

    def check(self, method: Method, values: Sequence[float]) -> None:
        """Refuse methods whose steps are out of sight, or pass the output times."""
        check_steps("gradient Checkpoint()", method)
        if getattr(method, "interpolate", False):
            raise ValueError(
                f"gradient Checkpoint() needs steps that end on the output times, got {method}; "
                "leave interpolate out, or use Direct()"
            )

    def integrate(
        self, method: Method, problem: Problem, parameters: tuple[Tensor, ...]
    ) -> list[Parts]:
        """Return the states at the output times, differentiable in start, times and parameters."""
        assert isinstance(method, RungeKutta)
        if not torch.is_grad_enabled():
            return method.integrate(problem)
        record = _Record(method, problem, self.every, _surround(problem, parameters))
        parameters = _complete(problem, parameters, self)
        flat = _Segments.apply(record, *problem.z0, problem.times, *parameters)
        return [problem.z0, *_group(flat, len(problem.z0))]


@GRADIENTS.register("adjoint")
@dataclass(frozen=True)
class Adjoint(Gradient):
    r"""The continuous adjoint ("optimise, then discretise").

    With ``a = dL/dz`` it integrates, backwards in time and together with the state, which starts
    anew from the stored output at every output time,

    .. math:: \dot a = -a \, \partial f / \partial z, \qquad
              \dot g = -a \, \partial f / \partial p,

    where ``g`` becomes the gradient with respect to the parameters ``p``. Memory does not grow with
    the number of steps. The result is the gradient of the exact flow, up to the error of both
    integrations, and *not* the gradient of what was computed: with large steps the two differ
    noticeably (Euler: several percent), so prefer :class:`Direct` where memory allows. Gradients of
    second order are not available.

    Source: Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations",
    NeurIPS 2018 (arXiv 1806.07366).

    Args:
        rtol: relative tolerance on the way back; None: that of the backward method.
        atol: absolute tolerance on the way back; None: that of the backward method.
        seminorm: leave the parameters' gradients out of the error norm on the way back, which
            needs fewer steps (Kidger, Chen, Lyons, "Hey, that's not an ODE", ICML 2021, arXiv
            2009.09457).
        method: the method on the way back; None: the same as forward. Its ``max_steps`` holds
            for each way back.

    ``rtol``, ``atol`` and ``seminorm`` are for adaptive backward methods; ``solve`` refuses them
    with others.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: a tolerance is not positive and finite.
    """

    rtol: float | None = None
    atol: float | None = None
    seminorm: bool = False
    method: Method | None = None

    def __post_init__(self) -> None:
        for name, value in self._tolerances().items():
            check_positive(f"Adjoint.{name}", value)
        check_kind("Adjoint.seminorm", self.seminorm, bool, "True")
        if self.method is not None:
            check_kind("Adjoint.method", self.method, Method, "Dopri5()")

    def check(self, method: Method, values: Sequence[float]) -> None:
        """Refuse a backward method that does not fit, or options that it does not have."""
        back = self.method or method
        back.check(values, "Adjoint.method")
        if (self._tolerances() or self.seminorm) and not back.is_adaptive:
            raise ValueError(
                f"Adjoint.rtol, atol and seminorm need an adaptive method on the way back, which "
                f"is {back}; drop them, or give Adjoint(method=Dopri5())"
            )

    def integrate(
        self, method: Method, problem: Problem, parameters: tuple[Tensor, ...]
    ) -> list[Parts]:
        """Return the states at the output times, differentiable in start, times and parameters."""
        if not torch.is_grad_enabled():
            return method.integrate(problem)
        back: Any = self.method or method
        if self._tolerances():
            back = replace(back, **self._tolerances())
        surroundings = _surround(problem, parameters)
        parameters = _complete(problem, parameters, self)
        started = surroundings.save()
        settings = (method, back, self.seminorm, surroundings)
        flat = _Backsolve.apply(settings, problem, *problem.z0, problem.times, *parameters)
        if surroundings.save().random is not started.random:
            raise ValueError(
                f"{_counted(problem).name} draws random numbers in every evaluation, and Adjoint() "
                "cannot draw the same again on its way back; draw them once, before, or use "
                "Direct() or Checkpoint()"
            )
        return [problem.z0, *_group(flat, len(problem.z0))]

    def _tolerances(self) -> dict[str, float]:
        given = {"rtol": self.rtol, "atol": self.atol}
        return {name: value for name, value in given.items() if value is not None}


def _counted(problem: Problem) -> CountedField:
    assert isinstance(problem.field, CountedField)
    return problem.field


def _surround(problem: Problem, parameters: Sequence[Tensor]) -> Surroundings:
    devices = [x.device for x in (*problem.z0, *parameters)]
    return Surroundings(_counted(problem).function, devices)


def _complete(
    problem: Problem, parameters: tuple[Tensor, ...], gradient: Gradient
) -> tuple[Tensor, ...]:
    """Return the parameters, and the other leaves in the graph of the first evaluation.

    The evaluation is the integration's own first one, which is not done again.

    Raises:
        ValueError: the field depends on another tensor that is not listed.
    """
    field = _counted(problem)
    t, since = problem.times[0].detach(), mark()
    with torch.enable_grad():
        z = tuple(part.detach().requires_grad_() for part in problem.z0)
        slopes = field(t, z)
    others, older = find_tensors(slopes, (*z, *parameters), since)
    if older:
        raise ValueError(
            f"{field.name} depends on {older}, that requires grad and that {gradient} does not "
            "know; list it among the parameters, or use Direct()"
        )
    field.remember(t, z, tuple(slope.detach() for slope in slopes))
    return (*parameters, *others)


def check_steps(where: str, method: Method) -> None:
    """Refuse a method whose steps are out of sight."""
    if not isinstance(method, RungeKutta):
        raise ValueError(f"{where} needs the steps of a method such as Dopri5(), got {method}")


# ---- the continuous adjoint


class _Backsolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: tuple[Method, Method, bool, Surroundings],
        problem: Problem,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        method, *ctx.back, ctx.surroundings = settings
        ctx.problem = problem
        ctx.set_materialize_grads(False)
        rows = method.integrate(problem)
        flat = tuple(part for row in rows[1:] for part in row)
        ctx.save_for_backward(*tensors, *flat)
        ctx.inputs = len(tensors)
        return flat

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        surroundings: Surroundings = ctx.surroundings
        with surroundings.restore(surroundings.save(), random=False, buffers=True):
            return _Backsolve._backward(ctx, *grads)

    @staticmethod
    def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        (method, seminorm), n = ctx.back, len(problem.z0)
        inputs, outputs = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        ts, parameters = inputs[n].detach(), inputs[n + 1 :]
        rows = [inputs[:n], *_group(outputs, n)]
        arriving = [(None,) * n, *_group(grads, n)]
        moving = ctx.needs_input_grad[2 + n]

        def move(row: Parts, adjoint: Sequence[Tensor | None], i: int) -> Tensor:
            """Return the derivative by the time of an output: ``adjoint * dz/dt``."""
            slopes = problem.field(ts[i], row)
            total = torch.zeros_like(ts[i])
            for slope, a in zip(slopes, adjoint, strict=True):
                total = total if a is None else total + (slope * a.conj()).real.sum()
            return total

        field = _AdjointField(problem, parameters)
        stats = Stats()
        adjoint = tuple(torch.zeros_like(z) for z in rows[0])
        total = tuple(torch.zeros_like(p) for p in parameters)
        grad_ts = torch.zeros_like(ts) if moving else None
        for i in range(len(rows) - 1, 0, -1):
            adjoint = tuple(
                a if g is None else a + g for a, g in zip(adjoint, arriving[i], strict=True)
            )
            if grad_ts is not None:
                grad_ts[i] = move(rows[i], arriving[i], i)
            interval = Problem(
                field,
                (*rows[i], *adjoint, *total),
                ts[[i, i - 1]],
                [problem.values[i], problem.values[i - 1]],
                stats,
                controlled=2 * n if seminorm else None,
            )
            before = stats.steps
            try:
                end = method.restrict(i - 1).integrate(interval)[-1]
            except Stopped as stopped:
                message = explain(
                    stopped.status,
                    stopped.time,
                    problem.values[0],
                    method,
                    ts.dtype,
                    "the adjoint",
                )
                raise SolverError(message, stopped.status, stopped.time, problem.stats) from None
            finally:
                problem.stats.backward_steps += stats.steps - before
            adjoint, total = end[n : 2 * n], end[2 * n :]
        if grad_ts is not None:
            grad_ts[0] = -move(rows[0], adjoint, 0)
        return (None, None, *adjoint, grad_ts, *total)


class _AdjointField:
    """The derivatives of a state, of its adjoint, and of the gradients of parameters."""

    def __init__(self, problem: Problem, parameters: tuple[Tensor, ...]) -> None:
        self._problem = problem
        self._parameters = parameters

    def __call__(self, t: Tensor, state: Parts) -> Parts:
        n = len(self._problem.z0)
        with torch.enable_grad():
            z = tuple(part.detach().requires_grad_() for part in state[:n])
            slopes = self._problem.field(t, z)
        pairs = [(k, -a) for k, a in zip(slopes, state[n : 2 * n], strict=True) if k.requires_grad]
        inputs = (*z, *self._parameters)
        grads = differentiate(pairs, inputs)
        filled = (fill(g, x) for g, x in zip(grads, inputs, strict=True))
        return (*(k.detach() for k in slopes), *filled)


# ---- checkpoints


class _Record:
    """What the way forward leaves for the way back."""

    def __init__(
        self, method: RungeKutta, problem: Problem, every: int, surroundings: Surroundings
    ) -> None:
        self.method = method
        self.problem = problem
        self.every = every
        self.grid = problem.values[:1]
        self.resumed: list[float] = []  # where the steps began
        self.outputs: list[int] = []
        self.starts: list[Parts] = []
        self.surroundings = surroundings
        self.snapshots = [surroundings.save()]

    def integrate(self) -> list[Parts]:
        """Return the states at the output times; keep those at the starts of segments."""

        def observe(
            t: float, z: Parts, end: float, _after: Parts, _stages: Sequence[Parts]
        ) -> bool:
            self.resumed.append(t)
            if (len(self.grid) - 1) % self.every == 0:
                self.starts.append(z)
            self.grid.append(end)
            if (len(self.grid) - 1) % self.every == 0:
                self.snapshots.append(self.surroundings.save())
            return False

        rows = self.method.integrate(replace(self.problem, observe=observe))
        before, after = self.snapshots[0], self.surroundings.save()
        self.draws = after.random is not before.random
        self.changes_buffers = after.versions != before.versions
        places = {t: i for i, t in enumerate(self.grid)}
        # At a breakpoint the step ends just before.
        sign, ahead = self.problem.direction, [self.problem.direction * t for t in self.grid]
        self.outputs = [
            places[t] if t in places else max(bisect_right(ahead, sign * t) - 1, 0)
            for t in self.problem.values
        ]
        return rows

    def move_grid(self, ts: Tensor) -> Tensor:
        """Return the grid as a function of the output times."""
        if isinstance(self.method, FixedMethod):
            return divide_intervals(ts, self.method.steps)
        # The points between two outputs move with the first of them; not at and behind a
        # breakpoint.
        place, still, last = [], [], -1
        for i, point in enumerate(self.grid):
            place.append(bisect_right(self.outputs, i) - 1)
            if i < len(self.resumed) and self.resumed[i] != point:
                last = i
            still.append(self.outputs[place[-1]] < last)
        grid = torch.tensor(self.grid, dtype=ts.dtype, device=ts.device)
        moves = (ts - ts.detach())[torch.tensor(place, device=ts.device)]
        return grid + moves.masked_fill(torch.tensor(still, device=ts.device), 0.0)

    def return_to(self, segment: int) -> AbstractContextManager[None]:
        """Draw the random numbers of a segment again, and leave buffers as they are."""
        if not self.draws and not self.changes_buffers:
            return nullcontext()
        return self.surroundings.restore(self.snapshots[segment], self.draws, self.changes_buffers)

    def check(self, misses: Sequence[Tensor]) -> None:
        """Refuse a field that gave other values than on the way forward.

        Args:
            misses: by how much the ends of the segments missed, in units of what may be rounding.

        Raises:
            ValueError: one of them did.
        """
        if misses and not bool((torch.stack(list(misses)) <= 1.0).all()):
            raise ValueError(
                f"{_counted(self.problem).name} gives other values when it is evaluated again at "
                "the same t and z, so that Checkpoint() has no gradient. torch's random numbers "
                "(with fixed steps) and the buffers of modules are restored; generators of its "
                "own, counters and the like are not: use Direct()"
            )

    def segments(self) -> list[tuple[int, int]]:
        """Return first and last grid point of every segment."""
        last = len(self.grid) - 1
        return list(pairwise([*range(0, last, self.every), last]))


class _Segments(torch.autograd.Function):
    # Segments are recomputed by a Function of their own, not by hooks on saved tensors as in
    # torch.utils.checkpoint: that leaves the field free to call autograd itself.

    @staticmethod
    def forward(ctx: Any, record: _Record, *tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(record.problem.z0)
        rows = record.integrate()
        ctx.record = record
        ctx.set_materialize_grads(False)
        starts = [part for start in (*record.starts, rows[-1]) for part in start]
        ctx.save_for_backward(*tensors[n:], *starts)
        ctx.kept = len(starts)
        record.starts.clear()  # saved tensors are watched for changes, those of a list are not
        return tuple(part for row in rows[1:] for part in row)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        record: _Record = ctx.record
        problem, tableau = record.problem, record.method.tableau
        n, saved = len(problem.z0), ctx.saved_tensors
        split = len(saved) - ctx.kept
        ts, parameters, states = saved[0], saved[1:split], _group(saved[split:], n)
        moving = ctx.needs_input_grad[1 + n]
        with torch.enable_grad():
            leaf = ts.detach().requires_grad_(moving)
            grid = record.move_grid(leaf) if moving else ts

        # Gradients with respect to the outputs, by their place in the grid.
        arriving = dict(zip(record.outputs[1:], _group(grads, n), strict=True))
        carry: Parts = tuple(torch.zeros_like(z) for z in states[0])
        total: list[Tensor | None] = [None] * len(parameters)
        grad_grid = torch.zeros_like(grid)
        misses: list[Tensor] = []
        for i, (a, b) in reversed(list(enumerate(record.segments()))):
            with record.return_to(i), torch.enable_grad():
                start = tuple(part.detach().requires_grad_() for part in states[i])
                points = grid[a : b + 1].detach().requires_grad_(moving)
                steps = make_steps(tableau, points, record.grid[a : b + 1], record.resumed[a:b])
                z, first, ends = start, None, []
                for j, step in enumerate(steps, start=a + 1):
                    z, stages = take_step(tableau, problem.field, step, z, first)
                    first = stages[-1] if tableau.first_same_as_last else None
                    ends += [(e, g) for e, g in zip(z, arriving.get(j, ()), strict=False)]
                problem.stats.backward_steps += len(steps)
                ends += list(zip(z, carry, strict=True))
            misses += map(_miss, z, states[i], states[i + 1])
            wanted = [(e, g) for e, g in ends if g is not None and e.requires_grad]
            inputs = (*start, *((points,) if moving else ()), *parameters)
            found = differentiate(wanted, inputs)
            carry = tuple(fill(g, z) for g, z in zip(found, start, strict=False))
            if moving:
                grad_grid[a : b + 1] += fill(found[n], points)
            of_parameters = found[len(inputs) - len(parameters) :]
            total = [add(p, q) for p, q in zip(total, of_parameters, strict=True)]
        record.check(misses)
        grad_ts = torch.autograd.grad(grid, leaf, grad_grid)[0] if moving else None
        return (None, *carry, grad_ts, *total)


@torch.no_grad()
def _miss(end: Tensor, start: Tensor, expected: Tensor) -> Tensor:
    """Return how far a segment's end is from where it was, in units of what may be rounding."""
    norm = torch.linalg.vector_norm
    size = torch.maximum(norm(expected), norm(start))
    tiny = torch.finfo(size.dtype).tiny
    miss: Tensor = norm(end - expected) / (size * torch.finfo(size.dtype).eps ** 0.5 + tiny)
    return miss


def differentiate(
    pairs: Sequence[tuple[Tensor, Tensor]], inputs: tuple[Tensor, ...]
) -> Sequence[Tensor | None]:
    """Return the gradients of ``sum_i outputs_i * weights_i`` by the inputs, None where none."""
    if not pairs or not inputs:
        return (None,) * len(inputs)
    outputs, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, inputs, weights, allow_unused=True)


def fill(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return a gradient, or the zeros that None stands for."""
    return torch.zeros_like(like) if gradient is None else gradient


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients."""
    return b if a is None else a if b is None else a + b


def _group(flat: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    """Return rows of ``n``."""
    return [tuple(flat[i : i + n]) for i in range(0, len(flat), n)]
