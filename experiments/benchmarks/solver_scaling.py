"""Time an integration and its gradients against the sizes of the problem.

    python -m experiments.benchmarks.solver_scaling [--out FILE] [--quick]

The flow of ``solver_speed`` by rk4, with the log-density, while one of B (batch), D (latent size),
H (ridges), K (potentials, sample i following potential i mod K) and the number of steps over
[0, 8] varies: by this project, by torchdiffeq called by hand, and by torchdiffeq over nested
autograd where that takes no longer than two seconds. With them the matrix products alone, forward
and backward, in torch on the same threads: what no implementation of the same formulas goes below.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import environment
from experiments.benchmarks import peers
from experiments.benchmarks.ridge_flow import RidgeFlow, Size, distances, matrix_products
from experiments.benchmarks.solver_figures import draw_scaling
from experiments.benchmarks.timing import positive, timings, use_threads
from experiments.runs import write_json
from flowfactor.diagnostics.io import save

OURS, BY_HAND, NESTED, FLOOR = (
    "ours",
    "torchdiffeq",
    "torchdiffeq, nested autograd",
    "matrix products alone",
)

NAMES = (OURS, BY_HAND, NESTED, FLOOR)

SWEEPS: dict[str, tuple[int, ...]] = {
    "batch": (16, 32, 64, 128, 256, 512, 1024),
    "dim": (6, 12, 24, 48, 96, 192),
    "width": (32, 64, 128, 256, 512, 1024),
    "kinds": (3, 6, 12, 24, 48),
    "steps": (2, 4, 8, 16, 32, 64),
}
QUICK: dict[str, tuple[int, ...]] = {name: values[:2] for name, values in SWEEPS.items()}

AFFORDABLE = 2**30
"""Steps * B * D^2 * H up to which nested autograd is timed: about two seconds."""


def measure(size: Size, rounds: int) -> dict[str, float | None]:
    """Return the milliseconds of each case at one size; None for what would take too long.

    Raises:
        SystemExit: two cases do not agree.
    """
    flow = RidgeFlow(size)
    cases: dict[str, Callable[[], Any]] = {
        OURS: peers.ours()(flow),
        BY_HAND: peers.by_torchdiffeq()(flow),
        FLOOR: matrix_products(flow),
    }
    slow: dict[str, Callable[[], Any]] = {}
    if size.kinds <= 12 and size.steps * size.batch * size.dim**2 * size.width <= AFFORDABLE:
        slow[NESTED] = peers.by_torchdiffeq()(RidgeFlow(size, nested=True))
    reference = cases[BY_HAND]()
    for name, run in ({OURS: cases[OURS]} | slow).items():
        off = distances(run(), reference)
        if not (off["states"] < 1e-5 and off["gradients"] < 1e-3):
            raise SystemExit(f"{size}: {name} and {BY_HAND} do not agree: {off}")
    found = timings(cases, rounds) | timings(slow, 2)
    return {name: found[name].median if name in found else None for name in NAMES}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark; write its JSON and its figure."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        "experiments.benchmarks.solver_scaling", description=description
    )
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "solver_scaling.json")
    parser.add_argument("--rounds", type=positive, default=7, help="of timing (default 7)")
    parser.add_argument("--threads", type=positive, default=2, help="to compute on (default 2)")
    parser.add_argument("--quick", action="store_true", help="2 small sizes each, 2 rounds")
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    rounds = 2 if arguments.quick else arguments.rounds

    result: dict[str, Any] = {"sizes": dataclasses.asdict(Size()), "rounds": rounds}
    for name, values in (QUICK if arguments.quick else SWEEPS).items():
        rows = []
        for value in values:
            rows.append(measure(dataclasses.replace(Size(), **{name: value}), rounds))
            shown = (f"{case} {ms:.1f} ms" for case, ms in rows[-1].items() if ms is not None)
            print(f"{name} = {value}:", ", ".join(shown))
        result[name] = {
            "values": values,
            "milliseconds": {case: [row[case] for row in rows] for case in NAMES},
        }
    result |= environment.origin()
    result["peers"] = peers.versions()
    write_json(arguments.out, result)
    figure = save(draw_scaling(result), arguments.out.with_suffix(".png"), dpi=300)
    print(f"written: {arguments.out}, {figure}")


if __name__ == "__main__":
    main()
