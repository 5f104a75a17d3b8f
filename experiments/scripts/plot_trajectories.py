"""Draw the latent trajectories of held-out samples under the transformations of a run.

Example: python experiments/scripts/plot_trajectories.py runs/demo --images 24
"""

import argparse
import sys
from pathlib import Path

import torch

import flowfactor
from experiments.runs import load_measured, read_run_config
from flowfactor.data import round_robin
from flowfactor.diagnostics import plot_trajectories, save
from flowfactor.errors import FlowFactorError
from solvers import SolverError


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, as `flowfactor train` writes it")
    parser.add_argument(
        "--transformation",
        nargs="+",
        metavar="NAME",
        help="which ones (default: all of the model)",
    )
    parser.add_argument("--images", type=int, default=16, help="how many digits (default: 16)")
    parser.add_argument(
        "--last", type=float, metavar="T", help="the last time in frames (default: the model's)"
    )
    parser.add_argument("--out", type=Path, help="a .png, .pdf or .svg file (default: in the run)")
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f"--images must be at least 1, not {options.images}")
    return options


def main() -> Path:
    """Load, trace, draw, save."""
    options = arguments()
    model = flowfactor.load(options.run)
    config = read_run_config(options.run)
    data = load_measured(config, config.evaluation.split, model)
    chosen = torch.arange(options.images)
    # Frame 0 is the digit before any transformation.
    images = data.sample(chosen, round_robin(data, chosen)).frames[:, 0]
    figure = plot_trajectories(model, images, names=options.transformation, horizon=options.horizon)
    return save(figure, options.out or options.run / "figures" / "trajectories.png")


if __name__ == "__main__":
    try:
        print(f"The trajectories are in {main()}")
    except (FlowFactorError, SolverError, ValueError) as error:
        print(f"Error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
