"""Draw the data of a configuration: each transformation from canonical and from random starts."""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from experiments.cli import Overrides, Plugins
from experiments.config import read_config
from experiments.console import run_script, say
from flowfactor.data import UNLABELLED, ParametricOptions, SequenceDataset
from flowfactor.diagnostics import save
from flowfactor.diagnostics.frames import add_frame_axes, draw_rows
from flowfactor.diagnostics.style import (
    PAGE_WIDTH,
    format_number,
    new_figure,
    plain_text,
    styled,
)

# Columns of frames beside one another that can still be seen, in all.
_COLUMNS = 18
# Inches: the widest frame, a letter of a name, between two blocks, above and below them.
_WIDEST, _LETTER, _BETWEEN, _ABOVE, _BELOW = 0.6, 0.063, 0.12, 0.22, 0.4


class Split(StrEnum):
    """Which samples are drawn."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def choose_samples(data: SequenceDataset, count: int) -> dict[str, list[int]]:
    """Return, for each transformation, numbers of samples that undergo it."""
    if data.labels is None:
        unlike = unlike_samples(data, count * len(data.names))
        return {
            name: [unlike[(k * count + i) % len(unlike)] for i in range(count)]
            for k, name in enumerate(data.names)
        }
    labels = {name: k for k, name in enumerate(data.names)} | {"unknown": UNLABELLED}
    rows = {name: data.samples_undergoing(k)[:count].tolist() for name, k in labels.items()}
    return {name: chosen for name, chosen in rows.items() if chosen}


def unlike_samples(data: SequenceDataset, count: int) -> list[int]:
    """Return numbers of samples: of each class in turn, or without classes from everywhere."""
    if data.classes is None:
        few = min(count, len(data))
        return [(2 * i + 1) * len(data) // (2 * few) for i in range(few)]
    classes = data.classes[: 100 * count].cpu()
    same = classes[:, None] == classes.unique()
    # How many of its class come before each sample.
    before = (same.cumsum(0) - 1)[same]
    order: list[int] = before.argsort(stable=True)[:count].tolist()
    return order


def sample_blocks(
    data: SequenceDataset, rows: Mapping[str, Sequence[int]], seed: int
) -> tuple[Int[Tensor, "f"], dict[str, Float[Tensor, "b f c h w"]]]:
    """Return the times that are shown, and the frames from each kind of start."""
    indices = torch.tensor([i for chosen in rows.values() for i in chosen], device=data.device)
    names = [name for name, chosen in rows.items() for _ in chosen]
    labels = None
    if data.labels is None:
        labels = torch.tensor([data.names.index(name) for name in names])
    starts = {"canonical start" if data.labels is None else "as recorded": None}
    random = data.random_starts(len(indices), torch.Generator().manual_seed(seed))
    kinds = starts if random is None else starts | {"random start": random}
    columns = min(data.horizon + 1, _COLUMNS // len(kinds))
    times = torch.linspace(0, data.horizon, columns).round().long()
    clocks = times.expand(len(indices), -1)
    return times, {
        kind: data.sample(indices, labels, clocks, starts).frames.cpu()
        for kind, starts in kinds.items()
    }


@styled
def draw(
    times: Int[Tensor, "f"],
    blocks: Mapping[str, Float[Tensor, "b f c h w"]],
    counts: Mapping[str, int],
) -> Figure:
    """Draw blocks side by side, their rows in groups that each have a name and a size."""
    rows, columns, _, height, width = next(iter(blocks.values())).shape
    labels = [plain_text(name, 24) for name in counts]
    margin = 0.12 + _LETTER * max(4, *map(len, labels))
    between = _BETWEEN * (len(blocks) - 1)
    room = PAGE_WIDTH - margin - 0.05 - between
    wide = min(_WIDEST, room / (columns * len(blocks)))
    tall = wide * height / width
    figure = new_figure(
        margin + 0.05 + between + wide * columns * len(blocks), _ABOVE + _BELOW + tall * rows
    )
    # Laid out by hand, for all frames must have one size.
    figure.set_layout_engine("none")
    middles, first = [], 0
    for count in counts.values():
        middles.append(-(first + count / 2) * height / width)
        first += count
    for place, (title, frames) in enumerate(blocks.items()):
        left = margin + place * (columns * wide + _BETWEEN)
        axes = add_frame_axes(figure, (left, _BELOW), columns, rows, (wide, tall))
        draw_rows(axes, frames, times.numpy(), int(times[-1]))
        axes.set_title(title, fontsize=8.5, pad=3)
        axes.set_xticks([i + 0.5 for i in range(columns)], [format_number(float(t)) for t in times])
        axes.set_xlabel("time $t$ (frames)", labelpad=2)
        if place == 0:
            axes.set_yticks(middles, labels)
    return figure


def main(
    config: Annotated[str, typer.Argument(help="A YAML file, or a configuration that ships.")],
    out: Annotated[Path, typer.Option(help="A .png, .pdf or .svg file.")],
    split: Annotated[
        Split | None, typer.Option(help="Which samples; default: those of the evaluation.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of each transformation.")] = 1,
    overrides: Overrides = None,
    plugin: Plugins = None,
) -> None:
    """Draw the data of a configuration: each transformation from canonical and random starts.

    Example: python experiments/scripts/plot_data.py sprites --out sprites.png
    """
    _, content = read_config(config, overrides or (), plugin_names=plugin or ())
    options = content.data
    if isinstance(options, ParametricOptions):
        # No random start is a canonical one after all.
        options = dataclasses.replace(options, random_start_prob=1.0)
    data = options.load(split or content.evaluation.split, content.seed)
    rows = choose_samples(data, samples)
    times, blocks = sample_blocks(data, rows, content.seed)
    figure = draw(times, blocks, {name: len(chosen) for name, chosen in rows.items()})
    say(f"The data are in {save(figure, out)}")


if __name__ == "__main__":
    run_script(main)
