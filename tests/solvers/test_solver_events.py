"""Integration until an event: its time, its state, and the gradients of both."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from solver_cases import ADAPTIVE, Recorded, doubles, name_of
from torch import Tensor

from solvers import (
    RK4,
    Adjoint,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    SolverError,
    Status,
    solve_until,
)

TIGHT = Dopri5(rtol=1e-9, atol=1e-10)
GRADIENTS = [Direct(), Checkpoint(every=3), Adjoint()]


def oscillator(rate: Tensor | float) -> Callable[[Tensor, Tensor], Tensor]:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[..., 1], -rate * rate * z[..., 0]], dim=-1)

    return field


def position(t: Tensor, z: Tensor) -> Tensor:
    return z[..., 0]


@pytest.mark.parametrize(
    ("method", "direction", "quarter", "turn"),
    [
        (RK4(80), "either", 1, 1),
        (RK4(80), "falling", 1, -1),
        (ADAPTIVE[0], "rising", 3, 1),
        (ADAPTIVE[0], "falling", 1, 1),
        *((method, "rising", 3, -1) for method in ADAPTIVE),
    ],
)
def test_an_oscillator(method, direction, quarter: int, turn: int) -> None:
    """A sign change is meant as time goes on in the direction of the integration."""
    found = solve_until(
        oscillator(1.0), doubles(1.0, 0.0), position, (0.0, turn * 6.0), method, direction=direction
    )
    tolerance = 2e-5 if isinstance(method, RK4) else 20 * method.rtol
    assert bool(found.occurred)
    assert found.t.item() == pytest.approx(turn * quarter * math.pi / 2, abs=tolerance)
    expected = doubles(0.0, -turn if quarter == 1 else turn)
    assert torch.allclose(found.z, expected, atol=tolerance)


def test_the_search_is_as_precise_as_the_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        z0 = torch.tensor([0.0, 1.0, -2.0], dtype=dtype)
        found = solve_until(
            lambda t, z: torch.ones_like(z), z0, lambda t, z: torch.exp(z) - 20, (0.0, 10.0)
        )
        assert found.t.dtype == found.z.dtype == dtype
        error = (found.t - (math.log(20) - z0)).abs().max().item()
        assert error < 40 * torch.finfo(dtype).eps


def test_an_event_at_the_start_does_not_count() -> None:
    for direction, expected in (("either", 1), ("falling", 1), ("rising", 2)):
        found = solve_until(
            oscillator(1.0), doubles(0.0, 1.0), position, (0.0, 7.0), TIGHT, direction=direction
        )
        assert found.t.item() == pytest.approx(expected * math.pi, abs=1e-8)


@pytest.mark.parametrize("method", [Euler(4), RK4(8), Euler(1), RK4(2)], ids=str)
@pytest.mark.parametrize("level", [0.5, 1.0])
def test_at_the_boundary_of_a_step(method, level: float) -> None:
    found = solve_until(
        lambda t, z: torch.ones_like(z), doubles(0.0), lambda t, z: z[0] - level, (0.0, 1.0), method
    )
    assert bool(found.occurred)
    assert found.t.item() == pytest.approx(level, abs=1e-15)
    assert found.z.item() == pytest.approx(level, abs=1e-15)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name_of)
def test_an_event_that_does_not_occur(gradient) -> None:
    z0 = doubles(1.0, 0.0).requires_grad_()
    end = 4.0
    found = solve_until(
        oscillator(1.0), z0, lambda t, z: z[0] - 2, (0.0, end), TIGHT, gradient, parameters=()
    )
    assert not bool(found.occurred)
    assert found.t.item() == end
    assert not found.t.requires_grad
    grad = torch.autograd.grad(found.z[0], z0)[0]
    assert torch.allclose(grad, doubles(math.cos(end), math.sin(end)), atol=1e-7)


def test_samples_of_which_some_have_no_event() -> None:
    z0 = doubles(1.0, 0.0, 0.0, 1.0, 0.1, 0.0, -3.0, 0.0).view(4, 2).requires_grad_()
    found = solve_until(oscillator(1.0), z0, lambda t, z: z[:, 0] - 0.5, (0.0, 3.0), TIGHT)
    expected = [math.acos(0.5), math.asin(0.5), 3.0, math.acos(-0.5 / 3)]
    assert found.occurred.tolist() == [True, True, False, True]
    assert found.t.tolist() == pytest.approx(expected, abs=1e-8)
    assert found.z[:, 0].tolist() == pytest.approx([0.5, 0.5, 0.1 * math.cos(3), 0.5], abs=1e-8)
    grad = torch.autograd.grad(found.t.sum(), z0)[0]
    s = math.sqrt(3)
    slope = 1 / (3 * math.sqrt(1 - 1 / 36))  # of acos(0.5 / x) by x, at -3
    assert torch.allclose(grad[:3], doubles(1 / s, 1, -1, -1 / s, 0, 0).view(3, 2), atol=1e-7)
    assert grad[3, 0].item() == pytest.approx(0.5 / 3 * slope, abs=1e-7)
    for i in range(4):
        alone = solve_until(oscillator(1.0), z0[i], lambda t, z: z[0] - 0.5, (0.0, 3.0), TIGHT)
        assert alone.t.item() == pytest.approx(found.t[i].item(), abs=1e-8)


@pytest.mark.parametrize(("per_sample", "turn"), [(False, 1), (True, -1)])
@pytest.mark.parametrize("gradient", GRADIENTS, ids=name_of)
@pytest.mark.parametrize("method", [RK4(60), Dopri5(1e-8, 1e-9)], ids=name_of)
def test_gradients_against_the_closed_form(method, gradient, per_sample: bool, turn: int) -> None:
    rate, level = doubles(1.3)[0].requires_grad_(), doubles(0.2)[0].requires_grad_()
    z0 = doubles(1.0, 0.0, 1.7, 0.0).view(2, 2).requires_grad_()
    rows = z0 if per_sample else z0[0]
    found = solve_until(
        oscillator(rate),
        rows,
        lambda t, z: z[..., 0] - level,
        (0.0, turn * 4.0),
        method,
        gradient,
        parameters=(rate,),
    )
    t = turn * torch.acos(level / rows[..., 0]) / rate
    speed = -turn * rate * torch.sqrt(rows[..., 0] ** 2 - level**2)
    assert torch.allclose(found.t, t, atol=1e-7)
    assert torch.allclose(found.z[..., 0], level.expand_as(t), atol=1e-7)
    assert torch.allclose(found.z[..., 1], speed, atol=1e-7)
    inputs = (z0, rate, level)
    for ours, exact in ((found.t, t), (found.z[..., 1], speed)):
        a = torch.autograd.grad(ours.sum(), inputs, retain_graph=True)
        b = torch.autograd.grad(exact.sum(), inputs, retain_graph=True)
        # The closed form is for a start at rest; by the start's speed it has no derivative.
        assert torch.allclose(a[0][:, 0], b[0][:, 0], atol=2e-6)
        for x, y in zip(a[1:], b[1:], strict=True):
            assert torch.allclose(x, y, atol=2e-6)
    zero = torch.autograd.grad(found.z[..., 0].sum(), (z0, rate), retain_graph=True)
    for x in zero:
        assert x.abs().max() < 2e-6


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name_of)
def test_gradients_against_finite_differences(gradient) -> None:
    """With field and event that depend on time."""
    z0, w, level = doubles(0.5).requires_grad_(), doubles(1.2).requires_grad_(), doubles(2.0)

    def run(z0: Tensor, w: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        found = solve_until(
            lambda t, z: w * z * torch.cos(t / 3) + t,
            z0,
            lambda t, z: z[0] - level[0] - 0.3 * torch.sin(2 * t),
            (0.1, 5.0),
            Dopri5(1e-8, 1e-9),
            gradient,
            parameters=(w,),
        )
        return found.t, found.z

    inputs = (z0, w, level.requires_grad_())
    assert torch.autograd.gradcheck(
        run, inputs, eps=1e-3, atol=1e-4, rtol=1e-4, nondet_tol=1e-9, fast_mode=True
    )


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name_of)
def test_tuple_states(gradient) -> None:
    level = doubles(0.1, 0.2, 0.3).requires_grad_()
    z0 = (
        torch.ones(3).double().requires_grad_(),
        torch.zeros(3).double(),
        torch.zeros(3, 0).double(),
    )
    found = solve_until(
        lambda t, s: (s[1], -s[0], s[2]),
        z0,
        lambda t, s: s[0] - level,
        (0.0, 5.0),
        TIGHT,
        gradient,
        parameters=(),
    )
    assert isinstance(found.z, tuple)
    assert torch.allclose(found.t, torch.acos(level), atol=1e-8)
    assert torch.allclose(found.z[1], -torch.sin(torch.acos(level)), atol=1e-8)
    assert found.z[2].shape == (3, 0)
    grad = torch.autograd.grad(found.t.sum(), level)[0]
    assert torch.allclose(grad, -1 / (1 - level**2).sqrt(), atol=1e-7)


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("method", [RK4(20), TIGHT], ids=name_of)
def test_the_field_is_not_evaluated_behind_the_last_event(method, turn: int) -> None:
    """No further than the step in which it occurred, and never outside of the span."""
    field = Recorded(lambda t, z: turn * (1 + 0.9 * torch.sin(20 * turn * t)) * torch.ones_like(z))
    span = (0.0, turn * 5.0)
    found = solve_until(field, doubles(0.0), lambda t, z: z[0].abs() - 2.5, span, method)
    assert bool(found.occurred)
    assert abs(found.t.item()) < 2.7
    assert all(0 <= turn * t <= 3.0 for t in field.times)
    assert found.stats.evaluations == len(field.times)


def test_a_bouncing_ball() -> None:
    """One event after the other: each height is the one before times the square of the loss."""
    loss = doubles(0.8)[0].requires_grad_()
    t, z = torch.tensor(0.0, dtype=torch.float64), doubles(1.0, 0.0)
    times = []
    for _ in range(3):
        found = solve_until(
            lambda t, z: torch.stack([z[1], -torch.ones_like(z[1])]),
            z,
            position,
            (0.0, 10.0),
            TIGHT,
            direction="falling",
        )
        t = t + found.t
        times.append(t)
        z = torch.stack([torch.zeros_like(found.z[0]), -loss * found.z[1]])
    fall = math.sqrt(2)
    exact = [fall + 0 * loss, fall * (1 + 2 * loss), fall * (1 + 2 * loss + 2 * loss**2)]
    for ours, theirs in zip(times, exact, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-8)
    assert torch.allclose(
        torch.autograd.grad(times[2], loss)[0], torch.autograd.grad(exact[2], loss)[0], atol=1e-7
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(mode) -> None:
    z0 = doubles(1.0, 0.0, 0.0, 1.0).view(2, 2).requires_grad_()

    def run(event=lambda t, z: z[:, 0] - 0.5):
        return solve_until(oscillator(1.0), z0, event, (0.0, 3.0), TIGHT)

    recorded = run()
    with mode():
        found = run()
        assert torch.allclose(found.t, recorded.t, atol=1e-8)
        assert torch.allclose(found.z, recorded.z, atol=1e-8)
        assert not found.t.requires_grad
        # Without gradients an event need not be differentiable.
        jump = run(lambda t, z: torch.where(z[:, 0] > 0.5, 1.0, -1.0).double())
        assert torch.allclose(jump.t, recorded.t, atol=1e-8)


def test_events_without_a_gradient() -> None:
    z0 = doubles(-1.0).requires_grad_()

    def run(event, z0: Tensor = z0):
        return solve_until(lambda t, z: torch.ones_like(z), z0, event, (0.0, 2.0), Euler(4))

    with pytest.raises(ValueError, match=r"no differentiable function of t and z.*no_grad"):
        run(lambda t, z: (z[0].detach() > 0.3).double() - 0.5)
    with pytest.raises(ValueError, match=r"touches 0 without crossing it"):
        run(lambda t, z: z[0] ** 3)
    for event in (lambda t, z: z[0] ** 3, lambda t, z: (z[0] >= 0).double() - 0.5):
        assert run(event, doubles(-1.0)).t.item() == pytest.approx(1.0, abs=1e-12)


def test_failures() -> None:
    with pytest.raises(SolverError, match=r"the search with Dopri5.*max_steps=3") as caught:
        solve_until(
            oscillator(9.0), doubles(1.0, 0.0), lambda t, z: z[0] - 2, (0.0, 9.0), max_steps=3
        )
    assert caught.value.status is Status.MAX_STEPS
    for method in (RK4(10), Dopri5()):
        with pytest.raises(SolverError, match="the search with") as caught:
            solve_until(
                lambda t, z: torch.where(t > 0.5, math.nan, 1.0) * z,
                doubles(1.0),
                lambda t, z: z[0] - 9,
                (0.0, 9.0),
                method,
            )
        assert caught.value.status is Status.NON_FINITE
        assert caught.value.time <= 0.51


def test_a_batch_without_samples() -> None:
    found = solve_until(oscillator(1.0), torch.zeros(0, 2), position, (0.0, 1.0))
    assert (found.t.shape, found.z.shape, found.occurred.shape) == ((0,), (0, 2), (0,))


@pytest.mark.parametrize(
    ("method", "each", "gradient"),
    [
        (RK4(60), True, Adjoint()),
        (RK4(60), False, Adjoint(seminorm=True, method=TIGHT)),
        (TIGHT, True, Adjoint(seminorm=True, method=TIGHT)),
        (TIGHT, False, Adjoint()),
    ],
)
def test_the_adjoint_agrees_with_direct(method, each: bool, gradient) -> None:
    """Of a module that depends on time, for an event with weights of its own."""
    if gradient.seminorm and method is TIGHT:
        gradient = Adjoint(seminorm=True)
    layer = torch.nn.Linear(3, 3).double()
    weight = torch.nn.Parameter(torch.randn(3).double() / 3 + 1)

    class Field(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            z, s = state
            velocity = torch.tanh(self.layer(z)) + 0.5 * torch.sin(t)[..., None] + 1
            return velocity, torch.cos(s) + z[:, 0]

    def event(t: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
        value = state[0] @ weight + 0.1 * state[1] + 0.2 * t - 4.0
        return value if each else value.sum()

    start = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    second = torch.zeros(4, dtype=torch.float64)
    inputs = (start, weight, *layer.parameters())
    results = []
    for one in (Direct(), gradient):
        found = solve_until(Field(), (start, second), event, (0.1, 6.0), method, one)
        assert bool(found.occurred.all())
        loss = found.t.square().sum() + found.z[0].sin().sum() + found.z[1].sum()
        results.append((found.t, *found.z, *torch.autograd.grad(loss, inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_samples_at_breakpoints_need_direct() -> None:
    with pytest.raises(ValueError, match="breakpoints"):
        solve_until(
            oscillator(1.0),
            torch.ones(2, 2),
            position,
            (0.0, 6.0),
            Dopri5(breakpoints=(0.3,)),
            Adjoint(),
            parameters=(),
        )
