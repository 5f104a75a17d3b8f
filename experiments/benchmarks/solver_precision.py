"""Error beside time: the integration of ``solver_speed`` at several tolerances, by all peers.

    python -m experiments.benchmarks.solver_precision [--out FILE] [--quick]

The flow with its log-density and all gradients, in float64, ``rtol = atol`` from 1e-3 to 1e-9, by
adaptive methods of order 5. Errors are those of states and gradients, relative (Euclidean norms),
from a reference of order 8 at 1e-12. Cases take turns, as in ``solver_speed``.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments import environment
from experiments.benchmarks import peers
from experiments.benchmarks.peers import Build, MissingPeerError, Run
from experiments.benchmarks.ridge_flow import RidgeFlow, distances
from experiments.benchmarks.solver_figures import draw_precision
from experiments.benchmarks.solver_tables import tabulate_precision
from experiments.benchmarks.timing import positive, timings, use_threads
from experiments.runs import write_json
from flowfactor.diagnostics.io import save
from solvers import Dopri5, Dopri8, Tsit5

TOLERANCES = tuple(10.0**-i for i in range(3, 10))

CASES: dict[str, Build] = {
    "ours": peers.ours(method=Dopri5()),
    "ours, compiled": peers.ours(method=Dopri5(compile=True)),
    "ours, interpolated, compiled": peers.ours(method=Dopri5(interpolate=True, compile=True)),
    "ours, tsit5, compiled": peers.ours(method=Tsit5(compile=True)),
    "ours, per sample": peers.ours(method=Dopri5(), per_sample=True),
    "ours, per sample, interpolated": peers.ours(method=Dopri5(interpolate=True), per_sample=True),
    "ours, per sample, interpolated, compiled": peers.ours(
        method=Dopri5(interpolate=True, compile=True), per_sample=True
    ),
    "torchdiffeq": peers.by_torchdiffeq("dopri5"),
    "torchdyn": peers.by_torchdyn("dopri5"),
    "torchode (per sample)": peers.by_torchode("dopri5"),
    "diffrax (jit)": peers.by_diffrax("dopri5", max_steps=256),
    "diffrax (jit), tsit5": peers.by_diffrax("tsit5", max_steps=256),
}


def measure(rounds: int) -> dict[str, Any]:
    """Return errors and times of all cases at all tolerances."""
    reference = peers.ours(method=Dopri8())(RidgeFlow(dtype=torch.float64))(1e-12, 1e-12)
    result: dict[str, Any] = {}
    runs: dict[tuple[str, float], Run] = {}
    for name, build in CASES.items():
        flow = RidgeFlow(dtype=torch.float64)
        try:
            run = build(flow)
            found = [distances(run(tol, tol), reference) for tol in TOLERANCES]
        except (MissingPeerError, torch._dynamo.exc.TorchDynamoException) as error:
            result[name] = {"skipped": str(error).strip().partition("\n")[0]}
            continue
        result[name] = {what: [one[what] for one in found] for what in ("states", "gradients")}
        runs |= {(name, tol): partial(run, tol, tol) for tol in TOLERANCES}
    times = timings({f"{name} {tol}": run for (name, tol), run in runs.items()}, rounds, pause=0.01)
    for name, known in result.items():
        if "skipped" not in known:
            known["milliseconds"] = [times[f"{name} {tol}"].median for tol in TOLERANCES]
    return result


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark; write its JSON and its figure."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        "experiments.benchmarks.solver_precision", description=description
    )
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "solver_precision.json")
    parser.add_argument("--rounds", type=positive, default=5, help="of timing (default 5)")
    parser.add_argument("--threads", type=positive, default=2, help="to compute on (default 2)")
    parser.add_argument("--quick", action="store_true", help="1 round: to see that it works")
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    rounds = 1 if arguments.quick else arguments.rounds
    result: dict[str, Any] = {"tolerances": TOLERANCES, "rounds": rounds, "cases": measure(rounds)}
    result["tables"] = tabulate_precision(result)
    result |= environment.origin()
    result["peers"] = peers.versions()
    write_json(arguments.out, result)
    for row in result["tables"]["precision"]:
        print("{:<40}{:>10}{:>10}{:>10}".format(*row))
    figure = save(draw_precision(result), arguments.out.with_suffix(".png"), dpi=300)
    print(f"written: {arguments.out}, {figure}")


if __name__ == "__main__":
    main()
