"""Film strips: true frames above those that models decode along their flows."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from flowfactor.data import SequenceBatch
from flowfactor.diagnostics.frames import add_frame_axes, draw_rows, make_rim_handles
from flowfactor.diagnostics.sampling import (
    decode_latents,
    encode_images,
    evaluating,
    select_names,
    to_numpy,
    trace_latents,
)
from flowfactor.diagnostics.style import (
    PAGE_WIDTH,
    PALETTE,
    format_number,
    line_styles,
    new_figure,
    plain_text,
    styled,
)
from flowfactor.models.base import PotentialModel, SequenceModel
from flowfactor.names import one_line

# The line where a second flow takes over from a first.
_TURN: dict[str, Any] = {"color": PALETTE[2], "linewidth": 2.0}

# More columns than this are so narrow that the usual rims would touch each other.
_MANY = 13

# Frames side by side on a page, and the size in inches that one of them has at most.
_COLUMNS, _LARGEST = 20, 0.45

# Frames of a strip; of a longer one every second, third, ... is drawn.
_MOST = 41

# Letters of a row's name in one line, and the width of a letter in inches.
_LINE, _LETTER = 20, 0.066

# Height in inches of the room for arrows below a row of frames, and the length of the longest of
# them in widths of a frame.
_ROOM, _REACH = 0.13, 0.84

# Letters that find room along a strip of two rows.
_LABEL = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Marks:
    """Which fields act between the frames of strips, and how fast: arrows below them.

    Attributes:
        names: of the K fields.
        speeds: signed speeds ``(B, N - 1, K)`` by the name of their row, 0 of what is at rest.
    """

    names: tuple[str, ...]
    speeds: Mapping[str, Float[np.ndarray, "b m k"]]


@dataclasses.dataclass(frozen=True, eq=False)
class FilmStrips:
    """True and decoded frames of some sequences.

    Sizes: B sequences, N times.

    Attributes:
        labels: what happens in each sequence.
        times: in frames, ``(N,)``, or of each sequence ``(B, N)``; negative ones run the flow
            backwards.
        truth: true frames ``(B, N, C, H, W)``; NaN at times of which no truth is known, None if
            there is none at all.
        flows: decoded frames ``(B, N, C, H, W)`` by the name of their row, such as a model's.
        horizon: the last frame that the models were trained on.
        turn: the frame at which a second flow takes over from a first; None if none does.
        marks: what acts from each frame to the next one; None if it is not shown.
    """

    labels: tuple[str, ...]
    times: Float[np.ndarray, "*b n"]
    truth: Float[Tensor, "b n c h w"] | None
    flows: Mapping[str, Float[Tensor, "b n c h w"]]
    horizon: int
    turn: int | None = None
    marks: Marks | None = None


# ---- what is drawn


def film_strip_data(
    model: SequenceModel,
    sequences: SequenceBatch,
    *,
    before: int = 0,
    beyond: int = 0,
    identity: bool = False,
) -> FilmStrips:
    """Encode frame 0 of each sequence and decode its flow at every frame.

    ``flow[i, n] = decode(z_n)`` with ``dz/dt = grad u^k(z, t)``, ``z_0`` the posterior mean of
    frame 0 and k the sequence's label.

    Args:
        model: any sequence model.
        sequences: all frames of each sequence; those after the model's horizon show how far the
            flow extrapolates.
        before: how many frames before the first to decode; there is no truth for these.
        beyond: how many frames after those given to decode, a unit of time apart, without truth.
        identity: add a row of a latent that stays where it is, ``decode(z_0)``.

    Raises:
        ValueError: frames are missing or of another shape, or a label or number out of range.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8)
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> film_strip_data(model, films, before=1).times.tolist()
        [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    """
    if before < 0 or beyond < 0:
        raise ValueError(f"before and beyond must be at least 0; they are {before} and {beyond}")
    labels = _check_labels(sequences, model.names)
    frames = sequences.frames.float().cpu()
    with evaluating(model):
        z0 = encode_images(model, _first_frames(sequences))
        given = sequences.shared_times.to(z0)
        earlier = torch.arange(-before, 0).to(z0).expand(*given.shape[:-1], -1)
        later = given[..., -1:] + torch.arange(1, beyond + 1).to(z0)
        times = torch.cat([earlier, given, later], -1)
        path = trace_latents(model, z0, labels.to(z0.device), times)
        flow = decode_latents(model, rearrange(path, "n b d -> b n d"))
        rows = {"flow": flow}
        if identity:
            rows["identity"] = decode_latents(model, z0)[:, None].expand_as(flow)
    truth = torch.full_like(flow, torch.nan)
    truth[:, before : before + frames.shape[1]] = frames
    names = tuple(model.names[k] for k in labels.tolist())
    return FilmStrips(names, to_numpy(times), truth, rows, model.horizon)


def comparison_data(
    models: Mapping[str, SequenceModel], sequences: SequenceBatch, names: Sequence[str]
) -> FilmStrips:
    """Decode the flow of each sequence by several models.

    Args:
        models: by the names of their rows.
        sequences: all frames of each sequence.
        names: the transformations that the labels of the sequences count; a model may have them
            in another order, and more of them.

    Raises:
        ValueError: there is no model, one lacks a transformation or has another horizon than the
            first, or as of :func:`film_strip_data`.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> _ = torch.manual_seed(0)
        >>> models = {
        ...     f"D = {size}": flowfactor.FlowVAE.build(("hue",), latent_dim=size)
        ...     for size in (4, 8)
        ... }
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 0]))
        >>> strips = comparison_data(models, films, ("hue",))
        >>> list(strips.flows), strips.labels
        (['D = 4', 'D = 8'], ('hue', 'hue'))
    """
    if not models:
        raise ValueError("models is empty; a comparison needs at least one")
    labels = tuple(names[k] for k in _check_labels(sequences, names).tolist())
    parts = {}
    for row, model in models.items():
        missing = [name for name in dict.fromkeys(labels) if name not in model.names]
        if missing:
            raise ValueError(
                f"{row} has no transformation {', '.join(map(repr, missing))}; it has "
                f"{', '.join(model.names)}"
            )
        indices = torch.tensor([model.names.index(name) for name in labels])
        parts[row] = film_strip_data(model, dataclasses.replace(sequences, labels=indices))
    horizons = {row: part.horizon for row, part in parts.items()}
    if len(set(horizons.values())) > 1:
        raise ValueError(f"models side by side must have one horizon; theirs are {horizons}")
    first = next(iter(parts.values()))
    return dataclasses.replace(
        first, flows={row: part.flows["flow"] for row, part in parts.items()}
    )


def composition_data(
    model: PotentialModel,
    sequences: SequenceBatch,
    pair: tuple[str, str],
    *,
    turn: int | None = None,
) -> FilmStrips:
    r"""Encode frame 0 of each sequence and decode two composed flows at every frame.

    .. math::

        \begin{aligned}
        \text{simultaneous:} \quad \frac{dz}{dt} &= \nabla u^a(z, t) + \nabla u^b(z, t) \\
        \text{sequential:} \quad z_t &= \begin{cases}
          \mathrm{flow}(z_0, a, t) & t \le s \\
          \mathrm{flow}(z_s, b, t - s) & t > s
        \end{cases}
        \end{aligned}

    Each potential's clock begins at 0.

    Args:
        model: any model with potentials.
        sequences: what truly happens, with all frames from 0 on, as ``compose`` of a data set
            makes it.
        pair: the names of the two transformations.
        turn: s, how many frames belong to the first alone; None for simultaneous flows.

    Raises:
        ValueError: frames are missing or of another shape, the sequences undergo a single
            transformation, the names are not two of the model's, or s is not within the sequence.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> _ = torch.manual_seed(0)
        >>> digits = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(digits.names, latent_dim=8)
        >>> both = digits.compose([0, 1], ("rotation", "hue"))
        >>> strips = composition_data(model, both, ("rotation", "hue"))
        >>> strips.flows["flow"].shape, strips.labels
        (torch.Size([2, 9, 3, 28, 28]), ('rotation + hue', 'rotation + hue'))
    """
    if len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"pair must be two different transformations; it is {tuple(pair)}")
    a, b = select_names(model, pair)
    if sequences.labels is not None:
        raise ValueError(
            "the labels of composed sequences must be None, as `compose` of a data set makes them"
        )
    count = sequences.frames.shape[1]
    if turn is not None and not 0 < turn < count - 1:
        raise ValueError(f"turn must be in 1..{count - 2}, within the sequences; it is {turn}")
    with evaluating(model):
        z0 = encode_images(model, _first_frames(sequences))
        times = sequences.shared_times.to(z0)
        first, second = model.potentials[a], model.potentials[b]
        if turn is None:
            path = trace_latents(model, z0, first + second, times)
        else:
            path = trace_latents(model, z0, first, times[..., : turn + 1])
            after = times[..., turn:] - times[..., turn : turn + 1]
            rest = trace_latents(model, path[-1], second, after)
            path = torch.cat([path, rest[1:]])
        flow = decode_latents(model, rearrange(path, "n b d -> b n d"))
    label = f"{a} + {b}" if turn is None else f"{a}, then {b}"
    return FilmStrips(
        (label,) * len(flow),
        to_numpy(times),
        sequences.frames.float().cpu(),
        {"flow": flow},
        model.horizon,
        turn,
    )


def _first_frames(sequences: SequenceBatch) -> Float[Tensor, "b c h w"]:
    """Return frame 0 of sequences whose frames are given in their order."""
    times = sequences.times
    if not len(sequences) or bool(times[:, 0].any() | (times.diff(dim=1) <= 0).any()):
        raise ValueError("a film strip needs at least one sequence, with frames from t = 0 on")
    return sequences.frames[:, 0]


def _check_labels(sequences: SequenceBatch, names: Sequence[str]) -> Int[Tensor, "b"]:
    """Return the labels of sequences, each of which undergoes one known transformation."""
    labels = sequences.labels
    if labels is None or bool((labels < 0).any() | (labels >= len(names)).any()):
        raise ValueError(
            f"the labels of the sequences must be in 0..{len(names) - 1}, for {', '.join(names)}; "
            f"they are {None if labels is None else labels.tolist()}"
        )
    return labels


# ---- figures


def plot_film_strips(
    model: SequenceModel,
    sequences: SequenceBatch,
    *,
    difference: bool = False,
    before: int = 0,
    beyond: int = 0,
    identity: bool = False,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw the true frames of sequences above the frames decoded along the flow.

    Frames outside of the times that the model was trained on, 0 to T, have a coloured rim.

    Args:
        model: any sequence model.
        sequences: all frames of each sequence, which is one strip.
        difference: add a row with the absolute difference of each pixel.
        before: frames to decode before the first, running the flow backwards.
        beyond: frames to decode after those given.
        identity: add a row without motion.
        width: of the figure in inches.

    Raises:
        ValueError: as of :func:`film_strip_data`.
    """
    data = film_strip_data(model, sequences, before=before, beyond=beyond, identity=identity)
    return draw_film_strips(data, difference=difference, width=width)


def plot_comparison(
    models: Mapping[str, SequenceModel],
    sequences: SequenceBatch,
    names: Sequence[str],
    *,
    width: float = PAGE_WIDTH,
) -> Figure:
    """Draw the true frames of sequences above the frames that each model decodes.

    Sequences of one transformation are side by side if the page is wide enough.

    Args:
        models: by the names of their rows, in their order.
        sequences: all frames of each sequence.
        names: the transformations that the labels of the sequences count.
        width: of the figure in inches, at most.

    Raises:
        ValueError: as of :func:`comparison_data`.
    """
    data = comparison_data(models, sequences, names)
    return draw_film_strips(data, width=width, side_by_side=True)


@styled
def draw_film_strips(
    data: FilmStrips | Sequence[FilmStrips],
    *,
    difference: bool = False,
    width: float = PAGE_WIDTH,
    side_by_side: bool = False,
) -> Figure:
    """Draw computed film strips below one another.

    Of strips of more than 41 frames, every second, third, ... frame is drawn.

    Args:
        data: one set of strips; or several at the same times, of which the first sequence of
            each comes before the second one of any.
        difference: add a row with the absolute difference of truth and flow below each flow.
        width: of the figure in inches, at most.
        side_by_side: put sequences of one label beside each other, as far as there is room.

    Raises:
        ValueError: there are no strips, or they differ in times, rows or shape of images.
    """
    parts = [_thin(part) for part in ([data] if isinstance(data, FilmStrips) else data)]
    mixed = chain.from_iterable(zip_longest(*(_split(part, difference) for part in parts)))
    strips = [strip for strip in mixed if strip is not None]
    if not strips:
        raise ValueError("there are no strips to draw")
    first = parts[0]
    times, columns = first.times, first.times.shape[-1]
    for part, strip in zip(parts, strips, strict=False):
        same_rows = strip.rows.keys() == strips[0].rows.keys() and strip.shape == strips[0].shape
        if not np.array_equal(part.times, times) or not same_rows:
            raise ValueError("strips of one figure must have the same times, rows and image shape")
        if (part.marks and part.marks.names) != (first.marks and first.marks.names):
            raise ValueError("strips of one figure must have marks of the same fields, or none")
    across = 1
    if side_by_side:
        seen = [strip.label for strip in strips]
        strips.sort(key=lambda strip: seen.index(strip.label))
        across = _count_beside(seen, columns)
    names = [_break_lines(name, _LINE) for name in strips[0].rows]
    labels = [_break_lines(strip.label, _LABEL) for strip in strips]
    alike = all(np.array_equal(strip.times, strips[0].times) for strip in strips)
    letters = max(len(line) for name in names for line in name.split("\n"))
    left = 0.36 + _LETTER * letters + 0.14 * any("\n" in label for label in labels)
    right, between, beside = 0.05, 0.07 if alike else 0.24, 0.12
    if side_by_side:
        width = min(width, left + right + beside + _LARGEST * columns * across)

    handles: list[Artist] = [*make_rim_handles(times, first.horizon)]
    if any(strip.turn is not None for strip in strips):
        handles.append(Line2D([], [], **_TURN, label="the second flow takes over"))
    fields = first.marks.names if first.marks else ()
    styles = line_styles(fields)
    handles += [
        Line2D([], [], color=style.colour, linewidth=2, label=plain_text(name))
        for name, style in styles.items()
    ]
    fastest = max(
        (float(np.abs(x).max()) for strip in strips for x in strip.speeds.values()), default=1
    )
    lines = -(-len(strips) // across)
    bottom = 0.4 + 0.22 * bool(handles)
    pixels_high, pixels_wide = strips[0].shape[-2:]
    cell_width = (width - left - right - beside * (across - 1)) / across / columns
    frame_height = cell_width * pixels_high / pixels_wide
    cell = cell_width, frame_height + _ROOM * bool(fields)
    tall = len(names) * cell[1]
    height = (tall + between) * lines + bottom
    figure = new_figure(width, height)
    # Cells are laid out by hand: all must have one size, and nothing else may take their room.
    figure.set_layout_engine("none")
    for i, (strip, label) in enumerate(zip(strips, labels, strict=True)):
        line, place = divmod(i, across)
        low = height - (tall + between) * (line + 1) + between / 2
        corner = left + (cell_width * columns + beside) * place, low
        axes = add_frame_axes(figure, corner, columns, len(names), cell)
        rim = 1.5 if columns <= _MANY else 0.9
        frames = torch.stack([*strip.rows.values()])
        draw_rows(axes, frames, strip.times, first.horizon, rim=rim, pitch=cell[1] / cell_width)
        for row, name in enumerate(strip.rows):
            if name in strip.speeds:
                top = -(row * cell[1] + frame_height) / cell_width
                colours = [style.colour for style in styles.values()]
                _draw_arrows(axes, strip.speeds[name] / fastest, colours, top, _ROOM / cell_width)
        if strip.turn is not None:
            axes.axvline(int((strip.times <= strip.turn).sum()), **_TURN, zorder=4)
        shown = [format_number(round(t, 2)) for t in strip.times.tolist()]
        axes.set_xticks(np.arange(columns) + 0.5, shown)
        last = i + across >= len(strips)
        axes.tick_params(labelbottom=last or not alike)
        if last:
            axes.set_xlabel("time $t$ (frames)")
        if place:
            continue
        middles = [row * cell[1] + frame_height / 2 for row in range(len(names))]
        axes.set_yticks([-middle / cell_width for middle in middles], names)
        _write_label(figure, label, low + tall / 2)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), handlelength=1.6)
    return figure


@dataclasses.dataclass(frozen=True, eq=False)
class _Strip:
    """The rows of one sequence, by their names."""

    label: str
    times: Float[np.ndarray, "n"]
    rows: dict[str, Float[Tensor, "n c h w"]]
    turn: int | None
    speeds: dict[str, Float[np.ndarray, "m k"]]

    @property
    def shape(self) -> torch.Size:
        """The shape of one row."""
        return next(iter(self.rows.values())).shape


def _split(data: FilmStrips, difference: bool) -> Iterator[_Strip]:
    """Yield the strip of each sequence."""
    every = np.broadcast_to(data.times, (len(data.labels), data.times.shape[-1]))
    for i, label in enumerate(data.labels):
        rows = {} if data.truth is None else {"truth": data.truth[i]}
        for name, flow in data.flows.items():
            rows[name] = flow[i]
            if difference and data.truth is not None:
                suffix = f" of {name}" if len(data.flows) > 1 else ""
                rows[f"|difference|{suffix}"] = (data.truth[i] - flow[i]).abs()
        speeds = {} if data.marks is None else data.marks.speeds
        acting = {name: each[i] for name, each in speeds.items()}
        yield _Strip(label, every[i], rows, data.turn, acting)


def _thin(data: FilmStrips) -> FilmStrips:
    """Return strips of at most so many frames as can be seen, at equal distances."""
    step = -(-data.times.shape[-1] // _MOST)
    return dataclasses.replace(
        data,
        times=data.times[..., ::step],
        truth=None if data.truth is None else data.truth[:, ::step],
        flows={name: flow[:, ::step] for name, flow in data.flows.items()},
        marks=data.marks if step == 1 else None,
    )


def _draw_arrows(
    axes: Axes, speeds: Float[np.ndarray, "m k"], colours: Sequence[str], top: float, room: float
) -> None:
    """Draw an arrow from each frame towards the next for each field that acts, or back.

    Args:
        axes: whose units are widths of a frame.
        speeds: as parts of the largest.
        colours: of the fields.
        top: where the room for arrows ends.
        room: how high it is; several arrows share it.
    """
    for step, row in enumerate(speeds):
        acting = np.flatnonzero(row)
        for place, k in enumerate(acting):
            half = row[k] * _REACH / 2
            height = top - room * (place + 0.5) / len(acting)
            look: dict[str, Any] = {
                "arrowstyle": "-|>",
                "mutation_scale": 5.0,
                "linewidth": 1.4 if len(acting) == 1 else 1.0,
                "color": colours[int(k)],
                "shrinkA": 0,
                "shrinkB": 0,
            }
            begin, end = (step + 1 - half, height), (step + 1 + half, height)
            axes.annotate("", end, begin, arrowprops=look, annotation_clip=False)


def _count_beside(labels: Sequence[str], columns: int) -> int:
    """Return how many strips share a line, so that each line is full and of one label."""
    shared = math.gcd(*(labels.count(label) for label in set(labels)))
    fitting = (n for n in range(2, shared + 1) if n * columns <= _COLUMNS and shared % n == 0)
    return max(fitting, default=1)


def _break_lines(text: str, width: int) -> str:
    """Return a label that a long text breaks once; there is no room for a third line."""
    text = one_line(text, 4 * _LINE)
    while len(lines := textwrap.wrap(text, width)) > 2:
        width += 1
    return "\n".join(map(plain_text, lines))


def _write_label(figure: Figure, label: str, middle: float) -> None:
    """Write what happens along the left side of a strip, around a height in inches."""
    width, height = figure.get_size_inches()
    several = "\n" in label
    figure.text(
        (0.19 if several else 0.13) / width,
        middle / height,
        label,
        rotation=90,
        ha="center",
        va="center",
        multialignment="center",
        linespacing=1.1,
        fontsize=8 if several else 8.5,
    )
