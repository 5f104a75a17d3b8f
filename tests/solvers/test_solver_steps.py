"""Bounds on steps, times at which the field jumps, and times of each sample's own."""

from __future__ import annotations

import math
from dataclasses import replace

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
    SolverError,
    Tsit5,
    method_from_name,
    solve,
    solve_until,
    to_dict,
)

NAN = math.nan


def pulse(t: Tensor, z: Tensor) -> Tensor:
    return (100 * torch.exp(-(((t - 5) / 0.01) ** 2)))[..., None] * torch.ones_like(z)


def switch(t: Tensor, z: Tensor) -> Tensor:
    """Growth until 0.3, decay behind it."""
    return torch.where(t < 0.3, 1.0, -2.0)[..., None] * z


# ---- bounds


@pytest.mark.parametrize(
    ("method", "span", "per_sample"),
    [(Dopri5(), (0, 10), False), (Tsit5(), (6, 4), False), (Dopri5(), (4, 6), True)],
)
def test_a_short_pulse_is_seen(method, span, per_sample: bool) -> None:
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    method = replace(method, max_step=0.05)
    end = solve(pulse, z0, span, method, per_sample=per_sample).ys[-1]
    area = math.copysign(1.7724538509, span[1] - span[0])
    torch.testing.assert_close(end, torch.full_like(end, area), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE, ids=name_of)
def test_no_step_is_longer_than_max_step(method, per_sample: bool) -> None:
    method = replace(method, max_step=0.3, rtol=1e-2, atol=1e-2, first_step=0.01)
    z0 = torch.ones(2, 1, dtype=torch.float64)
    calls = Recorded(lambda t, z: -z) if not per_sample else lambda t, z: -z
    solution = solve(calls, z0, [0.0, 1.0, 2.0], method, per_sample=per_sample, dense=True)
    starts = doubles(
        *(t if isinstance(t, float) else t.max().item() for t in solution.interpolant._starts)
    )
    assert 0.009 < starts.unique()[1] < 0.011
    assert starts.diff().max() <= 0.3 + 1e-12
    if not per_sample:  # no evaluation was spent on the choice of the first step
        assert solution.stats.evaluations <= method.stages * solution.stats.steps + 1


def test_on_the_way_back() -> None:
    """The gradient of an integral over a pulse, whose adjoint has a pulse too."""
    scale = doubles(1.0).requires_grad_()
    grads = []
    for method in (Dopri5(), Dopri5(max_step=0.05)):
        end = solve(
            lambda t, z: scale * pulse(t, z),
            torch.zeros(1, dtype=torch.float64),
            [3.0, 6.0],
            method,
            Adjoint(),
            parameters=(scale,),
        ).ys[-1]
        grads += torch.autograd.grad(end.sum(), scale)
    assert grads[0].abs() < 0.1
    torch.testing.assert_close(grads[1], doubles(1.7724538509), rtol=1e-4, atol=0.0)


def test_events_of_samples_scale_the_bounds() -> None:
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    options = {"span": (4.5, 6.0), "method": Dopri5(max_step=0.05), "samples": 0}
    found = solve_until(pulse, z0, lambda t, z: t.expand(2) - doubles(5.2, 5.5), **options)
    torch.testing.assert_close(found.t, doubles(5.2, 5.5))
    torch.testing.assert_close(found.z, torch.full_like(z0, 1.7724538509), rtol=1e-4, atol=0.0)


# ---- jumps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("ts", [(0.0, 1.0), (0.0, 0.3, 1.0), (0.0, 0.1, 0.3), (0.3, 1.0)])
@pytest.mark.parametrize("turn", [1, -1])
def test_steps_end_at_breakpoints(ts, turn: int, per_sample: bool, dtype) -> None:
    times = list(ts)[::turn]
    z0 = torch.ones(2, 1, dtype=dtype)
    method = Dopri5(1e-6, 1e-6, breakpoints=(0.3, 7.0, -1.0))

    def log(t: float) -> float:
        return min(t, 0.3) - 2 * max(t - 0.3, 0.0)

    solution = solve(switch, z0, times, method, per_sample=per_sample)
    for t, y in zip(times, solution.ys, strict=True):
        expected = torch.full_like(y, math.exp(log(t) - log(times[0])))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    smeared = solve(switch, z0, times, replace(method, breakpoints=()), per_sample=per_sample)
    if ts == (0.0, 1.0):
        assert solution.stats.steps < smeared.stats.steps


@pytest.mark.parametrize("turn", [1, -1])
def test_every_evaluation_is_on_one_side(turn: int) -> None:
    calls = Recorded(lambda t, z: z)
    z0 = torch.ones(1, dtype=torch.float64)
    solve(calls, z0, [0.0, 1.0][::turn], Dopri5(breakpoints=(0.25, 0.5)))
    assert not {0.25, 0.5} & set(calls.times)
    assert min(calls.times) == 0.0
    assert max(calls.times) == 1.0


@pytest.mark.parametrize("gradient", [Direct(), Checkpoint(3), Adjoint()], ids=name_of)
def test_gradients_over_a_jump(gradient) -> None:
    z0, ts = doubles(2.0).requires_grad_(), doubles(0.0, 0.2, 0.8).requires_grad_()
    rate = doubles(1.0).requires_grad_()
    method = Dopri5(1e-10, 1e-10, breakpoints=(0.3,))
    end = solve(lambda t, z: rate * switch(t, z), z0, ts, method, gradient, parameters=(rate,)).ys[
        -1
    ]
    found = torch.autograd.grad(end.sum(), (z0, rate, ts))
    value = 2 * math.exp(0.3 - 1.0)
    expected = (doubles(value / 2), doubles(-0.7 * value), doubles(-value, 0.0, -2 * value))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_dense_output_and_events_over_a_jump() -> None:
    method = Dopri5(1e-9, 1e-9, breakpoints=(0.3,))
    z0 = torch.ones(2, 1, dtype=torch.float64)
    for per_sample in (False, True):
        kept = solve(switch, z0, [0.0, 1.0], method, dense=True, per_sample=per_sample)
        for t in (0.2, 0.3, 0.4):
            expected = math.exp(t if t < 0.3 else 0.3 - 2 * (t - 0.3))
            torch.testing.assert_close(
                kept.interpolate(t), torch.full_like(z0, expected), rtol=1e-7, atol=1e-7
            )
    found = solve_until(switch, z0, lambda t, z: z[:, 0] - doubles(0.8, 9.0), (0.0, 1.0), method)
    torch.testing.assert_close(found.t[0].item(), 0.3 + (0.3 - math.log(0.8)) / 2)
    assert found.occurred.tolist() == [True, False]


def test_options_go_through_files() -> None:
    method = Dopri5(first_step=0.1, max_step=0.5, breakpoints=(0.3, 1.0), controller=(0.7, 0.4))
    assert to_dict(method)["breakpoints"] == [0.3, 1.0]
    assert method_from_name(**to_dict(method)) == method


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"max_step": 0.0}, ValueError),
        ({"first_step": math.inf}, ValueError),
        ({"breakpoints": (True,)}, TypeError),
        ({"breakpoints": (NAN,)}, ValueError),
        ({"controller": (0.4, 0.7)}, ValueError),
        ({"controller": (0.7, -0.4)}, ValueError),
        ({"controller": (math.inf, 0.4)}, ValueError),
    ],
)
def test_refuses_options(option, error) -> None:
    with pytest.raises(error, match=rf"Tsit5\.{next(iter(option))}"):
        Tsit5(**option)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "option",
    [
        {"max_step": "1"},
        {"breakpoints": [0.3]},
        {"controller": 0.7},
        {"controller": (0.7, "0.4")},
    ],
)
def test_refuses_options_of_wrong_types(option) -> None:
    with pytest.raises(TypeError, match=rf"Tsit5\.{next(iter(option))}"):
        Tsit5(**option)


# ---- control of the size


@pytest.mark.parametrize("method", ADAPTIVE, ids=name_of)
def test_pi_control_keeps_the_tolerance(method) -> None:
    method = replace(method, controller=(0.7, 0.4))
    z0 = doubles(1.0, 0.0).view(1, 2)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1], -4 * z[:, 0]], dim=1)

    both = [
        solve(field, z0, [0.0, 2.0], method, per_sample=per_sample) for per_sample in (False, True)
    ]
    exact = doubles(math.cos(4.0), -2 * math.sin(4.0)).view(1, 2)
    for solution in both:
        torch.testing.assert_close(solution.ys[-1], exact, rtol=0, atol=50 * method.rtol)
    assert both[0].stats.steps == both[1].stats.steps
    plain = solve(field, z0, [0.0, 2.0], replace(method, controller=(1.0, 0.0)))
    assert not torch.equal(both[0].ys, plain.ys)


@pytest.mark.parametrize("per_sample", [False, True])
def test_pi_control_rejects_less_where_stability_limits_the_steps(per_sample: bool) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return -100 * (z - torch.cos(t)[..., None])

    z0 = torch.ones(1, 1, dtype=torch.float64)
    default, pi = (
        solve(
            field,
            z0,
            [0.0, 4.0],
            Dopri5(1e-4, 1e-4, controller=controller),
            per_sample=per_sample,
        ).stats
        for controller in ((1.0, 0.0), (0.7, 0.4))
    )
    assert pi.rejected < default.rejected / 2


# ---- inside of steps


@pytest.mark.parametrize("method", [Dopri5(), Tsit5(), RK4(5)], ids=name_of)
def test_two_crossings_within_a_step(method) -> None:
    z0 = torch.zeros(2, dtype=torch.float64)

    def run(event, **options):
        return solve_until(lambda t, z: torch.ones_like(z), z0, event, (0.0, 10.0), **options)

    found = run(lambda t, z: (z[0] - 2.5) * (z[0] - 5.0), method=method)
    torch.testing.assert_close(found.t, doubles(2.5)[0])
    found = run(lambda t, z: (z[0] - 2.5) * (z[0] - 5.0), method=method, direction="rising")
    torch.testing.assert_close(found.t, doubles(5.0)[0])
    each = run(lambda t, z: (z - doubles(2.5, 4.0)) * (z - doubles(5.0, 20.0)), method=method)
    torch.testing.assert_close(each.t, doubles(2.5, 4.0))
    assert bool(each.occurred.all())


def test_looking_inside_is_an_option() -> None:
    z0 = torch.zeros(1, dtype=torch.float64)
    options = {"span": (0.0, 10.0), "method": RK4(1)}

    def run(samples: int):
        return solve_until(
            lambda t, z: torch.ones_like(z),
            z0,
            lambda t, z: ((z - 2.5) * (z - 3.0))[0],
            samples=samples,
            **options,
        )

    assert not run(0).occurred
    assert not run(4).occurred
    torch.testing.assert_close(run(30).t, doubles(2.5)[0])
    for samples, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="samples"):
            run(samples)


# ---- times of each sample's own

OWN = torch.tensor([[0.0, 1.0, 2.0], [0.0, -1.0, NAN], [3.0, NAN, NAN]], dtype=torch.float64)
EACH = [(RK4(16), False), (Dopri5(1e-9, 1e-9), True), (Tsit5(1e-9, 1e-9, max_step=0.2), True)]


@pytest.mark.parametrize(("method", "per_sample"), EACH)
def test_times_of_each_sample(method, per_sample: bool) -> None:
    z0 = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)
    ts = OWN.clone().requires_grad_()

    def field(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return z[0] * t[:, None], torch.ones_like(z[1])

    state = (z0, torch.zeros(3, dtype=torch.float64))
    solution = solve(field, state, ts, method, per_sample=per_sample)
    y, s = solution.ys
    assert y.shape == (3, 3, 1)
    given, plain = ts.isfinite().T, ts.nan_to_num()
    expected = (z0[:, 0, None] * torch.exp((plain**2 - plain[:, :1] ** 2) / 2)).T
    torch.testing.assert_close(y[..., 0][given], expected[given], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(s, (ts - ts[:, :1]).T, equal_nan=True)
    assert torch.equal(y[..., 0].isfinite(), given)
    found = torch.autograd.grad(y.nansum(), (z0, ts))
    wanted = torch.autograd.grad(expected[given].sum(), (z0, ts))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_sample_with_its_own_times_is_as_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    ts = torch.rand(4, 5, generator=generator, dtype=torch.float64).cumsum(1)
    ts[1, 3:] = NAN
    ts[2] = -ts[2]

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.sin(3 * t)[..., None] * z.flip(-1) - torch.tanh(z)

    together = solve(field, z0, ts, Dopri5(), per_sample=True, dense=True)
    middle = ts[:, :3].mean(1)
    for i in range(4):
        times = ts[i][ts[i].isfinite()]
        alone = solve(field, z0[i : i + 1], times, Dopri5(), per_sample=True, dense=True)
        assert torch.equal(together.ys[: len(times), i], alone.ys[:, 0])
        assert bool(together.ys[len(times) :, i].isnan().all())
        assert together.samples.accepted[i] == alone.samples.accepted[0]
        torch.testing.assert_close(
            together.interpolate(middle)[i], alone.interpolate(middle[i])[0], rtol=1e-9, atol=1e-9
        )
    assert together.interpolate(torch.stack([middle, ts[:, 0]], 1)).shape == (2, 4, 2)
    assert torch.equal(together.interpolate(ts[:, 0]), z0)


def test_a_sample_that_fails_leaves_the_others() -> None:
    z0, ts = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[0.0, 0.5], [0.0, 2.0]])
    solution = solve(lambda t, z: z * z, z0, ts, Dopri5(), per_sample=True, throw=False)
    torch.testing.assert_close(solution.ys[1, 0], doubles(2.0), rtol=1e-4, atol=1e-4)
    assert bool(solution.ys[1, 1].isnan())
    assert [s.value for s in solution.samples.status] == ["success", "dt_underflow"]
    with pytest.raises(SolverError) as caught:
        solve(lambda t, z: z * z * z, z0, 9 * ts, RK4(50))
    assert caught.value.status.value == "non_finite"


@pytest.mark.parametrize(
    ("ts", "options"),
    [
        (OWN[:2], {}),
        (torch.full((3, 2), NAN), {}),
        (torch.tensor([[0.0, NAN, 1.0]] * 3), {}),
        (torch.tensor([[0.0, 1.0, 1.0]] * 3), {}),
        (torch.tensor([[0.0, 1.0, 0.5]] * 3), {}),
        (torch.tensor([[0.0, math.inf]] * 3), {}),
        (OWN, {"method": Dopri5()}),
        (OWN, {"gradient": Checkpoint(), "parameters": ()}),
        (OWN, {"dense": True}),
    ],
)
def test_refuses_times_of_each_sample(ts: Tensor, options) -> None:
    with pytest.raises(ValueError, match="ts"):
        solve(lambda t, z: -z, torch.ones(3, 1), ts, **options)
