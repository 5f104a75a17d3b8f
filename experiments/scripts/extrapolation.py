"""Measure and draw the flows of a run beyond its last frame T, or on data that it has never seen.

Writes extrapolation.json, extrapolation_errors.png (the error of each frame up to 2 T, where the
data goes on as long) and extrapolation_strips.png, and prints the table.

Examples:
    python experiments/scripts/extrapolation.py runs/demo
    python experiments/scripts/extrapolation.py runs/demo --data mnist --set data.horizon=12
    python experiments/scripts/extrapolation.py runs/without_nines --held-out
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

import flowfactor
from experiments import environment
from experiments.cli import extrapolation_table
from experiments.config import read_config
from experiments.explore import different_samples
from experiments.generalization import extrapolation
from experiments.plots import FIGURES
from experiments.runs import load_measured, read_run_config, write_json
from flowfactor.data import samples_undergoing
from flowfactor.diagnostics import plot_errors, plot_film_strips, save
from flowfactor.errors import DataError, FlowFactorError
from flowfactor.metrics.equivariance import check_comparable
from solvers import SolverError


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, as `flowfactor train` writes it")
    parser.add_argument(
        "--images", type=int, default=200, help="at most how many to measure on (default: 200)"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first that is drawn")
    parser.add_argument(
        "--data",
        metavar="CONFIG",
        help="take the data of another configuration (a YAML file, or one that ships); its "
        "transformations and its images' shape must be those of the run",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        metavar="KEY.PATH=VALUE",
        help="change a key of --data; may be repeated",
    )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="take what the configuration keeps from training: digits or values of a grid",
    )
    parser.add_argument("--out", type=Path, help="the folder to write to (default: in the run)")
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f"--images must be at least 1, not {options.images}")
    if options.overrides and options.data is None:
        parser.error("--set changes keys of another configuration: name it by --data")
    if options.first < 0:
        parser.error(f"--first must be at least 0, not {options.first}")
    return options


def main() -> Path:
    """Load, measure, print, draw, save."""
    options = arguments()
    model = flowfactor.load(options.run)
    config = read_run_config(options.run)
    if options.data is not None:
        config = read_config(options.data, options.overrides)[1]
    split = config.evaluation.split
    data = load_measured(config, split, model, held_out=options.held_out)
    check_comparable(model, data, 1)
    if options.first >= len(data):
        raise DataError(f"--first must be in 0..{len(data) - 1}, not {options.first}.")

    indices = different_samples(data, min(options.images, len(data))).sort().values
    result = extrapolation(model, data, indices)
    Console().print(extrapolation_table(result))
    curves = {
        name: {
            "flow": error["per_frame"],
            "identity": error["identity_per_frame"],
            "floor": error["floor_per_frame"],
        }
        for name, error in result["errors"].items()
    }
    errors = plot_errors(curves, horizon=model.horizon)

    longer = data.with_last(result["last"])
    shown = [
        (int(able[(options.first + k) % len(able)]), k)
        for k in range(len(data.names))
        for able in [samples_undergoing(longer, k)]
        if len(able)
    ]
    samples, factors = torch.tensor(shown).T
    strips = plot_film_strips(model, longer.sample(samples, factors))
    folder = options.out or options.run / FIGURES
    save(errors, folder / "extrapolation_errors.png")
    path = save(strips, folder / "extrapolation_strips.png")
    write_json(folder / "extrapolation.json", result | environment.origin())
    return path


if __name__ == "__main__":
    try:
        print(f"The strips are in {main()}, curves and numbers beside it")
    except (FlowFactorError, SolverError, ValueError) as error:
        print(f"Error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
