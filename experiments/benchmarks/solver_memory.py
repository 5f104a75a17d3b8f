"""Measure the peak memory of an integration with gradients, by number of steps and gradient.

    python -m experiments.benchmarks.solver_memory [--out FILE] [--quick]

The flow of ``solver_speed`` with the log-density (B = 128, D = 48, H = 256, float32) from t = 0
to 8 in n steps of rk4. Only the end state is asked for, so that outputs take no memory; the loss is
a linear function of it. Every number is from a process of its own: its largest resident memory
during the integration and the backward pass, less the resident memory before, after a first
integration of 2 steps has loaded what is loaded once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from experiments import environment
from experiments.benchmarks.ridge_flow import LAST, RidgeFlow
from experiments.benchmarks.timing import positive, use_threads
from experiments.runs import write_json
from solvers import RK4, Adjoint, Checkpoint, Direct, Gradient, gradient_from_name, solve, to_dict

STEPS = (10, 100, 1000)
GRADIENTS: tuple[Gradient, ...] = (
    Direct(),
    Checkpoint(every=1),
    Checkpoint(every=10),
    Checkpoint(every=32),
    Checkpoint(every=100),
    Adjoint(),
)


def integrate(flow: RidgeFlow, steps: int, gradient: Gradient) -> None:
    """Integrate to the end and differentiate."""
    solution = solve(
        flow.field(),
        flow.start(),
        [0.0, LAST],
        RK4(steps=steps),
        gradient,
        parameters=flow.inputs[1:],
    )
    z, log_det = solution.ys
    loss = (z[-1] * flow.weights[-1, :, :-1]).sum() + (log_det[-1] * flow.weights[-1, :, -1]).sum()
    torch.autograd.grad(loss, flow.inputs)


def measure_here(steps: int, gradient: Gradient) -> dict[str, float]:
    """Return MiB and seconds of one integration, in a process that has done nothing else."""
    flow = RidgeFlow()
    integrate(flow, 2, gradient)
    _return_freed_memory()
    before = _forget_peak()
    begin = time.perf_counter()
    integrate(flow, steps, gradient)
    seconds = time.perf_counter() - begin
    return {"MiB": (_peak() - before) / 2**20, "seconds": seconds}


def measure(steps: int, gradient: Gradient, threads: int) -> dict[str, float]:
    """Return MiB and seconds of one integration in a fresh process.

    Raises:
        SystemExit: the process failed; what it said is shown.
    """
    order = json.dumps({"steps": steps, "gradient": to_dict(gradient), "threads": threads})
    program = [sys.executable, "-m", "experiments.benchmarks.solver_memory", "--one", order]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{_name(gradient)} with {steps} steps failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(result: dict[str, Any]) -> str:
    """Return the numbers as a table in Markdown."""
    steps = result["steps"]
    lines = [
        "| gradient | " + " | ".join(f"{n} steps" for n in steps) + " |",
        "|:---|" + "---:|" * len(steps),
    ]
    for name, row in result["gradients"].items():
        cells = [
            f"{row[str(n)]['MiB']:.1f} MiB, {row[str(n)]['seconds']:.2f} s" if str(n) in row else ""
            for n in steps
        ]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its JSON."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        "experiments.benchmarks.solver_memory", description=description
    )
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "solver_memory.json")
    parser.add_argument("--threads", type=positive, default=2, help="to compute on (default 2)")
    parser.add_argument("--quick", action="store_true", help="10 and 100 steps only")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one is not None:
        use_threads(arguments.one["threads"])
        gradient = gradient_from_name(**arguments.one["gradient"])
        print(json.dumps(measure_here(arguments.one["steps"], gradient)))
        return

    steps = STEPS[:2] if arguments.quick else STEPS
    result: dict[str, Any] = {"steps": steps, "gradients": {}}
    for gradient in GRADIENTS:
        row = result["gradients"][_name(gradient)] = {}
        for n in steps:
            if isinstance(gradient, Checkpoint) and gradient.every > n:
                continue  # one segment, as with all larger ones
            row[str(n)] = measure(n, gradient, arguments.threads)
    result |= environment.origin()
    write_json(arguments.out, result)
    print(table(result))
    print(f"written: {arguments.out}")


def _name(gradient: Gradient) -> str:
    every = gradient.every if isinstance(gradient, Checkpoint) else ""
    return f"{type(gradient).__name__}({every})"


def _return_freed_memory() -> None:
    """Give memory that is free within the process back to the system, where glibc is used."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _forget_peak() -> int:
    """Let the largest resident memory start anew, where the system can; return the present one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else 1024 * largest


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
