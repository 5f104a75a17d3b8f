"""Measure and draw the flows of a run put together: simultaneous, sequential and backward."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import Device, Plugins, RunFolder
from experiments.console import out_console, run_script, say
from experiments.plots import composition_strips
from experiments.runs import FIGURES, measure, open_run
from experiments.samples import different_samples
from flowfactor.diagnostics import draw_film_strips, save
from flowfactor.errors import DataError


def main(
    run: RunFolder,
    images: Annotated[int, typer.Option(min=1, help="How many to measure on.")] = 200,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Errors are summed over t = 1..FRAMES.")
    ] = None,
    random_starts: Annotated[
        bool, typer.Option("--random-starts", help="Transform frame 0 at random beforehand.")
    ] = False,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="A+B", help="What is drawn; may be repeated; default: two pairs."),
    ] = None,
    horizon: Annotated[
        int | None, typer.Option(min=2, help="The last frame that is drawn; default: the run's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples that are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A folder; default: in the run.")] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Measure and draw the flows of a run put together: simultaneous, sequential and backward.

    Writes composition.json and composition.png, and prints the tables.

    Example: python experiments/scripts/composition.py runs/demo --pair rotation+hue
    """
    opened = open_run(run, plugin or (), device)
    data = opened.data()
    if len(data.names) < 2:
        raise DataError(f"{run} knows one transformation only; to compose takes two.")
    pairs = list(zip(data.names[:-1], data.names[1:], strict=True))[-2:]
    if pair:
        pairs = [_names(text, data.names) for text in pair]
    samples = data.subset(different_samples(data, images).sort().values)
    longer = data if horizon is None else data.with_horizon(horizon)
    strips = composition_strips(
        opened.potential_model, longer, pairs, random_starts=random_starts, seed=seed
    )
    options = {"random_starts": random_starts}
    evaluation = measure(opened, samples, "composition", options, frames=frames)
    for table in evaluation.tables().values():
        out_console.print(table.to_rich())
    folder = out or run / FIGURES
    path = save(draw_film_strips(strips), folder / "composition.png")
    evaluation.write(folder / "composition.json")
    say(f"The strips are in {path}, the numbers in the .json beside it")


def _names(text: str, known: tuple[str, ...]) -> tuple[str, str]:
    names = text.split("+")
    if len(names) != 2 or names[0] == names[1] or not set(names) <= set(known):
        raise typer.BadParameter(
            f"--pair takes two different transformations of {', '.join(known)}, as in "
            f"{known[0]}+{known[1]}, not {text}."
        )
    return names[0], names[1]


if __name__ == "__main__":
    run_script(main)
