"""Order, tolerance, grids: what must be true of the numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from solver_cases import ADAPTIVE, FIXED, Recorded, doubles, name_of
from torch import Tensor

from solvers import (
    RK4,
    AdaptiveMethod,
    Adjoint,
    Dopri5,
    Euler,
    FixedMethod,
    Heun,
    Midpoint,
    TorchDiffEq,
    solve,
)

GRIDS = {
    "irregular": [0.0, 0.13, 0.57, 0.6, 1.1],
    "decreasing": [1.0, 0.91, 0.5, 0.14, -0.2],
}


def logistic(t: Tensor, z: Tensor) -> Tensor:
    return z * (1 - z)


def logistic_solution(t: Tensor, t0: float) -> Tensor:
    return 1 / (1 + 4 * torch.exp(-(t - t0)))  # from 0.2


def driven(t: Tensor, z: Tensor) -> Tensor:
    return -2 * t * z + torch.cos(3 * t) * torch.exp(-t * t)


def driven_solution(t: Tensor, t0: float) -> Tensor:
    start = 0.2 * math.exp(t0 * t0) - math.sin(3 * t0) / 3
    return (torch.sin(3 * t) / 3 + start) * torch.exp(-t * t)


PROBLEMS = {"autonomous": (logistic, logistic_solution), "driven": (driven, driven_solution)}


@pytest.mark.parametrize("ts", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.parametrize("method", [Euler(), Midpoint(), Heun(), RK4()], ids=name_of)
def test_order_of_fixed_methods(method: FixedMethod, problem, ts: list[float]) -> None:
    """Over all outputs, so that an output between step boundaries would be noticed."""
    field, solution = problem
    exact = solution(doubles(*ts), ts[0])
    counts = [16, 32, 64]
    errors = []
    for n in counts:
        result = solve(field, doubles(0.2), ts, replace(method, steps=n))
        errors.append((result.ys[:, 0] - exact).abs().max().item())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(-slope - method.order) < 0.2


@pytest.mark.parametrize("method", ADAPTIVE, ids=name_of)
@pytest.mark.parametrize("ts", GRIDS.values(), ids=GRIDS.keys())
def test_adaptive_methods_reach_their_tolerance(method: AdaptiveMethod, ts: list[float]) -> None:
    """A pendulum with damping and drive, against SciPy at 1e-12."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        angle, speed = z
        return torch.stack([speed, -4 * torch.sin(angle) - 0.3 * speed + torch.cos(2 * t)])

    def reference(t: float, z: np.ndarray) -> list[float]:
        return [z[1], -4 * math.sin(z[0]) - 0.3 * z[1] + math.cos(2 * t)]

    oracle = solve_ivp(
        reference, (ts[0], ts[-1]), [1.0, 0.5], "DOP853", t_eval=ts, rtol=1e-12, atol=1e-12
    )
    result = solve(field, doubles(1.0, 0.5), ts, method)
    error = (result.ys - torch.from_numpy(oracle.y.T)).abs().max().item()
    assert error < 10 * (method.atol + 2 * method.rtol)


def test_tolerance_is_obeyed() -> None:
    errors = []
    for tolerance in (1e-4, 1e-7, 1e-10):
        result = solve(logistic, doubles(0.2), [0.0, 3.0], Dopri5(rtol=tolerance, atol=tolerance))
        errors.append((result.ys[-1] - logistic_solution(doubles(3.0), 0.0)).abs().item())
    assert errors[0] > 30 * errors[1] > 900 * errors[2]


@pytest.mark.parametrize("method", [RK4(steps=40), *ADAPTIVE], ids=name_of)
def test_there_and_back(method) -> None:
    z0 = doubles(0.2, 0.5, 0.9)
    there = solve(driven, z0, [0.0, 0.4, 1.3], method).ys[-1]
    back = solve(driven, there, [1.3, 0.7, 0.0], replace(method)).ys[-1]
    assert (there - z0).abs().max() > 0.1
    tolerance = 1e-6 if isinstance(method, FixedMethod) else 30 * method.rtol
    assert torch.allclose(back, z0, atol=tolerance, rtol=0)


def test_rk4_is_the_three_eighths_rule() -> None:
    t, z, h = 0.3, doubles(0.7), 0.4
    k1 = driven(doubles(t)[0], z)
    k2 = driven(doubles(t + h / 3)[0], z + h * k1 / 3)
    k3 = driven(doubles(t + 2 * h / 3)[0], z + h * (k2 - k1 / 3))
    k4 = driven(doubles(t + h)[0], z + h * (k1 - k2 + k3))
    step = z + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8
    result = solve(driven, z, [t, t + h], RK4(steps=1))
    assert torch.allclose(result.ys[-1], step, atol=1e-15, rtol=1e-14)


def test_steps_per_interval() -> None:
    ts = doubles(0.0, 0.3, 1.0, 1.2)
    field = Recorded(driven)
    together = solve(field, doubles(0.2), ts, Euler(steps=(2, 3, 1)))
    expected = [0.0, 0.15, 0.3, 0.3 + 0.7 / 3, 0.3 + 1.4 / 3, 1.0]
    assert field.times == pytest.approx(expected, abs=1e-15)
    z = doubles(0.2)
    for i, n in enumerate((2, 3, 1)):
        z = solve(driven, z, ts[i : i + 2], Euler(steps=n)).ys[-1]
        assert torch.allclose(together.ys[i + 1], z, atol=1e-15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_never_an_extra_step(dtype: torch.dtype) -> None:
    """Step sizes instead of numbers of steps gain a step by rounding on one grid in ten."""
    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        n = int(torch.randint(1, 30, (), generator=generator))
        m = int(torch.randint(1, 6, (), generator=generator))
        ts = torch.rand(m + 1, generator=generator, dtype=torch.float64).mul(7).sort().values
        ts = (ts if i % 2 else ts.flip(0)).to(dtype)
        field = Recorded(lambda t, z: -z)
        result = solve(field, torch.ones(1, dtype=dtype), ts, Euler(steps=n))
        assert result.stats.steps == len(field.times) == n * m
        growth = torch.stack([(1 - (b - a) / n) ** n for a, b in itertools.pairwise(ts)])
        assert torch.allclose(result.ys[1:, 0], growth.cumprod(0), rtol=1e-3)


@pytest.mark.parametrize("method", FIXED + ADAPTIVE, ids=name_of)
@pytest.mark.parametrize(("dtype", "turn"), [(torch.float32, 1), (torch.float64, -1)])
def test_no_evaluation_outside_the_interval(method, dtype: torch.dtype, turn: int) -> None:
    """Also for slow fields, whose first trial step is long, and on the way back of an adjoint."""
    for scale in (1.0, 1e-5):
        for ts in ([-0.3, 0.1, 1.1], [0.0, 1e-3]):
            field = Recorded(lambda t, z, scale=scale: scale * (torch.sin(5 * t) - z))
            z0 = torch.linspace(1, 30, 4, dtype=dtype).requires_grad_()
            loose = replace(method, rtol=1e-5, atol=1e-6) if method.is_adaptive else method
            result = solve(field, z0, ts[::turn], loose, Adjoint(), parameters=())
            result.ys.sum().backward()
            assert result.stats.backward_evaluations > 0
            times = result.ts.tolist()
            assert min(times) <= min(field.times)
            assert max(field.times) <= max(times)


@pytest.mark.parametrize("method", [Heun(), TorchDiffEq("heun2")], ids=name_of)
def test_heun_does_not_round_past_the_end(method) -> None:
    """``t0 + (t1 - t0)`` is above ``t1`` for some pairs."""
    generator = torch.Generator().manual_seed(0)
    rounded = 0
    for _ in range(100):
        ts = torch.rand(2, generator=generator, dtype=torch.float64).float() - torch.tensor([1, 0])
        rounded += bool(ts[0] + (ts[1] - ts[0]) > ts[1])
        field = Recorded(lambda t, z: -z)
        solve(field, torch.ones(1), ts, method)
        assert max(field.times) <= ts[1].item()
    assert rounded > 0


@pytest.mark.parametrize(("is_tuple", "turn"), [(False, 1.0), (True, -1.0)])
@pytest.mark.parametrize("solver", ["dopri5", "bosh3"])
def test_a_step_that_ends_on_an_output_by_itself(solver: str, turn: float, is_tuple: bool) -> None:
    """From there torchdiffeq would wait for a time that has passed, and overshoot the outputs."""
    method, stages = TorchDiffEq(solver), {"dopri5": 6, "bosh3": 3}[solver]

    def field(t: Tensor, z: Any) -> Any:
        return (torch.sin(z[0]),) if is_tuple else torch.sin(z)

    z0 = (doubles(1.0),) if is_tuple else doubles(1.0)
    free = Recorded(field)
    solve(free, z0, [0.0, turn * 2.0], method)
    # After the two evaluations that choose the first step; the last stage of a step is taken one
    # rounding before its end.
    end = math.nextafter(free.times[1 + 2 * stages], turn * math.inf)
    ts = [0.0, end, 1.1 * end, 1.3 * end, turn * 2.0]
    watched = Recorded(field)
    solve(watched, z0, ts, method)
    for t in ts[1:]:
        assert math.nextafter(t, 0.0) in watched.times
