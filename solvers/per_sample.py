"""Integration by an adaptive method in which every sample of the batch has steps of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from solvers.adaptive import (
    LARGEST,
    SAFETY,
    SMALLEST,
    AdaptiveMethod,
    estimate_error,
    measure,
)
from solvers.checks import needs_gradient
from solvers.step import Step, advance, select, take_step
from solvers.types import Parts, Problem, SampleObserver, Samples, Status

_STATUSES = tuple(Status)
_SUCCESS, _MAX_STEPS, _DT_UNDERFLOW, _NON_FINITE = range(4)


def integrate_per_sample(
    method: AdaptiveMethod, problem: Problem, observe: SampleObserver | None = None
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
    field, z, values = problem.field, problem.z0, problem.values
    tableau, dtype = method.tableau, z[0].dtype
    resolution = torch.finfo(dtype).eps
    # Zeros that carry the gradients with respect to the output times, if there are any.
    moving = needs_gradient(problem.times)
    shifts = problem.times - problem.times.detach()
    targets = torch.tensor(values, dtype=torch.float64, device=z[0].device)
    last = len(values) - 1

    # Times are kept in double precision: in that of the state, the sum of the steps would drift.
    t = torch.full((len(z[0]),), values[0], dtype=torch.float64, device=z[0].device)
    status = torch.full_like(t, _SUCCESS, dtype=torch.long)
    accepted, rejected = torch.zeros_like(status), torch.zeros_like(status)
    was_rejected = was_nan = torch.zeros_like(status, dtype=torch.bool)
    rows: list[Parts] = [z]

    first: Parts | None = field(t.to(dtype) + shifts[0], z)
    assert first is not None
    h = _choose_first_steps(method, problem, t, first)
    lost = ~h.isfinite()
    status = torch.where(lost, _NON_FINITE, status)
    if bool(lost.any()) and not bool(lost.all()):
        # Their places are taken by copies of another sample: a derivative that is not finite, even
        # one that is not used, would make the gradients of shared parameters NaN.
        z = select(lost, tuple(part[~lost][:1].detach() for part in z), z)
        first = field(t.to(dtype) + shifts[0], z)
    goal = torch.ones_like(status)  # the number of the next output of every sample
    nowhere = tuple(torch.full_like(part, torch.nan) for part in z)
    rows += [nowhere] * last
    while True:
        running = (goal <= last) & (status == _SUCCESS)
        target = targets[goal.clamp(max=last)]
        remaining = target - t
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
        step = Step(
            [(end if c == 1.0 else t + c * size).to(dtype) for c in tableau.c], size.to(dtype)
        )
        if moving:
            step = _shift_steps(
                step, tableau.c, is_last, shifts[goal - 1], shifts[goal.clamp(max=last)]
            )
        after, stages = take_step(tableau, field, step, z, first)
        ratio = size.abs() * estimate_error(method, z, after, stages, per_sample=True)
        accept = running & (ratio <= 1.0)  # a NaN is not
        is_nan = running & ~ratio.isfinite()
        if torch.is_grad_enabled() and bool(is_nan.any()):
            # What is not used must be finite too, or its gradient of 0 becomes NaN.
            times = [torch.where(accept, time, step.times[0]) for time in step.times]
            step = Step(times, torch.where(accept, step.size, 0.0))
            after, stages = take_step(tableau, field, step, z, stages[0])

        z = select(accept, after, z)
        first = select(accept, stages[-1], stages[0]) if tableau.first_same_as_last else None
        t = torch.where(accept, end, t)
        arrived = accept & is_last
        for i in goal[arrived].unique().tolist():
            rows[i] = select(arrived & (goal == i), z, rows[i])
        goal = goal + arrived
        factor = rescale_steps(method, ratio, was_rejected)
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
    method: AdaptiveMethod, ratio: Float[Tensor, "b"], after_rejection: Bool[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """Return the factors by which the next steps should be longer, given the errors of these."""
    # Not by a power, whose last bits depend on the place in the batch.
    factor = (SAFETY * (ratio.log() / -method.order).exp()).clamp(SMALLEST, LARGEST)
    factor = torch.where(after_rejection, factor.clamp(max=1.0), factor)
    return torch.where(ratio.isfinite(), factor, SMALLEST)


def rest(z0: Parts, t: float, outputs: int) -> tuple[list[Parts], Samples]:
    """Return the result for samples that do not move."""
    none = torch.zeros(len(z0[0]), dtype=torch.long, device=z0[0].device)
    time = torch.full_like(none, t, dtype=torch.float64)
    return [z0] * outputs, Samples((Status.SUCCESS,) * len(none), time, none, none)


def fail_non_finite(samples: Samples, rows: Sequence[Parts]) -> Samples:
    """Return the samples with the status of those whose state is not finite set to that."""
    finite = torch.ones_like(samples.accepted, dtype=torch.bool)
    for part in (part for row in rows for part in row):
        finite &= part.detach().isfinite().reshape(len(finite), part.shape[1:].numel()).all(dim=1)
    status = tuple(
        Status.NON_FINITE if old is Status.SUCCESS and not fine else old
        for old, fine in zip(samples.status, finite.tolist(), strict=True)
    )
    return replace(samples, status=status)


def _choose_first_steps(
    method: AdaptiveMethod, problem: Problem, t: Float[Tensor, "b"], first: Parts
) -> Float[Tensor, "b"]:
    """Return the sizes of the first steps, after one more evaluation (HNW II.4); NaN: none."""
    values, z, direction = problem.values, problem.z0, problem.direction
    span = abs(values[-1] - values[0])
    with torch.no_grad():
        size, slope = (m.double() for m in measure(method, z, (z, first), per_sample=True))
        small = (size < 1e-5) | (slope < 1e-5)
        h = torch.where(small, 1e-6, 0.01 * size / slope).clamp(max=span)
        # A sample without a derivative takes no part.
        step = torch.where(h.isfinite(), h, 0.0)
        trial = advance(z, [first], (1.0,), (direction * step).to(z[0].dtype))
        ahead = (t + direction * step).clamp(min(values), max(values)).to(z[0].dtype)
        change = tuple(b - a for a, b in zip(first, problem.field(ahead, trial), strict=True))
        bend = measure(method, z, (change,), per_sample=True)[0].double() / h
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


def _shift_steps(
    step: Step, nodes: tuple[float, ...], is_last: Bool[Tensor, "b"], start: Tensor, end: Tensor
) -> Step:
    """Return the steps as functions of the output times around them."""
    stretch = torch.where(is_last, end - start, 0.0)
    times = [t + start + c * stretch for t, c in zip(step.times, nodes, strict=True)]
    return Step(times, step.size + stretch)
