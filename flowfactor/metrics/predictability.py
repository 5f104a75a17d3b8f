"""Can one see from a pair of images which flow has led from one to the other?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.data import SequenceDataset
from flowfactor.metrics.equivariance import check_comparable, rows_undergoing
from flowfactor.models import SequenceModel
from solvers import Method


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
    """How the classifier of pairs is made and trained, with Adam.

    Args:
        width: channels of its first layer; the others have twice as many.
        epochs: passes through the training pairs.
        batch_size: pairs of a step.
        learning_rate: of Adam; it falls to zero along half a cosine.

    Raises:
        ValueError: a number that is not positive.
    """

    width: int = 16
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if not number > 0:
                raise ValueError(f"{field.name} must be positive; it is {number}")


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

    .. code-block:: text

        pair:   x_0,  decode(flow(z_0, k, t)),       z_0 the encoder mean of x_0
        score:  accuracy of k as predicted from the pair, on pairs not trained on

    A network that sees few pairs can only learn changes that are simple and alike for all images.
    The score says nothing of whether they are the *right* changes, for which see
    :func:`~flowfactor.metrics.equivariance_error`.

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
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; it is {batch_size}")
    t = float(model.horizon) if time is None else float(time)
    device = next(model.parameters()).device
    chosen = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(len(chosen), data.start_size, generator=generator)
    groups, before, after, labels = [], [], [], []
    with torch.no_grad():
        for k, able in rows_undergoing(data, chosen).items():
            for rows in able.split(batch_size):
                first = torch.zeros(len(rows), 1, dtype=torch.long)
                start = starts[rows] if random_starts else None
                x = data.sample(chosen[rows], k, first, start).frames[:, 0].to(device)
                before.append(x)
                after.append(model.decode(model.flow(model.represent(x), k, t, method=method)))
                labels.append(torch.full_like(rows, k))
                groups.append(chosen[rows])
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
        ValueError: shapes that do not match, images that are not finite, fewer than two factors,
            or a fraction that leaves no groups on either side.

    Example:
        >>> import torch
        >>> x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> k = torch.arange(200) % 2
        >>> brighter = x + 0.5 * k.view(-1, 1, 1, 1)
        >>> classify_pairs(x, brighter, k, train_fraction=0.2).accuracy > 0.9
        True
    """
    if before.shape != after.shape or before.ndim != 4 or labels.shape != before.shape[:1]:
        raise ValueError(
            f"before and after must be (N, C, H, W) and factor (N,); their shapes are "
            f"{tuple(before.shape)}, {tuple(after.shape)} and {tuple(factor.shape)}"
        )
    if not (bool(before.isfinite().all()) and bool(after.isfinite().all())):
        raise ValueError("the images of the pairs must be finite; some pixels are not")
    labels = labels.cpu()
    classes = labels.unique()
    if len(classes) < 2 or int(classes[0]) < 0:
        raise ValueError(
            f"there must be at least two factors, numbered from 0, to tell apart; they are "
            f"{classes.tolist()}"
        )
    groups = torch.arange(len(labels)) if groups is None else groups.cpu()
    if groups.shape != labels.shape:
        raise ValueError(
            f"groups must hold one number for each of the {len(factor)} pairs; their shape is "
            f"{tuple(groups.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    members = groups.unique()
    count = round(len(members) * train_fraction)
    if not 0 < count < len(members):
        raise ValueError(
            f"train_fraction must leave images to train and to test on; of {len(members)} images "
            f"{train_fraction} are {count}"
        )
    drawn = members[torch.randperm(len(members), generator=generator)[:count]]
    known = torch.isin(groups, drawn)
    train, test = known.nonzero().flatten(), (~known).nonzero().flatten()
    pairs = torch.cat([before, after], dim=1).float()
    target = labels.to(pairs.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _classifier(pairs.shape[1], int(classes[-1]) + 1, options.width)
    network = network.to(pairs.device)
    _fit(network, pairs, target, train, options, generator)
    with torch.no_grad():
        right = sum(
            int((network(pairs[rows]).argmax(1) == target[rows]).sum()) for rows in test.split(500)
        )
    return Predictability(right / len(test), 1 / len(classes), len(train), len(test))


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
            order = rows[torch.randperm(len(rows), generator=generator)]
            for batch in order.split(options.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(network(pairs[batch]), target[batch]).backward()
                optimizer.step()
            schedule.step()


def _classifier(channels: int, classes: int, width: int) -> nn.Sequential:
    """Three convolutions, what they find averaged over a grid of 4 by 4 places."""
    layers: list[nn.Module] = []
    for into, out in ((channels, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.GroupNorm(1, out), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(2 * width * 16, classes)
    )
