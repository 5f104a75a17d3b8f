"""No silent NaN, and no integration without an end."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch
from solver_cases import ADAPTIVE, COMBINATIONS, FIXED, doubles, name_of
from torch import Tensor

from solvers import (
    RK4,
    AdaptiveHeun,
    Adjoint,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    FixedMethod,
    SolverError,
    Status,
    solve,
)


@pytest.mark.parametrize(
    ("gradient", "throw", "bad"),
    [(Direct(), True, math.nan), (Direct(), False, math.inf), (Adjoint(), False, -math.inf)],
)
@pytest.mark.parametrize("method", FIXED + ADAPTIVE, ids=name_of)
def test_a_field_that_stops_being_finite(method, bad: float, throw: bool, gradient) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        # In one entry of many, as it happens.
        return torch.where((t > 0.6) & (torch.arange(3) == 1), bad, torch.cos(t) + 0 * z)

    ts = [0.0, 0.2, 0.5, 0.9, 1.5]
    z0 = doubles(0.0, 0.0, 0.0)
    if throw:
        with pytest.raises(SolverError, match="NaN or infinite") as caught:
            solve(field, z0, ts, method, gradient, parameters=())
        assert caught.value.status is Status.NON_FINITE
        assert 0.5 <= caught.value.time <= 0.61
        assert caught.value.stats.evaluations > 0
        assert f"t = {caught.value.time:.9g}" in str(caught.value)
    else:
        result = solve(field, z0, ts, method, gradient, parameters=(), throw=False)
        assert result.status is Status.NON_FINITE
        assert torch.allclose(result.ys[:3], torch.sin(doubles(*ts[:3]))[:, None], atol=0.05)
        assert not torch.isfinite(result.ys[3:]).all(dim=1).any()
        assert result.ys.shape == (5, 3)


@pytest.mark.parametrize(("method", "gradient"), COMBINATIONS)
def test_a_field_that_never_is_finite(method, gradient) -> None:
    for ts in ([0.0, 1.0], [3.0, 2.0, 1.0]):
        with pytest.raises(SolverError) as caught:
            solve(lambda t, z: z * math.nan, doubles(1.0), ts, method, gradient, parameters=())
        assert caught.value.status is Status.NON_FINITE
        assert caught.value.time == ts[0]


@pytest.mark.parametrize("method", FIXED + ADAPTIVE, ids=name_of)
def test_a_state_that_is_not_finite_from_the_start(method) -> None:
    for z0 in (doubles(1.0, math.nan), (doubles(1.0), doubles(-math.inf))):
        for ts in ([0.0, 1.0], [0.0]):
            result = solve(lambda t, z: z, z0, ts, method, throw=False)
            assert result.status is Status.NON_FINITE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", FIXED + ADAPTIVE, ids=name_of)
def test_past_the_pole_of_a_solution(method, dtype: torch.dtype) -> None:
    """``dz/dt = z^2`` from 1 has a pole at 1."""
    z0 = torch.ones(2, dtype=dtype)
    if isinstance(method, FixedMethod):
        method = replace(method, steps=20)
    else:
        method = type(method)(1e-4, 1e-5, max_steps=300)
    result = solve(lambda t, z: z * z, z0, [0.0, 0.5, 5.0, 50.0], method, throw=False)
    if isinstance(method, FixedMethod):
        # Large steps jump over the pole; from there the state overflows.
        assert result.status is Status.NON_FINITE
    else:
        assert result.status in (Status.DT_UNDERFLOW, Status.NON_FINITE, Status.MAX_STEPS)
        assert torch.allclose(result.ys[1], 2 * z0, rtol=1e-2)
        with pytest.raises(SolverError) as caught:
            solve(lambda t, z: z * z, z0, [0.0, 0.5, 5.0, 50.0], method)
        assert 0.9 < caught.value.time < 1.1
    assert not torch.isfinite(result.ys[2:]).all()


def test_overflow_that_an_adaptive_method_accepts_is_found() -> None:
    """The error of an infinite state is within its infinite tolerance."""
    z0 = torch.full((1,), 3e38)
    result = solve(lambda t, z: torch.full_like(z, 3e38), z0, [0.0, 1.0], Dopri5(), throw=False)
    assert result.status is Status.NON_FINITE


@pytest.mark.parametrize("gradient", [Direct(), Adjoint()], ids=name_of)
def test_a_singularity_that_no_step_can_resolve(gradient) -> None:
    """Ends in an underflow of the step, where it is, and the message names the alternative."""
    method = Dopri5(rtol=1e-9, atol=1e-9)
    with pytest.raises(SolverError, match="float64 resolves relative errors") as caught:
        solve(
            lambda t, z: z * 0 + 1 / (t - 0.7).abs() ** 0.95,
            doubles(1.0),
            [0.0, 1.0],
            method,
            gradient,
            parameters=(),
        )
    assert caught.value.status is Status.DT_UNDERFLOW
    assert abs(caught.value.time - 0.7) < 1e-6


@pytest.mark.parametrize("gradient", [Direct(), Adjoint()], ids=name_of)
def test_an_attempt_that_overflows_is_repeated_with_a_smaller_step(gradient) -> None:
    """A NaN in an attempt is not the end, as it is for torchdiffeq."""
    seen = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        near = (z - torch.exp(-t)).abs() < 1e-3  # the stages of a large step stray further
        seen.append(torch.where(near, -z, math.nan))
        return seen[-1]

    result = solve(field, doubles(1.0), [0.0, 3.0], Dopri5(1e-2, 1e-2), gradient, parameters=())
    assert any(f.isnan() for f in seen)
    assert result.stats.rejected > 0
    assert torch.allclose(result.ys[-1], torch.exp(-doubles(3.0)), atol=1e-3)


@pytest.mark.parametrize("gradient", [Direct(), Adjoint()], ids=name_of)
def test_nan_in_any_part_of_a_tuple_rejects_the_step(gradient) -> None:
    """torchdiffeq's own norm overlooks it unless it comes first, and accepts the step."""

    def field(t, state):
        return torch.ones_like(state[0]), torch.where(t < 0.3, 1.0, math.nan) * state[1]

    z0 = (doubles(0.0), doubles(1.0))
    ts = [0.0, 0.2, 1.0]
    result = solve(field, z0, ts, Dopri5(), gradient, parameters=(), throw=False)
    assert result.status is Status.NON_FINITE
    assert result.stats.rejected > 0
    assert result.ys[0][2].isnan().all()
    assert result.ys[1][:2].isfinite().all()


def test_stiffness_ends_by_max_steps() -> None:
    method = AdaptiveHeun(max_steps=200)
    with pytest.raises(SolverError, match="max_steps=200") as caught:
        solve(lambda t, z: -1e6 * (z - torch.cos(t)), doubles(0.0), [0.0, 10.0], method)
    assert caught.value.status is Status.MAX_STEPS
    assert caught.value.stats.steps == 200
    assert 0 < caught.value.time < 10


@pytest.mark.parametrize("gradient", [Direct(), Adjoint()], ids=name_of)
def test_outputs_before_the_failure_are_kept(gradient) -> None:
    z0 = (doubles(1.0).requires_grad_(), doubles(0.0, 0.0))

    def field(t, state):
        return state[0] * 0 + 1, state[1] * 0 + 1 / (t < 0.6)

    ts = [0.0, 0.25, 0.5, 1.0]
    result = solve(field, z0, ts, Dopri5(), gradient, parameters=(), throw=False)
    assert result.status is Status.NON_FINITE
    first, second = result.ys
    assert torch.allclose(first[:3, 0], doubles(1.0, 1.25, 1.5))
    assert torch.allclose(second[:3, 0], doubles(0.0, 0.25, 0.5))
    assert first[3:].isnan().all()
    assert second[3:].isnan().all()
    assert first.requires_grad == isinstance(gradient, Direct)


def test_errors_survive_pickling() -> None:
    with pytest.raises(SolverError) as caught:
        solve(lambda t, z: z / 0, doubles(1.0), [0.0, 1.0], Euler())
    error = pickle.loads(pickle.dumps(caught.value))
    assert (str(error), error.status, error.time, error.stats) == (
        str(caught.value),
        Status.NON_FINITE,
        0.0,
        caught.value.stats,
    )


def test_errors_of_the_field_pass_unchanged() -> None:
    def field(t, z):
        raise KeyError("mine")

    for gradient in (Direct(), Checkpoint(), Adjoint()):
        with pytest.raises(KeyError, match="mine"):
            solve(field, doubles(1.0), [0.0, 1.0], RK4(), gradient, parameters=())


def test_messages_are_one_paragraph() -> None:
    with pytest.raises(SolverError) as caught:
        solve(lambda t, z: z * math.nan, doubles(1.0), [0.0, 1.0], RK4(2))
    assert str(caught.value).startswith("the integration with RK4(steps=2) stopped at t = 0 ")
    assert "\n" not in str(caught.value)


def test_a_field_that_is_infinite_beyond_its_start() -> None:
    """Also where the size of the first step is looked for."""
    with pytest.raises(SolverError) as caught:
        solve(lambda t, z: z if t == 0 else z / 0, doubles(1.0), [0.0, 1.0], Dopri5())
    assert caught.value.status == Status.NON_FINITE
