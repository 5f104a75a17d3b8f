"""Gradients four ways, with respect to state, parameters and times."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torchdiffeq
from solver_cases import ADAPTIVE, FIXED, Recorded, doubles, name_of
from torch import Tensor, nn

from solvers import (
    RK4,
    Adjoint,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    solve,
)

TIGHT = Dopri5(rtol=1e-10, atol=1e-11)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Two samples, a weight matrix, and times."""
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 3, generator=generator, dtype=torch.float64) / 2
    ts = doubles(0.0, 0.35, 0.5, 1.1)
    return z0.requires_grad_(), weight.requires_grad_(), ts.requires_grad_()


def field_of(weight: Tensor):
    return lambda t, z: torch.tanh(z @ weight + torch.sin(2 * t))


def gradients(method, gradient, turn: int = 1) -> list[Tensor]:
    z0, weight, ts = inputs()
    times = ts if turn == 1 else ts.flip(0)
    ys = solve(field_of(weight), z0, times, method, gradient, parameters=(weight,)).ys
    loss = (ys * torch.linspace(-1, 2, ys.numel(), dtype=ys.dtype).view_as(ys)).sum()
    return list(torch.autograd.grad(loss, (z0, weight, ts)))


@cache
def exact_gradients(turn: int) -> list[Tensor]:
    return gradients(TIGHT, Direct(), turn)


def largest_difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("gradient", "turn"), [(Direct(), 1), (Checkpoint(every=2), -1)])
@pytest.mark.parametrize("method", [Euler(2), Midpoint((1, 2, 1)), Heun(2), RK4(1)], ids=name_of)
def test_finite_differences_of_fixed_methods(method, gradient, turn: int) -> None:
    def run(z0: Tensor, weight: Tensor, ts: Tensor) -> Tensor:
        times = ts if turn == 1 else ts.flip(0)
        return solve(field_of(weight), z0, times, method, gradient, parameters=(weight,)).ys

    assert torch.autograd.gradcheck(run, inputs(), fast_mode=True)


@pytest.mark.parametrize(
    ("method", "gradient"),
    [
        *((method, Direct()) for method in ADAPTIVE),
        (ADAPTIVE[1], Adjoint()),
        (ADAPTIVE[3], Adjoint()),
    ],
)
def test_finite_differences_of_adaptive_methods(method, gradient) -> None:
    """To the accuracy of the tolerance: step sizes change with the inputs, unseen by gradients."""
    tight = replace(method, rtol=1e-4 if method.order < 3 else 1e-6, atol=1e-5)

    def run(z0: Tensor, weight: Tensor, ts: Tensor) -> Tensor:
        return solve(field_of(weight), z0, ts, tight, gradient, parameters=(weight,)).ys

    assert torch.autograd.gradcheck(
        run, inputs(), eps=3e-2, atol=1e-2, rtol=1e-3, nondet_tol=1e-12, fast_mode=True
    )


@pytest.mark.parametrize("method", [*FIXED, RK4((3, 1, 4))], ids=name_of)
def test_checkpoint_equals_direct(method) -> None:
    for turn in (1, -1):
        direct = gradients(method, Direct(), turn)
        for every in (1, 2, 7, 100):
            assert largest_difference(gradients(method, Checkpoint(every), turn), direct) < 1e-13


@pytest.mark.parametrize(
    ("method", "gradient", "turn"),
    [
        (TIGHT, Adjoint(), 1),
        (TIGHT, Adjoint(seminorm=True), -1),
        (RK4(steps=60), Adjoint(), -1),
        (RK4(steps=(60, 40, 70)), Adjoint(), 1),
        (RK4(steps=(60, 40, 70)), Adjoint(), -1),
        (RK4(steps=60), Adjoint(method=TIGHT), 1),
        (RK4(steps=60), Adjoint(method=Dopri5(), rtol=1e-10, atol=1e-11), -1),
        (TIGHT, Adjoint(method=RK4(steps=60)), 1),
    ],
)
def test_adjoint_agrees_with_direct_where_both_are_accurate(method, gradient, turn: int) -> None:
    assert largest_difference(gradients(method, gradient, turn), exact_gradients(turn)) < 1e-6


def test_adjoint_tolerance_is_used() -> None:
    exact = exact_gradients(1)
    loose = gradients(TIGHT, Adjoint(rtol=1e-2, atol=1e-2))
    tight = gradients(TIGHT, Adjoint())
    assert largest_difference(loose, exact) > 1e-5
    assert largest_difference(tight, exact) < 1e-8


def test_adjoint_of_large_euler_steps_is_not_the_gradient_of_what_was_computed() -> None:
    """Why ``Direct`` is the default."""
    direct = gradients(Euler(steps=1), Direct())
    assert largest_difference(gradients(Euler(steps=1), Adjoint()), direct) > 0.01


@pytest.mark.parametrize("gradient", [Direct(), Checkpoint(2), Adjoint()], ids=name_of)
def test_tuple_states(gradient) -> None:
    """The pair of a state and the integral of a function along its path."""
    generator = torch.Generator().manual_seed(1)
    z0 = torch.randn(4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def field(t, state):
        z, _ = state
        return torch.tanh(z @ weight) * torch.cos(t), z.square().sum(-1)

    def loss(method, gradient) -> list[Tensor]:
        start = (z0, torch.zeros(4, dtype=torch.float64))
        z, total = solve(field, start, [0.0, 0.4, 1.0], method, gradient, parameters=(weight,)).ys
        assert z.shape == (3, 4, 2)
        assert total.shape == (3, 4)
        return list(torch.autograd.grad(z[1].sum() + total[-1].square().sum(), (z0, weight)))

    assert largest_difference(loss(RK4(40), gradient), loss(TIGHT, Direct())) < 1e-6


@pytest.mark.parametrize("gradient", [Checkpoint(2), Adjoint()], ids=name_of)
def test_parameters_are_found_in_modules_and_their_methods(gradient) -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(doubles(0.5))
            self.frozen = nn.Parameter(doubles(1.0), requires_grad=False)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return -self.rate * self.frozen * z

        def velocity(self, t: Tensor, z: Tensor) -> Tensor:
            return self(t, z)

    module = Field()
    for field in (module, module.velocity):
        module.rate.grad = None
        solve(field, doubles(2.0), [0.0, 1.0], RK4(20), gradient).ys[-1].sum().backward()
        assert torch.allclose(module.rate.grad, -2 * torch.exp(-doubles(0.5)), atol=1e-6)
        assert module.frozen.grad is None


@pytest.mark.parametrize("gradient", [Checkpoint(2), Adjoint()], ids=name_of)
def test_parameters_need_not_be_leaves_and_count_once(gradient) -> None:
    def grad(gradient, parameters) -> Tensor:
        raw = doubles(0.3).requires_grad_()
        rate = torch.nn.functional.softplus(raw)
        parameters = {"once": (rate,), "twice": [rate, rate], "generator": iter([rate])}[parameters]
        result = solve(
            lambda t, z: -rate * z,
            doubles(2.0),
            [0.0, 1.0],
            RK4(20),
            gradient,
            parameters=parameters,
        )
        return torch.autograd.grad(result.ys[-1].sum(), raw)[0]

    exact = grad(Direct(), "once")
    for listed in ("once", "twice", "generator"):
        assert torch.allclose(grad(gradient, listed), exact, atol=1e-6)


def test_a_field_that_is_a_gradient() -> None:
    """Checkpointing evaluates it twice per evaluation forward, not quadratically often."""
    weight = doubles(0.3, -0.7).requires_grad_()

    def potential_flow(t: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            value = torch.cos(z * weight + t).sum()
            return torch.autograd.grad(value, z, create_graph=True)[0]

    results = []
    for gradient in (Direct(), Checkpoint(every=5), Adjoint()):
        field = Recorded(potential_flow)
        z0 = doubles(1.0, 2.0).requires_grad_()
        result = solve(field, z0, [0.0, 1.0], RK4(20), gradient, parameters=(weight,))
        results.append(list(torch.autograd.grad(result.ys[-1].sum(), (z0, weight))))
        if isinstance(gradient, Checkpoint):
            assert len(field.times) == 80 + 80
    assert largest_difference(results[0], results[1]) < 1e-14
    assert largest_difference(results[0], results[2]) < 1e-5


def test_checkpoint_keeps_only_the_starts_of_segments() -> None:
    def kept(gradient) -> int:
        sizes = []
        z0 = torch.ones(1000, dtype=torch.float64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            solve(lambda t, z: torch.sin(z), z0, [0.0, 1.0], RK4(100), gradient, parameters=())
        return sum(sizes)

    # The starts, the end (to compare with), and the first evaluation, whose graph is looked at.
    assert kept(Checkpoint(every=10)) < 1000 * 13 < kept(Direct()) / 30


def test_times_among_numbers_keep_their_gradient() -> None:
    end = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y = solve(lambda t, z: z, doubles(1.0), [0.0, end], RK4(20)).ys[-1]
    assert torch.allclose(torch.autograd.grad(y.sum(), end)[0], y[0], atol=1e-6)


def test_time_gradients_survive_rounding_past_the_end() -> None:
    """Where the time of a stage is clamped to the end, its derivative must stay 1."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ts = torch.rand(2, generator=generator, dtype=torch.float64) * doubles(-1, 0.1)
        if ts[0] + (ts[1] - ts[0]) > ts[1]:
            break
    else:
        pytest.fail("no pair of times that rounds past the end")
    ts.requires_grad_()
    y = solve(lambda t, z: t * t * torch.ones_like(z), doubles(0.0), ts, Heun()).ys[-1]
    grad = torch.autograd.grad(y.sum(), ts)[0]
    t0, t1 = ts.detach()
    assert torch.allclose(grad[1], (t0**2 + t1**2) / 2 + (t1 - t0) * t1)


def test_second_order_through_direct() -> None:
    z0 = doubles(0.3, 0.8).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda z: solve(lambda t, z: torch.sin(z * t), z, [0.0, 1.0], RK4(2)).ys[-1], (z0,)
    )


@pytest.mark.parametrize("gradient", [Checkpoint(2), Adjoint()], ids=name_of)
def test_autocast_is_the_same_on_the_way_back(gradient) -> None:
    weight = torch.eye(4).requires_grad_()
    seen = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        out = z @ weight
        seen.append(out.dtype)
        return out

    z0 = torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        ys = solve(field, z0, [0.0, 0.5], RK4(2), gradient, parameters=(weight,)).ys
    ys[-1].sum().backward()
    assert ys.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    assert len(seen) >= 16


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (RK4(4), {"method": "rk4", "options": {"step_size": 0.25}}),
        (Dopri5(1e-9, 1e-9), {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9}),
    ],
    ids=name_of,
)
def test_adjoint_is_that_of_torchdiffeq(method, options) -> None:
    z0, weight, _ = inputs()
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    field = field_of(weight)
    ours = solve(field, z0, ts, method, Adjoint(), parameters=(weight,)).ys
    theirs = torchdiffeq.odeint_adjoint(field, z0, ts, adjoint_params=(weight,), **options)
    found = [torch.autograd.grad(ys.square().sum(), (z0, weight)) for ys in (ours, theirs)]
    assert largest_difference(*found) < (1e-13 if method == RK4(4) else 1e-7)


def test_adjoint_of_parameters_in_another_dtype() -> None:
    rate = torch.tensor([0.5], requires_grad=True)
    for gradient in (Direct(), Checkpoint(2), Adjoint(), Adjoint(seminorm=True)):
        ys = solve(
            lambda t, z: -rate.double() * z,
            doubles(2.0),
            [0.0, 1.0],
            Dopri5(),
            gradient,
            parameters=(rate,),
        ).ys
        (grad,) = torch.autograd.grad(ys[-1].sum(), rate)
        assert grad.dtype == torch.float32
        assert grad.item() == pytest.approx(-2 * math.exp(-0.5), abs=1e-4)
