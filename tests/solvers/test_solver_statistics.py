"""The statistics, with a counting field as the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from solver_cases import COMBINATIONS, Recorded, doubles, name_of
from torch import Tensor

from solvers import (
    RK4,
    Adjoint,
    Bosh3,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    FixedMethod,
    SolverError,
    Stats,
    Status,
    solve,
)


def bumpy(t: Tensor, z: Tensor) -> Tensor:
    """Makes adaptive methods reject steps."""
    return -z + 5 * torch.exp(-200 * (t - 0.6) ** 2)


@pytest.mark.parametrize(("method", "gradient"), COMBINATIONS)
def test_a_counting_field_agrees(method, gradient) -> None:
    if method.is_adaptive:  # loose enough for a few steps, tight enough for rejections
        method = replace(method, rtol=max(method.rtol, 1e-5), atol=1e-5)
    field = Recorded(bumpy)
    z0 = doubles(1.0, 2.0).requires_grad_()
    ts = [1.5, 0.5, 0.4, 0.0]
    result = solve(field, z0, ts, method, gradient, parameters=())
    stats, forward = result.stats, len(field.times)
    assert stats.evaluations == forward
    assert stats.steps == stats.accepted + stats.rejected
    assert stats.backward_evaluations == stats.backward_steps == 0
    if isinstance(method, FixedMethod):
        assert (stats.steps, stats.accepted) == (9, 9)
        assert forward == 9 * method.stages
    else:
        assert stats.accepted >= 3
        assert stats.rejected > 0
        assert forward == expected_evaluations(method, stats)
    for times in (1, 2):
        result.ys[1:].sum().backward(retain_graph=True)
        backward = len(field.times) - forward
        assert stats.evaluations == forward
        assert stats.backward_evaluations == backward
        if isinstance(gradient, Direct):
            assert backward == 0
        elif isinstance(method, FixedMethod):
            assert stats.backward_steps == times * 9
            assert backward == times * 9 * method.stages
        elif isinstance(gradient, Checkpoint):
            assert stats.backward_steps == times * stats.accepted
            segments = -(-stats.accepted // gradient.every)
            if method.tableau.first_same_as_last:  # only within a segment
                again = stats.accepted * method.stages + segments
            else:
                again = stats.accepted * method.stages
            assert backward == times * again
        else:  # every interval starts anew
            first_steps = times * 3 * (2 if method.tableau.first_same_as_last else 1)
            most = first_steps + stats.backward_steps * method.stages
            # The first stage of a rejected step is that of the next attempt.
            assert most - stats.backward_steps < backward <= most
    assert min(ts) <= min(field.times)
    assert max(field.times) <= max(ts)


def expected_evaluations(method, stats: Stats) -> int:
    """Of a whole integration by an adaptive method."""
    if method.tableau.first_same_as_last:
        return 2 + stats.steps * method.stages
    # The first stage of a rejected step is that of the next attempt.
    return 1 + stats.steps * method.stages - stats.rejected


def test_rejections_come_from_jumps_and_not_from_calm() -> None:
    calm = solve(lambda t, z: 0 * z, doubles(1.0), [0.0, 1.0], Dopri5()).stats
    assert calm.rejected == 0
    assert calm.accepted == calm.steps
    kink = solve(lambda t, z: 50.0 * (t > 0.5) + 0 * z, doubles(1.0), [0.0, 1.0], Dopri5()).stats
    assert kink.rejected > 0


@pytest.mark.parametrize("gradient", [Direct(), Adjoint()], ids=name_of)
def test_max_steps_counts_over_the_whole_integration(gradient) -> None:
    """torchdiffeq's own limit starts anew at every output time: 12 would allow 65 steps."""
    ts = torch.linspace(0, 10, 14, dtype=torch.float64)

    def run(max_steps: int):
        method = Dopri5(rtol=1e-8, atol=1e-8, max_steps=max_steps)
        return solve(
            lambda t, z: torch.sin(3 * t) * z,
            doubles(1.0),
            ts,
            method,
            gradient,
            parameters=(),
            throw=False,
        )

    needed = run(10_000).stats.steps
    assert needed > 50
    assert run(needed).status is Status.SUCCESS
    short = run(needed - 1)
    assert short.status is Status.MAX_STEPS
    assert short.stats.steps == needed - 1
    assert run(12).stats.steps == 12


def test_max_steps_holds_for_each_way_back() -> None:
    z0 = doubles(1.0).requires_grad_()

    def run(max_steps: int):
        gradient = Adjoint(method=Bosh3(max_steps=max_steps))
        ys = solve(bumpy, z0, [0.0, 0.5, 1.0], RK4(20), gradient, parameters=()).ys
        return ys[-1].sum()

    free = solve(bumpy, z0, [0.0, 0.5, 1.0], RK4(20), Adjoint(method=Bosh3()), parameters=())
    free.ys[-1].sum().backward(retain_graph=True)
    needed = free.stats.backward_steps
    free.ys[-1].sum().backward()
    assert free.stats.backward_steps == 2 * needed

    enough = run(needed)
    enough.backward(retain_graph=True)
    enough.backward()
    with pytest.raises(SolverError, match="the adjoint") as caught:
        run(needed - 1).backward()
    assert caught.value.status is Status.MAX_STEPS
    assert 0 <= caught.value.time < 1


def test_a_step_without_gradients_is_counted_too() -> None:
    with torch.no_grad():
        stats = solve(bumpy, doubles(1.0), [0.0, 1.0], Euler(7), Adjoint(), parameters=()).stats
    assert stats == Stats(evaluations=7, steps=7, accepted=7)


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_adjoint_takes_the_steps_of_every_interval(turn: float) -> None:
    field = Recorded(bumpy)
    z0 = doubles(1.0).requires_grad_()
    ts = [0.0, turn * 1.0, turn * 2.0, turn * 4.0]
    result = solve(field, z0, ts, Euler((1, 4, 2)), Adjoint(), parameters=())
    field.times.clear()
    result.ys[-1].sum().backward()
    assert result.stats.backward_steps == 7
    expected = [4.0, 3.0, 2.0, 1.75, 1.5, 1.25, 1.0]
    assert [turn * t for t in field.times] == pytest.approx(expected, abs=1e-14)
