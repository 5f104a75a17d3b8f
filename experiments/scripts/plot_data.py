"""Draw the data of a configuration: each transformation from canonical and from random starts.

Examples:
    python experiments/scripts/plot_data.py sprites --out sprites.png
    python experiments/scripts/plot_data.py shapes3d --set data.path=3dshapes.h5 --out shapes.png
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.config import read_config
from experiments.runs import load_data
from flowfactor.data import GivenFactor, SequenceDataset, samples_undergoing
from flowfactor.diagnostics import save
from flowfactor.diagnostics.film_strips import draw_frame
from flowfactor.diagnostics.style import INK, PAGE_WIDTH, new_figure, number, styled
from flowfactor.errors import FlowFactorError

# Columns of frames beside one another that can still be seen, in all.
_COLUMNS = 18
# Inches: the widest frame, a letter of a name, between two blocks, above and below them.
_WIDEST, _LETTER, _BETWEEN, _ABOVE, _BELOW = 0.6, 0.063, 0.12, 0.22, 0.4
# Between two transformations, in heights of a frame.
_GAP = 0.12


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Sequences below one another.

    Attributes:
        title: what they have in common.
        frames: of each sequence at the same times.
    """

    title: str
    frames: Float[Tensor, "b f c h w"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, or the name of a configuration that ships")
    parser.add_argument("--out", type=Path, required=True, help="a .png, .pdf or .svg file")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="which samples (default: those that the configuration evaluates on)",
    )
    parser.add_argument(
        "--samples", type=int, default=1, metavar="N", help="of each transformation (default: 1)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change a key of the configuration; may be repeated",
    )
    options = parser.parse_args()
    if options.samples < 1:
        parser.error(f"--samples must be at least 1, not {options.samples}")
    return options


def rows_of(data: SequenceDataset, count: int) -> list[tuple[str, list[int]]]:
    """Return what there is to see: each transformation, and numbers of samples that undergo it."""
    if isinstance(data, GivenFactor):
        known = [(name, samples_undergoing(data, k)) for k, name in enumerate(data.names)]
        unknown = (data.labels == -1).nonzero()[:, 0]
        named = [*known, ("not known", unknown)]
        return [(name, able[:count].tolist()) for name, able in named if len(able)]
    chosen = unlike_samples(data, count * len(data.names))
    return [
        (name, [chosen[(k * count + i) % len(chosen)] for i in range(count)])
        for k, name in enumerate(data.names)
    ]


def unlike_samples(data: SequenceDataset, count: int) -> list[int]:
    """Return numbers of samples: of each class in turn, or without classes from everywhere."""
    labels = getattr(data, "labels", None)
    if not isinstance(labels, Tensor):
        few = min(count, len(data))
        return [(2 * i + 1) * len(data) // (2 * few) for i in range(few)]
    labels = labels[: 100 * count].cpu()
    same = labels[:, None] == labels.unique()
    # How many of its class come before each sample.
    before = (same.cumsum(0) - 1)[same]
    order: list[int] = before.argsort(stable=True)[:count].tolist()
    return order


def random_starts(data: SequenceDataset, count: int, seed: int) -> Float[Tensor, "b s"]:
    """Return random starts none of which is a canonical one."""
    start = torch.rand(count, data.start_size, generator=torch.Generator().manual_seed(seed))
    if data.start_size > len(data.names):
        # The last number says whether the others count, which they do if it is small.
        start[:, -1] = 0.0
    return start.to(data.device)


def look(
    data: SequenceDataset, rows: Sequence[tuple[str, list[int]]], seed: int
) -> tuple[Int[Tensor, " f"], list[Block]]:
    """Return the times that are shown, and the frames from each kind of start."""
    recorded = isinstance(data, GivenFactor)
    indices = torch.tensor([i for _, chosen in rows for i in chosen], device=data.device)
    starts: dict[str, Tensor | None] = {"as recorded" if recorded else "canonical start": None}
    if data.start_size:
        starts["random start"] = random_starts(data, len(indices), seed)
    columns = min(data.horizon + 1, _COLUMNS // len(starts))
    times = torch.linspace(0, data.horizon, columns).round().long()
    every = times.to(data.device).expand(len(indices), -1)
    if isinstance(data, GivenFactor):
        labels = data.labels[indices]
    else:
        names = [name for name, chosen in rows for _ in chosen]
        labels = torch.tensor([data.names.index(name) for name in names], device=data.device)
    blocks = [
        Block(title, data.select(indices, labels, every, start).frames.cpu())
        for title, start in starts.items()
    ]
    return times, blocks


@styled
def draw(
    times: Int[Tensor, " f"], blocks: Sequence[Block], groups: Sequence[tuple[str, int]]
) -> Figure:
    """Draw blocks side by side, their rows in groups that each have a name and a size."""
    height, width = blocks[0].frames.shape[-2:]
    aspect, columns = height / width, len(times)
    margin = 0.12 + _LETTER * max(4, *(len(name) for name, _ in groups))
    room = PAGE_WIDTH - margin - 0.05 - _BETWEEN * (len(blocks) - 1)
    cell = min(_WIDEST, room / (columns * len(blocks)))
    tall = aspect * (sum(count for _, count in groups) + _GAP * (len(groups) - 1))
    page = (
        margin + 0.05 + _BETWEEN * (len(blocks) - 1) + cell * columns * len(blocks),
        _ABOVE + _BELOW + cell * tall,
    )
    figure = new_figure(*page)
    # Laid out by hand, for all frames must have one size.
    figure.set_layout_engine("none")
    for place, block in enumerate(blocks):
        left = margin + place * (columns * cell + _BETWEEN)
        axes = figure.add_axes(
            (left / page[0], _BELOW / page[1], columns * cell / page[0], cell * tall / page[1])
        )
        middles = _draw_block(axes, block, [count for _, count in groups])
        axes.set_title(block.title, fontsize=8.5, pad=3)
        axes.set_xlim(0, columns)
        axes.set_ylim(-tall, 0)
        axes.set_aspect("equal")
        axes.set_xticks([i + 0.5 for i in range(columns)], [number(float(t)) for t in times])
        axes.set_xlabel("time $t$ (frames)", labelpad=2)
        axes.set_yticks(middles, [name for name, _ in groups] if place == 0 else [])
        axes.tick_params(length=0, labelsize=8, colors=INK, pad=2)
        axes.spines[:].set_visible(False)
    return figure


def _draw_block(axes: Axes, block: Block, counts: Sequence[int]) -> list[float]:
    """Draw sequences below one another, a frame one unit wide; return the middles of the groups."""
    aspect = block.frames.shape[-2] / block.frames.shape[-1]
    top, row = 0.0, 0
    middles = []
    for count in counts:
        middles.append(top - count * aspect / 2)
        for film in block.frames[row : row + count]:
            for column, frame in enumerate(film):
                draw_frame(axes, frame, column, top)
            top -= aspect
        row += count
        top -= _GAP * aspect
    return middles


def main() -> Path:
    """Read, load, draw, save."""
    options = arguments()
    _, config = read_config(options.config, options.overrides)
    data = load_data(config, options.split or config.evaluation.split)
    rows = rows_of(data, options.samples)
    times, blocks = look(data, rows, config.seed)
    figure = draw(times, blocks, [(name, len(chosen)) for name, chosen in rows])
    return save(figure, options.out)


if __name__ == "__main__":
    try:
        print(f"The data are in {main()}")
    except (FlowFactorError, ValueError) as error:
        print(f"Error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
