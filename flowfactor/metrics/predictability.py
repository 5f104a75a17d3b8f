"""Can one see from a pair of images which flow has led from one to the other?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.checks import check_integer, check_number, check_tensor, check_type, kind_of
from flowfactor.data import SequenceDataset
from flowfactor.metrics.base import Metric, MetricContext, MetricOptions
from flowfactor.metrics.pixel_errors import batches, check_comparable, selected_indices
from flowfactor.models import SequenceModel
from flowfactor.networks import single_precision
from flowfactor.options import PositiveFloat, PositiveInt, options
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS
from flowfactor.tables import Column, Row, Table
from solvers import Method

_PIXELS = 2**28
"""Pixels of all pairs that the metric holds in memory, at most: 1 GiB."""


@options
class ClassifierOptions(MetricOptions):
    """How the classifier of pairs is made and trained, with Adam."""

    width: PositiveInt = 16
    """Channels of its first layer; the others have twice as many."""
    epochs: PositiveInt = 30
    """Passes through the training pairs."""
    batch_size: PositiveInt = 32
    """Pairs of a step."""
    learning_rate: PositiveFloat = 2e-3
    """Initial learning rate of Adam; it falls to zero along half a cosine."""


@dataclasses.dataclass(frozen=True)
class Predictability:
    """How well a classifier tells transformations apart.

    Attributes:
        accuracy: on the test pairs, after the last epoch.
        chance: that of a guess, 1/K.
        train_pairs, test_pairs: how many pairs there were.
    """

    accuracy: float
    chance: float
    train_pairs: int
    test_pairs: int


def variation_predictability(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    time: float | None = None,
    train_fraction: float = 0.1,
    random_starts: bool = False,
    options: ClassifierOptions = ClassifierOptions(),
    seed: int = 0,
    method: Method | None = None,
    batch_size: int = 250,
) -> Predictability:
    r"""Return how well a small network tells flows apart by what they do to images (VP).

    The network sees pairs ``(x_0, decode(flow(z_0, k, t)))``, with ``z_0`` the encoder mean of
    ``x_0``. The score is how often it predicts k right, on pairs that it was not trained on.

    A network that sees few pairs can only learn changes that are simple and alike for all images.
    Whether they are the *right* changes is what :func:`~flowfactor.metrics.equivariance_error`
    measures.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's.
        indices: which images; None is all of them. Each gives a pair for each transformation, all
            of which are held in memory.
        time: t, in frames; None is the last frame that the model was trained on.
        train_fraction: the part of the images whose pairs the network is trained with, drawn at
            random. The others are tested on: no image is on both sides.
        random_starts: let ``x_0`` have undergone every transformation at random.
        options: of the network.
        seed: of the starts, the draw, the network and its batches.
        method: another solver than the model's.
        batch_size: images encoded and decoded at a time; it does not change the result.

    Raises:
        ValueError: the data has other transformations or images than the model; a single
            transformation; a fraction that leaves no images on either side.

    Source: Zhu, Xu, Tao, "Learning Disentangled Representations with Latent Variation
    Predictability", ECCV 2020. There the network is a ResNet-18 and the pair is generated; here
    the network is smaller and the first image is the true one.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> score = variation_predictability(model, data, options=ClassifierOptions(epochs=1))
        >>> score.train_pairs, score.test_pairs, round(score.chance, 3)
        (3, 27, 0.333)
    """
    check_comparable(model, data, 1)
    check_number("time", model.horizon if time is None else time)
    check_type("options", options, ClassifierOptions)
    check_integer("seed", seed, 0)
    t = float(model.horizon if time is None else time)
    selected = selected_indices(data, indices)
    starts = None
    if random_starts:
        starts = data.random_starts(len(selected), torch.Generator().manual_seed(seed))
    place = torch.zeros(len(data), dtype=torch.long)
    place[selected] = torch.arange(len(selected))
    groups, before, after, labels = [], [], [], []
    with torch.no_grad():
        for k, batch in batches(data, selected, batch_size):
            first = torch.zeros(len(batch), 1, dtype=torch.long)
            start = None if starts is None else starts[place[batch]]
            x = data.sample(batch, k, first, start).frames[:, 0].to(model.device)
            before.append(x)
            after.append(model.decode(model.flow(model.represent(x), k, t, method=method)))
            labels.append(torch.full_like(batch, k))
            groups.append(batch)
    return classify_pairs(
        torch.cat(before),
        torch.cat(after),
        torch.cat(labels),
        torch.cat(groups),
        train_fraction=train_fraction,
        options=options,
        seed=seed,
    )


def classify_pairs(
    before: Float[Tensor, "n c h w"],
    after: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    groups: Int[Tensor, "n"] | None = None,
    *,
    train_fraction: float = 0.1,
    options: ClassifierOptions = ClassifierOptions(),
    seed: int = 0,
) -> Predictability:
    """Train a small convolutional network to tell from two images what happened between them.

    Args:
        before: the first images.
        after: the second ones, on the same device.
        labels: what happened, numbers from 0.
        groups: pairs of the same number are all trained on or all tested on; None is each pair for
            itself.
        train_fraction: the part of the groups trained on, drawn at random.
        options: of the network.
        seed: of the draw, the network and its batches. The global generator is left alone.

    Raises:
        ValueError: shapes that do not match, images that are not finite, fewer than two labels,
            or a fraction that leaves no groups on either side.

    Example:
        >>> import torch
        >>> x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> k = torch.arange(200) % 2
        >>> brighter = x + 0.5 * k.view(-1, 1, 1, 1)
        >>> classify_pairs(x, brighter, k, train_fraction=0.2).accuracy > 0.9
        True
    """
    check_tensor("before", before, ("N", "C", "H", "W"))
    check_tensor("after", after, tuple(before.shape), before)
    check_type("options", options, ClassifierOptions)
    check_integer("seed", seed, 0)
    check_number("train_fraction", train_fraction, 0, 1)
    for name, numbers in (("labels", labels), ("groups", groups)):
        if numbers is not None:
            check_type(name, numbers, Tensor, "a tensor of integers (N,)")
            if numbers.shape != before.shape[:1] or numbers.is_floating_point():
                raise ValueError(
                    f"{name} must be integers ({len(before)},); it is {kind_of(numbers)}"
                )
    labels = labels.cpu()
    classes = labels.unique()
    if len(classes) < 2 or int(classes[0]) < 0:
        raise ValueError(f"labels must be at least two numbers from 0; they are {classes.tolist()}")
    groups = torch.arange(len(labels)) if groups is None else groups.cpu()
    generator = torch.Generator().manual_seed(seed)
    members = groups.unique()
    count = round(len(members) * train_fraction)
    if not 0 < count < len(members):
        raise ValueError(
            f"train_fraction must leave images to train and to test on; it is {train_fraction} of "
            f"{len(members)}"
        )
    drawn = members[torch.randperm(len(members), generator=generator)[:count]]
    known = torch.isin(groups, drawn)
    train, test = known.nonzero().flatten(), (~known).nonzero().flatten()
    pairs = single_precision(torch.cat([before, after], dim=1))
    target = labels.to(pairs.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _classifier(pairs.shape[1], int(classes[-1]) + 1, options.width)
    network = network.to(pairs)
    train, test = train.to(pairs.device), test.to(pairs.device)
    _fit(network, pairs, target, train, options, generator)
    with torch.no_grad():
        correct = sum(
            int((network(pairs[rows]).argmax(1) == target[rows]).sum()) for rows in test.split(500)
        )
    return Predictability(correct / len(test), 1 / len(classes), len(train), len(test))


def _fit(
    network: nn.Module,
    pairs: Float[Tensor, "n c h w"],
    target: Int[Tensor, "n"],
    rows: Int[Tensor, "m"],
    options: ClassifierOptions,
    generator: torch.Generator,
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    with torch.enable_grad():
        for _ in range(options.epochs):
            order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
            for batch in order.split(options.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(network(pairs[batch]), target[batch]).backward()
                optimizer.step()
            schedule.step()


def _classifier(channels: int, classes: int, width: int) -> nn.Sequential:
    """Return three convolutions, averaged over a grid of 4 by 4 cells, and a linear layer."""
    layers: list[nn.Module] = []
    for into, out in ((channels, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.GroupNorm(1, out), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(2 * width * 16, classes)
    )


@METRICS.register("predictability")
class PairClassification(Metric):
    """How well flows can be told apart, see :func:`variation_predictability`."""

    Options = ClassifierOptions
    Result = Predictability
    order = 60
    description = "variation predictability"
    needs = "at least two transformations"
    columns = (Column("predictability", "VP", "higher", ".3f", lambda result: result.accuracy),)
    options: ClassifierOptions

    def applies(self, context: MetricContext) -> bool:
        """Return whether there is anything to tell apart."""
        return len(context.data.names) > 1

    def measure(self, context: MetricContext) -> Predictability:
        """Return the accuracy."""
        data = context.data
        pairs = 1 if data.labels is not None else len(data.names)
        images = _PIXELS // (2 * pairs * math.prod(data.image_shape))
        return variation_predictability(
            context.model,
            data,
            context.indices[: max(images, 10)],
            time=context.frames,
            options=self.options,
            seed=context.seed,
        )

    @classmethod
    def tables(cls, result: Predictability, evaluation: Evaluation) -> Mapping[str, Table]:
        """Return the accuracy beside that of a guess."""
        columns = [Column("accuracy", format=".3f"), Column("chance", format=".3f")]
        rows = [Row("pairs of images", [result.accuracy, result.chance])]
        return {"predictability": Table(columns, rows, "Variation predictability")}
