"""The solution between the output times."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from solver_cases import ADAPTIVE, FIXED, doubles, name_of
from torch import Tensor

from solvers import RK4, Dopri5, Euler, Heun, Midpoint, solve

TIGHT = Dopri5(rtol=1e-9, atol=1e-10)


def growing(t: Tensor, z: Tensor) -> Tensor:
    return z * torch.cos(t.reshape(t.shape + (1,) * (z.ndim - t.ndim)))


def grown(z0: Tensor, t: Tensor, t0: Tensor | float) -> Tensor:
    rate = torch.sin(t) - torch.sin(torch.as_tensor(t0, dtype=t.dtype))
    return z0 * torch.exp(rate).reshape(t.shape + (1,) * z0.ndim)


def start() -> Tensor:
    return doubles(1.0, -2.0, 0.5)[:, None].requires_grad_()


CASES = [
    *(pytest.param(method, False, id=name_of(method)) for method in FIXED + ADAPTIVE),
    *(pytest.param(method, True, id=f"{name_of(method)}-per-sample") for method in ADAPTIVE),
]


@pytest.mark.parametrize(("method", "per_sample"), CASES)
def test_the_outputs_themselves(method, per_sample: bool) -> None:
    ts = [2.0, 1.3, 0.4, 0.1]
    options = {"per_sample": per_sample}
    result = solve(growing, start(), ts, method, dense=True, **options)
    assert torch.equal(result.interpolate(ts), result.ys)
    assert torch.equal(result.interpolate(ts[2]), result.ys[2])
    # To keep the steps changes nothing.
    assert torch.equal(result.ys, solve(growing, start(), ts, method, **options).ys)


@pytest.mark.parametrize(
    ("method", "turn"), [(Euler(), 1), (Midpoint(), -1), (Heun(), 1), (RK4(), -1)]
)
def test_order_between_the_outputs_of_fixed_methods(method, turn: int) -> None:
    z0, counts, errors = doubles(1.0), [16, 32, 64], []
    ts = [0.0, 0.7, 2.0][::turn]
    t = torch.linspace(0.003, 1.997, 17, dtype=torch.float64)
    for n in counts:
        result = solve(growing, z0, ts, replace(method, steps=n), dense=True)
        errors.append((result.interpolate(t) - grown(z0, t, ts[0])).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - method.order) < 0.2


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(("method", "per_sample"), CASES[len(FIXED) :])
def test_tolerance_between_the_outputs_of_adaptive_methods(
    method, per_sample: bool, turn: int
) -> None:
    ts = [0.0, 0.7, 3.0][::turn]
    z0 = start().detach()
    result = solve(growing, z0, ts, method, dense=True, per_sample=per_sample)
    t = torch.linspace(0.0, 3.0, 50, dtype=torch.float64)
    error = (result.interpolate(t) - grown(z0, t, ts[0])).abs().max().item()
    assert error < 10 * (method.atol + 6 * method.rtol)


@pytest.mark.parametrize("per_sample", [False, True])
def test_shapes_and_order_of_the_times(per_sample: bool) -> None:
    result = solve(growing, start(), [0.0, 1.0], TIGHT, dense=True, per_sample=per_sample)
    one = result.interpolate(0.3)
    assert one.shape == (3, 1)
    for same in (torch.tensor(0.3, dtype=torch.float64), np.float64(0.3)):
        assert torch.equal(result.interpolate(same), one)
    rows = result.interpolate([0.9, 0.3, 0.9, 0])
    assert rows.shape == (4, 3, 1)
    assert torch.equal(rows[1], one)
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[3], result.ys[0])
    assert torch.equal(result.interpolate(doubles(0.9, 0.3, 0.9, 0.0)), rows)
    for nothing in ([], (), doubles()):
        assert result.interpolate(nothing).shape == (0, 3, 1)


@pytest.mark.parametrize(("method", "per_sample"), CASES)
def test_dtype_is_kept_and_times_stay_inside(method, per_sample: bool) -> None:
    dtype = torch.float32
    seen: list[float] = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        assert t.dtype == z.dtype == dtype
        seen.extend(t.detach().reshape(-1).tolist())
        return growing(t, z)

    if method in ADAPTIVE:
        method = type(method)(1e-3, 1e-4)
    z0 = torch.ones(2, 1, dtype=dtype)
    result = solve(field, z0, [0.1, 0.9], method, dense=True, per_sample=per_sample)
    t = torch.linspace(0.1, 0.9, 33, dtype=dtype).clamp(*result.ts.tolist())
    assert result.interpolate(t).dtype == dtype
    assert result.ts[0].item() <= min(seen)
    assert max(seen) <= result.ts[1].item()


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(
    ("method", "per_sample"),
    [(RK4((30, 50)), False), (TIGHT, False), (TIGHT, True)],
    ids=["fixed", "adaptive", "per-sample"],
)
def test_gradients(method, per_sample: bool, turn: int) -> None:
    """Times, also those on an output, start, parameters and output times: against closed form."""
    ts = doubles(*[0.1, 0.7, 1.5][::turn]).requires_grad_()
    z0, rate = start(), doubles(1.3)[0].requires_grad_()
    result = solve(
        lambda t, z: rate * growing(t, z), z0, ts, method, dense=True, per_sample=per_sample
    )
    t = doubles(0.3, 1.1, 0.7, 0.1, 1.5).requires_grad_()
    found = result.interpolate(t)
    exact = z0 * torch.exp(rate * (torch.sin(t) - torch.sin(ts[0])))[:, None, None]
    assert torch.allclose(found, exact, atol=1e-6)
    for i in range(len(t)):
        inputs = (t, z0, rate, ts)
        # An inner output time only decides where steps end.
        ours = torch.autograd.grad(found[i].sum(), inputs, retain_graph=True)
        theirs = torch.autograd.grad(exact[i].sum(), inputs, retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, atol=2e-5, rtol=1e-6)


def test_the_derivative_in_time_is_the_field() -> None:
    z0 = start().detach()
    for method, per_sample in ((RK4(4), False), (TIGHT, False), (TIGHT, True)):
        result = solve(growing, z0, [0.0, 1.0], method, dense=True, per_sample=per_sample)
        for at in (0.0, 0.31):
            t = torch.tensor(at, dtype=torch.float64)
            slope = torch.func.jacrev(result.interpolate)(t)
            ahead = torch.func.jacfwd(result.interpolate)(t)
            assert torch.allclose(slope, growing(t, result.interpolate(t)), atol=1e-3)
            assert torch.allclose(slope, ahead, atol=1e-14)


def test_tensors_among_the_times_keep_their_gradient() -> None:
    tight = Dopri5(rtol=1e-9, atol=1e-10)
    result = solve(growing, start().detach(), [0.0, 1.0], tight, dense=True)
    t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    found = result.interpolate([0.2, t])
    slope = torch.autograd.grad(found[1].sum(), t)[0]
    assert torch.allclose(slope, growing(t, found[1]).sum(), atol=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
def test_tuple_states(per_sample: bool) -> None:
    z0 = (doubles(1.0, 2.0), torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 0).double())
    result = solve(
        lambda t, s: (-s[0], s[0][:, None].expand(2, 3), s[2]),
        z0,
        [0.0, 2.0],
        TIGHT,
        dense=True,
        per_sample=per_sample,
    )
    a, b, c = result.interpolate([0.5, 1.5])
    assert torch.allclose(a, z0[0] * torch.exp(-doubles(0.5, 1.5))[:, None], atol=1e-8)
    assert torch.allclose(b, (z0[0] - a)[..., None].expand(2, 2, 3), atol=1e-8)
    assert c.shape == (2, 2, 0)
    single = result.interpolate(0.5)
    assert isinstance(single, tuple)
    assert torch.equal(single[0], a[0])
    assert [part.shape for part in result.interpolate([])] == [(0, 2), (0, 2, 3), (0, 2, 0)]


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_sample_is_interpolated_for_itself(per_sample: bool) -> None:
    """One stiff neighbour shortens the steps of all, unless each has its own."""
    rate = doubles(1.0, 300.0)[:, None]

    def run(rows: slice) -> Tensor:
        z0 = torch.ones(2, 1, dtype=torch.float64)[rows]
        result = solve(
            lambda t, z: -rate[rows] * (z - 0.5),
            z0,
            [0.0, 1.0],
            Dopri5(1e-4, 1e-5),
            dense=True,
            per_sample=per_sample,
        )
        return result.interpolate([0.13, 0.6, 0.97])[:, 0]

    assert torch.equal(run(slice(0, 1)), run(slice(0, 2))) == per_sample


@pytest.mark.parametrize("method", [*FIXED, Dopri5()], ids=name_of)
def test_evaluations_are_counted(method) -> None:
    result = solve(growing, start(), [0.0, 1.0], method, dense=True)
    before = result.stats.evaluations + result.stats.backward_evaluations
    result.interpolate([0.21, 0.5001, 0.77])
    stats = result.stats
    after = stats.evaluations + stats.backward_evaluations
    # The last stage of a pair that reuses it is evaluated, too.
    assert after - before == 3 * len(method.tableau.c)
    result.interpolate([0.0, 1.0])
    assert stats.evaluations + stats.backward_evaluations == after


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("per_sample", [False, True])
def test_grad_modes(mode, per_sample: bool) -> None:
    recorded = solve(growing, start(), [0.0, 1.0], Dopri5(), dense=True, per_sample=per_sample)
    with mode():
        result = solve(growing, start(), [0.0, 1.0], Dopri5(), dense=True, per_sample=per_sample)
        inside = result.interpolate([0.3, 0.8])
    assert not inside.requires_grad
    assert torch.equal(inside, recorded.interpolate([0.3, 0.8]))


@pytest.mark.parametrize("per_sample", [False, True])
def test_nothing_to_integrate(per_sample: bool) -> None:
    options = {"dense": True, "per_sample": per_sample}
    still = solve(growing, start(), [0.3], Dopri5(), **options)
    assert torch.equal(still.interpolate([0.3, 0.3]), start().expand(2, 3, 1))
    with pytest.raises(ValueError, match="within the integration"):
        still.interpolate(0.31)


def test_an_integration_without_steps_cannot_be_interpolated() -> None:
    z0 = start().detach()
    with pytest.raises(ValueError, match="dense=True"):
        solve(growing, z0, [0.0, 1.0], Dopri5()).interpolate(0.5)
    for per_sample in (False, True):
        failed = solve(
            lambda t, z: z * torch.where(t > 0.5, math.nan, 1.0).reshape(-1, 1),
            z0,
            [0.0, 1.0],
            Dopri5(),
            dense=True,
            throw=False,
            per_sample=per_sample,
        )
        with pytest.raises(ValueError, match="NON_FINITE"):
            failed.interpolate(0.1)


def test_times_of_each_sample_must_be_its_own_and_inside() -> None:
    times = torch.tensor([[0.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    z = doubles(1.0, 2.0)[:, None]
    solution = solve(growing, z, times, TIGHT, per_sample=True, dense=True)
    assert solution.interpolate(times.new_zeros(2, 0)).shape == (0, 2, 1)
    for bad in (times[:1], times[0, :1], times.new_zeros(2)):
        with pytest.raises(ValueError, match="t must"):
            solution.interpolate(bad)
