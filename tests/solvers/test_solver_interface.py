"""Shapes, dtypes, modes, documentation: what users meet."""

from __future__ import annotations

import ast
import itertools
import warnings
from dataclasses import FrozenInstanceError, replace
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from solver_cases import ADAPTIVE, COMBINATIONS, FIXED, doubles, name_of
from torch import Tensor

import solvers
from solvers import RK4, Adjoint, Checkpoint, Direct, Dopri5, Euler, Status, solve


@pytest.mark.parametrize("method", FIXED + ADAPTIVE, ids=name_of)
def test_shape_and_dtype_are_kept(method) -> None:
    seen = set()

    def field(t: Tensor, z: Tensor) -> Tensor:
        seen.add((t.dtype, t.shape))
        return -z

    loose = replace(method, rtol=1e-3, atol=1e-4) if method.is_adaptive else method
    times = ([0.0, 0.5, 1.0], [0, 1, 2], doubles(0.0, 0.2, 0.3))
    for dtype in (torch.float32, torch.float64):
        for shape, ts in zip(
            [(), (3,), (2, 1, 3), (0, 3), (4, 0)], itertools.cycle(times), strict=False
        ):
            result = solve(field, torch.ones(shape, dtype=dtype), ts, loose)
            assert result.ys.shape == (3, *shape)
            assert result.ys.dtype == result.ts.dtype == dtype
            assert result.status is Status.SUCCESS
            assert torch.isfinite(result.ys).all()
    assert seen == {(torch.float32, torch.Size([])), (torch.float64, torch.Size([]))}


@pytest.mark.parametrize("method", FIXED + ADAPTIVE, ids=name_of)
def test_tuples_of_any_shapes(method) -> None:
    def field(t, state):
        a, b, c = state
        return -a, a.sum() + 0 * b, torch.cos(t) + 0 * c

    z0 = (torch.ones(2, 3, dtype=torch.float64), doubles(0.0)[0], torch.zeros(0).double())
    result = solve(field, z0, [0.0, 0.5, 1.0], method)
    a, b, c = result.ys
    assert a.shape == (3, 2, 3)
    assert b.shape == (3,)
    assert c.shape == (3, 0)
    assert torch.allclose(b + a.sum((1, 2)), doubles(6.0), atol=1e-3)


@pytest.mark.parametrize("method", [RK4((1, 2)), Dopri5()], ids=name_of)
def test_a_tuple_of_one_stays_a_tuple(method) -> None:
    result = solve(lambda t, z: (-z[0],), (doubles(1.0),), [0.0, 0.5, 1.0], method)
    single = solve(lambda t, z: -z, doubles(1.0), [0.0, 0.5, 1.0], method)
    assert isinstance(result.ys, tuple)
    assert torch.equal(result.ys[0], single.ys)


@pytest.mark.parametrize("gradient", [Direct(), Checkpoint(), Adjoint()], ids=name_of)
def test_one_time_is_the_start(gradient) -> None:
    z0 = doubles(1.0, 2.0).requires_grad_()
    result = solve(lambda t, z: 1 / 0, z0, [0.3], RK4(), gradient, parameters=())
    assert torch.equal(result.ys, z0[None])
    assert result.stats.evaluations == 0
    assert torch.equal(torch.autograd.grad(result.ys.sum(), z0)[0], torch.ones(2).double())
    pair = solve(lambda t, z: 1 / 0, (z0, z0[0]), [0.3], RK4(), gradient, parameters=()).ys
    assert pair[0].shape == (1, 2)
    assert pair[1].shape == (1,)


@pytest.mark.parametrize(("method", "gradient"), COMBINATIONS)
def test_grad_modes(method, gradient) -> None:
    weight = doubles(0.5).requires_grad_()
    z0 = doubles(1.0).requires_grad_()

    def run() -> Tensor:
        return solve(
            lambda t, z: -weight * z, z0, [0.0, 1.0], method, gradient, parameters=(weight,)
        ).ys

    recorded = run()
    assert recorded.requires_grad
    with torch.no_grad():
        ys = run()
    assert not ys.requires_grad
    assert torch.equal(ys, recorded)
    with torch.inference_mode():
        ys = run()
    assert ys.is_inference()
    assert torch.equal(ys, recorded)


def test_samples_of_fixed_methods_do_not_depend_on_their_batch() -> None:
    z0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    together = solve(lambda t, z: torch.sin(z * t), z0, [0.0, 1.0], RK4(3)).ys
    for i in range(4):
        alone = solve(lambda t, z: torch.sin(z * t), z0[i], [0.0, 1.0], RK4(3)).ys
        assert torch.allclose(alone, together[:, i], atol=1e-15, rtol=0)


def test_function_transforms_of_fixed_methods() -> None:
    weight = doubles(0.3, 0.9, -0.5)

    def flow(z: Tensor) -> Tensor:
        return solve(lambda t, z: torch.tanh(z.flip(0) * weight), z, [0.0, 1.0], RK4(2)).ys[-1]

    z = doubles(0.1, 0.2, 0.3)
    expected = torch.autograd.functional.jacobian(flow, z)
    assert torch.allclose(torch.func.jacrev(flow)(z), expected)
    assert torch.allclose(torch.func.jacfwd(flow)(z), expected)


def test_the_default_is_one_rk4_step_an_interval_with_direct_gradients() -> None:
    z0 = doubles(1.0)
    by_default = solve(lambda t, z: -z, z0, [0.0, 0.5, 1.0])
    assert torch.equal(by_default.ys, solve(lambda t, z: -z, z0, [0.0, 0.5, 1.0], RK4(1)).ys)
    assert by_default.stats.steps == 2


def test_nothing_global_and_no_warnings(capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in FIXED + ADAPTIVE:
            for gradient in (Direct(), Adjoint()):
                z0 = doubles(1.0).requires_grad_()
                ts = doubles(0.0, 0.5, 1.0).requires_grad_()
                solve(
                    lambda t, z: -z * t, z0, ts, method, gradient, parameters=()
                ).ys.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_autocast_converts_the_derivative_only() -> None:
    weight = torch.eye(4)
    with torch.autocast("cpu", torch.bfloat16):
        for method in (RK4(2), Dopri5(1e-2, 1e-2)):
            result = solve(lambda t, z: z @ weight, torch.ones(2, 4), [0.0, 0.5], method)
            assert result.ys.dtype == torch.float32
            assert torch.allclose(result.ys[-1], torch.tensor(0.5).exp(), rtol=2e-2)


def test_solutions_are_frozen() -> None:
    result = solve(lambda t, z: -z, doubles(1.0), [0.0, 1.0], Euler())
    with pytest.raises(FrozenInstanceError):
        result.status = Status.MAX_STEPS


def test_imports_have_no_circles() -> None:
    """Also those that only type checkers see."""
    folder = Path(solvers.__file__).parent
    imports = {}
    for path in folder.glob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        names = {node.module for node in nodes if node.module}
        imports[f"solvers.{path.stem}"] = {name for name in names if name.startswith("solvers.")}
    TopologicalSorter(imports).prepare()  # raises CycleError
