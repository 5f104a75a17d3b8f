"""Flows put together: simultaneous, sequential, backward, in either order."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.checks import brief, check_integer, check_number, check_type
from flowfactor.data import SequenceDataset
from flowfactor.metrics.base import Metric, MetricContext, MetricOptions
from flowfactor.metrics.pixel_errors import (
    EquivarianceError,
    ErrorSummaries,
    ErrorSummary,
    batches,
    check_comparable,
    concatenate_errors,
    error_table,
    frame_errors,
    frame_times,
    limit_batch,
    mean_errors,
    mean_of,
    selected_indices,
    summarize,
)
from flowfactor.models import PotentialModel
from flowfactor.options import PositiveInt, options
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table
from solvers import Method

Pair = tuple[str, str]
Samples = tuple[Int[Tensor, "b"], Float[Tensor, "b s"] | None]


@torch.no_grad()
def superposition_error(
    model: PotentialModel,
    data: SequenceDataset,
    pairs: Sequence[Pair] | None = None,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    random_starts: bool = False,
    seed: int = 0,
    method: Method | None = None,
    batch_size: int = 250,
) -> dict[Pair, EquivarianceError]:
    r"""Return the error of two simultaneous flows against frames that undergo both.

    .. math::

        \begin{aligned}
        \frac{dz}{dt} &= \nabla u^a(z, t) + \nabla u^b(z, t), \\
        E_{ab} &= \mathrm{mean}_{\text{images}} \sum_{t=1}^T \sum_{\text{channels, pixels}}
          |x_t^{ab} - \mathrm{decode}(z_t)|
        \end{aligned}

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's.
        pairs: names of two transformations each; None is every pair.
        indices: which images; None is all of them.
        frames: T.
        random_starts: let frame 0 have undergone every transformation at random, instead of
            starting from the image itself.
        seed: of these starts.
        method: another solver than the model's.
        batch_size: images at a time; it does not change the result.

    Raises:
        ValueError: the data has other transformations or images than the model, or too few frames;
            a pair that is not two of its transformations.
        DataError: recordings, which cannot undergo anything else.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> errors = superposition_error(model, data)
        >>> list(errors)
        [('scaling', 'rotation'), ('scaling', 'hue'), ('rotation', 'hue')]
        >>> errors["rotation", "hue"].flow.shape
        torch.Size([4, 7])
    """
    selected = _select_pairs(model, data, pairs, frames, ordered=False)

    def move(z0: Tensor, pair: Pair) -> Tensor:
        both = model.potentials[pair[0]] + model.potentials[pair[1]]
        return model.flow(z0, both, frame_times(frames, z0), method=method)

    samples = list(_samples_with_starts(data, indices, random_starts, seed, batch_size))
    clock = torch.arange(frames + 1)
    return {
        pair: _pair_error(model, data, pair, samples, [clock, clock], move) for pair in selected
    }


@torch.no_grad()
def switching_error(
    model: PotentialModel,
    data: SequenceDataset,
    pairs: Sequence[Pair] | None = None,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    random_starts: bool = False,
    seed: int = 0,
    method: Method | None = None,
    batch_size: int = 250,
) -> dict[Pair, EquivarianceError]:
    r"""Return the error of two sequential flows against frames that switch likewise.

    .. math::

        z_t = \begin{cases}
          \mathrm{flow}(z_0, a, t) & t \le s = \lceil T / 2 \rceil \\
          \mathrm{flow}(z_s, b, t - s) & t > s
        \end{cases}

    Each potential's clock begins at 0.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's.
        pairs: what comes first, and then; None is every pair in both orders.
        indices: which images; None is all of them.
        frames: T.
        random_starts: let frame 0 have undergone every transformation at random.
        seed: of these starts.
        method: another solver than the model's.
        batch_size: images at a time.

    Raises:
        ValueError, DataError: as for :func:`superposition_error`; fewer than two frames.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> list(switching_error(model, data, [("hue", "rotation")], frames=4))
        [('hue', 'rotation')]
    """
    selected = _select_pairs(model, data, pairs, frames, ordered=True)
    check_integer("frames", frames, 2)
    turn = -(-frames // 2)

    def move(z0: Tensor, pair: Pair) -> Tensor:
        first = model.flow(z0, pair[0], frame_times(turn, z0), method=method)
        second = model.flow(first[-1], pair[1], frame_times(frames - turn, z0), method=method)
        return torch.cat([first, second[1:]])

    samples = list(_samples_with_starts(data, indices, random_starts, seed, batch_size))
    clock = torch.arange(frames + 1)
    elapsed = [clock.clamp(max=turn), (clock - turn).clamp(min=0)]
    return {pair: _pair_error(model, data, pair, samples, elapsed, move) for pair in selected}


@torch.no_grad()
def reversal_error(
    model: PotentialModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    method: Method | None = None,
    batch_size: int = 250,
) -> dict[str, EquivarianceError]:
    r"""Return the error of every flow that runs backward from the last frame to the first.

    .. math::

        \begin{aligned}
        \frac{dz}{dt} &= \nabla u^k(z, t) \text{ from } t = T \text{ to } 0, \qquad
          z_T \text{ the encoder mean of } x_T, \\
        E &= \mathrm{mean}_{\text{images}} \sum_{t=0}^{T-1} \sum_{\text{channels, pixels}}
          |x_t - \mathrm{decode}(z_t)|
        \end{aligned}

    The model has only been trained forwards, from latents of frame 0.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's.
        indices: which images; None is all of them.
        frames: T.
        method: another solver than the model's.
        batch_size: images at a time.

    Returns:
        For each transformation the errors of the frames ``T-1, ..., 0``, in this order; their
        ``reconstruction`` is that of frame T.

    Raises:
        ValueError: the data has other transformations or images than the model, or too few frames.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> reversal_error(model, data)["hue"].flow.shape
        torch.Size([4, 7])
    """
    check_comparable(model, data, frames)
    check_type("model", model, PotentialModel, "a model with potentials")
    parts = defaultdict(list)
    for k, batch in batches(data, indices, batch_size, frames):
        name = data.names[k]
        times = torch.arange(frames + 1).expand(len(batch), -1)
        x = data.sample(batch, k, times).frames.flip(1).to(model.device)
        z = model.represent(x[:, 0])
        z = model.flow(z, name, frame_times(frames, z).flip(0), method=method)
        parts[name].append(frame_errors(model, x, z))
    return {name: concatenate_errors(errors) for name, errors in parts.items()}


@dataclasses.dataclass(frozen=True)
class Commutation:
    """How far apart two flows end in either order; means over images.

    Attributes:
        latent: ``|z_ab - z_ba| / (1/2 |z_ab - z_0| + 1/2 |z_ba - z_0|)``, a ratio of means:
            0 for flows that commute.
        pixels: sum of absolute pixel differences of the two decoded images.
        moved: the same between ``decode(z_ab)`` and ``decode(z_0)``, to compare with.
    """

    latent: float
    pixels: float
    moved: float


@torch.no_grad()
def commutation_error(
    model: PotentialModel,
    data: SequenceDataset,
    pairs: Sequence[Pair] | None = None,
    indices: Tensor | Sequence[int] | None = None,
    *,
    time: float = 4.0,
    method: Method | None = None,
    batch_size: int = 250,
) -> dict[Pair, Commutation]:
    """Return how much the order of two flows matters.

    ``z_ab = flow(flow(z_0, a, time), b, time)``, and ``z_ba`` the other way round. Nothing but the
    start comes from the data: whether the flows are right is what :func:`switching_error` tells.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's.
        pairs: names of two transformations each; None is every pair.
        indices: which images; None is all of them.
        time: how long each flow runs, in frames.
        method: another solver than the model's.
        batch_size: images at a time.

    Raises:
        ValueError: as for :func:`superposition_error`.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> commutation_error(model, data, [("hue", "hue")])["hue", "hue"].pixels
        0.0
    """
    check_number("time", time)
    gaps = {}
    for a, b in _select_pairs(model, data, pairs, 1, ordered=False):
        sums = torch.zeros(4, dtype=torch.float64)
        for batch, _ in _samples_with_starts(data, indices, False, 0, batch_size):
            first = torch.zeros(len(batch), 1, dtype=torch.long)
            pair = tuple(dict.fromkeys((a, b)))
            x = data.compose(batch, pair, first).frames[:, 0].to(model.device)
            z0 = model.represent(x)
            ab, ba = (
                model.flow(model.flow(z0, i, time, method=method), j, time, method=method)
                for i, j in ((a, b), (b, a))
            )
            still, one, other = (model.decode(z).flatten(1) for z in (z0, ab, ba))
            parts = [
                (ab - ba).norm(dim=-1),
                ((ab - z0).norm(dim=-1) + (ba - z0).norm(dim=-1)) / 2,
                (one - other).abs().sum(-1),
                (one - still).abs().sum(-1),
            ]
            sums += torch.stack([part.cpu().double().sum() for part in parts])
        apart, moved, pixels, moved_pixels = (sums / len(selected_indices(data, indices))).tolist()
        gaps[a, b] = Commutation(apart / moved if moved > 0 else 0.0, pixels, moved_pixels)
    return gaps


def _select_pairs(
    model: PotentialModel,
    data: SequenceDataset,
    pairs: Sequence[Pair] | None,
    frames: int,
    *,
    ordered: bool,
) -> list[Pair]:
    """Check data and pairs; return all pairs if none are given."""
    check_comparable(model, data, frames)
    check_type("model", model, PotentialModel, "a model with potentials")
    if pairs is None:
        every = itertools.permutations if ordered else itertools.combinations
        return list(every(data.names, 2))
    check_type("pairs", pairs, Sequence, "a sequence of two names each, [('a', 'b')]")
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not set(pair) <= set(data.names):
            raise ValueError(
                f"pairs: {str(pair)[:80]} is not a pair of the transformations {brief(data.names)}"
            )
    return [(a, b) for a, b in pairs]


def _pair_error(
    model: PotentialModel,
    data: SequenceDataset,
    pair: Pair,
    samples: Sequence[Samples],
    elapsed: Sequence[Int[Tensor, "f"]],
    move: Callable[[Tensor, Pair], Tensor],
) -> EquivarianceError:
    """Return the error of a path against frames that undergo both transformations of a pair.

    Args:
        model: encodes and decodes.
        data: of the frames.
        pair: names of the transformations.
        samples: with their starts, in batches.
        elapsed: for how many frames each transformation has acted at each frame.
        move: returns the latents at each frame, from those of frame 0.
    """
    parts = []
    for batch, starts in samples:
        times = torch.arange(len(elapsed[0])).expand(len(batch), -1)
        clocks = [clock.expand(len(batch), -1) for clock in elapsed]
        frames = data.compose(batch, pair, times, starts, elapsed=clocks).frames
        x = frames.to(model.device)
        parts.append(frame_errors(model, x, move(model.represent(x[:, 0]), pair)))
    return concatenate_errors(parts)


def _samples_with_starts(
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None,
    random_starts: bool,
    seed: int,
    batch_size: int,
) -> Iterator[Samples]:
    """Yield samples and their starts, in batches."""
    batch_size = limit_batch(data, batch_size)
    check_integer("seed", seed, 0)
    selected = selected_indices(data, indices)
    starts = None
    if random_starts:
        starts = data.random_starts(len(selected), torch.Generator().manual_seed(seed))
    for rows in torch.arange(len(selected)).split(batch_size):
        yield selected[rows], None if starts is None else starts[rows]


@options
class CompositionOptions(MetricOptions):
    """Options of the errors of composed flows."""

    random_starts: bool = False
    """Let frame 0 have undergone every transformation at random."""
    pairs: PositiveInt = 50
    """At most so many pairs of transformations, drawn at random where there are more."""


@dataclasses.dataclass(frozen=True)
class CompositionMeans:
    """Means over pairs of transformations, or over transformations; None without any pair.

    Attributes:
        superposition, switching, reversal: errors.
        order_gap: of :attr:`Commutation.latent`.
    """

    superposition: float | None
    switching: float | None
    reversal: float | None
    order_gap: float | None


@dataclasses.dataclass(frozen=True)
class CompositionErrors:
    """Errors of composed flows.

    Attributes:
        random_starts: whether frame 0 has undergone every transformation at random.
        superposition: by ``a + b``.
        switching: by ``a, b``, in both orders.
        reversal: by transformation.
        commutation: by ``a, b``.
        means: of them.
        possible_pairs: how many pairs there are; as many as were measured if 0.
    """

    random_starts: bool
    superposition: dict[str, ErrorSummary]
    switching: dict[str, ErrorSummary]
    reversal: dict[str, ErrorSummary]
    commutation: dict[str, Commutation]
    means: CompositionMeans
    possible_pairs: int = 0


@METRICS.register("composition")
class Composition(Metric):
    """Errors of simultaneous, sequential and backward flows, and how far the order matters."""

    Options = CompositionOptions
    Result = CompositionErrors
    order = 90
    description = "simultaneous, sequential and backward flows"
    needs = "a model with potentials, and sequences whose transformations were not recorded"
    columns = (
        Column("superposition", "E, simultaneous", "lower", value=lambda r: r.means.superposition),
        Column("switching", "E, sequential", "lower", value=lambda r: r.means.switching),
        Column("reversal", "E, backward", "lower", value=lambda r: r.means.reversal, shown=False),
        Column("order_gap", "order gap", "lower", ".2f", lambda r: r.means.order_gap, shown=False),
    )
    options: CompositionOptions

    def applies(self, context: MetricContext) -> bool:
        """Return whether potentials can be added up, and transformations combined."""
        return isinstance(context.model, PotentialModel) and context.recorded.labels is None

    def measure(self, context: MetricContext) -> CompositionErrors:
        """Return the errors."""
        model, data, indices, frames = context.model, context.data, context.indices, context.frames
        assert isinstance(model, PotentialModel)
        starts = self.options.random_starts
        pairs = list(itertools.combinations(data.names, 2))
        possible = len(pairs)
        if possible > self.options.pairs:
            drawn = random.Random(context.seed).sample(range(possible), self.options.pairs)
            pairs = [pairs[i] for i in sorted(drawn)]
        ordered = [each for a, b in pairs for each in ((a, b), (b, a))]
        both = superposition_error(model, data, pairs, indices, frames=frames, random_starts=starts)
        turns = switching_error(model, data, ordered, indices, frames=frames, random_starts=starts)
        orders = commutation_error(model, data, pairs, indices)
        superposition = summarize({" + ".join(pair): error for pair, error in both.items()})
        switching = summarize({", ".join(pair): error for pair, error in turns.items()})
        reversal = summarize(reversal_error(model, data, indices, frames=frames))
        means = CompositionMeans(
            mean_of(error.error for error in superposition.values()),
            mean_of(error.error for error in switching.values()),
            mean_of(error.error for error in reversal.values()),
            mean_of(order.latent for order in orders.values()),
        )
        commutation = {", ".join(pair): order for pair, order in orders.items()}
        return CompositionErrors(
            starts, superposition, switching, reversal, commutation, means, possible
        )

    @classmethod
    def properties(cls, result: CompositionErrors, evaluation: Evaluation) -> Sequence[Row]:
        """Return the errors of simultaneous, sequential and backward flows."""
        kinds = {
            "simultaneous": result.superposition,
            "sequential": result.switching,
            "backwards": result.reversal,
        }
        return [Row(name, mean_errors(kinds[name].values())) for name in kinds if kinds[name]]

    @classmethod
    def tables(cls, result: CompositionErrors, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return a table of pairs of flows, and one of backward flows."""
        tables = {}
        if result.superposition:
            tables["composition"] = _pair_table(result, evaluation.frames)
        if result.reversal:
            assert result.means.reversal is not None
            title = f"Backward flows, from frame {evaluation.frames} to frame 0"
            errors = ErrorSummaries(result.means.reversal, result.reversal)
            tables["reversal"] = error_table(errors, title, "backward")
        return tables


def _pair_table(result: CompositionErrors, frames: int) -> Table:
    """Return the errors of pairs; those of sequential flows are means of both orders."""
    columns = [
        Column("simultaneous", bold=True),
        Column("± s.e."),
        Column("identity"),
        Column("pixel copy"),
        Column("floor"),
        Column("sequential", bold=True),
        Column("sequential_identity", "identity"),
        Column("sequential_copy", "pixel copy"),
        Column("order gap", format=".2f"),
    ]
    rows = []
    for name, error in result.superposition.items():
        a, b = name.split(" + ")
        turns = mean_errors(result.switching[key] for key in (f"{a}, {b}", f"{b}, {a}"))
        rows.append(
            Row(
                name,
                [
                    error.error,
                    error.standard_error,
                    error.identity,
                    error.copy,
                    error.floor,
                    *turns[:3],
                    result.commutation[f"{a}, {b}"].latent,
                ],
            )
        )
    means = result.means
    one, both = [None] * 4, [None] * 2
    values = [means.superposition, *one, means.switching, *both, means.order_gap]
    rows.append(Row("mean", values, ruled=True))
    title = f"Simultaneous and sequential flows, sum over t=1..{frames}"
    if result.possible_pairs > len(result.superposition):
        title += f"; {len(result.superposition)} of {result.possible_pairs} pairs"
    return Table(columns, rows, title, "flows").without_empty_columns()
