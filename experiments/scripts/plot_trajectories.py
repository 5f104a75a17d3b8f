"""Draw the latent trajectories of held-out samples under the transformations of a run."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from experiments.cli import Device, Plugins, RunFolder
from experiments.console import run_script, say
from experiments.runs import FIGURES, open_run
from experiments.samples import first_frames
from flowfactor.diagnostics import plot_trajectories, save


def main(
    run: RunFolder,
    transformation: Annotated[
        list[str] | None, typer.Option(help="May be repeated; default: all of the model.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many samples.")] = 16,
    horizon: Annotated[
        float | None, typer.Option(help="The last time in frames; default: the model's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .png, .pdf or .svg file; default: in the run.")
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Draw the latent trajectories of held-out samples under the transformations of a run.

    Example: python experiments/scripts/plot_trajectories.py runs/demo --images 24
    """
    opened = open_run(run, plugin or (), device)
    figure = plot_trajectories(
        opened.model,
        first_frames(opened.data(), torch.arange(images)),
        names=transformation,
        horizon=horizon,
    )
    say(f"The trajectories are in {save(figure, out or run / FIGURES / 'trajectories.png')}")


if __name__ == "__main__":
    run_script(main)
