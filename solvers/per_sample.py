"""Integration by an adaptive method in which every sample of the batch has steps of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from solvers.adaptive import (
    LARGEST,
    LEAST_RATIO,
    SAFETY,
    SMALLEST,
    AdaptiveMethod,
)
from solvers.attempt import Trial, prepare_attempt
from solvers.checks import needs_gradient, widen
from solvers.error_norm import measure
from solvers.fixed import fill_times
from solvers.step import Step, advance, combine, select, shift_step, take_step
from solvers.types import Parts, Problem, SampleHook, Samples, Status

_STATUSES = tuple(Status)
_SUCCESS, _MAX_STEPS, _DT_UNDERFLOW, _NON_FINITE = range(4)


def integrate_per_sample(
    method: AdaptiveMethod, problem: Problem, observe: SampleHook | None = None
) -> tuple[list[Parts], Samples]:
    """Return the states at the output times, and what became of each sample.

    All samples attempt their steps together, each of its own size and towards its own next output.
    One that has arrived at the last output, or failed, waits there by steps of size 0 until all
    have; in the outputs that it did not reach it is NaN.

    Args:
        method: how to step.
        problem: all parts of its state have the batch in front.
        observe: called with the times and states of all samples before every attempt and at the
            end.
    """
    field, z = problem.field, problem.z0
    tableau, dtype = method.tableau, problem.times.dtype
    resolution = torch.finfo(dtype).eps
    moving = needs_gradient(problem.times)
    # Times are kept in double precision: in that of the state, the sum of the steps would drift.
    stops = _list_stops(method, problem)
    passed = _list_passed(problem, stops) if method.interpolate else None
    last = stops.last

    t = stops.resume[:, 0]
    status = torch.full_like(t, _SUCCESS, dtype=torch.long)
    accepted, rejected = torch.zeros_like(status), torch.zeros_like(status)
    was_rejected = was_nan = torch.zeros_like(status, dtype=torch.bool)
    previous = torch.ones_like(t)
    attempt = prepare_attempt(method, problem, per_sample=True)
    rows: list[Parts] = [z]

    first: Parts | None = field(t.to(dtype) + stops.shifts[..., 0], z)
    assert first is not None
    h = _choose_first_steps(method, problem, stops, first)
    lost = ~h.isfinite()
    status = torch.where(lost, _NON_FINITE, status)
    if bool(lost.any()) and not bool(lost.all()):
        # Their places are taken by copies of another sample: a derivative that is not finite, even
        # one that is not used, would make the gradients of shared parameters NaN.
        z = select(lost, tuple(part[~lost][:1].detach() for part in z), z)
        first = field(t.to(dtype) + stops.shifts[..., 0], z)
    goal = torch.ones_like(status)  # the number of the next output of every sample
    nowhere = tuple(torch.full_like(part, torch.nan) for part in z)
    rows += [nowhere] * (problem.times.shape[-1] - 1)
    while True:
        running = (goal <= last) & (status == _SUCCESS)
        here = torch.minimum(goal, last)[:, None]
        target = stops.times.gather(1, here)[:, 0]
        remaining = target - t
        if method.max_step is not None:
            h = h.clamp(-method.max_step, method.max_step)
        is_last = h.abs() >= remaining.abs()
        # Two equal steps rather than one and a rest.
        size = torch.where(h.abs() > remaining.abs() / 2, remaining / 2, h)
        stuck = running & ~is_last & ((size.abs() <= resolution * t.abs()) | (size == 0))
        exhausted = running & (accepted + rejected == method.max_steps)
        status = torch.where(stuck, torch.where(was_nan, _NON_FINITE, _DT_UNDERFLOW), status).where(
            ~exhausted, _MAX_STEPS
        )
        running = running & ~stuck & ~exhausted
        is_last = is_last & running
        size = torch.where(is_last, remaining, size).where(running, 0.0)
        if observe is not None:
            observe(t, z)
        if not bool(running.any()):
            break

        end = torch.where(is_last, target, t + size)
        times = [end if c == 1.0 else t + c * size for c in tableau.c]
        step = Step(torch.stack(times).to(dtype), size.to(dtype))
        if moving:
            start, stop = stops.shift(goal - 1), stops.shift(here[:, 0])
            stretch = torch.where(is_last, stop - start, 0.0)
            step = shift_step(step, tableau.c, start, stretch)
        trial = attempt(step, z, first)
        ratio = size.abs() * trial.error
        accept = running & (ratio <= 1.0)  # a NaN is not
        is_nan = running & ~ratio.isfinite()
        if torch.is_grad_enabled() and bool(is_nan.any()):
            # What is not used must be finite too, or its gradient of 0 becomes NaN.
            still = torch.where(accept, step.times, step.times[0])
            step = Step(still, torch.where(accept, step.size, 0.0))
            after, again = take_step(tableau, field, step, z, trial.stages[0])
            quartic = combine(tableau.quartic, again) if trial.quartic else None
            trial = Trial(after, again, trial.error, quartic)

        if passed is not None:
            length = torch.where(accept, step.size, 1.0)
            for i, inside in passed.find(t, end, accept):
                way = (passed.times[:, i] - t).to(dtype)
                if moving:
                    way = way + passed.shifts[:, i] - stops.shift(goal - 1)
                place = torch.where(inside, way / length, 0.0)
                rows[i] = select(inside, trial.interpolate(z, length, place), rows[i])
        z = select(accept, trial.after, z)
        if problem.report is not None:
            problem.report(t, size, accept, ratio, z)
        begun, ended = trial.stages[0], trial.stages[-1]
        first = select(accept, ended, begun) if tableau.first_same_as_last else None
        t = torch.where(accept, end, t)
        arrived = accept & is_last
        output = stops.outputs.gather(1, here)[:, 0]
        for i in output[arrived].unique().tolist():
            if i >= 0:
                rows[i] = select(arrived & (output == i), z, rows[i])
        if method.breakpoints:
            resume = stops.resume.gather(1, here)[:, 0]
            jumps = arrived & (resume != t)
            t = torch.where(jumps, resume, t)
            first = None if bool(jumps.any()) else first
        goal = goal + arrived
        factor = rescale_steps(method, ratio, previous, was_rejected)
        previous = torch.where(accept, ratio.clamp(min=LEAST_RATIO), previous)
        # A step cut short by an output may be too short to tell how long the next can be.
        longest = is_last & (factor == LARGEST) & (h.abs() > (size * factor).abs())
        h = torch.where(running & ~longest, size * factor, h)
        was_rejected = torch.where(running, ~accept, was_rejected)
        was_nan = torch.where(running, is_nan, was_nan)
        accepted = accepted + accept
        rejected = rejected + (running & ~accept)

    stats = problem.stats
    stats.accepted, stats.rejected = int(accepted.sum()), int(rejected.sum())
    stats.steps = stats.accepted + stats.rejected
    return rows, Samples(
        status=tuple(_STATUSES[code] for code in status.tolist()),
        time=t,
        accepted=accepted,
        rejected=rejected,
    )


def rescale_steps(
    method: AdaptiveMethod,
    ratio: Float[Tensor, "b"],
    previous: Float[Tensor, "b"],
    after_rejection: Bool[Tensor, "b"],
) -> Float[Tensor, "b"]:
    """Return the factors by which the next steps should be longer, given the errors of two."""
    a, b = method.controller
    # Not by a power, whose last bits depend on the place in the batch.
    log = ratio.log()
    if (a, b) != (1.0, 0.0):
        log = torch.where(ratio <= 1.0, a * log - b * previous.log(), log)
    factor = (SAFETY * (log / -method.order).exp()).clamp(SMALLEST, LARGEST)
    factor = torch.where(after_rejection, factor.clamp(max=1.0), factor)
    return torch.where(ratio.isfinite(), factor, SMALLEST)


class _Stops(NamedTuple):
    """The times at which the steps of every sample end.

    Attributes:
        times: where they end.
        resume: where the next ones begin: at a breakpoint, which lies in between, behind it.
        outputs: which output that is; -1: none.
        shifts: zeros that carry the gradients with respect to the times.
        last: the number of every sample's last one.
    """

    times: Float[Tensor, "b m"]
    resume: Float[Tensor, "b m"]
    outputs: Int[Tensor, "b m"]
    shifts: Float[Tensor, "*b m"]
    last: Int[Tensor, "b"]

    def shift(self, number: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the zero of every sample's stop of that number."""
        if self.shifts.ndim == 1:
            return self.shifts[number]
        return self.shifts.gather(1, number[:, None])[:, 0]


class _Passed(NamedTuple):
    """The output times that the steps of every sample pass.

    Attributes:
        times: all output times.
        asked: which of them steps pass.
        signs: 1.0 for samples that go forwards in time, -1.0 for others.
        shifts: zeros that carry the gradients with respect to the times.
    """

    times: Float[Tensor, "b n"]
    asked: Bool[Tensor, "b n"]
    signs: Float[Tensor, "b 1"]
    shifts: Float[Tensor, "b n"]

    def find(
        self, t: Float[Tensor, "b"], end: Float[Tensor, "b"], accept: Bool[Tensor, "b"]
    ) -> Iterator[tuple[int, Bool[Tensor, "b"]]]:
        """Yield the numbers of the outputs inside steps, and for which samples they are."""
        begun = self.signs * (self.times - t[:, None]) > 0
        reached = self.signs * (self.times - end[:, None]) <= 0
        inside = self.asked & begun & reached & accept[:, None]
        for i in inside.any(0).nonzero()[:, 0].tolist():
            yield i, inside[:, i]


def _list_passed(problem: Problem, stops: _Stops) -> _Passed:
    outputs = fill_times(problem.times.expand(len(stops.times), -1))
    times = widen(outputs.detach())
    number = torch.arange(stops.outputs.shape[1], device=times.device)
    ends = stops.outputs.where((number <= stops.last[:, None]) & (stops.outputs >= 0), 0)
    asked = problem.times.isfinite().expand(times.shape).scatter(1, ends, False)
    signs = torch.where(times[:, -1:] >= times[:, :1], 1.0, -1.0)
    return _Passed(times, asked, signs, outputs - outputs.detach())


def _list_stops(method: AdaptiveMethod, problem: Problem) -> _Stops:
    batch, dtype = len(problem.z0[0]), problem.times.dtype
    times = problem.times.expand(batch, -1)
    outputs = fill_times(times) if problem.times.ndim == 2 else times
    shifts = outputs - outputs.detach()
    plain = widen(outputs.detach())
    last = times.isfinite().sum(1) - 1
    places = torch.arange(times.shape[1], device=times.device).expand(times.shape)
    if not method.breakpoints and not method.interpolate:
        if problem.times.ndim == 1:
            shifts = problem.times - problem.times.detach()
        return _Stops(plain, plain, places, shifts, last)
    points = torch.tensor(method.breakpoints, dtype=dtype, device=times.device).unique()
    start, end = plain[:, :1], plain[:, -1:]
    direction = torch.where(end >= start, 1.0, -1.0)
    more = widen(points).expand(batch, -1)
    everything = torch.cat([plain, more], dim=1)
    inside = ((more - start) * direction > 0) & ((end - more) * direction > 0)
    twice = (more[:, :, None] == plain[:, None, :]).any(2)
    ends = places <= last[:, None]
    if method.interpolate:  # these pass the other outputs
        ends &= (places == 0) | (places == last[:, None]) | torch.isin(plain, more[:1])
    real = torch.cat([ends, inside & ~twice], dim=1)
    order = torch.where(real, direction * everything, torch.inf).argsort(dim=1, stable=True)
    stops = everything.gather(1, order)
    jumps = (stops[:, :, None] == more[0]).any(2)
    ahead = (direction * torch.inf).to(dtype).expand_as(stops)
    before, after = (widen(stops.to(dtype).nextafter(a)) for a in (-ahead, ahead))
    # Nothing is evaluated outside of the interval.
    none = points.new_zeros(batch, len(points))
    return _Stops(
        times=torch.where(jumps & (stops != start), before, stops),
        resume=torch.where(jumps & (stops != end), after, stops),
        outputs=torch.cat([places, torch.full_like(none, -1).long()], 1).gather(1, order),
        shifts=torch.cat([shifts, none], dim=1).gather(1, order),
        last=real.sum(1) - 1,
    )


def rest(problem: Problem) -> tuple[list[Parts], Samples]:
    """Return the result for samples that do not move."""
    times, z0 = problem.times, problem.z0
    none = torch.zeros(len(z0[0]), dtype=torch.long, device=z0[0].device)
    time = widen(fill_times(times.detach())[..., -1]).expand(len(none))
    rows = [z0] * times.shape[-1]
    return rows, Samples((Status.SUCCESS,) * len(none), time, none, none)


def fail_non_finite(
    samples: Samples, rows: Sequence[Parts], asked: Bool[Tensor, "b n"] | None = None
) -> Samples:
    """Return the samples with the status of those whose state is not finite set to that.

    Args:
        samples: what became of them.
        rows: their states.
        asked: at which times they are asked for; None: all.
    """
    finite = torch.ones_like(samples.accepted, dtype=torch.bool)
    for i, row in enumerate(rows):
        for part in row:
            fine = part.detach().isfinite().reshape(len(finite), part.shape[1:].numel()).all(dim=1)
            finite &= fine if asked is None else fine | ~asked[:, i]
    status = tuple(
        Status.NON_FINITE if old is Status.SUCCESS and not fine else old
        for old, fine in zip(samples.status, finite.tolist(), strict=True)
    )
    return replace(samples, status=status)


def _choose_first_steps(
    method: AdaptiveMethod, problem: Problem, stops: _Stops, first: Parts
) -> Float[Tensor, "b"]:
    """Return the sizes of the first steps, after one more evaluation (HNW II.4); NaN: none."""
    z, t, tolerance = problem.z0, stops.resume[:, 0], (method.rtol, method.atol)
    end = stops.times.gather(1, stops.last[:, None])[:, 0]
    direction, span = torch.where(end >= t, 1.0, -1.0), (end - t).abs()
    stop = stops.times[:, 1] if method.breakpoints else end
    with torch.no_grad():
        size, slope = map(widen, measure(tolerance, z, (z, first), per_sample=True))
        if method.first_step is not None:
            best = span.clamp(max=method.first_step)
            return direction * torch.where((size + slope).isfinite(), best, torch.nan)
        small = (size < 1e-5) | (slope < 1e-5)
        h = torch.where(small, 1e-6, 0.01 * size / slope).clamp(max=span)
        # A sample without a derivative takes no part.
        step = torch.where(h.isfinite(), h, 0.0)
        trial = advance(z, [first], (1.0,), (direction * step).to(problem.times.dtype))
        low, high = torch.minimum(t, stop), torch.maximum(t, stop)
        ahead = (t + direction * step).clamp(low, high).to(problem.times.dtype)
        change = tuple(b - a for a, b in zip(first, problem.field(ahead, trial), strict=True))
        bend = widen(measure(tolerance, z, (change,), per_sample=True)[0]) / h
        steepest = torch.maximum(slope, bend)
        longer = torch.where(
            steepest <= 1e-15,
            (1e-3 * h).clamp(min=1e-6),
            _raise_to(0.01 / steepest, 1 / method.order),
        )
        best = torch.minimum(100 * h, longer).clamp(max=span)
        best = torch.where(bend.isfinite(), best, h)
        return direction * torch.where((size + slope).isfinite(), best, torch.nan)


def _raise_to(x: Tensor, exponent: float) -> Tensor:
    """Return ``x ** exponent`` for ``x >= 0``, the same bits wherever in the tensor an entry is.

    torch's own power rounds the last entries of a tensor differently from the others, which would
    make a sample depend on its place in the batch.
    """
    return (exponent * x.log()).exp()
