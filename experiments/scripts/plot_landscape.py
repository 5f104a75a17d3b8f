"""Draw the landscape of a run's potential, with decoded trajectories of held-out samples over it.

Example: python experiments/scripts/plot_landscape.py runs/demo --transformation rotation
"""

import argparse
import sys
from pathlib import Path

import torch

import flowfactor
from experiments.runs import load_measured, read_run_config
from flowfactor.data import round_robin
from flowfactor.diagnostics import plot_landscape, save
from flowfactor.errors import FlowFactorError
from solvers import SolverError


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, as `flowfactor train` writes it")
    parser.add_argument("--transformation", metavar="NAME", help="default: the model's first")
    parser.add_argument("--images", type=int, default=1, help="how many digits (default: 1)")
    parser.add_argument("--first", type=int, default=0, help="number of the first digit")
    parser.add_argument(
        "--times",
        type=float,
        nargs="+",
        metavar="T",
        help="times of the potential in frames, one panel each (default: first, middle, last)",
    )
    parser.add_argument("--descent", action="store_true", help="arrows show -grad u, not grad u")
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
    name = options.transformation or model.names[0]
    chosen = torch.arange(options.first, options.first + options.images)
    # Frame 0 is the digit before any transformation.
    images = data.sample(chosen, round_robin(data, chosen)).frames[:, 0]
    figure = plot_landscape(
        model, images, name, times=options.times, arrows="descent" if options.descent else "ascent"
    )
    return save(figure, options.out or options.run / "figures" / f"landscape_{name}.png")


if __name__ == "__main__":
    try:
        print(f"The landscape is in {main()}")
    except (FlowFactorError, SolverError, ValueError, KeyError) as error:
        print(f"Error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
