"""Time an integration and its gradients, by this project and by its peers, in one run.

    python -m experiments.benchmarks.solver_speed [--out FILE] [--quick]

The flow of a ridge potential that moves in time, B = 128 latents of size D = 48, H = 256 ridges,
float32, over t in [0, 8] with states at t = 0, 1, .., 8, all of which enter the loss; gradients by
the initial state and all parameters; with the log-density in the state, and without. ``rk4`` is the
3/8 rule with a step between two times; ``dopri5`` and ``tsit5`` have rtol 1e-5 and atol 1e-6.
Before anything is timed every case must give the states and gradients of a reference in float64, or
the run fails.
What is compiled is compiled beforehand. The cases then take turns, round after round; what counts
are the ratios of medians.

A peer that is not installed is left out: ``pip install 'flowfactor[peers]'``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from experiments import environment
from experiments.benchmarks import peers
from experiments.benchmarks.peers import ATOL, RTOL, Build, MissingPeerError, Run
from experiments.benchmarks.ridge_flow import Outcome, RidgeFlow, Size, distances, matrix_products
from experiments.benchmarks.solver_figures import draw_ratios
from experiments.benchmarks.solver_tables import tabulate_speed
from experiments.benchmarks.timing import Timing, positive, timings, use_threads
from experiments.runs import write_json
from flowfactor.diagnostics.io import save
from solvers import Adjoint, Checkpoint, Dopri5, Tsit5

OURS = "ours"

CASES: dict[str, dict[str, Build]] = {
    "rk4": {
        OURS: peers.ours(),
        "ours, Checkpoint(1)": peers.ours(Checkpoint(every=1)),
        "ours, Adjoint": peers.ours(Adjoint()),
        "ours, torch.compile": peers.ours_compiled("inductor"),
        "ours, torch.compile, backend of solvers": peers.ours_compiled(),
        "loop by hand": peers.hand_written,
        "torchdiffeq": peers.by_torchdiffeq(),
        "torchdiffeq, adjoint": peers.by_torchdiffeq(adjoint=True),
        "torchdiffeq, nested autograd": peers.by_torchdiffeq(),
        "torchdyn": peers.by_torchdyn("rk4"),
        "torchode": peers.by_torchode("rk4"),
        "diffrax (jit)": peers.by_diffrax("rk4"),
        "diffrax (jit), DirectAdjoint": peers.by_diffrax("rk4", direct=True),
        "jax.lax.scan (jit)": peers.by_jax_scan,
    },
    "dopri5": {
        OURS: peers.ours(method=Dopri5()),
        "ours, interpolated": peers.ours(method=Dopri5(interpolate=True)),
        "ours, compiled": peers.ours(method=Dopri5(compile=True)),
        "ours, interpolated, compiled": peers.ours(method=Dopri5(interpolate=True, compile=True)),
        "ours, per sample": peers.ours(method=Dopri5(), per_sample=True),
        "ours, per sample, interpolated": peers.ours(
            method=Dopri5(interpolate=True), per_sample=True
        ),
        "ours, per sample, interpolated, compiled": peers.ours(
            method=Dopri5(interpolate=True, compile=True), per_sample=True
        ),
        "torchdiffeq": peers.by_torchdiffeq("dopri5"),
        "torchdyn": peers.by_torchdyn("dopri5"),
        "torchode (per sample)": peers.by_torchode("dopri5"),
        "diffrax (jit)": peers.by_diffrax("dopri5"),
        "diffrax (jit), DirectAdjoint": peers.by_diffrax("dopri5", direct=True),
    },
    "tsit5": {
        OURS: peers.ours(method=Tsit5()),
        "ours, interpolated": peers.ours(method=Tsit5(interpolate=True)),
        "ours, compiled": peers.ours(method=Tsit5(compile=True)),
        "ours, interpolated, compiled": peers.ours(method=Tsit5(interpolate=True, compile=True)),
        "diffrax (jit)": peers.by_diffrax("tsit5"),
    },
}

# Relative distances of states and of gradients (Euclidean norms) beyond which a case fails. The
# continuous adjoint is another gradient: it has the error of a second integration.
TOLERANCES = {
    "rk4": (1e-5, 1e-4),
    "adjoint": (1e-5, 5e-2),
    "dopri5": (1e-3, 1e-2),
    "tsit5": (1e-3, 1e-2),
}


def references(density: bool) -> dict[str, Outcome]:
    """Return what is exact for a method: the same steps in float64, or a tight tolerance."""
    flow = RidgeFlow(density=density, dtype=torch.float64)
    outcome = peers.by_torchdiffeq("dopri8")(flow)(1e-10, 1e-11)
    return {"rk4": peers.by_torchdiffeq()(flow)(), "dopri5": outcome, "tsit5": outcome}


def prepare(
    method: str, density: bool, reference: dict[str, Outcome]
) -> tuple[dict[str, Run], dict[str, dict[str, Any]]]:
    """Build the cases of a method, compile, and check them.

    Returns:
        The runs, and what is known of each case before it is timed; of a case that could not be
        built, the reason under ``skipped``.

    Raises:
        SystemExit: a case is wrong.
    """
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, build in CASES[method].items():
        flow = RidgeFlow(density=density, nested="nested" in name)
        begin = time.perf_counter()
        try:
            run = build(flow)
            outcome = run()
        except (MissingPeerError, torch._dynamo.exc.TorchDynamoException) as error:
            reason = str(error).strip().partition("\n")[0]
            print(f"  {name}: left out. {reason}")
            facts[name] = {"skipped": reason}
            continue
        first = time.perf_counter() - begin
        found = distances(outcome, reference[method])
        _check(name, method, found)
        facts[name] = {"first run, seconds": first, "from the reference": found}
        if "compile" not in name:  # a counter cannot be compiled
            counting = flow.counting()
            build(counting)()
            facts[name]["evaluations"] = counting.forward
            facts[name]["evaluations with gradients"] = counting.evaluations
        runs[name] = run
    return runs, facts


def _check(name: str, method: str, found: dict[str, float]) -> None:
    kind = "adjoint" if "adjoint" in name.lower() and "Direct" not in name else method
    for what, allowed in zip(("states", "gradients"), TOLERANCES[kind], strict=True):
        if not found[what] <= allowed:
            raise SystemExit(
                f"{method}, {name}: the {what} are {found[what]:.1e} from the reference (relative "
                f"norm), more than the {allowed:.0e} allowed; nothing was timed"
            )


def compare(density: bool, rounds: int) -> dict[str, Any]:
    """Check and time all cases with or without density; return times, ratios and checks."""
    reference = references(density)
    result: dict[str, Any] = {
        "rk4 in float64 from the exact flow": distances(reference["rk4"], reference["dopri5"])
    }
    prepared = {method: prepare(method, density, reference) for method in CASES}
    floor = matrix_products(RidgeFlow(density=density))
    together = {(m, name): run for m, (runs, _) in prepared.items() for name, run in runs.items()}
    times = timings(
        {"products": floor} | {f"{m}: {n}": run for (m, n), run in together.items()},
        rounds,
        pause=0.01,
    )
    result["matrix products of rk4"] = _plain(times["products"])
    for method, (_, facts) in prepared.items():
        base = times[f"{method}: {OURS}"].median
        result[method] = {}
        for name, known in facts.items():
            timing = times.get(f"{method}: {name}")
            if timing is not None:
                known = _plain(timing) | {"relative to ours": timing.median / base} | known
            result[method][name] = known
    return result


def _plain(timing: Timing) -> dict[str, Any]:
    return {
        "milliseconds": timing.median,
        "quartiles": [timing.low, timing.high],
        "fastest": timing.fastest,
    }


def show(result: dict[str, Any]) -> None:
    """Print the cases of one setting as a table."""
    print(f"  matrix products alone: {result['matrix products of rk4']['milliseconds']:.2f} ms")
    header = ("", "ms", "ratio", "evaluations", "states", "gradients")
    print("  {:<38}{:>8}{:>8}{:>14}{:>10}{:>11}".format(*header))
    for method in CASES:
        for name, known in result[method].items():
            title = f"{method}: {name}"
            if "skipped" in known:
                print(f"  {title:<38}{'left out':>8}")
                continue
            off = known["from the reference"]
            counts = (known.get("evaluations", "?"), known.get("evaluations with gradients", "?"))
            print(
                f"  {title:<38}{known['milliseconds']:>8.2f}{known['relative to ours']:>8.2f}"
                f"{'{} / {}'.format(*counts):>14}{off['states']:>10.0e}{off['gradients']:>11.0e}"
            )


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark; write its JSON and the figure of its ratios."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("experiments.benchmarks.solver_speed", description=description)
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "solver_speed.json")
    parser.add_argument("--rounds", type=positive, default=15, help="of timing (default 15)")
    parser.add_argument("--threads", type=positive, default=2, help="to compute on (default 2)")
    parser.add_argument("--quick", action="store_true", help="5 rounds: to see that it works")
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    rounds = 5 if arguments.quick else arguments.rounds

    size = Size()
    result: dict[str, Any] = {
        "sizes": {"B": size.batch, "D": size.dim, "H": size.width, "steps of rk4": size.steps},
        "times": "0, 1, .., 8; the states at all of them are in the loss",
        "tolerances of dopri5": {"rtol": RTOL, "atol": ATOL},
        "rounds": rounds,
    }
    for title, density in (("with log-density", True), ("without log-density", False)):
        print(f"{title}:")
        result[title] = compare(density, rounds)
        show(result[title])
    result |= environment.origin()
    result["peers"] = peers.versions()
    result["tables"] = tabulate_speed(result)
    write_json(arguments.out, result)
    figure = save(draw_ratios(result), arguments.out.with_suffix(".png"), dpi=300)
    print(f"written: {arguments.out}, {figure}")


if __name__ == "__main__":
    main()
