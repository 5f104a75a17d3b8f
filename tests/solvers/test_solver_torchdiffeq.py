"""The methods of torchdiffeq by their names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from solver_cases import Recorded, doubles
from torch import Tensor

from solvers import (
    RK4,
    Adjoint,
    Direct,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    SolverError,
    Status,
    TorchDiffEq,
    solve,
)
from solvers.torchdiffeq import list_solvers

SOLVERS = list(list_solvers())
LARGEST_ERROR = {"euler": 0.03, "fehlberg2": 3e-3} | dict.fromkeys(
    ("midpoint", "heun2", "adaptive_heun"), 2e-3
)
SCIPY = "scipy_solver"


def method_of(name: str) -> TorchDiffEq:
    # The explicit multistep method is stable at order 4 only for far fewer steps than it is at 12.
    options = {"max_order": 4} if name == "explicit_adams" else {}
    rtol = 1e-4 if name == "adaptive_heun" else 1e-6
    return TorchDiffEq(name, steps=40, rtol=rtol, atol=rtol / 10, options=options)


def growing(t: Tensor, z: Tensor) -> Tensor:
    return z * torch.cos(t)


def test_the_installed_release_has_the_documented_methods() -> None:
    assert {"heun3", "fehlberg2", "explicit_adams", "implicit_adams", "fixed_adams"} <= set(SOLVERS)
    assert SCIPY in SOLVERS
    kinds = {name: TorchDiffEq(name).kind for name in SOLVERS}
    assert {name for name in SOLVERS if kinds[name] == "other"} == {SCIPY}
    assert kinds["heun3"] == kinds["implicit_adams"] == "fixed"
    assert kinds["dopri5"] == kinds["fehlberg2"] == "adaptive"


@pytest.mark.parametrize("name", SOLVERS)
def test_accuracy_and_statistics(name: str) -> None:
    """Equal intervals: the multistep methods take the steps before for equally long ones."""
    field = Recorded(growing)
    z0, ts = doubles(1.0, 2.0), [1.5, 0.75, 0.0]
    result = solve(field, z0, ts, method_of(name))
    exact = z0 * torch.exp(torch.sin(doubles(*ts)) - math.sin(ts[0]))[:, None]
    assert (result.ys - exact).abs().max() < LARGEST_ERROR.get(name, 2e-4)
    stats = result.stats
    assert stats.evaluations == len(field.times)
    assert stats.steps == stats.accepted + stats.rejected
    kind = method_of(name).kind
    assert stats.steps == 80 if kind == "fixed" else (stats.steps > 1) == (kind == "adaptive")
    assert min(ts) <= min(field.times)
    assert max(field.times) <= max(ts)


def test_order_of_heun3() -> None:
    counts, errors = [16, 23, 32, 45, 64], []
    for n in counts:
        ys = solve(growing, doubles(1.0), [0.0, 0.7, 1.5], TorchDiffEq("heun3", steps=n)).ys
        errors.append(abs(ys[-1].item() - math.exp(math.sin(1.5))))
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - 3) < 0.2


@pytest.mark.parametrize("steps", [5, (2, 3, 1)])
@pytest.mark.parametrize(
    ("name", "own"), [("euler", Euler), ("midpoint", Midpoint), ("heun2", Heun), ("rk4", RK4)]
)
def test_own_methods_are_the_same(name: str, own, steps) -> None:
    """Two programs for the same numbers, gradients included."""
    found = []
    for method in (TorchDiffEq(name, steps=steps), own(steps)):
        z0, ts = doubles(1.0, -0.3).requires_grad_(), doubles(0.0, 0.4, 0.9, 1.5).requires_grad_()
        ys = solve(growing, z0, ts, method).ys
        loss = ys.square().sum()
        found.append((ys, *torch.autograd.grad(loss, (z0, ts))))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-13, rtol=1e-13)


def test_dopri5_is_close_to_the_own_one() -> None:
    z0, ts = doubles(1.0, 2.0), [0.0, 0.5, 2.0]
    theirs = solve(growing, z0, ts, TorchDiffEq("dopri5", rtol=1e-10, atol=1e-11)).ys
    assert torch.allclose(theirs, solve(growing, z0, ts, Dopri5(1e-10, 1e-11)).ys, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        *((name, Direct()) for name in SOLVERS if name not in (SCIPY, "adaptive_heun")),
        *((name, Adjoint()) for name in ("dopri8", "fehlberg2", "heun3", "implicit_adams")),
    ],
)
def test_gradients(name: str, gradient) -> None:
    """Against the closed form ``z0 exp(w sin t)``, over a single interval."""
    z0, w = doubles(1.0, 2.0).requires_grad_(), doubles(0.7)[0].requires_grad_()
    ts = doubles(0.0, 1.0).requires_grad_()
    result = solve(
        lambda t, z: w * growing(t, z), z0, ts, method_of(name), gradient, parameters=(w,)
    )
    exact = z0 * torch.exp(w * (torch.sin(ts[1]) - torch.sin(ts[0])))
    ours = torch.autograd.grad(result.ys[-1].sum(), (z0, w, ts))
    tolerance = 0.1 if name == "euler" else 5e-3
    for a, b in zip(ours, torch.autograd.grad(exact.sum(), (z0, w, ts)), strict=True):
        assert torch.allclose(a, b, atol=tolerance)
    assert (result.stats.backward_evaluations > 0) == isinstance(gradient, Adjoint)
    assert (result.stats.backward_steps > 0) == isinstance(gradient, Adjoint)


def test_scipy_has_no_gradient() -> None:
    z0 = doubles(1.0).requires_grad_()
    for solver in ("LSODA", "BDF", "Radau", "RK45"):
        method = TorchDiffEq(SCIPY, options={"solver": solver}, rtol=1e-6, atol=1e-7)
        ys = solve(lambda t, z: -1e3 * (z - torch.cos(t)), z0, [0.0, 1.0], method).ys
        assert torch.allclose(ys[-1], torch.cos(doubles(1.0)), atol=2e-3)
        assert not ys.requires_grad


def test_as_the_backward_method_of_another() -> None:
    z0 = doubles(1.0).requires_grad_()
    gradient = Adjoint(method=TorchDiffEq("heun3", steps=30))
    result = solve(growing, z0, [0.0, 1.0], RK4(30), gradient, parameters=())
    grad = torch.autograd.grad(result.ys[-1].sum(), z0)[0]
    assert torch.allclose(grad, torch.exp(torch.sin(doubles(1.0))), atol=1e-5)
    assert result.stats.backward_steps == 30


def test_options_are_passed_on() -> None:
    def run(**options: Any) -> tuple[int, float]:
        field = Recorded(growing)
        method = TorchDiffEq("implicit_adams", steps=8, options=options)
        y = solve(field, doubles(1.0), [0.0, 1.0], method).ys[-1].item()
        return len(field.times), abs(y - math.exp(math.sin(1.0)))

    few, many = run(max_iters=1), run(max_iters=8)
    assert few[0] < many[0]
    assert few[1] > many[1]


@pytest.mark.parametrize("name", SOLVERS)
def test_failures_are_reported_as_for_other_methods(name: str) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t > 0.6, math.nan, 1.0) * z

    z0, ts, method = doubles(1.0), [0.0, 0.5, 1.0], TorchDiffEq(name, steps=10)
    with pytest.raises(SolverError, match="NaN or infinite") as caught:
        solve(field, z0, ts, method)
    assert caught.value.status is Status.NON_FINITE
    assert caught.value.time <= 0.61
    result = solve(field, z0, ts, method, throw=False)
    assert result.status is Status.NON_FINITE
    assert result.ys[-1].isnan().all()
    if name != SCIPY:  # which returns all outputs at once, or none
        assert result.ys[:2].isfinite().all()


@pytest.mark.parametrize("name", ["fehlberg2", "dopri8"])
def test_max_steps(name: str) -> None:
    method = TorchDiffEq(name, rtol=1e-7, atol=1e-8, max_steps=5)
    with pytest.raises(SolverError, match="max_steps=5") as caught:
        solve(lambda t, z: torch.sin(20 * t) * z, doubles(1.0), [0.0, 5.0], method)
    assert caught.value.status is Status.MAX_STEPS
    assert caught.value.stats.steps == 5


def test_adams_methods_need_equal_steps() -> None:
    for solver in ("explicit_adams", "implicit_adams", "fixed_adams"):
        method = TorchDiffEq(solver, steps=10)
        with pytest.raises(ValueError, match=f"method: {solver}"):
            solve(lambda t, z: -z, doubles(1.0), [0.0, 0.5, 1.5], method)
        # The numbers of steps can make up for it.
        ys = solve(
            lambda t, z: -z,
            doubles(1.0),
            [0.0, 0.5, 1.5],
            TorchDiffEq(solver, steps=(20, 40), options={"max_order": 4}),
        ).ys
        assert torch.allclose(ys[-1], torch.exp(-doubles(1.5)), atol=1e-4)


def test_scipy_ends_too() -> None:
    method = TorchDiffEq("scipy_solver", options={"solver": "RK45"}, max_steps=10)
    result = solve(
        lambda t, z: torch.sin(1000 * t) * z, doubles(1.0), [0.0, 10.0], method, throw=False
    )
    assert result.status is Status.MAX_STEPS
    assert result.stats.evaluations == 200
    assert result.ys[1:].isnan().all()


def test_what_kind_a_method_is() -> None:
    assert TorchDiffEq("dopri8").is_adaptive
    fixed = TorchDiffEq("euler", steps=2)
    assert not fixed.is_adaptive
    assert solve(lambda _, z: -z, doubles(1.0), [0.0, 1.0], fixed, max_steps=2).stats.accepted == 2
    with pytest.raises(ValueError, match="max_steps"):
        solve(lambda _, z: -z, doubles(1.0), [0.0, 1.0], fixed, max_steps=1)
