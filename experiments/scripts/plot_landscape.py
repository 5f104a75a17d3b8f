"""Draw the landscape of a run's potential, with decoded trajectories over it."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from experiments.cli import Device, Plugins, RunFolder
from experiments.console import run_script, say
from experiments.runs import FIGURES, open_run
from experiments.samples import first_frames
from flowfactor.diagnostics import plot_landscape, save
from flowfactor.names import file_names


def main(
    run: RunFolder,
    transformation: Annotated[
        str | None, typer.Option(help="Whose potential; default: the model's first.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many samples.")] = 1,
    first: Annotated[int, typer.Option(min=0, help="Number of the first sample.")] = 0,
    time: Annotated[
        list[float] | None,
        typer.Option(help="Of the potential, in frames; a panel for each; may be repeated."),
    ] = None,
    descent: Annotated[
        bool, typer.Option("--descent", help="Arrows show -grad u, not grad u.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A .png, .pdf or .svg file; default: in the run.")
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Draw the landscape of a run's potential, with decoded trajectories over it.

    Example: python experiments/scripts/plot_landscape.py runs/demo --transformation rotation
    """
    opened = open_run(run, plugin or (), device)
    model = opened.potential_model
    name = transformation or model.names[0]
    figure = plot_landscape(
        model,
        first_frames(opened.data(), torch.arange(first, first + images)),
        name,
        times=time or None,
        arrows="descent" if descent else "ascent",
    )
    file = run / FIGURES / f"landscape_{file_names(model.names)[name]}.png"
    say(f"The landscape is in {save(figure, out or file)}")


if __name__ == "__main__":
    run_script(main)
