"""Steps for every sample: independence of the neighbours, statuses, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from solver_cases import ADAPTIVE, doubles, name_of
from torch import Tensor

from solvers import (
    AdaptiveHeun,
    Bosh3,
    Dopri5,
    Dopri8,
    SolverError,
    Status,
    solve,
)
from solvers.per_sample import rescale_steps

LOOSE = [Dopri5(1e-5, 1e-6), Bosh3(1e-4, 1e-5), AdaptiveHeun(1e-2, 1e-3), Dopri8(1e-5, 1e-6)]
TIGHT = Dopri8(rtol=1e-10, atol=1e-11)


def over(t: Tensor, z: Tensor) -> Tensor:
    """A time, or one for each sample, to be multiplied with the state."""
    return t.reshape(t.shape + (1,) * (z.ndim - t.ndim))


def bent(t: Tensor, z: Tensor) -> Tensor:
    return torch.sin(3 * over(t, z)) - z * (1 + z * z)


def batch(dtype: torch.dtype, shape: tuple[int, ...] = (3,), n: int = 13) -> Tensor:
    z0 = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z0[4] *= 30  # stiff at first: its steps are much shorter
    return z0.to(dtype)


ROWS = [slice(0, 1), slice(4, 5), slice(2, 7)]


def assert_same_alone(field, z0: Tensor, ts: list[float], method, rows=ROWS, **options) -> None:
    together = solve(field, z0, ts, method, per_sample=True, **options)
    assert together.samples is not None
    for part in rows:
        alone = solve(field, z0[part], ts, method, per_sample=True, **options)
        a, b = alone.samples, together.samples
        assert a is not None
        assert torch.equal(alone.ys.nan_to_num(7.0), together.ys[:, part].nan_to_num(7.0))
        assert a.status == b.status[part]
        assert torch.equal(a.accepted, b.accepted[part])
        assert torch.equal(a.rejected, b.rejected[part])
        assert torch.equal(a.time, b.time[part])


@pytest.mark.parametrize(("turn", "dtype"), [(1, torch.float64), (-1, torch.float32)])
@pytest.mark.parametrize("method", LOOSE, ids=name_of)
def test_a_sample_is_the_same_bits_alone_and_in_any_batch(method, turn: int, dtype) -> None:
    ts = [0.0, turn * 0.3, turn * 0.9]
    assert_same_alone(lambda t, z: turn * bent(t, z), batch(dtype), ts, method)


@pytest.mark.parametrize("shape", [(), (17,), (2, 5)])
def test_the_same_bits_in_any_shape(shape: tuple[int, ...]) -> None:
    assert_same_alone(bent, batch(torch.float64, shape), [0.0, 0.5], Bosh3(1e-4, 1e-5))


def test_the_same_bits_at_every_place_of_a_batch() -> None:
    """Vectorised operations treat the last entries of a tensor apart from the others."""
    rows = [slice(i, i + 1) for i in range(0, 21, 2)]
    assert_same_alone(bent, batch(torch.float64, n=21), [0.0, 0.3], Bosh3(1e-4, 1e-5), rows)


@pytest.mark.parametrize("method", LOOSE, ids=name_of)
def test_the_next_step_is_the_same_bits_at_every_place(method) -> None:
    ratio = torch.rand(203, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    rejected = ratio > 1.5
    before = torch.ones_like(ratio)
    together = rescale_steps(method, ratio, before, rejected)
    expected = (0.9 * ratio ** (-1 / method.order)).clamp(0.2, 10.0)
    expected = torch.where(rejected, expected.clamp(max=1.0), expected)
    assert torch.allclose(together, expected, rtol=1e-14)
    for i in range(0, len(ratio), 7):
        assert torch.equal(
            rescale_steps(method, ratio[i : i + 1], before[i : i + 1], rejected[i : i + 1]),
            together[i : i + 1],
        )
    bad = doubles(0.0, torch.inf, torch.nan)
    assert rescale_steps(method, bad, bad, bad < 0).tolist() == [10.0, 0.2, 0.2]


@pytest.mark.parametrize(
    ("method", "ending"),
    [
        (Dopri5(1e-4, 1e-5), "nan"),
        (Bosh3(1e-2, 1e-3), "start"),
        (Dopri5(1e-4, 1e-5), "max_steps"),
        (Bosh3(1e-2, 1e-3), "underflow"),
    ],
)
def test_the_same_bits_beside_a_sample_that_fails(method, ending: str) -> None:
    z0 = batch(torch.float64).abs().clamp(0.1, 1.0)
    z0[3], z0[11] = 5.0, 5.0  # what is done to these

    def field(t: Tensor, z: Tensor) -> Tensor:
        t, marked = over(t, z), z.detach() > 4
        bad = {
            "nan": torch.where(t > 0.4, math.nan, 1.0),
            "start": torch.full_like(z, math.nan),
            "max_steps": -1e5 * (z - 5 - torch.cos(t)),
            "underflow": 200 * z * z,
        }[ending]
        return torch.where(marked, bad, bent(t, z))

    options = {"throw": False, "max_steps": 40 if ending == "max_steps" else 200}
    assert_same_alone(field, z0, [0.0, 0.3, 1.0], method, [slice(3, 4), slice(2, 7)], **options)
    result = solve(field, z0, [0.0, 0.3, 1.0], method, per_sample=True, **options)
    expected = {
        "nan": {Status.NON_FINITE},
        "start": {Status.NON_FINITE},
        "max_steps": {Status.MAX_STEPS},
        "underflow": {Status.DT_UNDERFLOW, Status.NON_FINITE},
    }[ending]
    assert result.samples is not None
    for i, status in enumerate(result.samples.status):
        if i in (3, 11):
            assert status in expected
            assert result.ys[-1, i].isnan().all()
            assert result.samples.time[i] < 1.0
        else:
            assert status is Status.SUCCESS
            assert result.ys[:, i].isfinite().all()
            assert result.samples.time[i] == 1.0
    assert result.status is result.samples.status[3]
    if ending == "max_steps":
        assert result.samples.steps[3] == 40
    if ending == "start":
        assert result.samples.steps[3] == result.samples.time[3] == 0
        assert torch.equal(result.ys[0], z0)


def test_matrix_products_differ_by_rounding_only() -> None:
    """They sum in another order in another batch: a few ulp in every stage.

    The bound: rounding of some 1e-16 in a derivative changes the error estimate by as much, and so
    a step by a factor of ``1 + 1e-16 / tolerance``, which moves the result by the tolerance times
    that.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 24, generator=generator, dtype=torch.float64) / 5
    z0 = torch.randn(33, 24, generator=generator, dtype=torch.float64)
    together = solve(lambda t, z: torch.tanh(z @ weight), z0, [0.0, 2.0], Dopri5(), per_sample=True)
    for i in range(0, 33, 4):
        alone = solve(
            lambda t, z: torch.tanh(z @ weight),
            z0[i : i + 1],
            [0.0, 2.0],
            Dopri5(),
            per_sample=True,
        )
        assert (alone.ys[:, 0] - together.ys[:, i]).abs().max() < 1e-13


def test_shared_steps_do_depend_on_the_neighbours() -> None:
    z0 = batch(torch.float64)
    together = solve(bent, z0, [0.0, 1.0], Dopri5()).ys[:, 0]
    alone = solve(bent, z0[:1], [0.0, 1.0], Dopri5()).ys[:, 0]
    assert (together - alone).abs().max() > 1e-9


@pytest.mark.parametrize("turn", [1, -1])
def test_tuple_states(turn: int) -> None:
    def field(t, state):
        z, _, nothing = state
        return -z * over(t, z), z.square().sum(-1), nothing

    z0 = batch(torch.float64)
    ts = [0.0, 0.5, 2.0][::turn]

    def run(rows: slice):
        part = z0[rows]
        start = (part, torch.zeros(len(part)).double(), torch.zeros(len(part), 0).double())
        return solve(field, start, ts, TIGHT, per_sample=True)

    together = run(slice(None))
    exact = z0 * torch.exp((ts[0] ** 2 - doubles(*ts) ** 2) / 2)[:, None, None]
    assert torch.allclose(together.ys[0], exact, rtol=1e-8, atol=1e-9)
    for i in (0, 4, 12):
        alone = run(slice(i, i + 1))
        for a, b in zip(alone.ys, together.ys, strict=True):
            assert torch.equal(a[:, 0], b[:, i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ADAPTIVE, ids=name_of)
def test_accuracy_of_every_sample(method, dtype: torch.dtype) -> None:
    if dtype == torch.float32:
        method = type(method)(1e-4, 1e-5)
    rate = torch.tensor([0.01, 1.0, 40.0, -2.0], dtype=dtype)[:, None]
    seen: list[Tensor] = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        assert t.dtype == dtype
        assert t.shape == (4,)
        seen.append(t.detach())
        return -rate * (z - torch.cos(t)[:, None])

    z0 = torch.full((4, 1), 2.0, dtype=dtype)
    ts = [0.1, 0.25, 1.3]
    result = solve(field, z0, ts, method, per_sample=True)
    r, t = rate[:, 0].double(), doubles(*ts)[:, None]

    def forced(t: Tensor) -> Tensor:
        return (r * r * torch.cos(t) + r * torch.sin(t)) / (1 + r * r)

    exact = forced(t) + (2 - forced(t[0])) * torch.exp(-r * (t - t[0]))
    # The unstable one makes its errors grow by a factor of 10.
    assert (result.ys[..., 0].double() - exact).abs().max() < 100 * (method.rtol + method.atol)
    times = torch.stack(seen)
    assert result.ts[0] <= times.min()
    assert times.max() <= result.ts[-1]
    samples, stats = result.samples, result.stats
    assert samples is not None
    assert stats.evaluations == len(seen)
    assert stats.accepted == samples.accepted.sum()
    assert stats.rejected == samples.rejected.sum()
    assert stats.steps == samples.steps.sum()
    assert samples.steps[2] > 2 * samples.steps[0]


def test_evaluations_are_counted_where_attempts_are_repeated() -> None:
    calls = 0

    def field(t: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -torch.sqrt(z)

    z0 = doubles(4.0, 100.0)[:, None].requires_grad_()
    result = solve(field, z0, [0.0, 5.0], Dopri5(), per_sample=True, throw=False)
    assert result.stats.evaluations == calls
    with torch.no_grad():
        again = solve(field, z0, [0.0, 5.0], Dopri5(), per_sample=True, throw=False)
    assert torch.equal(again.ys.nan_to_num(), result.ys.nan_to_num())
    assert again.stats.evaluations < result.stats.evaluations


def test_failing_samples_are_named() -> None:
    rate = doubles(1.0, 1e5, 1.0, 1e5)[:, None]
    z0 = torch.zeros(4, 2, dtype=torch.float64)
    pattern = r"sample 1, the first of 2 of 4 that failed, with Dopri5.*max_steps=50"
    with pytest.raises(SolverError, match=pattern) as caught:
        solve(
            lambda t, z: -rate * (z - torch.cos(over(t, z))),
            z0,
            [0.0, 3.0],
            Dopri5(max_steps=50),
            per_sample=True,
        )
    assert caught.value.status is Status.MAX_STEPS
    assert 0 < caught.value.time < 3
    assert caught.value.stats.steps >= 100


@pytest.mark.parametrize("method", [Dopri5(), Dopri8(1e-5, 1e-6)], ids=name_of)
@pytest.mark.parametrize("first", [4.0, -1.0])
def test_gradients_beside_a_sample_that_fails(first: float, method) -> None:
    """``-w sqrt(z)`` is NaN below 0, its derivative as well."""
    w = doubles(1.0)[0].requires_grad_()
    z0 = doubles(first, 100.0, 81.0)[:, None].requires_grad_()
    result = solve(
        lambda t, z: -w * torch.sqrt(z), z0, [0.0, 1.0, 5.0], method, per_sample=True, throw=False
    )
    root = z0.detach()[1:].sqrt()
    assert result.samples is not None
    assert result.samples.status[0] is Status.NON_FINITE
    assert torch.allclose(result.ys[-1, 1:], (root - 2.5) ** 2, rtol=1e-3)
    to_z0, to_w = torch.autograd.grad(result.ys[-1, 1:].sum(), (z0, w))
    assert torch.allclose(to_z0[1:], (root - 2.5) / root, rtol=1e-3)
    assert torch.allclose(to_w, (-5 * (root - 2.5)).sum(), rtol=1e-2)
    if first > 0:
        assert to_z0[0] == 0


@pytest.mark.parametrize("turn", [1, -1])
def test_gradients_are_those_of_shared_steps(turn: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    z0 = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    ts = doubles(*[0.0, 0.35, 1.1][::turn]).requires_grad_()

    def grads(per_sample: bool) -> tuple[Tensor, ...]:
        ys = solve(
            lambda t, z: torch.tanh(z @ weight + torch.sin(2 * over(t, z))),
            z0,
            ts,
            TIGHT,
            per_sample=per_sample,
        ).ys
        loss = (ys * torch.linspace(-1, 2, ys.numel(), dtype=ys.dtype).view_as(ys)).sum()
        return torch.autograd.grad(loss, (z0, weight, ts))

    for a, b in zip(grads(True), grads(False), strict=True):
        assert torch.allclose(a, b, atol=1e-8, rtol=1e-8)


def test_gradients_against_finite_differences() -> None:
    z0 = doubles(0.3, -0.7)[:, None].requires_grad_()
    ts = doubles(0.0, 0.4, 1.1).requires_grad_()
    w = doubles(1.3).requires_grad_()

    def run(z0: Tensor, w: Tensor, ts: Tensor) -> Tensor:
        field = lambda t, z: torch.sin(w * z) * torch.cos(over(t, z))  # noqa: E731
        return solve(field, z0, ts, TIGHT, per_sample=True).ys

    assert torch.autograd.gradcheck(run, (z0, w, ts), eps=1e-3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_nothing_to_integrate(shape: tuple[int, ...]) -> None:
    result = solve(bent, torch.zeros(shape), [0.0, 1.0], Dopri5(), per_sample=True)
    assert result.ys.shape == (2, *shape)
    assert result.status is Status.SUCCESS
    assert result.samples is not None
    assert result.samples.status == (Status.SUCCESS,) * shape[0]
    assert result.samples.time.tolist() == [1.0] * shape[0]


def test_one_time_is_the_start() -> None:
    z0 = doubles(1.0, math.nan)[:, None]
    result = solve(lambda t, z: 1 / 0, z0, [0.3], Dopri5(), per_sample=True, throw=False)
    assert result.samples is not None
    assert result.samples.status == (Status.SUCCESS, Status.NON_FINITE)
    assert result.samples.steps.tolist() == [0, 0]
    assert result.samples.time.tolist() == [0.3, 0.3]


def test_not_within_vmap() -> None:
    with pytest.raises(ValueError, match="per_sample does not work within vmap"):
        torch.func.vmap(
            lambda z: solve(lambda t, z: -z, z, [0.0, 1.0], Dopri5(), per_sample=True).ys
        )(torch.ones(2, 3))
