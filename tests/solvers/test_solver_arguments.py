"""Bad arguments are refused, by the name of the argument."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from solver_cases import GRADIENTS, doubles, name_of

from solvers import (
    METHODS,
    RK4,
    Adjoint,
    Checkpoint,
    Direct,
    Dopri5,
    Euler,
    SolverError,
    Tableau,
    TorchDiffEq,
    gradient_from_name,
    method_from_name,
    solve,
    solve_until,
)
from solvers.adaptive import AdaptiveMethod
from solvers.fixed import FixedMethod
from solvers.registry import UnknownNameError

Z = doubles(1.0, 2.0)
TWO = ((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2)
"""Heun's tableau."""


def run(**changed: Any) -> None:
    solve(**({"field": lambda t, z: z, "z0": Z, "ts": [0.0, 1.0, 3.0]} | changed))


def until(**changed: Any) -> None:
    arguments = {"event": lambda t, z: z[0], "span": (0.0, 1.0), "method": Dopri5()} | changed
    solve_until(lambda t, z: z, Z, **arguments)


def interpolate(t: Any) -> None:
    solve(lambda t, z: z, Z, [1.0, 0.0], Dopri5(), dense=True).interpolate(t)


def label(value: Any) -> str:
    """Return a name for a test that is the same in every process."""
    if isinstance(value, dict):
        return ",".join(f"{key}={type(each).__name__}" for key, each in value.items()) or "nothing"
    return getattr(value, "__name__", str(value))


TYPES: list[tuple[Any, dict[str, Any], str]] = [
    (run, {"field": 3}, "field"),
    (run, {"z0": [1.0]}, "z0"),
    (run, {"z0": (Z, 1.0)}, r"z0\[1\]"),
    (run, {"z0": Z.half()}, r"z0 .*z0\.float"),
    (run, {"z0": (Z.bfloat16(),)}, r"z0\[0\]"),
    (run, {"z0": Z.long()}, "z0"),
    (until, {"event": lambda t, z: z[0] + 1j}, r"event\(t, z\)"),
    (run, {"ts": ["a", "b"]}, "ts"),
    (run, {"ts": torch.tensor([True])}, "ts"),
    (run, {"ts": [0.0, 1j]}, "ts"),
    (run, {"method": "rk4"}, "method"),
    (run, {"method": None}, "method"),
    (run, {"method": RK4}, "method"),
    (run, {"gradient": "direct"}, "gradient"),
    (run, {"gradient": Direct}, "gradient"),
    (run, {"gradient": Adjoint(), "parameters": Z}, "parameters"),
    (run, {"gradient": Adjoint(), "parameters": [1]}, "parameters"),
    (run, {"field": lambda t, z: z.float()}, r"field\(t, z\)"),
    (run, {"field": lambda t, z: 1.0}, r"field\(t, z\)"),
    (run, {"z0": (Z, Z), "field": lambda t, z: z[0]}, r"field\(t, z\)"),
    (run, {"z0": (Z, Z), "field": lambda t, z: z[:1]}, r"field\(t, z\)"),
    (run, {"max_steps": 1.5}, "max_steps"),
    (run, {"max_steps": True}, "max_steps"),
    (until, {"event": 1}, "event"),
    (until, {"event": lambda t, z: 1.0}, r"event\(t, z\)"),
    *((interpolate, {"t": t}, "t must be") for t in ("0.5", None, ["a"], True, object())),
    (interpolate, {"t": torch.tensor(0.5j)}, "t must be"),
    *((Euler, {"steps": steps}, "Euler.steps") for steps in (1.5, "3", True, None, [1], (1, 2.0))),
    *((Dopri5, {"rtol": value}, "Dopri5.rtol") for value in (None, True, torch.tensor(0.1))),
    (Dopri5, {"atol": "1e-5"}, "Dopri5.atol.*1.0e-5"),
    (Dopri5, {"max_steps": 10.0}, "Dopri5.max_steps"),
    (TorchDiffEq, {"solver": "rk4", "options": [1]}, "TorchDiffEq.options"),
    (TorchDiffEq, {"solver": "dopri5", "rtol": "1e-3"}, "TorchDiffEq.rtol"),
    (Adjoint, {"atol": "1e-5"}, "Adjoint.atol"),
    (Adjoint, {"seminorm": 1}, "Adjoint.seminorm"),
    (Adjoint, {"method": "rk4"}, "Adjoint.method"),
    (Checkpoint, {"every": 1.0}, "Checkpoint.every"),
    (FixedMethod, {"steps": 2}, "FixedMethod"),
    (AdaptiveMethod, {}, "AdaptiveMethod"),
]


@pytest.mark.wrong_types
@pytest.mark.parametrize(("call", "arguments", "name"), TYPES, ids=label)
def test_wrong_types(call, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(TypeError, match=name):
        call(**arguments)


VALUES: list[tuple[Any, dict[str, Any], str]] = [
    (run, {"z0": ()}, "z0"),
    (run, {"z0": (Z, Z.float())}, r"z0\[1\]"),
    *((run, {"ts": ts}, "ts") for ts in (torch.zeros(2, 2), torch.tensor(1.0), [])),
    *((run, {"ts": ts}, "ts") for ts in ([0.0, math.nan], [-math.inf, 0.0])),
    (run, {"ts": [0.0, 1.0, 1.0]}, r"ts\[1\] = 1.0 is followed by 1.0"),
    (run, {"ts": [0.0, 1.0, 0.5]}, r"ts\[1\]"),
    (run, {"z0": Z.float(), "ts": [1.0, 1.0 + 1e-9]}, r"ts.*float32"),
    (run, {"field": lambda t, z: z[:1]}, r"field\(t, z\) .*\(1,\).*\(2,\)"),
    (run, {"z0": (Z, Z), "field": lambda t, z: (z[0], z[1][:1])}, r"field\(t, z\)\[1\]"),
    (run, {"gradient": Adjoint()}, "parameters"),
    (run, {"gradient": Checkpoint()}, "parameters"),
    (run, {"method": RK4((1, 2, 3))}, r"method\.steps"),
    (run, {"method": TorchDiffEq("heun3", steps=(1,))}, r"method\.steps"),
    (run, {"gradient": Adjoint(method=RK4((1,)))}, r"Adjoint\.method\.steps"),
    *(
        (run, {"gradient": Adjoint(**option)}, r"Adjoint\.rtol")
        for option in ({"rtol": 1e-3}, {"atol": 1e-3}, {"seminorm": True})
    ),
    (run, {"method": Dopri5(), "gradient": Adjoint(method=RK4(), rtol=1e-3)}, r"Adjoint\.rtol"),
    (run, {"method": TorchDiffEq("heun3"), "gradient": Checkpoint()}, "Checkpoint"),
    (run, {"method": RK4(3), "max_steps": 5}, "max_steps"),
    (run, {"method": RK4((1, 3)), "max_steps": 3}, "max_steps"),
    (run, {"method": TorchDiffEq("heun3", steps=3), "max_steps": 5}, "max_steps"),
    (run, {"max_steps": 0}, "max_steps"),
    (run, {"dense": True, "gradient": Checkpoint(), "parameters": ()}, "dense"),
    (run, {"dense": True, "method": TorchDiffEq("heun3")}, "dense"),
    *((run, {"per_sample": True, "method": m}, "per_sample") for m in (RK4(), TorchDiffEq("rk4"))),
    (
        run,
        {"per_sample": True, "method": Dopri5(), "gradient": Adjoint(), "parameters": ()},
        "per_sample",
    ),
    *(
        (run, {"per_sample": True, "method": Dopri5(), "z0": z0}, "per_sample.*z0")
        for z0 in (Z[0], (Z, Z[0]), (Z, Z[:1]))
    ),
    pytest.param(until, {"direction": "up"}, "direction", marks=pytest.mark.wrong_types),
    (until, {"method": TorchDiffEq("dopri5")}, "solve_until"),
    pytest.param(until, {"span": (0.0, 1.0, 2.0)}, "span", marks=pytest.mark.wrong_types),
    (until, {"span": (1.0, 1.0)}, "ts"),
    *(
        (until, {"event": event}, r"event\(t, z\)")
        for event in (
            lambda t, z: z[:1],
            lambda t, z: z[None],
            lambda t, z: z[0] * math.nan,
            lambda t, z: z[0] + torch.where(t > 0.5, math.inf, 3.0),
        )
    ),
    *((interpolate, {"t": t}, "t must be") for t in (-1e-9, 1.0 + 1e-9, [0.5, 2.0], math.nan)),
    (interpolate, {"t": doubles(0.5)[None]}, "t must be one-dimensional"),
    *((Euler, {"steps": steps}, "Euler.steps") for steps in (0, -1, (1, 0), ())),
    *((Dopri5, {"rtol": value}, "Dopri5.rtol") for value in (0.0, -1e-3, math.nan, math.inf)),
    (Dopri5, {"atol": 0.0}, "Dopri5.atol"),
    (Dopri5, {"max_steps": 0}, "Dopri5.max_steps"),
    (Adjoint, {"rtol": 0.0}, "Adjoint.rtol"),
    (Checkpoint, {"every": 0}, "Checkpoint.every"),
    (TorchDiffEq, {"solver": "nonsense"}, "nonsense.*dopri5"),
    (TorchDiffEq, {"solver": "rk4", "steps": 0}, "TorchDiffEq.steps"),
    (TorchDiffEq, {"solver": "dopri5", "max_steps": 0}, "TorchDiffEq.max_steps"),
    *(
        (TorchDiffEq, {"solver": "rk4", "options": {key: 0.1}}, rf"TorchDiffEq.options\['{key}'\]")
        for key in ("step_size", "grid_constructor", "step_t", "norm")
    ),
    (method_from_name, {"name": "rk4", "rtol": 1e-3}, "'rk4'.*'rtol'"),
    (method_from_name, {"name": "dopri5", "mx_steps": 2}, "'max_steps'"),
    (gradient_from_name, {"name": "direct", "every": 2}, "'direct'.*'every'"),
    (gradient_from_name, {"name": "adjoint", "method": {"steps": 1}}, "name"),
    *(
        (
            Tableau,
            dict(zip(("c", "a", "b", "order", "error"), (*TWO, ()), strict=True)) | wrong,
            key,
        )
        for wrong, key in (
            ({"c": (0.0, 1.0, 1.0)}, "rows a"),
            ({"a": ((), (1.0, 0.0))}, "rows a"),
            ({"b": (1.0,)}, "weights b"),
            ({"error": (0.0,)}, "error"),
            ({"a": ((), (0.5,))}, r"a\[1\]"),
            ({"b": (0.5, 0.6)}, "b sums"),
            ({"error": (0.5, 0.5)}, "error sums"),
            ({"c": (0.0, 2.0), "a": ((), (2.0,))}, r"a\[1\]"),
        )
    ),
]


@pytest.mark.parametrize(("call", "arguments", "name"), VALUES, ids=label)
def test_wrong_values(call, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call(**arguments)


@pytest.mark.parametrize(
    ("find", "name", "hint"),
    [
        (METHODS.__getitem__, "adaptive_huen", "adaptive_heun"),
        (method_from_name, "rk5", "rk4"),
        (gradient_from_name, "ajoint", "adjoint"),
        (lambda name: gradient_from_name("adjoint", method=name), "tsit", "tsit5"),
        (TorchDiffEq, "heun", "heun"),
    ],
)
def test_unknown_names_come_with_a_hint(find, name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError, match=f"{name}.*{hint}"):
        find(name)


def test_tableaus_of_methods() -> None:
    with pytest.raises(TypeError, match="tableau"):
        type("Textual", (FixedMethod,), {"tableau": "rk4"})
    with pytest.raises(TypeError, match="error"):
        type("Blind", (AdaptiveMethod,), {"tableau": Euler.tableau})


def test_limits_of_the_number_of_steps() -> None:
    assert solve(lambda t, z: z, Z, [0.0, 1.0, 3.0], RK4(3), max_steps=6).stats.steps == 6
    for method in (Dopri5(1e-9, 1e-9), TorchDiffEq("fehlberg2")):
        with pytest.raises(SolverError, match="max_steps=2"):
            solve(lambda t, z: z, Z, [0.0, 1.0, 3.0], method, max_steps=2)


def test_adjoint_takes_the_tolerance_of_an_adaptive_way_back() -> None:
    for option in ({"rtol": 1e-3}, {"atol": 1e-3}, {"seminorm": True}):
        run(gradient=Adjoint(method=Dopri5(), **option), parameters=())


@pytest.mark.parametrize("gradient", GRADIENTS, ids=name_of)
def test_steps_finer_than_the_dtype(gradient) -> None:
    """Step times that coincide are steps of size 0: no harm."""
    ts = [1.0, 1.0 + 2.0**-52, 2.0]
    z0 = Z.clone().requires_grad_()
    ys = solve(lambda t, z: z, z0, ts, RK4(3), gradient, parameters=()).ys
    assert torch.allclose(ys[2], Z * math.e, rtol=1e-3)
    (grad,) = torch.autograd.grad(ys[1:].sum(), z0)
    assert torch.allclose(grad, torch.full_like(Z, 1 + math.e), rtol=1e-3)


def test_options_cannot_be_changed() -> None:
    for options in (RK4(), Dopri5(), Adjoint(), Checkpoint(), RK4.tableau):
        for field in dataclasses.fields(options):
            with pytest.raises(AttributeError):
                setattr(options, field.name, 2)
