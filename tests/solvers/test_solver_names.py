"""Names for configuration files, there and back; methods that others add."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from solver_cases import GRADIENTS as TRIED_GRADIENTS
from solver_cases import doubles, name_of

import solvers
from solvers import (
    GRADIENTS,
    METHODS,
    RK4,
    AdaptiveMethod,
    Adjoint,
    Checkpoint,
    Direct,
    Dopri5,
    Dopri8,
    FixedMethod,
    Heun,
    Tableau,
    TorchDiffEq,
    Tsit5,
    gradient_from_name,
    method_from_name,
    solve,
    solve_until,
    to_dict,
)
from solvers.step import RungeKutta

OPTIONS = {"heun": {"steps": (1, 2)}, "dopri5": {"rtol": 1e-3}, "tsit5": {"max_steps": 7}}
TORCHDIFFEQ = [
    TorchDiffEq("heun3", steps=3),
    TorchDiffEq("implicit_adams", steps=(3, 4), options={"max_iters": 3}),
    TorchDiffEq("fehlberg2", rtol=1e-3, atol=1e-4, max_steps=7),
]


def test_methods_round_trip_through_a_file() -> None:
    own = [cls(**OPTIONS.get(name, {})) for name, cls in METHODS.items() if name != "torchdiffeq"]
    for method in (*own, *TORCHDIFFEQ):
        assert method_from_name(**json.loads(json.dumps(to_dict(method)))) == method
        assert to_dict(Adjoint(method=method))["method"] == to_dict(method)
    assert method_from_name("rk4", steps=(1, 2)) == method_from_name("rk4", steps=[1, 2])


def test_gradients_round_trip_through_a_file() -> None:
    tight = Adjoint(rtol=1e-3, atol=1e-4, seminorm=True, method=Dopri5(max_steps=9))
    for gradient in (Direct(), Checkpoint(every=4), tight, Adjoint(method=RK4(steps=(1, 2)))):
        assert gradient_from_name(**json.loads(json.dumps(to_dict(gradient)))) == gradient
    assert gradient_from_name("adjoint", method="dopri8") == Adjoint(method=Dopri8())
    assert list(GRADIENTS) == ["direct", "checkpoint", "adjoint"]


def test_equal_options_are_equal_and_hashable() -> None:
    for make in (lambda: TORCHDIFFEQ[1], lambda: RK4((1, 2)), lambda: Tsit5(1e-3)):
        assert make() == make()
        assert len({make(), make()}) == 1
    assert Tsit5() != Dopri5()


def test_all_public_names_exist() -> None:
    assert sorted(solvers.__all__) == sorted(set(solvers.__all__))
    for name in solvers.__all__:
        assert hasattr(solvers, name)


def test_the_documented_methods_are_the_registered_ones() -> None:
    page = Path(solvers.__file__).parents[1] / "docs" / "solvers.md"
    rows = [row.split("|")[1:-1] for row in page.read_text().splitlines() if row.startswith("| `")]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 5}
    documented = {head.split("(")[0].strip("`"): cells for head, cells in table.items()}
    for name, cls in METHODS.items():
        registered, *cells = documented.pop(cls.__name__)
        assert registered == f"`{name}`"
        if issubclass(cls, RungeKutta):
            assert cells[:2] == [str(cls.tableau.order), str(cls.tableau.stages)]
    assert not documented


# ---- methods from outside of the package


@pytest.fixture
def ralston():
    """Return Ralston's method of order 2, registered while a test runs."""

    @METHODS.register("ralston")
    class Ralston(FixedMethod):
        tableau = Tableau(c=(0.0, 2 / 3), a=((), (2 / 3,)), b=(1 / 4, 3 / 4), order=2)

    yield Ralston
    METHODS.unregister("ralston")


class MidpointPair(AdaptiveMethod):
    """The midpoint rule with Euler's method as error estimate."""

    tableau = Tableau(c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0), order=2, error=(-1.0, 1.0))


def field(t, z):
    return -z * torch.cos(t)[..., None] if t.ndim else -z * torch.cos(t)


def test_a_method_of_ones_own_has_a_name(ralston) -> None:
    method = method_from_name("ralston", steps=3)
    assert method == ralston(steps=3) != Heun(steps=3)
    assert repr(method).endswith("Ralston(steps=3)")
    assert to_dict(method) == {"name": "ralston", "steps": 3}
    assert gradient_from_name("adjoint", method="ralston") == Adjoint(method=ralston())
    assert (method.order, method.stages, method.is_adaptive) == (2, 2, False)
    with pytest.raises(ValueError, match="registered already"):
        METHODS.register("ralston")(MidpointPair)
    with pytest.raises(ValueError, match="MidpointPair"):
        to_dict(MidpointPair())


@pytest.mark.parametrize("gradient", TRIED_GRADIENTS, ids=name_of)
def test_a_method_of_ones_own_works_everywhere(ralston, gradient) -> None:
    z0 = doubles(1.0, 2.0).requires_grad_()
    for method in (ralston(steps=300), MidpointPair(1e-5, 1e-6), Tsit5()):
        ys = solve(field, z0, [0.0, 0.7, 1.0], method, gradient, parameters=()).ys
        exact = torch.exp(-torch.sin(doubles(1.0)))
        assert torch.allclose(ys[-1], z0 * exact, atol=1e-4)
        assert torch.allclose(torch.autograd.grad(ys[-1].sum(), z0)[0], exact, atol=1e-4)
        event = solve_until(
            field, z0, lambda t, z: z[0] - 0.5, (0.0, 2.0), method, gradient, parameters=()
        )
        assert torch.allclose(torch.sin(event.t), doubles(2.0).log(), atol=1e-4)


def test_a_method_of_ones_own_between_the_outputs(ralston) -> None:
    exact = torch.exp(-torch.sin(doubles(0.4)))
    for method in (ralston(steps=300), MidpointPair(1e-5, 1e-6), Tsit5()):
        for per_sample in (False, True)[: 1 + method.is_adaptive]:
            solution = solve(
                field, doubles(1.0)[:, None], [0.0, 1.0], method, dense=True, per_sample=per_sample
            )
            assert torch.allclose(solution.interpolate(0.4), exact, atol=1e-4)
