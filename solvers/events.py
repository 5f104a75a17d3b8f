"""Integration until something happens, with gradients through the time at which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from solvers.adaptive import AdaptiveMethod
from solvers.checks import CountedField, widen, widest
from solvers.errors import SolverError, Stopped, explain
from solvers.gradients import Direct, Gradient, check_steps
from solvers.methods import Dopri5
from solvers.solve import prepare, solve
from solvers.step import (
    Method,
    RungeKutta,
    Step,
    append_axes,
    interpolate,
    make_time,
    select,
    take_step,
)
from solvers.surroundings import Surroundings
from solvers.types import (
    Observer,
    Parts,
    Problem,
    Solution,
    State,
    Stats,
    Status,
    VectorField,
)

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
    samples: int = 4,
    parameters: Iterable[Tensor] | None = None,
    max_steps: int | None = None,
    observer: Observer | None = None,
) -> EventSolution:
    r"""Integrate ``dz/dt = field(t, z)`` until ``event(t, z)`` crosses 0 for the first time.

    The event function is evaluated after every step of the method, and at ``samples`` times inside
    of it, on a cubic interpolation: where its sign changes, the time in between is found to the
    precision of the dtype by bisection and the secant rule, with steps of the method to every trial
    time. A change of sign that lasts for longer than ``1 / (samples + 1)`` of a step is seen (to
    the accuracy of the interpolation); two crossings closer to each other may go unseen. An
    adaptive method with ``max_step``, or the steps of a fixed one, bound that distance.

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
        samples: how often the event is evaluated inside a step; 0: not at all. The cubic costs
            methods whose last stage is not the next first one an evaluation for every step.
        parameters: see :func:`solvers.solve`; those that ``event`` depends on need not be listed.
        max_steps: see :func:`solvers.solve`.
        observer: see :func:`solvers.solve`; it sees the steps of the search, the last of which goes
            beyond the event.

    Returns:
        Times, states, and whether the event occurred, see :class:`EventSolution`.

    Raises:
        SolverError: the integration failed before the event.
        TypeError, ValueError: as :func:`solvers.solve`; the event's shape is neither ``()`` nor
            ``(B,)``, or it is not finite; or it touches 0 where a gradient is asked for
            (``dg/dt = 0``), and its time has no derivative; or ``span`` is not a start and an
            end; or the field draws random numbers in every evaluation, and is another one in the
            search and after it.

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
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise TypeError(f"samples must be an integer >= 0, got {samples!r}")
    if samples < 0:
        raise ValueError(f"samples must be an integer >= 0, got {samples}")
    call = prepare(field, z0, span, method, gradient, parameters, max_steps, observer)
    problem, method = call.problem, call.method
    check_steps("solve_until", method)
    assert isinstance(method, RungeKutta)
    if len(problem.values) != 2 or problem.times.ndim != 1:
        raise ValueError(f"span must be a start and an end, got {len(problem.values)} times")

    # 1. Where is it? 2. Integrate to there, with gradients. 3. Add those of the time.
    checked = _CheckedEvent(event, z0)
    surroundings = Surroundings(field, [part.device for part in problem.z0])
    with torch.no_grad(), surroundings.restore(surroundings.save(), random=False, buffers=True):
        call.field.remember(problem.times[0], problem.z0, call.field(problem.times[0], problem.z0))
        started = surroundings.save()
        t, occurred = _Search(method, problem, checked, direction, samples).run()
        if surroundings.save().random is not started.random:
            raise ValueError(
                f"{call.field.name} draws random numbers in every evaluation, so that the time of "
                "an event is not defined; draw them once, before"
            )
    jumps = isinstance(method, AdaptiveMethod) and method.breakpoints
    if t.ndim and jumps and not isinstance(gradient, Direct):
        raise ValueError(
            f"events of samples, each at a time of its own, go with breakpoints by the gradient "
            f"Direct() only, got {gradient}"
        )

    def integrate(
        field: VectorField, times: Tensor | Sequence[float], method: Method, per_sample: bool
    ) -> Solution:
        parameters = call.parameters
        return solve(
            field, z0, times, method, gradient, parameters=parameters, per_sample=per_sample
        )

    z, stats = _integrate_to(t, field, problem, method, integrate)
    t, z = _attach_gradient(t, z, occurred, checked, call.field)
    stats.evaluations += problem.stats.evaluations
    stats.steps += problem.stats.steps
    stats.accepted += problem.stats.accepted
    stats.rejected += problem.stats.rejected
    return EventSolution(t, z if isinstance(z0, tuple) else z[0], occurred, stats)


class _CheckedEvent:
    """The event function on parts, its value checked, and apart from what it may write to."""

    def __init__(self, event: Event, z0: State) -> None:
        self._event = event
        self._is_tuple = isinstance(z0, tuple)
        self._batch = (z0[0] if isinstance(z0, tuple) else z0).shape[:1]

    def __call__(self, t: Float[Tensor, "*t"], z: Parts) -> Float[Tensor, "*b"]:
        value = self.look(t, z)
        if not bool(value.detach().isfinite().all()):
            raise ValueError("event(t, z) is NaN or infinite")
        return value

    def look(self, t: Float[Tensor, "*t"], z: Parts) -> Float[Tensor, "*b"]:
        """Return the value of the event, finite or not."""
        z = tuple(part.clone() for part in z)
        value = self._event(t.clone(), z if self._is_tuple else z[0])
        if not isinstance(value, Tensor):
            raise TypeError(f"event(t, z) must be a tensor, got {type(value).__name__}")
        if value.is_complex():
            raise TypeError("event(t, z) must be real, got complex numbers; take a part of them")
        if value.shape not in (torch.Size(), self._batch):
            allowed = "a scalar" + (f" or {tuple(self._batch)}" if self._batch else "")
            raise ValueError(f"event(t, z) has shape {tuple(value.shape)}; it must be {allowed}")
        return value.clone()


class _Search:
    """Watches the steps of an integration, and finds the first crossing of every sample."""

    def __init__(
        self,
        method: RungeKutta,
        problem: Problem,
        event: _CheckedEvent,
        direction: str,
        samples: int,
    ) -> None:
        self.event = event
        self._method = method
        self._problem = problem
        self._direction = direction
        self._samples = samples

    def run(self) -> tuple[Float[Tensor, "*b"], Bool[Tensor, "*b"]]:
        """Return the time of the event, and whether it occurred; the end if it did not."""
        problem = self._problem
        end = problem.values[1]
        value = self.event(problem.times[0], problem.z0)
        if not value.numel():  # a batch without samples
            return torch.full_like(value, end), torch.zeros_like(value, dtype=torch.bool)
        self._before = value
        self._occurred = torch.zeros_like(value, dtype=torch.bool)
        # The step in which it occurred: start, state there, and sizes before and after it with the
        # values of the event.
        self._start = torch.full_like(value, end, dtype=widest(value.device))
        self._low, self._high = torch.zeros_like(self._start), torch.zeros_like(self._start)
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

    def _observe(
        self, t: float, z: Parts, end: float, after: Parts, stages: Sequence[Parts]
    ) -> bool:
        if not all(bool(part.isfinite().all()) for part in after):
            raise self._fail(Status.NON_FINITE, t)
        before, value = self._before, self.event(make_time(end, z[0]), after)
        inner = self._look_inside(t, z, end, after, stages)
        seen = torch.stack([before, *inner, value])
        new, changes = self._cross(seen[:-1], seen[1:])
        low, high = torch.zeros_like(self._low), torch.full_like(self._low, end - t)
        at_low, at_high = before, value
        # One change of sign, that of the whole step, needs no closer look.
        hidden = new.any(0) & ~(self._cross(before, value)[0] & (changes.sum(0) == 1))
        hidden = hidden & ~self._occurred
        occurs = self._cross(before, value)[0]
        if bool(hidden.any()):
            place = widen(new.to(torch.uint8).argmax(0)) / (len(seen) - 1)
            a, b = place * (end - t), (place + 1 / (len(seen) - 1)) * (end - t)
            ends = [self._evaluate_after(t, size, z) for size in (a, b)]
            # By the method itself, which may not confirm what the interpolation shows.
            hidden = hidden & self._cross(*ends)[0]
            low, high = torch.where(hidden, a, low), torch.where(hidden, b, high)
            at_low = torch.where(hidden, ends[0], at_low)
            at_high = torch.where(hidden, ends[1], at_high)
            occurs = occurs | hidden
        occurs = occurs & ~self._occurred
        self._occurred = self._occurred | occurs
        self._start = torch.where(occurs, t, self._start)
        self._low = torch.where(occurs, low, self._low)
        self._high = torch.where(occurs, high, self._high)
        self._state = select(occurs, z, self._state)
        self._values = (
            torch.where(occurs, at_low, self._values[0]),
            torch.where(occurs, at_high, self._values[1]),
        )
        self._before = value
        return bool(self._occurred.all())

    def _cross(self, before: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the event occurs between two values, and where its sign changes at all."""
        rising, falling = (before < 0) & (value >= 0), (before > 0) & (value <= 0)
        either = rising | falling
        return {"rising": rising, "falling": falling, "either": either}[self._direction], either

    def _look_inside(
        self, t: float, z: Parts, end: float, after: Parts, stages: Sequence[Parts]
    ) -> list[Tensor]:
        """Return the event at times inside a step; not finite, it counts as unchanged."""
        if not self._samples:
            return []
        last = stages[-1]
        if not self._method.tableau.first_same_as_last:
            last = self._problem.field(make_time(end, z[0]), after)
        values = [self._before]
        for i in range(1, self._samples + 1):
            x, h = i / (self._samples + 1), end - t
            at = interpolate(z, after, (stages[0], last), h, x)
            value = self.event.look(make_time(t + x * h, z[0]), at)
            values.append(torch.where(value.isfinite(), value, values[-1]))
        return values[1:]

    def _find_root(self) -> Float[Tensor, "*b"]:
        """Return how long after the start of its step each event is."""
        a, b = self._low, self._high
        at_a, at_b = map(widen, self._values)
        resolution = 2 * torch.finfo(self._problem.times.dtype).eps
        smallest = resolution * torch.maximum((self._start + b).abs(), b.abs())
        for i in range(MAX_TRIALS):
            if bool(((b - a).abs() <= smallest).all()):
                break
            # The secant rule keeps one end for long (halving its value, as in the Illinois
            # variant, mends that mostly); every third trial is a bisection.
            trial = b - at_b * (b - a) / (at_b - at_a)
            inside = (trial - a) * (trial - b) <= 0  # false for a NaN
            trial = torch.where(inside & (i % 3 < 2), trial, (a + b) / 2)
            value = widen(self._evaluate_after(self._start, trial, self._state))
            beyond = value.sign() != at_a.sign()  # a 0 as well
            at_a = torch.where(beyond, at_a / 2, value)
            at_b = torch.where(beyond, value, at_b / 2)
            a, b = torch.where(beyond, a, trial), torch.where(beyond, trial, b)
        return b

    def _evaluate_after(
        self, start: float | Tensor, size: Float[Tensor, "*b"], z: Parts
    ) -> Float[Tensor, "*b"]:
        tableau, dtype = self._method.tableau, self._problem.times.dtype
        times = torch.stack([start + c * size for c in tableau.c]).to(dtype)
        step = Step(times, size.to(dtype))
        after, _ = take_step(tableau, self._problem.field, step, z)
        return self.event((start + size).to(dtype), after)


def _integrate_to(
    t: Float[Tensor, "*b"],
    field: VectorField,
    problem: Problem,
    method: Method,
    integrate: Callable[..., Solution],
) -> tuple[Parts, Stats]:
    """Return the state at ``t``, which may differ between the samples."""
    start = problem.times[0].detach()
    if t.ndim == 0:
        if bool(t == start):
            return tuple(part.clone() for part in problem.z0), Stats()
        solution = integrate(field, [start.item(), t.item()], method, False)
    elif isinstance(method, AdaptiveMethod) and method.breakpoints:
        # Where the samples are at different times, they meet them at different times too.
        moves = t != start
        times = torch.stack([start.expand_as(t), t.where(moves, torch.nan)], dim=1)
        solution = integrate(field, times, method, True)
        ys = solution.ys if isinstance(solution.ys, tuple) else (solution.ys,)
        ends = select(moves, tuple(y[1] for y in ys), tuple(y[0] for y in ys))
        return ends, solution.stats
    else:
        # In units of each sample's own duration they all end at 1.
        duration = t - start
        longest = max(duration.abs().tolist(), default=0.0)
        if isinstance(method, AdaptiveMethod) and longest:
            method = method.stretch(longest)

        def scaled(s: Tensor, z: State) -> State:
            value = field(start + s * duration, z)
            if isinstance(value, Tensor):
                return value * append_axes(duration, value)
            return tuple(v * append_axes(duration, v) for v in value)

        solution = integrate(scaled, [0.0, 1.0], method, False)
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
                product = (slope.conj() * v).real
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
