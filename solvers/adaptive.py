"""Methods that choose their steps by the error of each, shared by the whole state.

Nothing of the control is differentiated: the sequence of steps is taken as given.

Source: HNW (see :mod:`solvers.methods`) II.4.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.attempt import prepare_attempt
from solvers.checks import (
    check_finite,
    check_kind,
    check_positive,
    check_positive_int,
    needs_gradient,
)
from solvers.error_norm import measure
from solvers.errors import Stopped
from solvers.step import RungeKutta, advance, make_step, make_time, shift_step
from solvers.types import Parts, Problem, Status

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 10.0
LEAST_RATIO = 1e-4
"""A smaller error of the step before counts as this one."""


@dataclass(frozen=True)
class AdaptiveMethod(RungeKutta):
    """A method that chooses its steps; see its subclasses.

    A step is accepted if the norm of ``error / (atol + rtol * max(|z_old|, |z_new|))`` is at most
    1, the norm being the root mean square over all entries of a tensor (of their moduli, if they
    are complex), and the largest of these over a tuple. The samples of a batch share their steps,
    so that a sample's result depends, within the tolerance, on its neighbours;
    ``solve(..., per_sample=True)`` gives each its own. Steps end on the output times, where the
    result has the accuracy of the method, and the field is never evaluated outside the interval. A
    step's size follows from the errors of the two before: the factor is ``0.9 ratio^(-a/p)
    before^(b/p)`` with ``(a, b) = controller``, between 0.2 and 10, and at most 1 after a
    rejection. By default that is HNW II.4, ``0.9 ratio^(-1/p)``.

    Every integration costs one evaluation beside those of its steps, to choose the first step
    (HNW II.4). A rejected step costs one less than ``stages``: its first stage is kept.

    The error is estimated from the stages alone: what happens between them, such as a short pulse
    in a long quiet interval, goes unseen at any tolerance. ``max_step`` bounds the distance.

    Args:
        rtol: relative tolerance, above 0. In float32 values below 1e-6 cannot be met.
        atol: absolute tolerance, above 0, in the units of the state.
        max_steps: attempted steps allowed in the whole integration, accepted and rejected.
        first_step: the size of the first step; None: chosen by the method.
        max_step: the largest size of a step; None: any. Shorter than the shortest thing that the
            field does is short enough to see it.
        breakpoints: times at which the field may jump. Steps end just before them (by the smallest
            difference that the dtype has) and go on just behind, so that every evaluation is on
            one side.
        controller: the exponents ``(a, b)`` of the step-size control, ``a > b >= 0``. (0.7, 0.4) is
            Gustafsson's PI control (HW IV.2): smoother steps, of which few are rejected, and for
            the same tolerance more evaluations and smaller errors.
        interpolate: steps do not end on the output times, but pass them; outputs come from a
            polynomial inside the step, of degree 4 for :class:`Dopri5` and :class:`Tsit5` and 3
            for :class:`Bosh3`, others have none. Fewer steps where outputs are close together, and
            an error at them that the tolerance bounds less strictly.
        compile: make one graph of a step (field, stages and norm of the error) and of its gradient
            by ``torch.compile``. The first call takes about a minute, later ones with the same
            field, kinds of tensors and tableau none, whatever the values, times and tolerances.
            With first derivatives only; ignored within ``torch.func`` and on ways back.

    Raises:
        TypeError: an option is not a number of the right kind.
        ValueError: an option is not positive, or a tolerance or breakpoint is infinite.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000
    first_step: float | None = None
    max_step: float | None = None
    breakpoints: tuple[float, ...] = ()
    controller: tuple[float, float] = (1.0, 0.0)
    interpolate: bool = False
    compile: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if hasattr(cls, "tableau") and not cls.tableau.error:
            raise TypeError(f"{cls.__name__}.tableau has no error weights, by which steps adapt")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerances(self)
        where = type(self).__name__
        for name in ("first_step", "max_step"):
            if getattr(self, name) is not None:
                check_positive(f"{where}.{name}", getattr(self, name))
        if not isinstance(self.breakpoints, tuple):
            raise TypeError(f"{where}.breakpoints must be a tuple, got {self.breakpoints!r}")
        for point in self.breakpoints:
            check_finite(f"{where}.breakpoints", point)
        if not isinstance(self.controller, tuple) or len(self.controller) != 2:
            raise TypeError(f"{where}.controller must be a pair (a, b), got {self.controller!r}")
        check_kind(f"{where}.compile", self.compile, bool, "True")
        check_kind(f"{where}.interpolate", self.interpolate, bool, "True")
        if self.interpolate and not self.tableau.first_same_as_last:
            raise ValueError(
                f"{where}.interpolate needs the derivative at the end of a step, which {where} "
                "does not compute; leave it out, or take Dopri5, Tsit5 or Bosh3"
            )
        for exponent in self.controller:
            check_finite(f"{where}.controller", exponent)
        if not self.controller[0] > self.controller[1] >= 0:
            raise ValueError(f"{where}.controller must be a > b >= 0, got {self.controller}")

    @property
    def is_adaptive(self) -> bool:
        """True."""
        return True

    def check(self, values: Sequence[float], where: str) -> None:
        """Accept any output times."""

    def limit(self, max_steps: int, intervals: int) -> AdaptiveMethod:
        """Return the method with another ``max_steps``."""
        return replace(self, max_steps=max_steps)

    def restrict(self, interval: int) -> AdaptiveMethod:
        """Return the method itself."""
        return self

    def stretch(self, factor: float) -> AdaptiveMethod:
        """Return the method, without breakpoints, for a time that runs ``factor`` times as fast."""
        first = None if self.first_step is None else self.first_step / factor
        longest = None if self.max_step is None else self.max_step / factor
        return replace(self, first_step=first, max_step=longest, breakpoints=())

    def integrate(self, problem: Problem) -> list[Parts]:
        """Return the states at the output times; fewer if the observer ended the integration.

        Raises:
            Stopped: the integration could not go on.
        """
        stats, observe = problem.stats, problem.observe
        tableau, field, z = self.tableau, problem.field, problem.z0
        resolution = torch.finfo(z[0].dtype).eps
        stops, passed = _list_stops(self, problem)
        rows: list[Parts] = [z]

        t, shift = stops[0].resume, stops[0].shift
        start = make_time(t, z[0])
        first: Parts | None = field(start if shift is None else start + shift, z)
        assert first is not None
        h = _choose_first_step(self, problem, t, stops[1].time, first)
        attempt = prepare_attempt(self, problem)
        after_rejection = last_was_nan = False
        previous = 1.0
        for before, stop in pairwise(stops):
            target = stop.time
            while t != target:
                if stats.steps == self.max_steps:
                    raise Stopped(Status.MAX_STEPS, t, rows)
                if self.max_step is not None:
                    h = max(min(h, self.max_step), -self.max_step)
                remaining = target - t
                is_last = abs(h) >= abs(remaining)
                if is_last:
                    size, end = remaining, target
                else:
                    # Two equal steps rather than one and a rest.
                    size = remaining / 2 if abs(h) > abs(remaining) / 2 else h
                    end = t + size
                    if abs(size) <= resolution * abs(t) or size == 0.0:
                        status = Status.NON_FINITE if last_was_nan else Status.DT_UNDERFLOW
                        raise Stopped(status, t, rows)

                step = make_step(tableau, t, end, size, z[0])
                if before.shift is not None:  # it moves; if it ends on the next time, it stretches
                    start, end_shift = before.shift, stop.shift if is_last else None
                    stretch = torch.zeros_like(start) if end_shift is None else end_shift - start
                    step = shift_step(step, tableau.c, start, stretch)
                stats.steps += 1
                trial = attempt(step, z, first)
                after, stages = trial.after, trial.stages
                first = stages[0]
                ratio = abs(size) * trial.error.item()
                last_was_nan = not math.isfinite(ratio)
                factor = _rescale(self, ratio, previous, after_rejection)
                after_rejection = not ratio <= 1.0  # a NaN is not
                if problem.report is not None:
                    problem.report(
                        t, size, not after_rejection, ratio, z if after_rejection else after
                    )
                if after_rejection:
                    stats.rejected += 1
                    h = size * factor
                    continue
                stats.accepted += 1
                # A step cut short by an output may be too short to tell how long the next can be.
                longest = factor == LARGEST and abs(h) > abs(size * factor)
                h = h if longest else size * factor
                while passed and (end - passed[0].time) * size >= 0:
                    place = passed.popleft().measure(t, before.shift, step.size)
                    rows.append(trial.interpolate(z, step.size, place))
                ended = observe is not None and observe(t, z, end, after, stages)
                t, z, previous = end, after, max(ratio, LEAST_RATIO)
                first = stages[-1] if tableau.first_same_as_last else None
                if ended:
                    return rows
            if stop.is_output:
                rows.append(z)
            if stop.resume != target:
                t, first = stop.resume, None
        return rows


def check_tolerances(method: Any) -> None:
    """Refuse values of ``rtol``, ``atol`` and ``max_steps`` that are out of range."""
    where = type(method).__name__
    check_positive(f"{where}.rtol", method.rtol)
    check_positive(f"{where}.atol", method.atol)
    check_positive_int(f"{where}.max_steps", method.max_steps)


def _rescale(method: AdaptiveMethod, ratio: float, previous: float, after_rejection: bool) -> float:
    """Return the factor by which the next step should be longer, given the errors of two."""
    if not math.isfinite(ratio):
        return SMALLEST
    a, b = method.controller if ratio <= 1.0 else (1.0, 0.0)
    if ratio == 0.0:
        factor = LARGEST
    else:
        factor = SAFETY * ratio ** (-a / method.order) * previous ** (b / method.order)
        factor = min(max(factor, SMALLEST), LARGEST)
    return min(factor, 1.0) if after_rejection else factor


class _Stop(NamedTuple):
    """A time at which a step ends.

    Attributes:
        time: where it ends.
        resume: where the next one begins: at a breakpoint, which lies in between, behind it.
        is_output: whether the state there is asked for.
        shift: a zero that carries the gradient with respect to the time, if there is one.
    """

    time: float
    resume: float
    is_output: bool
    shift: Tensor | None

    def measure(self, t: float, shift: Tensor | None, size: float | Tensor) -> float | Tensor:
        """Return where in the step from ``t`` the time is, 0 to 1."""
        way: float | Tensor = self.time - t
        if self.shift is not None and shift is not None:
            way = way + (self.shift - shift)
        return way / size


def _list_stops(method: AdaptiveMethod, problem: Problem) -> tuple[list[_Stop], deque[_Stop]]:
    """Return the times at which steps end, and the output times that they pass."""
    values, direction = problem.values, problem.direction
    shifts: list[Tensor | None] = [None] * len(values)
    still = None
    if needs_gradient(problem.times):
        shifts = list((problem.times - problem.times.detach()).unbind())
        still = torch.zeros_like(problem.times[0])
    stops = [_Stop(t, t, True, shift) for t, shift in zip(values, shifts, strict=True)]
    points = torch.tensor(method.breakpoints, dtype=problem.times.dtype)
    ahead = torch.full_like(points, direction * math.inf)
    sides = torch.stack([points, points.nextafter(-ahead), points.nextafter(ahead)], dim=1)
    for point, before, after in sides.tolist():
        if point in values:
            i = values.index(point)
            # Nothing is evaluated outside of the interval.
            time = point if i == 0 else before
            resume = point if i == len(values) - 1 else after
            stops[i] = stops[i]._replace(time=time, resume=resume)
        elif min(values) < point < max(values):
            stops.append(_Stop(before, after, False, still))
    stops = sorted(stops, key=lambda stop: direction * stop.resume)
    if not method.interpolate:
        return stops, deque()
    inner = stops[1:-1]
    ends = [stop for stop in inner if not stop.is_output or stop.time != stop.resume]
    passed = deque(stop for stop in inner if stop.is_output and stop.time == stop.resume)
    return [stops[0], *ends, stops[-1]], passed


def _choose_first_step(
    method: AdaptiveMethod, problem: Problem, t: float, stop: float, first: Parts
) -> float:
    """Return the size of the first step, after one more evaluation (HNW II.4)."""
    values, field, z = problem.values, problem.field, problem.z0
    controlled, tolerance = z[: problem.controlled], (method.rtol, method.atol)
    span = abs(values[-1] - values[0])
    if method.first_step is not None:
        return problem.direction * min(method.first_step, span)
    low, high = (min(t, stop), max(t, stop)) if method.breakpoints else (min(values), max(values))
    with torch.no_grad():
        size, slope = torch.stack(measure(tolerance, controlled, (z, first))).tolist()
        small = size < 1e-5 or slope < 1e-5
        h = min(1e-6 if small else 0.01 * size / slope, span)
        if not math.isfinite(size + slope):
            raise Stopped(Status.NON_FINITE, values[0], [z])
        ahead = t + problem.direction * h
        trial = advance(z, [first], (1.0,), problem.direction * h)
        there = field(make_time(min(max(ahead, low), high), z[0]), trial)
        change = tuple(b - a for a, b in zip(first, there, strict=True))
        bend = measure(tolerance, controlled, (change,))[0].item() / h
    steepest = max(slope, bend)
    if not math.isfinite(bend):
        return problem.direction * h
    is_flat = steepest <= 1e-15
    longer = max(1e-6, 1e-3 * h) if is_flat else (0.01 / steepest) ** (1 / method.order)
    return problem.direction * min(100 * h, longer, span)
