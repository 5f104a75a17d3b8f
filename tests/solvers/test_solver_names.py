"""Names for configuration files, there and back."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

import solvers
from solvers import (
    RK4,
    AdaptiveHeun,
    Adjoint,
    Bosh3,
    Checkpoint,
    Direct,
    Dopri5,
    Dopri8,
    Euler,
    Heun,
    Midpoint,
    gradient_from_name,
    method_from_name,
    to_dict,
)

METHODS = [
    Euler(),
    Midpoint(steps=3),
    Heun(steps=(1, 2)),
    RK4(steps=2),
    Dopri5(rtol=1e-3),
    Bosh3(atol=1e-4),
    AdaptiveHeun(max_steps=7),
    Dopri8(rtol=1e-10, atol=1e-12, max_steps=3),
]
GRADIENTS = [
    Direct(),
    Checkpoint(every=4),
    Adjoint(),
    Adjoint(rtol=1e-3, atol=1e-4, seminorm=True, method=Dopri5(max_steps=9)),
    Adjoint(method=RK4(steps=(1, 2))),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_round_trip_through_a_file(method) -> None:
    assert method_from_name(**json.loads(json.dumps(to_dict(method)))) == method
    assert method_from_name(method.name) == type(method)()


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_gradients_round_trip_through_a_file(gradient) -> None:
    assert gradient_from_name(**json.loads(json.dumps(to_dict(gradient)))) == gradient
    assert gradient_from_name(gradient.name) == type(gradient)()


def test_the_names_are_those_documented() -> None:
    names = "euler midpoint heun rk4 dopri5 bosh3 adaptive_heun dopri8"
    assert [m.name for m in METHODS] == names.split()
    assert gradient_from_name("adjoint", method="dopri8") == Adjoint(method=Dopri8())
    assert method_from_name("rk4", steps=(1, 2)) == RK4(steps=(1, 2))


def test_unknown_names_and_options(plain: ModuleType) -> None:
    with pytest.raises(ValueError, match="unknown method 'rk5'; allowed are euler, midpoint, heun"):
        plain.method_from_name("rk5")
    with pytest.raises(ValueError, match="unknown method 4; allowed"):
        plain.method_from_name(4)
    with pytest.raises(ValueError, match="'rk4' has no option 'rtol'; allowed are steps"):
        plain.method_from_name("rk4", rtol=1e-3)
    with pytest.raises(ValueError, match="no option 'steps'; allowed are rtol, atol, max_steps"):
        plain.method_from_name("dopri5", steps=2)
    with pytest.raises(
        ValueError, match="unknown gradient 'x'; allowed are direct, checkpoint, adj"
    ):
        plain.gradient_from_name("x")
    with pytest.raises(
        ValueError, match="gradient 'direct' has no option 'every'; allowed are none"
    ):
        plain.gradient_from_name("direct", every=2)
    with pytest.raises(ValueError, match="method of gradient 'adjoint' has no name"):
        plain.gradient_from_name("adjoint", method={"steps": 1})
    with pytest.raises(ValueError, match="unknown method 'rk5'"):
        plain.gradient_from_name("adjoint", method="rk5")


def test_all_public_names_exist() -> None:
    assert sorted(solvers.__all__) == sorted(set(solvers.__all__))
    for name in solvers.__all__:
        assert hasattr(solvers, name)
