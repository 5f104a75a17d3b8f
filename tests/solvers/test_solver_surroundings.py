"""Fields that draw random numbers, keep statistics, hide tensors, or write in place."""

from __future__ import annotations

import contextlib
import math
import random

import pytest
import torch
from solver_cases import doubles
from torch import Tensor, nn

from solvers import (
    RK4,
    Adjoint,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    TorchDiffEq,
    solve,
    solve_until,
)

METHODS = [RK4(steps=8), Dopri5(rtol=1e-9, atol=1e-9), TorchDiffEq("dopri5", rtol=1e-9, atol=1e-9)]
KEEPING = [Checkpoint(every=2), Adjoint(rtol=1e-9, atol=1e-9)]


class Net(nn.Module):
    """A layer with something between it and the outside."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64) / 2)
        self.inner = nn.ModuleList(inner).double()

    def forward(self, _t: Tensor, z: Tensor) -> Tensor:
        for module in self.inner:
            z = module(z)
        return torch.tanh(z @ self.weight)


def start() -> Tensor:
    z0 = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return z0.requires_grad_()


def run(field, gradient, method=RK4(steps=5), z0: Tensor | None = None, **options) -> Tensor:
    torch.manual_seed(0)
    return solve(field, start() if z0 is None else z0, [0.0, 1.0], method, gradient, **options).ys[
        -1
    ]


# ---- random numbers and statistics


@pytest.mark.parametrize("every", [1, 2, 7])
def test_checkpoint_draws_the_same_numbers_again(every: int) -> None:
    field = Net(nn.Dropout(0.5))
    results = []
    for gradient in (Direct(), Checkpoint(every)):
        end = run(field, gradient)
        after = torch.get_rng_state()
        results += [end, *torch.autograd.grad(end.square().sum(), list(field.parameters()))]
        assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[1], results[3], rtol=1e-12, atol=1e-12)


def test_a_closure_over_a_module_too() -> None:
    net = Net(nn.Dropout(0.5), nn.BatchNorm1d(3))
    options = {"parameters": tuple(net.parameters())}
    grads = []
    for gradient in (Direct(), Checkpoint(3)):
        end = run(lambda t, z: net(t, z) - z, gradient, **options)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        grads.append(torch.autograd.grad(end.square().sum(), net.weight)[0])
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", [Direct(), *KEEPING], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_running_statistics_are_updated_once(method, gradient) -> None:
    if isinstance(method, TorchDiffEq) and isinstance(gradient, Checkpoint):
        return
    if isinstance(gradient, Adjoint):
        gradient = Adjoint(method=Dopri5(1e-9, 1e-9))
    field = Net(nn.BatchNorm1d(3))
    direct = Net(nn.BatchNorm1d(3))
    expected = torch.autograd.grad(run(direct, Direct(), method).square().sum(), direct.weight)[0]
    end = run(field, gradient, method)
    grad = torch.autograd.grad(end.square().sum(), field.weight)[0]
    assert all(map(torch.equal, field.buffers(), direct.buffers()))
    assert field.inner[0].num_batches_tracked > 8
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_buffers_that_the_field_reads_and_writes() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(t, z) / self.calls.clone()

    grads = []
    for gradient in (Direct(), Checkpoint(2)):
        field = Counting()
        grads += torch.autograd.grad(run(field, gradient).square().sum(), field.weight)
        assert field.calls == 20
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("draw", "gradient", "method"),
    [
        (lambda: torch.rand(()), Adjoint(), RK4(5)),
        (lambda: random.random(), Checkpoint(2), RK4(5)),
        (lambda g=torch.Generator(): torch.rand((), generator=g), Checkpoint(20), RK4(5)),
    ],
)
def test_refuses_what_cannot_be_drawn_again(draw, gradient, method) -> None:
    weight = start()

    def noisy(_t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z * weight) * (0.5 + draw())

    with pytest.raises(ValueError, match="noisy"):
        run(noisy, gradient, method, parameters=(weight,)).sum().backward()


def test_noise_drawn_once_is_no_randomness() -> None:
    class Drawn(Net):
        noise = None

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            if self.noise is None:
                self.noise = torch.randn_like(z)
            return super().forward(t, z) + self.noise

    grads = []
    for gradient in (Direct(), Adjoint(), Checkpoint(2)):
        field = Drawn()
        end = run(field, gradient, Dopri5(1e-9, 1e-9))
        grads += torch.autograd.grad(end.square().sum(), field.weight)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-9, atol=1e-9)


def test_an_event_is_searched_without_updating_statistics() -> None:
    field = Net(nn.BatchNorm1d(3))
    z0 = start()
    found = solve_until(field, z0, lambda t, z: t - 0.5, (0.0, 1.0), RK4(4))
    alone = Net(nn.BatchNorm1d(3))
    solve(alone, z0, [0.0, 0.5], RK4(4))
    assert found.t == 0.5
    # Once more for the velocity at the event.
    assert field.inner[0].num_batches_tracked <= alone.inner[0].num_batches_tracked + 1
    with pytest.raises(ValueError, match="random"):
        solve_until(Net(nn.Dropout(0.5)), z0, lambda t, z: t - 0.5, (0.0, 1.0), RK4(4))


# ---- tensors that nobody listed


@pytest.mark.parametrize("gradient", KEEPING, ids=str)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", ["attribute", "result", "closure", "listed result"])
def test_tensors_that_require_grad_are_found(method, gradient, case: str) -> None:
    if isinstance(method, TorchDiffEq) and isinstance(gradient, Checkpoint):
        return
    if isinstance(gradient, Adjoint):
        gradient = Adjoint(method=Dopri5(1e-9, 1e-9))

    def grad(gradient) -> Tensor:
        source = start()[:3].detach().requires_grad_()
        weight = source if case in ("attribute", "closure") else torch.sin(source)
        field, options = Net(), {}
        if case in ("attribute", "result"):
            del field.weight
            field.weight = weight
        elif case == "closure":
            field, options = lambda t, z: torch.tanh(z @ weight), {"parameters": ()}
        else:
            field, options = lambda t, z: torch.tanh(z @ weight), {"parameters": (weight,)}
        end = run(field, gradient, method, start().detach(), **options)
        return torch.autograd.grad(end.square().sum(), source)[0]

    torch.testing.assert_close(grad(gradient), grad(Direct()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gradient", KEEPING, ids=str)
def test_refuses_a_result_that_nobody_listed(gradient) -> None:
    source = start()
    hidden = torch.sin(source)

    def field(_t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z * hidden)

    with pytest.raises(ValueError, match=r"field.*\(6, 3\)"):
        run(field, gradient, Dopri5(), parameters=())
    with torch.no_grad():
        run(field, gradient, Dopri5(), parameters=())


# ---- writing in place

BUFFER = torch.zeros(6, 3, dtype=torch.float64)
PAIR = [torch.zeros(6, 3, dtype=torch.float64) for _ in range(3)]


def _write_into_argument(_t: Tensor, z: Tensor) -> Tensor:
    return z.mul_(-1.0)


def _use_as_scratch(_t: Tensor, z: Tensor) -> Tensor:
    result = -z
    z.zero_()
    return result


def _return_buffer(_t: Tensor, z: Tensor) -> Tensor:
    return torch.neg(z.detach(), out=BUFFER)


def _return_buffers_in_turn(_t: Tensor, z: Tensor) -> Tensor:
    PAIR.append(PAIR.pop(0))
    return torch.neg(z.detach(), out=PAIR[0])


def _return_view_of_buffer(_t: Tensor, z: Tensor) -> Tensor:
    BUFFER.copy_(-z.detach())
    return BUFFER.view(3, 6).view(6, 3)


WRITERS = [
    _write_into_argument,
    _use_as_scratch,
    _return_buffer,
    _return_buffers_in_turn,
    _return_view_of_buffer,
]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@pytest.mark.parametrize("field", WRITERS)
def test_fields_that_write_in_place(field, mode) -> None:
    z0 = start().detach()
    before = z0.clone()
    with mode():
        for method in METHODS:
            end = solve(field, z0, [0.0, 1.0], method).ys[-1]
            torch.testing.assert_close(end, before * math.exp(-1), rtol=1e-4, atol=1e-6)
        each = solve(field, z0, [0.0, 1.0], METHODS[1], per_sample=True, dense=True)
        torch.testing.assert_close(each.ys[-1], before * math.exp(-1))
        torch.testing.assert_close(each.interpolate(0.5), before * math.exp(-0.5))

        def pair(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return field(t, z[0]), z[1].neg_()

        ends = solve(pair, (z0, z0), [0.0, 1.0], METHODS[1]).ys
        for end in ends:
            torch.testing.assert_close(end[-1], before * math.exp(-1))
        found = solve_until(field, z0, lambda t, z: t.mul_(2.0) - 1.0, (0.0, 1.0), METHODS[1])
        torch.testing.assert_close(found.z, before * math.exp(-0.5))
    assert torch.equal(z0, before)


@pytest.mark.parametrize("gradient", [Direct(), *KEEPING], ids=str)
def test_gradients_of_a_field_that_writes(gradient) -> None:
    z0 = start()
    before = z0.detach().clone()
    field = _write_into_argument
    end = solve(field, z0, [0.0, 1.0], METHODS[1], gradient, parameters=()).ys[-1]
    (grad,) = torch.autograd.grad(end.sum(), z0)
    torch.testing.assert_close(grad, torch.full_like(grad, math.exp(-1)))
    assert torch.equal(z0, before)


@pytest.mark.parametrize("late", ["argument", "result"])
def test_refuses_a_field_that_begins_to_write(late: str) -> None:
    buffer = doubles(0.0)

    def sly(t: Tensor, z: Tensor) -> Tensor:
        if t < 0.5:
            return -z
        return z.neg_() if late == "argument" else torch.neg(z, out=buffer)

    z0 = doubles(1.0)
    with torch.no_grad(), pytest.raises(ValueError, match="sly"):
        solve(sly, z0, [0.0, 1.0], RK4(steps=10))
    assert z0 == 1.0


def test_results_are_no_views_of_the_arguments() -> None:
    z0 = doubles(1.0)
    with torch.no_grad():
        kept = solve(lambda t, z: -z, z0, [0.0, 1.0], Euler(4), dense=True)
        kept.interpolate(0.0).zero_()
        kept.ys.zero_()
    assert z0 == 1.0
    assert kept.interpolate(0.0) == 1.0


def test_a_field_may_use_what_is_defined_later() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return -z if t < 2 else later(z)

    z0 = doubles(1.0).requires_grad_()
    end = solve(field, z0, [0.0, 1.0], RK4(steps=9), Checkpoint(), parameters=()).ys[-1]
    (gradient,) = torch.autograd.grad(end, z0)
    assert gradient.item() == pytest.approx(math.exp(-1), rel=1e-4)
    later = torch.sin
    assert later is torch.sin
