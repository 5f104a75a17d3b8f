"""Measure and draw the flows of a run put together: at once, in turn, backwards, in either order.

Writes composition.json and composition.png, and prints the tables.

Example: python experiments/scripts/composition.py runs/demo --pair rotation hue
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

import flowfactor
from experiments import environment
from experiments.cli import composition_tables
from experiments.explore import different_samples
from experiments.generalization import composition
from experiments.plots import FIGURES, composition_strips
from experiments.runs import frames_measured, load_measured, read_run_config, write_json
from flowfactor.diagnostics import draw_composition, save
from flowfactor.errors import DataError, FlowFactorError
from solvers import SolverError


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder, as `flowfactor train` writes it")
    parser.add_argument(
        "--images", type=int, default=200, help="how many to measure on (default: 200)"
    )
    parser.add_argument(
        "--frames", type=int, help="the errors are summed over t = 1..FRAMES (default: as the run)"
    )
    parser.add_argument(
        "--random-starts", action="store_true", help="transform frame 0 at random beforehand"
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("A", "B"),
        help="draw A + B, and A and then B; may be repeated (default: two pairs of neighbours)",
    )
    parser.add_argument("--last", type=int, metavar="T", help="last frame drawn (default: the run)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples that are drawn")
    parser.add_argument("--out", type=Path, help="the folder to write to (default: in the run)")
    options = parser.parse_args()
    for name in ("images", "frames", "last"):
        value, least = getattr(options, name), 1 if name == "images" else 2
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, not {value}")
    if options.seed < 0:
        parser.error(f"--seed must be at least 0, not {options.seed}")
    return options


def main() -> Path:
    """Load, measure, print, draw, save."""
    options = arguments()
    model = flowfactor.load(options.run)
    config = read_run_config(options.run)
    data = load_measured(config, config.evaluation.split, model)
    if len(data.names) < 2:
        raise DataError(f"{options.run} knows one transformation only; to compose takes two.")
    neighbours = list(zip(data.names[:-1], data.names[1:], strict=True))
    pairs = [(a, b) for a, b in options.pair] if options.pair else neighbours[-2:]
    for pair in pairs:
        if len(set(pair)) < 2 or not set(pair) <= set(data.names):
            raise DataError(
                f"--pair takes two different transformations of {', '.join(data.names)}, not "
                f"{' '.join(pair)}."
            )
    indices = different_samples(data, options.images).sort().values
    longer = data if options.horizon is None else data.with_last(options.horizon)
    starts = options.random_starts
    parts = composition_strips(model, longer, pairs, random_starts=starts, seed=options.seed)
    figure = draw_composition(parts)

    frames = options.frames or frames_measured(config, data)
    result = composition(model, data, indices, frames=frames, random_starts=starts)
    for table in composition_tables(result):
        Console().print(table)
    folder = options.out or options.run / FIGURES
    path = save(figure, folder / "composition.png")
    write_json(folder / "composition.json", result | environment.origin())
    return path


if __name__ == "__main__":
    try:
        print(f"The strips are in {main()}, the numbers in the .json beside it")
    except (FlowFactorError, SolverError, ValueError) as error:
        print(f"Error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
