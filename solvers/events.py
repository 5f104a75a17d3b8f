"""Integration until something happens, with gradients through the time at which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from solvers.checks import CountedField
from solvers.errors import SolverError, Stopped, explain
from solvers.gradients import Direct, Gradient, check_steps
from solvers.methods import Dopri5
from solvers.solve import prepare, solve
from solvers.step import Method, RungeKutta, Step, append_axes, make_time, select, take_step
from solvers.types import Parts, Problem, Solution, State, Stats, Status, VectorField

MAX_TRIALS = 200
DIRECTIONS = ("either", "rising", "falling")

Event = Callable[[Tensor, State], Tensor]
"""``event(t, z)`` is a number, or one for each sample ``(B,)``; the event is where it is 0."""


@dataclass(frozen=True)
class EventSolution:
    """The result of :func:`solve_until`.

    Attributes:
        t: the time of the event, ``()`` or one for each sample ``(B,)``; the end of the span where
            it did not occur. Differentiable.
        z: the state at that time, in the shape of the initial one. Differentiable.
        occurred: whether the event occurred.
        stats: the work of search and integration.
    """

    t: Float[Tensor, "*b"]
    z: State
    occurred: Bool[Tensor, "*b"]
    stats: Stats


def solve_until(
    field: VectorField,
    z0: State,
    event: Event,
    span: tuple[float, float],
    method: Method = Dopri5(),
    gradient: Gradient = Direct(),
    *,
    direction: Literal["either", "rising", "falling"] = "either",
    parameters: Iterable[Tensor] | None = None,
    max_steps: int | None = None,
) -> EventSolution:
    r"""Integrate ``dz/dt = field(t, z)`` until ``event(t, z)`` crosses 0 for the first time.

    The event function is looked at between the steps of the method: where its sign changes, the
    time in between is found to the precision of the dtype by bisection and the secant rule, with
    steps of the method to every trial time. Two crossings within one step go unseen: give a fixed
    method enough steps, an adaptive one a tolerance to match.

    Gradients are those of the implicit function ``g(t^*, z(t^*)) = 0``,

    .. math:: dt^* = - \frac{\nabla g \cdot \partial z}{\partial_t g + \nabla g \cdot f}, \qquad
              dz^* = \partial z + f \, dt^*,

    the partial derivatives being those of the integration to a fixed time, by ``gradient``.

    These are first derivatives; those of second order are not available.

    With one event per sample every sample ends at its own time. ``field`` and ``event`` must then
    take times of shape ``()`` and ``(B,)``, and treat the samples independently.

    Args:
        field: see :func:`solvers.solve`.
        z0: the state at the start; with an event per sample all its tensors have the batch in
            front.
        event: ``event(t, z)`` returns a scalar, or ``(B,)``. An event that holds at the start
            itself does not count.
        span: start and latest end. The second may be the smaller one.
        method: how to step, any but :class:`TorchDiffEq`.
        gradient: how to differentiate.
        direction: the sign after the event: count only crossings from below, ``"rising"`` (as time
            goes on in the direction of the integration), or from above, ``"falling"``.
        parameters: see :func:`solvers.solve`; those that ``event`` depends on need not be listed.
        max_steps: see :func:`solvers.solve`.

    Returns:
        Times, states, and whether the event occurred, see :class:`EventSolution`.

    Raises:
        SolverError: the integration failed before the event.
        TypeError, ValueError: as :func:`solvers.solve`; the event's shape is neither ``()`` nor
            ``(B,)``, or it is not finite; or it touches 0 where a gradient is asked for
            (``dg/dt = 0``), and its time has no derivative; or ``span`` is not a start and an
            end.

    Source: Chen, Amos, Nickel, "Learning neural event functions for ordinary differential
    equations", ICLR 2021 (arXiv 2011.03902), for the gradient.

    Example:
        Two falling stones, from different heights:

        >>> import torch
        >>> from solvers import solve_until
        >>> _ = torch.manual_seed(0)
        >>> height = torch.tensor([1.0, 4.0], dtype=torch.float64, requires_grad=True)
        >>> def fall(t, z):
        ...     return torch.stack([z[:, 1], -torch.ones_like(z[:, 1])], dim=1)
        >>> z0 = torch.stack([height, torch.zeros_like(height)], dim=1)
        >>> landing = solve_until(fall, z0, lambda t, z: z[:, 0], (0.0, 10.0))
        >>> torch.allclose(landing.t, (2 * height).sqrt())
        True
        >>> torch.autograd.grad(landing.t.sum(), height)[0]
        tensor([0.7071, 0.3536], dtype=torch.float64)
    """
    if not callable(event):
        raise TypeError(f"event must be callable as event(t, z), got {type(event).__name__}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    call = prepare(field, z0, span, method, gradient, parameters, max_steps)
    problem, method = call.problem, call.method
    check_steps("solve_until", method)
    assert isinstance(method, RungeKutta)
    if len(problem.values) != 2:
        raise ValueError(f"span must be a start and an end, got {len(problem.values)} times")

    # 1. Where is it? 2. Integrate to there, with gradients. 3. Add those of the time.
    checked = _CheckedEvent(event, z0)
    with torch.no_grad():
        t, occurred = _Search(method, problem, checked, direction).run()

    def integrate(field: VectorField, times: Sequence[float]) -> Solution:
        return solve(field, z0, times, method, gradient, parameters=call.parameters)

    z, stats = _integrate_to(t, field, problem, integrate)
    t, z = _attach_gradient(t, z, occurred, checked, call.field)
    stats.evaluations += problem.stats.evaluations
    stats.steps += problem.stats.steps
    stats.accepted += problem.stats.accepted
    stats.rejected += problem.stats.rejected
    return EventSolution(t, z if isinstance(z0, tuple) else z[0], occurred, stats)


class _CheckedEvent:
    """The event function on parts, its value checked."""

    def __init__(self, event: Event, z0: State) -> None:
        self._event = event
        self._is_tuple = isinstance(z0, tuple)
        self._batch = (z0[0] if isinstance(z0, tuple) else z0).shape[:1]

    def __call__(self, t: Float[Tensor, "*t"], z: Parts) -> Float[Tensor, "*b"]:
        value = self._event(t, z if self._is_tuple else z[0])
        if not isinstance(value, Tensor):
            raise TypeError(f"event(t, z) must be a tensor, got {type(value).__name__}")
        if value.shape not in (torch.Size(), self._batch):
            allowed = "a scalar" + (f" or {tuple(self._batch)}" if self._batch else "")
            raise ValueError(f"event(t, z) has shape {tuple(value.shape)}; it must be {allowed}")
        if not bool(value.detach().isfinite().all()):
            raise ValueError("event(t, z) is NaN or infinite")
        return value


class _Search:
    """Watches the steps of an integration, and finds the first crossing of every sample."""

    def __init__(
        self, method: RungeKutta, problem: Problem, event: _CheckedEvent, direction: str
    ) -> None:
        self.event = event
        self._method = method
        self._problem = problem
        self._direction = direction

    def run(self) -> tuple[Float[Tensor, "*b"], Bool[Tensor, "*b"]]:
        """Return the time of the event, and whether it occurred; the end if it did not."""
        problem = self._problem
        end = problem.values[1]
        value = self.event(problem.times[0], problem.z0)
        if not value.numel():  # a batch without samples
            return torch.full_like(value, end), torch.zeros_like(value, dtype=torch.bool)
        self._before = value
        self._occurred = torch.zeros_like(value, dtype=torch.bool)
        # The step in which it occurred: start, state there, size, and values at its two ends.
        self._start = torch.full_like(value, end, dtype=torch.float64)
        self._size = torch.zeros_like(self._start)
        self._state = problem.z0
        self._values = (value, value)
        try:
            self._method.integrate(replace(problem, observe=self._observe))
        except Stopped as stopped:
            raise self._fail(stopped.status, stopped.time) from None
        return (self._start + self._find_root()).to(problem.times.dtype), self._occurred

    def _fail(self, status: Status, time: float) -> SolverError:
        problem = self._problem
        dtype, end = problem.times.dtype, problem.values[1]
        message = explain(status, time, end, self._method, dtype, "the search")
        return SolverError(message, status, time, problem.stats)

    def _observe(self, t: float, z: Parts, end: float, after: Parts) -> bool:
        if not all(bool(part.isfinite().all()) for part in after):
            raise self._fail(Status.NON_FINITE, t)
        before, value = self._before, self.event(make_time(end, z[0]), after)
        rising, falling = (before < 0) & (value >= 0), (before > 0) & (value <= 0)
        crossed = {"rising": rising, "falling": falling, "either": rising | falling}
        new = crossed[self._direction] & ~self._occurred
        self._occurred = self._occurred | new
        self._start = torch.where(new, t, self._start)
        self._size = torch.where(new, end - t, self._size)
        self._state = select(new, z, self._state)
        low, high = self._values
        self._values = (torch.where(new, before, low), torch.where(new, value, high))
        self._before = value
        return bool(self._occurred.all())

    def _find_root(self) -> Float[Tensor, "*b"]:
        """Return how long after the start of its step each event is."""
        a, b = torch.zeros_like(self._size), self._size
        at_a, at_b = (value.double() for value in self._values)
        resolution = 2 * torch.finfo(self._problem.times.dtype).eps
        smallest = resolution * torch.maximum((self._start + b).abs(), self._size.abs())
        for i in range(MAX_TRIALS):
            if bool(((b - a).abs() <= smallest).all()):
                break
            # The secant rule keeps one end for long (halving its value, as in the Illinois
            # variant, mends that mostly); every third trial is a bisection.
            trial = b - at_b * (b - a) / (at_b - at_a)
            inside = (trial - a) * (trial - b) <= 0  # false for a NaN
            trial = torch.where(inside & (i % 3 < 2), trial, (a + b) / 2)
            value = self._evaluate_after(trial).double()
            beyond = value.sign() != at_a.sign()  # a 0 as well
            at_a = torch.where(beyond, at_a / 2, value)
            at_b = torch.where(beyond, value, at_b / 2)
            a, b = torch.where(beyond, a, trial), torch.where(beyond, trial, b)
        return b

    def _evaluate_after(self, size: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        tableau, dtype = self._method.tableau, self._problem.times.dtype
        times = [(self._start + c * size).to(dtype) for c in tableau.c]
        step = Step(times, size.to(dtype))
        after, _ = take_step(tableau, self._problem.field, step, self._state)
        return self.event((self._start + size).to(dtype), after)


def _integrate_to(
    t: Float[Tensor, "*b"],
    field: VectorField,
    problem: Problem,
    integrate: Callable[[VectorField, Sequence[float]], Solution],
) -> tuple[Parts, Stats]:
    """Return the state at ``t``, which may differ between the samples."""
    start = problem.times[0].detach()
    if t.ndim == 0:
        if bool(t == start):
            return problem.z0, Stats()
        solution = integrate(field, [start.item(), t.item()])
    else:
        # In units of each sample's own duration they all end at 1.
        duration = t - start

        def scaled(s: Tensor, z: State) -> State:
            value = field(start + s * duration, z)
            if isinstance(value, Tensor):
                return value * append_axes(duration, value)
            return tuple(v * append_axes(duration, v) for v in value)

        solution = integrate(scaled, [0.0, 1.0])
    ys = solution.ys if isinstance(solution.ys, tuple) else (solution.ys,)
    return tuple(y[-1] for y in ys), solution.stats


def _attach_gradient(
    t: Float[Tensor, "*b"],
    z: Parts,
    occurred: Bool[Tensor, "*b"],
    event: _CheckedEvent,
    field: CountedField,
) -> tuple[Float[Tensor, "*b"], Parts]:
    """Take one step of Newton's method, whose derivative is that of the implicit function.

    It also takes out what the last integration, by other steps than the search's, has changed.
    """
    if torch.is_inference_mode_enabled() or not bool(occurred.any()):
        return t, z
    with torch.enable_grad():
        time = t.detach().requires_grad_()
        at = tuple(part.detach().requires_grad_() for part in z)
        value = event(time, at)
        slopes: Sequence[Tensor | None] = (None,) * (1 + len(z))
        if value.requires_grad:
            slopes = torch.autograd.grad(value.sum(), (time, *at), allow_unused=True)
    with torch.no_grad():
        velocity = field(t, tuple(part.detach() for part in z))
        rate = torch.zeros_like(t) if slopes[0] is None else slopes[0]
        for slope, v in zip(slopes[1:], velocity, strict=True):
            if slope is not None:
                product = slope * v
                rate = rate + product.reshape(*t.shape, -1).sum(-1)
        touching = occurred & (rate == 0)
    miss = event(t, z)
    wanted = miss.requires_grad or any(part.requires_grad for part in z)
    if wanted and not value.requires_grad:
        raise ValueError(
            "event(t, z) is no differentiable function of t and z, so that its time has no "
            "gradient; use no_grad or inference_mode if none is needed"
        )
    if wanted and bool(touching.any()):
        raise ValueError(
            "event(t, z) touches 0 without crossing it (its derivative along the path is 0), so "
            "that its time has no gradient"
        )
    moves = occurred & ~touching
    delay = torch.where(moves, -miss / torch.where(moves, rate, 1.0), 0.0)
    moved = tuple(part + append_axes(delay, part) * v for part, v in zip(z, velocity, strict=True))
    return t + delay, moved
