"""What an observer sees of every attempted step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from solver_cases import ADAPTIVE, COMBINATIONS, doubles, name_of
from torch import Tensor

from flowfactor import RidgePotential, trace
from solvers import (
    RK4,
    Attempt,
    Direct,
    Dopri5,
    Euler,
    TorchDiffEq,
    solve,
    solve_until,
)

TIMES = [0.5, 0.0, -1.0]


def sharp(t: Tensor, z: Tensor) -> Tensor:
    """A field whose bend makes adaptive methods reject steps."""
    return -z + 3 * torch.tanh(40 * (t + 0.6))[..., None]


@pytest.mark.parametrize(("method", "gradient"), COMBINATIONS)
def test_attempts_make_up_the_integration(method, gradient) -> None:
    seen: list[Attempt] = []
    z0 = doubles(1.0, 2.0).requires_grad_()
    solution = solve(sharp, z0, TIMES, method, gradient, parameters=(), observer=seen.append)
    alone = solve(sharp, z0, TIMES, method, gradient, parameters=())
    assert torch.equal(solution.ys, alone.ys)
    solution.ys[-1].sum().backward()  # the way back is not seen
    assert len(seen) == solution.stats.steps
    taken = [a for a in seen if a.accepted]
    assert len(taken) == solution.stats.accepted
    assert {type(a.accepted) for a in seen} == {bool}
    assert all(a.z.shape == z0.shape and not a.z.requires_grad for a in seen)
    assert sum(a.size for a in taken) == pytest.approx(-1.5)
    for before, after in pairwise(seen):
        assert after.t == pytest.approx(before.t + before.size * before.accepted)
        if not after.accepted:
            assert torch.equal(after.z, before.z)
    assert torch.equal(taken[-1].z, solution.ys[-1])
    if method.is_adaptive:
        assert all(a.accepted == (a.error <= 1) for a in seen)
        assert len(seen) > len(taken)
    else:
        assert {a.error for a in seen} == {None}


@pytest.mark.parametrize("method", ADAPTIVE, ids=name_of)
def test_attempts_of_samples(method) -> None:
    z0 = torch.tensor([[1.0], [50.0], [0.0]], dtype=torch.float64)
    seen: list[Attempt] = []
    solution = solve(sharp, z0, TIMES, method, per_sample=True, observer=seen.append)
    accepted = torch.stack([a.accepted for a in seen])
    size = torch.stack([a.size for a in seen])
    error = torch.stack([a.error for a in seen])
    assert torch.equal(accepted.sum(0), solution.samples.accepted)
    assert torch.equal(((size != 0) & ~accepted).sum(0), solution.samples.rejected)
    torch.testing.assert_close((size * accepted).sum(0), doubles(-1.5, -1.5, -1.5))
    assert bool(((error <= 1) == accepted)[size != 0].all())
    assert torch.equal(seen[-1].z, solution.ys[-1])
    assert seen[0].t.tolist() == [0.5] * 3


def test_times_of_each_sample_with_given_steps() -> None:
    seen: list[Attempt] = []
    own = doubles(0.0, 2.0, 1.0, 0.0).view(2, 2)
    z0 = (torch.ones(2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))
    ys = solve(lambda t, z: z, z0, own, RK4(4), observer=seen.append).ys
    assert [a.t.tolist() for a in seen] == [[0.5 * i, 1 - 0.25 * i] for i in range(4)]
    assert bool(torch.stack([a.accepted for a in seen]).all())
    assert torch.equal(seen[-1].z[1], ys[1][-1])


def test_what_an_observer_does_to_the_state_changes_nothing() -> None:
    z0 = doubles(1.0, 2.0)
    ys = solve(sharp, z0, TIMES, Dopri5(), observer=lambda a: a.z.zero_()).ys
    assert torch.equal(ys, solve(sharp, z0, TIMES, Dopri5()).ys)


def test_an_exception_ends_the_integration() -> None:
    seen: list[Attempt] = []

    def watch(attempt: Attempt) -> None:
        seen.append(attempt)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(sharp, doubles(1.0), TIMES, Euler(50), observer=watch)
    assert len(seen) == 3


def test_events_and_flows_hand_it_on() -> None:
    seen: list[Attempt] = []
    found = solve_until(
        lambda t, z: torch.ones_like(z),
        doubles(0.0),
        lambda t, z: z[0] - 1.0,
        (0.0, 9.0),
        Dopri5(max_step=0.3),
        observer=seen.append,
    )
    assert seen[-1].t < found.t <= seen[-1].t + seen[-1].size
    u = RidgePotential(("hue",), dim=2, width=4)["hue"]
    for log_density, method in ((True, Dopri5()), ("discrete", Euler(2))):
        seen.clear()
        path = trace(
            torch.ones(1, 2), u, 3.0, method=method, log_density=log_density, observer=seen.append
        )
        assert len(seen) == path.stats.steps
        last = seen[-1].z if log_density == "discrete" else seen[-1].z[0]
        assert torch.equal(last, path.z[-1])


def test_refusals() -> None:
    for observer, method, error in ((3, RK4(), TypeError), (print, TorchDiffEq("rk4"), ValueError)):
        with pytest.raises(error, match="observer"):
            solve(sharp, doubles(1.0), TIMES, method, Direct(), observer=observer)
