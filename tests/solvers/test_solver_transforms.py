"""``torch.func`` and ``torch.compile`` through integrations, and checkpoints of adaptive ones."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from solver_cases import ADAPTIVE, FIXED, doubles, name_of
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from solvers import (
    RK4,
    AdaptiveHeun,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    SolverError,
    Status,
    solve,
)

METHODS = [FIXED[0], FIXED[-1], *ADAPTIVE[1:4]]
TIGHT = Dopri5(rtol=1e-8, atol=1e-10)
SAMPLED = [
    FIXED[0],
    FIXED[-1],
    TIGHT,
]  # adaptive steps are shared within a vmap: equal to the tolerance


W = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def flow(method) -> Callable[..., Tensor]:
    def run(z: Tensor, w: Tensor = W) -> Tensor:
        return solve(lambda t, z: torch.tanh(z @ w + torch.sin(t)), z, [0.0, 0.5], method).ys

    return run


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-8, rtol=0)


@pytest.mark.parametrize("method", SAMPLED, ids=name_of)
def test_vmap_is_the_loop_over_the_samples(method) -> None:
    run, z, w = flow(method), Z, W
    ws = torch.stack([w, w / 2, w / 3, -w])
    looped = torch.stack([run(x) for x in z])
    assert close(vmap(run)(z), looped)
    assert close(vmap(run, in_dims=1)(z.T), looped)
    assert close(vmap(run, in_dims=1)(z[:3].T), looped[:3])  # as many samples as entries
    assert close(vmap(run, out_dims=2)(z).permute(2, 0, 1), looped)
    assert close(vmap(run, in_dims=(0, None))(z, w), looped)
    by_weight = torch.stack([run(z[0], x) for x in ws])
    assert close(vmap(run, in_dims=(None, 0))(z[0], ws), by_weight)
    assert close(vmap(run, in_dims=(None, 2))(z[0], ws.permute(1, 2, 0)), by_weight)
    pairs = torch.stack([run(x, y) for x, y in zip(z, ws, strict=True)])
    assert close(vmap(run)(z, ws), pairs)
    nested = torch.stack([torch.stack([run(x, y) for x in z[:2]]) for y in ws])
    over_z = vmap(run, in_dims=(0, None))
    assert close(vmap(over_z, in_dims=(None, 0))(z[:2], ws), nested)


@pytest.mark.parametrize("method", SAMPLED, ids=name_of)
def test_vmap_where_not_everything_has_samples(method) -> None:
    """A field that ignores the state, and a part of a tuple that is the same for all."""
    z, ones = Z, torch.ones(3, dtype=torch.float64)
    moved = vmap(lambda z: solve(lambda t, z: ones, z, [0.0, 1.0], method).ys[-1])(z)
    assert close(moved, z + 1)

    def pair(z: Tensor) -> tuple[Tensor, Tensor]:
        start = (z, ones[:2])
        return solve(lambda t, s: (ones, s[1]), start, [0.0, 0.5], method).ys

    assert close(vmap(pair)(z)[0][:, -1], z + 0.5)
    assert close(vmap(pair)(z)[1], pair(z[0])[1].expand(4, 2, 2))

    def total(z: Tensor) -> Tensor:
        start = (z, torch.zeros((), dtype=torch.float64))
        return solve(lambda t, s: (-s[0], s[0].sum()), start, [0.0, 0.5], method).ys[1]

    assert close(vmap(total)(z), torch.stack([total(x) for x in z]))


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_derivatives_are_those_of_autograd(method) -> None:
    run, z = flow(method), Z[0]
    jacobian = torch.autograd.functional.jacobian(run, z)
    direction = Z[1]

    def loss(z: Tensor) -> Tensor:
        return run(z).square().sum()

    second = torch.autograd.functional.hessian(loss, z)
    same = {"atol": 1e-12, "rtol": 1e-12}
    assert torch.allclose(jacrev(run)(z), jacobian, **same)
    assert torch.allclose(jacfwd(run)(z), jacobian, **same)
    assert torch.allclose(jvp(run, (z,), (direction,))[1], jacobian @ direction, **same)
    assert torch.allclose(grad(loss)(z), torch.autograd.functional.jacobian(loss, z), **same)
    assert torch.allclose(hessian(loss)(z), second, **same)


@pytest.mark.parametrize("method", SAMPLED, ids=name_of)
def test_derivatives_of_every_sample(method) -> None:
    run, z = flow(method), Z

    def loss(z: Tensor) -> Tensor:
        return run(z).square().sum()

    for transform in (grad(loss), jacrev(run), jacfwd(run)):
        assert close(vmap(transform)(z), torch.stack([transform(x) for x in z]))
    by_weight = grad(lambda w, z: run(z, w).square().sum())
    assert close(
        vmap(by_weight, in_dims=(None, 0))(W, z),
        torch.stack([by_weight(W, x) for x in z]),
    )


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_derivatives_by_the_times(method) -> None:
    z, w = Z[0], W

    def run(ts: Tensor) -> Tensor:
        return solve(lambda t, z: torch.tanh(z @ w + torch.sin(t)), z, ts, method).ys

    ts = doubles(0.0, 0.5, 1.0)
    jacobian = torch.autograd.functional.jacobian(run, ts)
    assert jacobian.abs().sum(1)[-1].min() > 0
    for found in (jacrev(run)(ts), jacfwd(run)(ts)):
        assert torch.allclose(found, jacobian, atol=1e-12)
    along = jvp(run, (ts,), (doubles(1.0, -2.0, 0.5),))[1]
    assert torch.allclose(along, jacobian @ doubles(1.0, -2.0, 0.5), atol=1e-12)


@pytest.mark.parametrize("method", [RK4(3), Dopri5()], ids=name_of)
def test_failures_under_vmap(method) -> None:
    """One sample of several becomes NaN."""

    def run(z: Tensor, throw: bool = True) -> Tensor:
        found = solve(lambda t, z: torch.log(z), z, [0.0, 1.0], method, throw=throw)
        assert throw or found.status is Status.NON_FINITE
        return found.ys

    z = doubles(2.0, 3.0, -1.0)[:, None]
    with pytest.raises(SolverError, match="NaN or infinite"):
        vmap(run)(z)
    assert vmap(lambda z: run(z, throw=False))(z).shape == (3, 2, 1)
    assert vmap(run)(z[:2]).isfinite().all()


@pytest.mark.parametrize("method", [RK4(3), Dopri5()], ids=name_of)
def test_times_of_every_sample_are_refused(method) -> None:
    def run(end: Tensor) -> Tensor:
        return solve(lambda t, z: -z, doubles(1.0), [0.0, end], method).ys

    with pytest.raises(ValueError, match="ts cannot differ between the samples of a vmap"):
        vmap(run)(doubles(1.0, 2.0))


@pytest.fixture
def compiled(request: pytest.FixtureRequest):
    if request.config.getoption("--jaxtyping-packages", None):
        pytest.skip("the compiler does not see through the checks of types")
    torch._dynamo.reset()
    yield torch.compile
    torch._dynamo.reset()


def test_compiled_in_one_graph(compiled) -> None:
    w, z = W.clone().requires_grad_(), Z.clone().requires_grad_()

    def loss(z: Tensor, w: Tensor) -> Tensor:
        method = RK4(steps=2)
        ys = solve(lambda t, z: torch.tanh(z @ w), z, [0.0, 0.5], method).ys
        return ys[1:].square().sum()

    eager = loss(z, w)
    found = compiled(loss, fullgraph=True, backend="aot_eager")(z, w)
    assert torch.allclose(found, eager, rtol=1e-13)
    expected = torch.autograd.grad(eager, (z, w))
    for a, b in zip(torch.autograd.grad(found, (z, w)), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_compiled_with_adaptive_steps(compiled) -> None:
    z = Z.clone().requires_grad_()

    def end(z: Tensor) -> Tensor:
        return solve(lambda t, z: torch.tanh(z), z, [0.0, 0.1], AdaptiveHeun()).ys[-1]

    found, eager = compiled(end, backend="eager")(z), end(z)
    assert torch.allclose(found, eager, rtol=1e-12)
    a, b = (torch.autograd.grad(x.sum(), z)[0] for x in (found, eager))
    assert torch.allclose(a, b, rtol=1e-12)


def test_nan_in_a_compiled_integration(compiled) -> None:
    def end(z: Tensor) -> Tensor:
        return solve(lambda t, z: torch.log(z), z, [0.0, 1.0], Euler()).ys[-1]

    run = compiled(end, fullgraph=True, backend="eager")
    assert run(doubles(2.0, 3.0)).isfinite().all()
    with pytest.raises(RuntimeError, match="became NaN or infinite"):
        run(doubles(2.0, -1.0))


def checkpointed(method, gradient, turn: int):
    z0, w = Z[:2].clone().requires_grad_(), W.clone().requires_grad_()
    ts = doubles(*[0.0, 0.35, 0.5, 1.1][::turn]).requires_grad_()
    result = solve(
        lambda t, z: torch.tanh(z @ w + torch.sin(2 * t)), z0, ts, method, gradient, parameters=(w,)
    )
    loss = (result.ys * torch.linspace(-1, 2, 24, dtype=torch.float64).view(4, 2, 3)).sum()
    return result, torch.autograd.grad(loss, (z0, w, ts))


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("method", ADAPTIVE, ids=name_of)
def test_checkpoints_of_adaptive_steps(method, turn: int) -> None:
    """The same steps again: the gradients of ``Direct``, one evaluation of every accepted step."""
    method = replace(method, rtol=max(method.rtol, 1e-4), atol=max(method.atol, 1e-5))
    direct, expected = checkpointed(method, Direct(), turn)
    for every in (1, 2, 7, 100):
        result, found = checkpointed(method, Checkpoint(every), turn)
        assert torch.equal(result.ys, direct.ys)
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-12, rtol=0)
        stats = result.stats
        segments = math.ceil(stats.accepted / every)
        assert stats.backward_steps == stats.accepted
        first = segments if method.tableau.first_same_as_last else 0
        assert stats.backward_evaluations == stats.accepted * method.stages + first


def test_checkpoints_keep_few_states() -> None:
    method = Dopri5(1e-7, 1e-7)

    def states_alive(gradient) -> tuple[int, int]:
        seen: list[weakref.ref[Tensor]] = []

        def field(t: Tensor, z: Tensor) -> Tensor:
            k = torch.sin(z)
            seen.extend((weakref.ref(z), weakref.ref(k)))
            return k

        z0 = torch.ones(5, dtype=torch.float64, requires_grad=True)
        result = solve(field, z0, [0.0, 6.0], method, gradient, parameters=())
        gc.collect()
        alive = len({id(x()) for x in seen if x() is not None})
        return alive, result.stats.accepted

    alive, steps = states_alive(Checkpoint(every=10))
    assert alive <= math.ceil(steps / 10) + 2
    assert states_alive(Direct())[0] > 3 * steps


def test_a_failure_within_a_checkpointed_adaptive_integration() -> None:
    z0 = doubles(1.0).requires_grad_()

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t > 0.6, math.nan, 1.0) * z

    ts = [0.0, 0.5, 1.0]
    result = solve(field, z0, ts, Dopri5(), Checkpoint(2), parameters=(), throw=False)
    assert result.status is Status.NON_FINITE
    assert torch.allclose(result.ys[1], torch.exp(doubles(0.5)), atol=1e-5)
    assert not result.ys.requires_grad
    with pytest.raises(SolverError, match="NaN or infinite"):
        solve(field, z0, ts, Dopri5(), Checkpoint(2), parameters=())
    assert solve(field, z0, [0.0, 0.5], Euler(3), Checkpoint(2), parameters=()).ys.requires_grad


def test_times_of_each_sample_are_not_for_transforms() -> None:
    z = doubles(1.0, 2.0)[:, None]
    with pytest.raises(ValueError, match=r"torch\.func"):
        jacrev(lambda ts: solve(lambda _, z: -z, z, ts, TIGHT).ys)(torch.tensor([[0.0, 1.0]] * 2))
