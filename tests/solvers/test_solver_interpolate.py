"""Outputs from polynomials inside steps that pass the output times."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from solver_cases import doubles
from torch import Tensor

from solvers import (
    AdaptiveHeun,
    Adjoint,
    Bosh3,
    Checkpoint,
    Dopri5,
    Dopri8,
    SolverError,
    Tableau,
    Tsit5,
    solve,
)

EXACT = Dopri8(1e-11, 1e-11)


def make(count: int = 2) -> tuple[Tensor, Tensor]:
    z0 = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    return z0, torch.randn(3, 3, dtype=torch.float64, requires_grad=True)


def field_of(weight: Tensor):
    def field(t: Tensor, z: Tensor) -> Tensor:
        wave = torch.where(t < 0.33, torch.cos(t), torch.sin(t))
        return torch.tanh(z @ weight) * wave[..., None]

    return field


@pytest.mark.parametrize("turn", [1.0, -1.0], ids=["forwards", "backwards"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", [Dopri5, Tsit5, Bosh3])
@torch.no_grad()
def test_fewer_steps_for_many_outputs(kind, per_sample: bool, turn: float) -> None:
    z0, weight = make()
    ts = turn * torch.linspace(0.0, 2.0, 33, dtype=torch.float64)
    method = kind(1e-5, 1e-5, interpolate=True, breakpoints=(0.33,))
    exact = solve(field_of(weight), z0, ts, EXACT).ys
    passing = solve(field_of(weight), z0, ts, method, per_sample=per_sample)
    ending = solve(
        field_of(weight), z0, ts, replace(method, interpolate=False), per_sample=per_sample
    )
    assert passing.stats.evaluations < 0.75 * ending.stats.evaluations
    torch.testing.assert_close(passing.ys, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "order"), [(Dopri5, 4), (Tsit5, 4), (Bosh3, 3)])
@torch.no_grad()
def test_order_of_the_polynomials(kind, order: int) -> None:
    """Errors inside one step: one order more than that of the polynomial."""
    z0 = doubles(0.3, -0.7)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[1] * z[0], torch.cos(t) - z[0]])

    errors = []
    for size in (0.4, 0.2):
        ts = size * doubles(0.0, 0.2, 0.5, 0.7, 1.0)
        method = kind(1e3, 1e3, first_step=1.0, interpolate=True)
        solution = solve(field, z0, ts, method)
        assert solution.stats.steps == 1
        errors.append((solution.ys - solve(field, z0, ts, EXACT).ys)[1:-1].abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order + 0.7


@pytest.mark.parametrize("points", [(), (0.33,)], ids=["smooth", "breakpoint"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients(per_sample: bool, points: tuple[float, ...]) -> None:
    z0, weight = make()
    ts = doubles(0.0, 0.1, 0.33, 0.6, 0.9).requires_grad_()
    ends = 0.9 if points else 0.32
    results = []
    for method in (Tsit5(1e-8, 1e-8, interpolate=True), EXACT):
        method = replace(method, breakpoints=points)
        solution = solve(
            field_of(weight), z0, ends / 0.9 * ts, method, per_sample=per_sample, dense=True
        )
        loss = solution.ys.sin().sum() + solution.interpolate([0.2, ends - 0.02]).cos().sum()
        results.append(torch.autograd.grad(loss, (z0, weight, ts)))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_times_of_each_sample() -> None:
    z0, weight = make()
    nan = math.nan
    times = doubles(0.4, 0.5, 0.7, 1.0, 0.9, 0.7, 0.4, nan).reshape(2, 4).requires_grad_()
    results = []
    for method in (Dopri5(1e-8, 1e-8, interpolate=True), EXACT):
        solution = solve(field_of(weight), z0, times, method, per_sample=True, dense=True)
        loss = solution.ys.nan_to_num().sin().sum() + solution.interpolate([0.6, 0.6]).sum()
        results.append((solution.ys, *torch.autograd.grad(loss, (z0, weight, times))))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_adjoint_passes_outputs_too() -> None:
    z0, weight = make()
    results = []
    for method in (Dopri5(1e-8, 1e-8, interpolate=True), EXACT):
        ys = solve(
            field_of(weight), z0, [0.4, 0.5, 0.6, 0.7], method, Adjoint(), parameters=(weight,)
        ).ys
        results.append(torch.autograd.grad(ys.sin().sum(), (z0, weight)))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_integration_that_fails_has_the_outputs_before(per_sample: bool) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return z * z

    z0 = doubles(1.0, 0.1).reshape(2, 1).requires_grad_()
    method = Dopri5(interpolate=True)
    ts = [0.0, 0.25, 0.5, 2.0]
    solution = solve(field, z0, ts, method, per_sample=per_sample, throw=False)
    finite = solution.ys.isfinite()[:, :, 0].tolist()
    assert finite == [[True, True]] * 3 + [[False, per_sample]]
    slope = torch.autograd.grad(solution.ys[2].sum(), z0)[0]
    torch.testing.assert_close(slope, (1 - 0.5 * z0.detach()) ** -2, rtol=1e-3, atol=1e-3)
    with pytest.raises(SolverError):
        solve(field, z0, ts, method, per_sample=per_sample)


def test_what_cannot_interpolate_is_refused() -> None:
    for kind in (AdaptiveHeun, Dopri8):
        with pytest.raises(ValueError, match="interpolate"):
            kind(interpolate=True)
    with pytest.raises(TypeError, match="interpolate"):
        Dopri5(interpolate=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Checkpoint"):
        solve(
            lambda t, z: z, torch.ones(1), [0.0, 1.0], Dopri5(interpolate=True), Checkpoint(),
            parameters=(),
        )  # fmt: skip
    with pytest.raises(ValueError, match="quartic"):
        Tableau(c=(0.0,), a=((),), b=(1.0,), order=1, quartic=(1.0,))
