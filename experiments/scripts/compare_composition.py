"""Compare runs by how well their flows compose: a Markdown table, and a JSON file.

Example: python experiments/scripts/compare_composition.py runs/mnist runs/mnist_composition
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import flowfactor
from experiments.generalization import composition
from experiments.runs import (
    TRAINING_FILE,
    frames_measured,
    load_measured,
    read_json,
    read_run_config,
    write_json,
)
from flowfactor.errors import FlowFactorError
from flowfactor.metrics import equivariance_error, mean_error
from solvers import SolverError


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="what to measure on (default: validation, by which models are chosen)",
    )
    parser.add_argument("--images", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--out", type=Path, help="a JSON file to write as well")
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f"--images must be at least 1, not {options.images}")
    return options


def measure(run: Path, split: str, images: int) -> dict[str, Any]:
    """Return the mean errors of a run, and where it comes from."""
    config = read_run_config(run)
    model = flowfactor.load(run)
    data = load_measured(config, split, model)
    indices = torch.arange(min(images, len(data)))
    frames = frames_measured(config, data)
    composed = composition(model, data, indices, frames=frames)
    alone = equivariance_error(model, data, indices, frames=frames)
    either = [each["latent"] for each in composed["commutation"].values()]
    return {
        "training": read_json(run / TRAINING_FILE),
        "split": split,
        "images": len(indices),
        "frames": frames,
        "alone": mean_error(alone),
        **composed["means"],
        "either_order": statistics.mean(either) if either else None,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return runs side by side as a Markdown table."""
    keys = ("alone", "superposition", "switching", "reversal")
    lines = [
        "| run | steps | alone | at once | in turn | backwards | either order |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, each in found.items():
        cells = " | ".join("" if each[key] is None else f"{each[key]:.1f}" for key in keys)
        order = "" if each["either_order"] is None else f"{each['either_order']:.2f}"
        lines.append(f"| {name} | {each['training']['steps']:,} | {cells} | {order} |")
    return "\n".join(lines)


def main() -> str:
    """Load, measure, write; return the table."""
    options = arguments()
    for run in options.runs:  # a wrong name is found before anything is measured
        read_run_config(run)
    found = {run.name: measure(run, options.split, options.images) for run in options.runs}
    if options.out is not None:
        write_json(options.out, found)
    return table(found)


if __name__ == "__main__":
    try:
        print(main())
    except (FlowFactorError, SolverError, ValueError) as error:
        print(f"Error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
