"""Count what adaptive methods need on potentials, and whether these are stiff.

    python -m experiments.benchmarks.solver_stiffness [--out FILE]

Flows of latents over t in [0, 8] by the potentials of a model that ships, and by random
ridge potentials, drawn as before training and with coefficients up to 16 times as large, beyond
what training makes of them. A problem is stiff for an explicit method if stability, and not
accuracy, asks for its steps. For each potential:

- the largest ``|eigenvalue of the Hessian|`` times the length of the interval, over 16 latents and
  9 times each, and the evaluations that stability alone would ask of ``Dopri5``: its interval of
  stability on the negative axis is 3.3 long;
- the evaluations and the largest relative error of explicit methods for tolerances of 1e-3 to
  1e-7, by the default step-size control and by PI control. If stability decided, the evaluations
  would not depend on the tolerance.

And the evaluations by either control on the 25 problems of DETEST, relative to the default one, as
they are and for equal error (an error smaller by ``e`` is worth ``e^(1/p)`` evaluations).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowfactor
from experiments import environment
from experiments.benchmarks.timing import use_threads
from experiments.runs import write_json
from flowfactor.data import Sprites
from flowfactor.potentials import Potential, RidgePotential
from solvers import AdaptiveMethod, Dopri5, Dopri8, SolverError, Tsit5, solve

ROOT = Path(__file__).parents[2]
LAST, LATENTS = 8.0, 16
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
METHODS: tuple[type[AdaptiveMethod], ...] = (Dopri5, Tsit5)
CONTROLLERS = {"default": (1.0, 0.0), "PI": (0.7, 0.4), "PI, weak": (0.85, 0.2)}
STABLE = 3.3  # the length of Dopri5's interval of stability


def potentials() -> dict[str, tuple[Potential, Tensor]]:
    """Return potentials and latents to start from, by name."""
    model = flowfactor.load("sprites").double()
    assert isinstance(model, flowfactor.FlowVAE)
    data = model.match_precision(Sprites(LATENTS, split="test", size=32))
    with torch.no_grad():
        z0 = model.represent(data.sample(range(LATENTS)).frames[:, 0])
    cases: dict[str, tuple[Potential, Tensor]] = {
        f"sprites, {name}": (model.potentials[name].gradient_part, z0) for name in model.names
    }
    for scale in (1, 4, 16):
        torch.manual_seed(0)
        for rank in (0, 8):
            bank = RidgePotential(["u"], 48, 256, horizon=LAST, rank=rank).double()
            title = f"random, coefficients x {scale}" + f", {rank} squares" * (rank > 0)
            cases[title] = (scale * bank["u"], torch.randn(LATENTS, 48, dtype=torch.float64))
    return cases


def largest_rate(u: Potential, path: Tensor, times: list[float]) -> float:
    """Return the largest ``|eigenvalue of the Hessian|`` along a path."""
    values = (torch.linalg.eigvalsh(u.hessian(z, t)) for z, t in zip(path, times, strict=True))
    return max(float(each.abs().max()) for each in values)


@torch.no_grad()
def measure(u: Potential, z0: Tensor) -> dict[str, Any]:
    """Return what one potential needs."""

    def field(t: Tensor, z: Any) -> Any:
        return u.gradient(z, t)

    times = torch.linspace(0.0, LAST, 9).tolist()
    path = solve(field, z0, times, Dopri8(1e-12, 1e-12)).ys
    assert isinstance(path, Tensor)
    rate = largest_rate(u, path, times)
    result: dict[str, Any] = {
        "eigenvalue x length": rate * LAST,
        "evaluations for stability, dopri5": math.ceil(
            Dopri5.tableau.stages * rate * LAST / STABLE
        ),
    }
    for kind in METHODS:
        for name, controller in CONTROLLERS.items():
            for tolerance in TOLERANCES:
                method = kind(tolerance, tolerance, controller=controller)
                solution = solve(field, z0, [0.0, LAST], method)
                assert isinstance(solution.ys, Tensor)
                error = (solution.ys[-1] - path[-1]).abs().max() / path[-1].abs().max()
                result[f"{kind.__name__}, {name}, {tolerance:g}"] = {
                    "evaluations": solution.stats.evaluations,
                    "rejected": solution.stats.rejected,
                    "error": float(error),
                }
    return result


def detest() -> dict[str, dict[str, float]]:
    """Return the evaluations on DETEST's problems, relative to those by the default control."""
    path = ROOT / "tests" / "solvers" / "detest.py"
    spec = importlib.util.spec_from_file_location("detest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["detest"] = module
    spec.loader.exec_module(module)
    result = {}
    for kind in METHODS:
        for tolerance in TOLERANCES[::2]:
            runs = {
                name: [
                    _run(problem, module, kind(tolerance, tolerance, 50_000, controller=controller))
                    for problem in module.PROBLEMS
                ]
                for name, controller in CONTROLLERS.items()
            }
            for name, found in runs.items():
                pairs = [(a, b) for a, b in zip(found, runs["default"], strict=True) if a and b]
                plain = [a[0] / b[0] for a, b in pairs]
                order = kind.tableau.order
                equal = [a[0] / b[0] * (a[1] / b[1]) ** (1 / order) for a, b in pairs]
                result[f"{kind.__name__}, {name}, {tolerance:g}"] = {
                    "evaluations": sum(a[0] for a, _ in pairs),
                    "relative": _geometric_mean(plain),
                    "relative, for equal error": _geometric_mean(equal),
                }
    return result


def _run(problem: Any, module: Any, method: AdaptiveMethod) -> tuple[int, float] | None:
    try:
        solution = solve(problem.field, problem.z0, module.OUTPUTS.tolist(), method)
    except SolverError:
        return None
    assert isinstance(solution.ys, Tensor)
    exact = torch.from_numpy(module.reference(problem))
    return solution.stats.evaluations, float((solution.ys - exact).abs().max()) + 1e-14


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main(argv: list[str] | None = None) -> None:
    """Run the measurement and write its JSON."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        "experiments.benchmarks.solver_stiffness", description=description
    )
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "solver_stiffness.json")
    arguments = parser.parse_args(argv)
    use_threads(1)
    measured = {}
    for name, (u, z0) in potentials().items():
        found = measured[name] = measure(u, z0)
        counts = [
            found[f"Dopri5, default, {tolerance:g}"]["evaluations"] for tolerance in TOLERANCES
        ]
        print(
            f"{name:<36}{found['eigenvalue x length']:8.1f}"
            f"{found['evaluations for stability, dopri5']:6d}  {counts}"
        )
    problems = detest()
    for name, each in problems.items():
        print(f"{name:<28}{each}")
    command = "python -m experiments.benchmarks.solver_stiffness"
    write_json(
        arguments.out,
        {
            "potentials": measured,
            "DETEST": problems,
            "controllers": CONTROLLERS,
            "command": command,
            "environment": environment.describe(),
        },
    )


if __name__ == "__main__":
    main()
