"""Two processes against one: losses, the error at the end, and what happens if one is killed.

    python -m experiments.benchmarks.processes --out FILE.json

Trains the configuration ``demo`` for some steps from several seeds, by one process and by two of
torchrun that share the sequences of each step, and measures the error on validation images. A last
training by two is the first one once more, but its second process is killed in the middle. What the
other one says is kept, the run is resumed, and its weights are compared with those of the first.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import flowfactor
from experiments import environment, runs
from experiments.benchmarks.timing import positive
from flowfactor.checkpoints import STATE_FILE
from flowfactor.metrics import Equivariance
from flowfactor.registries import METRICS
from flowfactor.training import read_metrics

BATCH = 96
"""Sequences of a step, whatever the number of processes."""
_SETTINGS: dict[str, Any] = {
    "training.max_minutes": "null",
    "training.validation_errors": 100,
    "training.precision": "32-true",
    "training.threads": 1,
    "training.accelerator": "cpu",
    "training.loggers": "[]",
    "evaluation.split": "validation",
    **{f"evaluation.metrics.{name}": "false" for name in METRICS if name != "equivariance"},
}


def train(run: Path, count: int, seed: int, steps: int, *words: str) -> subprocess.Popen[str]:
    """Begin a training by the command line, and return its first process."""
    often = {
        f"training.{key}": max(1, steps // 10) for key in ("validate_every", "checkpoint_every")
    }
    shares = {"training.batch_size": BATCH // count, "training.steps": steps, "seed": seed}
    changes = (f"--set={key}={value}" for key, value in (_SETTINGS | often | shares).items())
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = ["-m", "experiments.cli", "train", "demo", *changes, f"--out={run}", *words]
    return subprocess.Popen(
        [sys.executable, *(launcher if count > 1 else []), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a training to end well."""
    errors = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"the training has ended: {errors[-2000:]}")


def measure(run: Path) -> dict[str, Any]:
    """Return the validation losses and errors of a training, and the error at the end."""
    lines = [line for line in read_metrics(run) if line["split"] == "validation"]
    evaluation = runs.evaluate(run)
    return {
        "seed": evaluation.training["seed"],
        "steps": [line["step"] for line in lines],
        "losses": [round(line["loss"], 2) for line in lines],
        "errors": [round(line["error"], 1) for line in lines],
        "seconds": round(lines[-1]["seconds"], 1),
        "error_at_the_end": round(evaluation.result(Equivariance).mean_error, 1),
    }


def kill_one(run: Path, count: int, seed: int, steps: int) -> dict[str, Any]:
    """Kill the last process in the middle of a training, resume it, and say what happened."""
    process = train(run, count, seed, steps)
    wait_for(lambda: last_step(run) >= 0.55 * steps and (run / STATE_FILE).is_file())
    os.kill(find_rank(process.pid, count - 1), signal.SIGKILL)
    killed, began = last_step(run), time.monotonic()
    errors = process.communicate()[1]
    seconds = time.monotonic() - began
    said = [line for line in errors.splitlines() if "Another process" in line]
    finish(train(run, count, seed, steps, "--resume"))
    log = (run / runs.LOG_FILE).read_text(encoding="utf-8")
    (resumed,) = (line for line in log.splitlines() if "resumed at step" in line)
    return {
        "last_line_of_the_log_at_step": killed,
        "the_others_ended_after_seconds": round(seconds, 1),
        "exit_code": process.returncode,
        "message": said[0].strip() if said else None,
        "resumed_at_step": int(resumed.partition("resumed at step ")[2].split()[0]),
    }


def find_rank(parent: int, rank: int) -> int:
    """Return the process of torchrun that has some rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8")
    for child in map(int, children.split()):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return child
    raise RuntimeError(f"there is no process of rank {rank}")


def last_step(run: Path) -> int:
    """Return the step of the last line of the log, 0 if there is none."""
    lines = read_metrics(run)
    return int(lines[-1]["step"]) if lines else 0


def wait_for(condition: Callable[[], bool], seconds: float = 1200) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


def same_weights(first: Path, second: Path) -> bool:
    """Return whether two runs have the same model, to the last bit."""
    one, two = (flowfactor.load(run).state_dict() for run in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def tabulate(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the curves, means over seeds with their standard deviations."""
    head = ["step", *(f"{what}, {count}" for what in ("loss", "E") for count in result["by"])]
    rows = []
    for i, step in enumerate(result["by"]["1 process"][0]["steps"]):
        cells = [
            _mean([each[what][i] for each in found])
            for what in ("losses", "errors")
            for found in result["by"].values()
        ]
        rows.append([str(step), *cells])
    ends = [_mean([x["error_at_the_end"] for x in found]) for found in result["by"].values()]
    rows.append(["500 images, at the end", *[""] * len(ends), *ends])
    return {"curves": [head, *rows]}


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    """Do all trainings and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=positive, default=600)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/processes"))
    parser.add_argument("--out", type=Path, default=Path("processes.json"))
    args = parser.parse_args()
    by: dict[str, list[dict[str, Any]]] = {}
    for count, name in ((1, "1 process"), (2, "2 processes")):
        for seed in range(args.seeds):
            run = args.folder / f"{count}_{seed}"
            finish(train(run, count, seed, args.steps))
            by.setdefault(name, []).append(measure(run))
            print(name, by[name][-1])
    run = args.folder / "killed"
    killed = kill_one(run, 2, 0, args.steps)
    killed["same_weights_as_undisturbed"] = same_weights(run, args.folder / "2_0")
    print(killed)
    result = {**environment.origin(), "batch": BATCH, "by": by, "killed": killed}
    result["tables"] = tabulate(result)
    runs.write_json(args.out, result)


if __name__ == "__main__":
    main()
