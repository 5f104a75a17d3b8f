"""Every bad argument is refused with what was wrong, where, and what is allowed."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from solver_cases import doubles

Z = doubles(1.0, 2.0)
NAN = math.nan

CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "field": ({"field": 3}, TypeError, r"field must be callable as field\(t, z\), got int"),
    "state list": ({"z0": [1.0]}, TypeError, "z0 must be a tensor or a tuple of tensors, got list"),
    "state empty": ({"z0": ()}, ValueError, "z0 is an empty tuple; give at least one tensor"),
    "state part": ({"z0": (Z, 1.0)}, TypeError, r"z0\[1\] must be a tensor, got float"),
    "half": ({"z0": Z.half()}, TypeError, r"z0 is torch.float16.*integrate z0.float\(\)"),
    "bfloat16": ({"z0": (Z.bfloat16(),)}, TypeError, r"z0\[0\] is torch.bfloat16.*z0\[0\].float"),
    "integer": ({"z0": Z.long()}, TypeError, "z0 must be float32 or float64, got torch.int64"),
    "complex": ({"z0": Z + 1j}, TypeError, "must be float32 or float64, got torch.complex128"),
    "mixed": ({"z0": (Z, Z.float())}, ValueError, r"z0\[1\] is torch.float32 on cpu, but z0\[0\]"),
    "ts shape": ({"ts": torch.zeros(2, 2)}, ValueError, r"one-dimensional, got shape \(2, 2\)"),
    "ts scalar": ({"ts": torch.tensor(1.0)}, ValueError, r"one-dimensional, got shape \(\)"),
    "ts number": ({"ts": 1.0}, TypeError, "ts must be a tensor or a sequence of numbers, got 1.0"),
    "ts text": ({"ts": ["a", "b"]}, TypeError, "ts must be a tensor or a sequence of numbers"),
    "ts bool": (
        {"ts": torch.tensor([True])},
        TypeError,
        "ts must hold real numbers, got torch.bool",
    ),
    "ts empty": ({"ts": []}, ValueError, "ts is empty; give at least the start time"),
    "ts nan": ({"ts": [0.0, NAN]}, ValueError, r"ts\[1\] is nan; all times must be finite"),
    "ts infinite": ({"ts": [-math.inf, 0.0]}, ValueError, r"ts\[0\] is -inf; all times must"),
    "ts repeats": (
        {"ts": [0.0, 1.0, 1.0]},
        ValueError,
        r"ts\[1\] and ts\[2\] are both 1.0.*repeat",
    ),
    "ts repeats in float32": (
        {"z0": Z.float(), "ts": [1.0, 1.0 + 1e-9]},
        ValueError,
        r"both 1.0 in the state's torch.float32",
    ),
    "ts turns": ({"ts": [0.0, 1.0, 0.5]}, ValueError, r"turns at ts\[1\] = 1.0, ts\[2\] = 0.5"),
    "method name": ({"method": "rk4"}, TypeError, "got the text 'rk4'; method_from_name"),
    "method none": (
        {"method": None},
        TypeError,
        r"must be a method such as RK4\(steps=2\), got None",
    ),
    "gradient name": ({"gradient": "direct"}, TypeError, r"Direct\(\) or another.*got 'direct'"),
    "parameters": (
        {"gradient": "A", "parameters": Z},
        TypeError,
        r"wrap a single one as \(tensor,\)",
    ),
    "parameter": ({"gradient": "A", "parameters": [1]}, TypeError, "must be tensors, got int"),
    "closure": (
        {"gradient": "A", "parameters": None},
        ValueError,
        r"Adjoint cannot know which tensors.*parameters=\(...,\)\), or give parameters=\(\)",
    ),
    "derivative shape": ({"field": lambda t, z: z[:1]}, ValueError, r"has shape \(1,\).*\(2,\)"),
    "derivative dtype": ({"field": lambda t, z: z.float()}, TypeError, "torch.float32.*float64"),
    "derivative kind": ({"field": lambda t, z: 1.0}, TypeError, "must be a tensor.*got float"),
    "derivative of tuple": (
        {"z0": (Z, Z), "field": lambda t, z: z[0]},
        TypeError,
        "must return a tuple of 2 tensors.*returned Tensor",
    ),
    "derivative of tuple, length": (
        {"z0": (Z, Z), "field": lambda t, z: z[:1]},
        TypeError,
        "must return a tuple of 2 tensors.*returned 1 tensors",
    ),
    "derivative of tuple, shape": (
        {"z0": (Z, Z), "field": lambda t, z: (z[0], z[1][:1])},
        ValueError,
        r"field\(t, z\)\[1\] has shape \(1,\)",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("method", ["RK4", "Dopri5"])
def test_arguments_of_solve(plain: ModuleType, case, method: str) -> None:
    changed, kind, message = case
    arguments: dict[str, Any] = {
        "field": lambda t, z: z,
        "z0": Z,
        "ts": [0.0, 1.0],
        "method": getattr(plain, method)(),
    } | changed
    if arguments.get("gradient") == "A":
        arguments["gradient"] = plain.Adjoint()
    with pytest.raises(kind, match=message):
        plain.solve(**arguments)


def test_classes_in_place_of_instances(plain: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"method is the class RK4; give an instance, RK4\(\)"):
        plain.solve(lambda t, z: z, Z, [0.0, 1.0], plain.RK4)
    with pytest.raises(TypeError, match=r"gradient is the class Direct.*Direct\(\)"):
        plain.solve(lambda t, z: z, Z, [0.0, 1.0], plain.RK4(), plain.Direct)


def test_families_in_place_of_methods(plain: ModuleType) -> None:
    for family in (plain.Method(), plain.FixedMethod(steps=2), plain.AdaptiveMethod()):
        with pytest.raises(TypeError, match=r"method must be a method such as RK4\(steps=2\)"):
            plain.solve(lambda t, z: z, Z, [0.0, 1.0], family)


def test_combinations_that_do_not_fit(plain: ModuleType) -> None:
    p = plain

    def run(method, gradient, n: int = 2):
        ts = [float(i) for i in range(n)]
        return p.solve(lambda t, z: z, Z, ts, method, gradient, parameters=())

    with pytest.raises(ValueError, match=r"method.steps has 2 entries, but ts has 3 intervals"):
        run(p.RK4((1, 2)), p.Direct(), 4)
    with pytest.raises(ValueError, match=r"Adjoint.method.steps has 1 entries, but ts has 2"):
        run(p.RK4(), p.Adjoint(method=p.RK4((1,))), 3)
    with pytest.raises(ValueError, match="Checkpoint does not know the steps of TorchDiffEq"):
        run(p.TorchDiffEq("heun3"), p.Checkpoint())
    for options in ({"rtol": 1e-3}, {"atol": 1e-3}, {"seminorm": True}):
        with pytest.raises(ValueError, match=r"need an adaptive method on the way back.*RK4"):
            run(p.RK4(), p.Adjoint(**options))
        with pytest.raises(ValueError, match=r"need an adaptive method on the way back.*Euler"):
            run(p.Dopri5(), p.Adjoint(method=p.Euler(), **options))
        run(p.RK4(), p.Adjoint(method=p.Dopri5(), **options))


def test_limits_of_the_number_of_steps(plain: ModuleType) -> None:
    def run(method, max_steps):
        return plain.solve(lambda t, z: z, Z, [0.0, 1.0, 3.0], method, max_steps=max_steps)

    for value, kind in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="max_steps must be an integer >= 1"):
            run(plain.Dopri5(), value)
    with pytest.raises(ValueError, match=r"RK4\(steps=3\) takes 6 steps in 2 intervals.*= 5"):
        run(plain.RK4(3), 5)
    with pytest.raises(ValueError, match="takes 4 steps in 2 intervals"):
        run(plain.RK4((1, 3)), 3)
    assert run(plain.RK4(3), 6).stats.steps == 6
    with pytest.raises(plain.SolverError, match="max_steps = 2"):
        run(plain.Dopri5(1e-9, 1e-9), 2)
    with pytest.raises(plain.SolverError, match="max_steps = 2"):
        run(plain.TorchDiffEq("fehlberg2"), 2)


@pytest.mark.parametrize("gradient", ["Direct", "Checkpoint", "Adjoint"])
def test_steps_finer_than_the_dtype(plain: ModuleType, gradient: str) -> None:
    """Step times that coincide are steps of size 0: no harm."""
    ts = [1.0, 1.0 + 2.0**-52, 2.0]
    z0 = Z.clone().requires_grad_()
    g = getattr(plain, gradient)()
    ys = plain.solve(lambda t, z: z, z0, ts, plain.RK4(3), g, parameters=()).ys
    assert torch.allclose(ys[2], Z * math.e, rtol=1e-3)
    (grad,) = torch.autograd.grad(ys[1:].sum(), z0)
    assert torch.allclose(grad, torch.full_like(Z, 1 + math.e), rtol=1e-3)


@pytest.mark.parametrize("name", ["Euler", "Midpoint", "Heun", "RK4"])
def test_options_of_fixed_methods(plain: ModuleType, name: str) -> None:
    cls = getattr(plain, name)
    for value in (0, -1, (1, 0)):
        with pytest.raises(ValueError, match=rf"{name}.steps(\[1\])? must be an integer >= 1, got"):
            cls(steps=value)
    for value in (1.5, "3", True, None, [1, 2], (1, 2.0)):
        with pytest.raises(TypeError, match=rf"{name}.steps(\[1\])? must be an integer >= 1, got"):
            cls(steps=value)
    with pytest.raises(ValueError, match=f"{name}.steps is an empty tuple"):
        cls(steps=())


@pytest.mark.parametrize("name", ["Dopri5", "Bosh3", "AdaptiveHeun", "Dopri8"])
def test_options_of_adaptive_methods(plain: ModuleType, name: str) -> None:
    cls = getattr(plain, name)
    for option in ("rtol", "atol"):
        for value in (0.0, -1e-3, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"{name}.{option} must be positive and finite"):
                cls(**{option: value})
        for value in (None, True, torch.tensor(0.1)):
            with pytest.raises(TypeError, match=f"{name}.{option} must be a positive number"):
                cls(**{option: value})
        with pytest.raises(TypeError, match=r"got the text '1e-5'; in YAML write .* 1.0e-5"):
            cls(**{option: "1e-5"})
    with pytest.raises(ValueError, match=f"{name}.max_steps must be an integer >= 1, got 0"):
        cls(max_steps=0)
    with pytest.raises(TypeError, match=f"{name}.max_steps must be an integer >= 1, got 10.0"):
        cls(max_steps=10.0)


def test_options_of_gradients(plain: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"Adjoint.rtol must be positive and finite, got 0"):
        plain.Adjoint(rtol=0)
    with pytest.raises(TypeError, match=r"Adjoint.atol must be a positive number, got the text"):
        plain.Adjoint(atol="1e-5")
    with pytest.raises(TypeError, match=r"Adjoint.seminorm must be True or False, got 1"):
        plain.Adjoint(seminorm=1)
    with pytest.raises(TypeError, match=r"Adjoint.method must be a method.*got 'rk4'"):
        plain.Adjoint(method="rk4")
    with pytest.raises(ValueError, match=r"Checkpoint.every must be an integer >= 1, got 0"):
        plain.Checkpoint(every=0)


def test_options_cannot_be_changed(plain: ModuleType) -> None:
    for options in (plain.RK4(), plain.Dopri5(), plain.Adjoint(), plain.Checkpoint()):
        for name in ("steps", "rtol", "every", "order", "name"):
            if hasattr(options, name):
                with pytest.raises(AttributeError):
                    setattr(options, name, 2)
