"""Measure and draw the flows of a run beyond its last frame T, or on data never seen."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer

from experiments.cli import Device, Overrides, Plugins, RunFolder
from experiments.config import read_config
from experiments.console import out_console, run_script, say
from experiments.runs import FIGURES, measure, open_run
from experiments.samples import different_samples
from flowfactor.diagnostics import ErrorCurve, plot_errors, plot_film_strips, save
from flowfactor.errors import DataError
from flowfactor.metrics import Extrapolation


def main(
    run: RunFolder,
    images: Annotated[int, typer.Option(min=1, help="At most how many to measure on.")] = 200,
    first: Annotated[int, typer.Option(min=0, help="Number of the first that is drawn.")] = 0,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="Take the data of another configuration; its transformations and its images' "
            "shape must be those of the run.",
        ),
    ] = None,
    overrides: Overrides = None,
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Take what the configuration keeps from training."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder; default: in the run.")] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Measure and draw the flows of a run beyond its last frame T, or on data never seen.

    Writes extrapolation.json, extrapolation_errors.png (the error of each frame up to 2 T, where
    the data is as long) and extrapolation_strips.png, and prints the table.

    Examples:
        python experiments/scripts/extrapolation.py runs/demo

        python experiments/scripts/extrapolation.py runs/demo --data mnist --set data.horizon=12

        python experiments/scripts/extrapolation.py runs/without_nines --held-out
    """
    if overrides and data is None:
        raise typer.BadParameter("--set changes keys of another configuration: name it by --data")
    opened = open_run(run, plugin or (), device)
    model = opened.model
    if data is not None:
        config = read_config(data, overrides or (), plugin_names=plugin or ())[1]
        opened = dataclasses.replace(opened, config=config)
    samples = opened.data(held_out=held_out)
    if first >= len(samples):
        raise DataError(f"--first must be in 0..{len(samples) - 1}, not {first}.")
    chosen = different_samples(samples, min(images, len(samples))).sort().values
    evaluation = measure(opened, samples.subset(chosen), "extrapolation")
    for table in evaluation.tables().values():
        out_console.print(table.to_rich())
    result = evaluation.result(Extrapolation)
    curves = {
        name: ErrorCurve(error.per_frame, error.identity_per_frame, error.floor_per_frame)
        for name, error in result.errors.items()
    }
    errors = plot_errors(curves, horizon=model.horizon)

    longer = samples.extend_to(result.horizon)
    shown = [
        (int(eligible[(first + k) % len(eligible)]), k)
        for k in range(len(longer.names))
        if len(eligible := longer.samples_undergoing(k))
    ]
    indices, labels = torch.tensor(shown).T
    strips = plot_film_strips(model, longer.sample(indices, labels))
    folder = out or run / FIGURES
    save(errors, folder / "extrapolation_errors.png")
    path = save(strips, folder / "extrapolation_strips.png")
    evaluation.write(folder / "extrapolation.json")
    say(f"The strips are in {path}, curves and numbers beside it")


if __name__ == "__main__":
    run_script(main)
