"""Kinds of numbers: complex states, and devices without float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from operations import tensors_in
from solver_cases import ADAPTIVE, COMBINATIONS, FIXED, doubles, name_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from solvers import RK4, Adjoint, Direct, Dopri5, TorchDiffEq, solve, solve_until
from solvers import checks as solver_checks

# ---- complex states

Z0 = torch.tensor([[1.0 + 0.5j], [-0.3 + 2.0j]], dtype=torch.complex128)


def rotate(t: Tensor, z: Tensor) -> Tensor:
    """``dz/dt = i (1 + t) z``, whose solution is ``exp(i (t + t^2 / 2)) z0``."""
    return 1j * (1 + t)[..., None] * z


def angle(t: Tensor | float) -> Tensor | float:
    return t + t * t / 2


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("method", FIXED + ADAPTIVE, ids=name_of)
def test_a_rotation(method, dtype) -> None:
    if not method.is_adaptive:
        method = replace(method, steps=200 if method.order == 1 else 60)
    elif dtype == torch.complex64:
        method = replace(method, rtol=1e-4, atol=1e-4)
    z0 = Z0.to(dtype)
    for per_sample in {False, method.is_adaptive}:
        solution = solve(rotate, z0, [0.0, 0.4, 1.0], method, per_sample=per_sample)
        assert solution.ys.dtype == dtype
        assert solution.ts.dtype == dtype.to_real()
        turned = [z0 * torch.exp(torch.tensor(1j * angle(t))) for t in (0.0, 0.4, 1.0)]
        expected = torch.stack(turned).to(dtype)
        allowed = 0.02 if method.order == 1 else 2e-3
        torch.testing.assert_close(solution.ys, expected, rtol=allowed, atol=allowed)


def test_errors_are_measured_by_modulus() -> None:
    """A rotation of the plane is the same problem at every start on a circle, as two real numbers
    are not."""
    steps = {
        solve(rotate, Z0[:1] * complex(math.cos(a), math.sin(a)), [0.0, 3.0], Dopri5()).stats.steps
        for a in (0.0, 0.4, 1.3, 2.0)
    }
    assert len(steps) == 1


@pytest.mark.parametrize(("method", "gradient"), COMBINATIONS)
def test_gradients(method, gradient) -> None:
    """By a complex state, a complex and a real parameter, and the times."""
    method = replace(method, rtol=1e-8, atol=1e-8) if method.is_adaptive else RK4(20)
    if method.is_adaptive and method.order < 5:
        method = Dopri5(1e-8, 1e-8)
    z0 = Z0.clone().requires_grad_()
    rate = torch.tensor(0.2 + 1.0j, dtype=torch.complex128, requires_grad=True)
    speed = doubles(1.5)[0].requires_grad_()
    ts = doubles(0.0, 0.5, 1.2).requires_grad_()
    inputs = (z0, rate, speed, ts)
    weights = torch.tensor([1.0 + 2.0j, 0.5 - 1.0j, 0.3j], dtype=torch.complex128)

    def loss(ys: Tensor) -> Tensor:
        return (weights[:, None, None] * ys).real.sum() + ys.abs().square().sum()

    found = solve(
        lambda t, z: rate * speed * t * z, z0, ts, method, gradient, parameters=(rate, speed)
    ).ys
    exact = z0 * torch.exp(rate * speed * (ts**2 - ts[0] ** 2) / 2)[:, None, None]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(loss(ys), inputs) for ys in (found, exact))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_tuple_of_complex_and_real_parts(per_sample: bool) -> None:
    z0 = (Z0, torch.zeros(2, dtype=torch.float64))
    tight = Dopri5(1e-9, 1e-9, breakpoints=(0.5,))
    solution = solve(
        lambda t, s: (rotate(t, s[0]), s[0].abs().square().sum(1)),
        z0,
        [0.0, 1.0],
        tight,
        per_sample=per_sample,
        dense=True,
    )
    assert [y.dtype for y in solution.ys] == [torch.complex128, torch.float64]
    torch.testing.assert_close(solution.ys[1][-1], Z0.abs().square().sum(1))
    half = solution.interpolate(0.5)
    turned = Z0 * torch.exp(torch.tensor(1j * angle(0.5)))
    torch.testing.assert_close(half[0], turned, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gradient", [Direct(), Adjoint()], ids=name_of)
def test_events(gradient) -> None:
    """``z = exp(i w t)`` meets the imaginary axis at ``pi / 2w``."""
    w = doubles(1.3, 0.7).requires_grad_()
    found = solve_until(
        lambda t, z: 1j * w * z,
        torch.ones(2, dtype=torch.complex128),
        lambda t, z: z.real,
        (0.0, 5.0),
        Dopri5(1e-10, 1e-10),
        gradient,
        parameters=(w,),
    )
    expected = math.pi / (2 * w)
    torch.testing.assert_close(found.t, expected)
    torch.testing.assert_close(found.z, torch.full_like(found.z, 1j), rtol=1e-7, atol=1e-7)
    ours, theirs = (torch.autograd.grad(t.sum(), w)[0] for t in (found.t, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_by_torchdiffeq() -> None:
    for solver in ("rk4", "dopri5"):
        method = TorchDiffEq(solver, steps=50, rtol=1e-8, atol=1e-8)
        end = solve(rotate, Z0, [0.0, 1.0], method).ys[-1]
        torch.testing.assert_close(end, Z0 * torch.exp(torch.tensor(1.5j)), rtol=1e-6, atol=1e-6)
    for method, z0 in (
        (TorchDiffEq("scipy_solver"), Z0),
        (TorchDiffEq("rk4"), (Z0, Z0.real)),
        (TorchDiffEq("dopri5"), (Z0.real, Z0)),
    ):
        with pytest.raises(TypeError, match="z0"):
            solve(lambda t, z: z, z0, [0.0, 1.0], method)


def test_precisions_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"z0\[1\]"):
        solve(lambda t, z: z, (Z0, Z0.real.float()), [0.0, 1.0])
    with pytest.raises(TypeError, match=r"field\(t, z\)"):
        solve(lambda t, z: z.real, Z0, [0.0, 1.0])


# ---- devices without float64


class NoDoubles(TorchDispatchMode):
    """A device that refuses float64, as some do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tensors_in(out):
            assert x.dtype != torch.float64, function
        return out


@pytest.fixture
def _without_float64(monkeypatch):
    monkeypatch.setattr(solver_checks, "WITHOUT_FLOAT64", {"cpu"})
    with NoDoubles():
        yield


@pytest.mark.usefixtures("_without_float64")
@pytest.mark.parametrize("gradient", [Direct(), Adjoint()], ids=name_of)
def test_nothing_makes_float64_where_there_is_none(gradient) -> None:
    z0 = torch.ones(2, 1, requires_grad=True)
    ts = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    method = Dopri5(1e-3, 1e-3, breakpoints=(0.3,))
    for each in (RK4(3), method, Dopri5(1e-3, 1e-3)):
        per_sample = each.is_adaptive and isinstance(gradient, Direct)
        dense = isinstance(gradient, Direct)
        for own in {False, per_sample}:
            solution = solve(
                lambda t, z: -z, z0, ts, each, gradient, parameters=(), per_sample=own, dense=dense
            )
            torch.testing.assert_close(
                solution.ys[-1], torch.full_like(z0, math.exp(-1)), rtol=1e-2, atol=1e-2
            )
            solution.ys.sum().backward()
            if dense:
                solution.interpolate([0.3, 0.7])
    if dense:
        own_times = torch.tensor([[0.0, 1.0, math.nan], [0.0, -0.5, -1.0]])
        kept = solve(lambda t, z: -z, z0, own_times, method, per_sample=True, dense=True)
        kept.interpolate(torch.tensor([0.3, -0.7]))
    found = solve_until(
        lambda t, z: -z,
        z0,
        lambda t, z: z[:, 0] - 0.5,
        (0.0, 3.0),
        Dopri5(),
        gradient,
        parameters=(),
    )
    torch.testing.assert_close(found.t, torch.full((2,), math.log(2)), rtol=1e-3, atol=1e-3)
