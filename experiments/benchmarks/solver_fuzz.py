"""Random problems against matrix exponentials and SciPy: is any error silent?

Run with ``python -m experiments.benchmarks.solver_fuzz --problems 10000``; every problem follows
from the seed and its number.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from experiments import environment
from experiments.benchmarks.solver_tables import tabulate_fuzz
from experiments.runs import write_json
from solvers import (
    RK4,
    AdaptiveHeun,
    Adjoint,
    Bosh3,
    Checkpoint,
    Direct,
    Dopri5,
    Dopri8,
    Gradient,
    Method,
    SolverError,
    State,
    Tsit5,
    solve,
)

RESULT = Path(__file__).parent / "results" / "solver_fuzz.json"
ALLOWED = 100.0
"""An error above so many times the tolerance (and the rounding of the dtype) is wrong."""

ADAPTIVE = (Dopri5, Tsit5, Bosh3, Dopri8, AdaptiveHeun)


def check_problem(seed: int, number: int) -> dict[str, Any]:
    """Solve one problem, and return what it was and its errors in units of the tolerance."""
    rng = np.random.default_rng([seed, number])
    batch, size = int(rng.integers(1, 4)), int(rng.integers(1, 7))
    dtype = torch.float64 if rng.random() < 0.7 else torch.float32
    span = float(rng.choice([0.3, 1.0, 3.0])) * float(rng.choice([-1.0, 1.0]))
    ts = np.sort(rng.random(int(rng.integers(0, 4))))
    ts = float(rng.normal()) + span * np.concatenate([[0.0], 0.05 + 0.9 * ts, [1.0]])
    matrix = rng.normal(size=(size, size)) / math.sqrt(size)
    nonlinear = rng.random() < 0.3
    tolerance = 10.0 ** -float(rng.integers(3, 10 if dtype == torch.float64 else 6))
    kind = ADAPTIVE[int(rng.integers(len(ADAPTIVE)))]
    if kind in (AdaptiveHeun, Bosh3):
        tolerance = max(tolerance, 1e-6 if kind is Bosh3 else 1e-4)
    fixed = rng.random() < 0.2
    method: Method = RK4(steps=200) if fixed else kind(rtol=tolerance, atol=tolerance)
    tolerance = max(tolerance, 1e-8) if fixed else tolerance
    per_sample = not fixed and rng.random() < 0.3
    chosen = (Direct(), Checkpoint(int(rng.integers(1, 9))), Adjoint())[int(rng.integers(3))]
    gradient: Gradient = Direct() if per_sample else chosen
    passes = not fixed and kind.tableau.first_same_as_last and not isinstance(gradient, Checkpoint)
    passes = passes and rng.random() < 0.3
    if passes:
        method = kind(rtol=tolerance, atol=tolerance, interpolate=True)
    weight = torch.tensor(matrix, dtype=dtype, requires_grad=True)
    z0 = torch.tensor(rng.normal(size=(batch, size)), dtype=dtype, requires_grad=True)
    times = torch.tensor(ts, dtype=dtype)
    weights = torch.tensor(rng.normal(size=(batch, size)))

    def field(_t: Tensor, z: State) -> Tensor:
        assert isinstance(z, Tensor)
        return torch.tanh(z @ weight) if nonlinear else z @ weight

    what = f"{kind.__name__ if not fixed else 'RK4'}, {type(gradient).__name__}"
    what += ", per sample" if per_sample else ""
    what += ", interpolated" if passes else ""
    facts: dict[str, Any] = {"number": number, "what": what, "tolerance": tolerance}
    try:
        ys = solve(
            field, z0, times, method, gradient, parameters=(weight,), per_sample=per_sample
        ).ys
        assert isinstance(ys, Tensor)
        found = torch.autograd.grad((ys[-1].double() * weights).sum(), (z0, weight))
    except SolverError as error:
        return {**facts, "status": error.status.value}
    wanted, exact = _solve_exactly(z0, weight, times.double(), weights, nonlinear)
    unit = max(tolerance, 30 * torch.finfo(dtype).eps)
    pairs = [(ys, wanted), *zip(found, exact, strict=True)]
    errors = [
        float((a.detach().double() - b).abs().max() / (unit * (1 + b.abs().max())))
        for a, b in pairs
    ]
    # Errors of an integration grow as differences of its solutions do.
    growth = math.exp(float(torch.linalg.matrix_norm(weight.detach().double(), 2)) * abs(span))
    return {**facts, "status": "success", "errors": errors, "growth": growth}


def _solve_exactly(
    z0: Tensor, weight: Tensor, times: Tensor, weights: Tensor, nonlinear: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the states at all times, and the gradients of the last by start and weight."""
    start, w = (x.detach().double().requires_grad_() for x in (z0, weight))
    if not nonlinear:
        rows = torch.stack([start @ torch.linalg.matrix_exp(w * (t - times[0])) for t in times])
        return rows.detach(), torch.autograd.grad((rows[-1] * weights).sum(), (start, w))
    b, d = start.shape
    a = w.detach().numpy()

    def forward(_t: float, y: np.ndarray) -> np.ndarray:
        return np.tanh(y.reshape(b, d) @ a).ravel()

    def backward(_t: float, y: np.ndarray) -> np.ndarray:
        z, adjoint = y[: b * d].reshape(b, d), y[b * d : 2 * b * d].reshape(b, d)
        slope = np.tanh(z @ a)
        inner = adjoint * (1 - slope**2)
        return np.concatenate([slope.ravel(), -(inner @ a.T).ravel(), -(z.T @ inner).ravel()])

    options: dict[str, Any] = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
    t = times.numpy()
    there = solve_ivp(
        forward, (t[0], t[-1]), start.detach().numpy().ravel(), t_eval=t, **options
    ).y.T.reshape(len(t), b, d)
    end = np.concatenate([there[-1].ravel(), weights.numpy().ravel(), np.zeros(d * d)])
    back = solve_ivp(backward, (t[-1], t[0]), end, **options).y[:, -1]
    grads = (back[b * d : 2 * b * d].reshape(b, d), back[2 * b * d :].reshape(d, d))
    return torch.from_numpy(there), (torch.from_numpy(grads[0]), torch.from_numpy(grads[1]))


def run(problems: int, seed: int) -> dict[str, Any]:
    """Return what became of all problems, the worst of each kind, and those that are wrong."""
    statuses: Counter[str] = Counter()
    worst: dict[str, float] = {}
    wrong: list[dict[str, Any]] = []
    grown = 0
    for number in range(problems):
        one = check_problem(seed, number)
        if (number + 1) % 500 == 0:
            print(f"{number + 1} problems, {len(wrong)} wrong", flush=True)
        statuses[one["status"]] += 1
        if one["status"] != "success":
            continue
        found = max(one["errors"])
        grown += found > ALLOWED
        error = math.inf if math.isnan(found) else found / one["growth"]
        worst[one["what"]] = max(worst.get(one["what"], 0.0), round(error, 2))
        if error > ALLOWED:
            wrong.append(one)
    return {
        "problems": problems,
        "seed": seed,
        "status": dict(statuses),
        "worst_error_in_tolerances": dict(sorted(worst.items())),
        "above_allowed_without_growth": grown,
        "wrong": wrong,
    }


def main() -> None:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    result = run(options.problems, options.seed)
    result["tables"] = tabulate_fuzz(result)
    print(f"{time.perf_counter() - start:.0f} s")
    print(json.dumps(result, indent=2))
    write_json(options.out, result | environment.origin())


if __name__ == "__main__":
    main()
