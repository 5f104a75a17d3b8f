"""Flows put together: at once, one after another, backwards, in either order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.metrics.equivariance import (
    EquivarianceError,
    check_comparable,
    frame_errors,
    joined,
    rows_undergoing,
)
from flowfactor.models import SequenceModel
from solvers import Method

Pair = tuple[str, str]
Batch = tuple[Int[Tensor, "b"], Float[Tensor, "b s"] | None]


@torch.no_grad()
def superposition_error(
    model: SequenceModel,
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
    r"""Return the error of two flows at once against frames that undergo both transformations.

    .. code-block:: text

        dz/dt = grad u^a(z, t) + grad u^b(z, t)
        E_ab = mean_{images} sum_{t=1..T} sum_{channels, pixels} |x_t^{ab} - decode(z_t)|

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
    chosen = _pairs(model, data, pairs, frames, ordered=False)

    def move(z0: Tensor, pair: Pair) -> Tensor:
        both = model.potentials[pair[0]] + model.potentials[pair[1]]
        path: Tensor = model.flow(z0, both, _times(frames, z0), method=method)
        return path

    batches = list(_batches(data, indices, random_starts, seed, batch_size))
    clock = torch.arange(frames + 1)
    return {pair: _error_of(model, data, pair, batches, [clock, clock], move) for pair in chosen}


@torch.no_grad()
def switching_error(
    model: SequenceModel,
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
    r"""Return the error of one flow after the other against frames that switch likewise.

    .. code-block:: text

        z_t = flow(z_0, a, t)                for t <= s = ceil(T / 2),
        z_t = flow(z_s, b, t - s)            for t > s; each potential's clock begins at 0

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
    chosen = _pairs(model, data, pairs, frames, ordered=True)
    if frames < 2:
        raise ValueError(f"to switch takes at least 2 frames; frames is {frames}")
    turn = -(-frames // 2)

    def move(z0: Tensor, pair: Pair) -> Tensor:
        first = model.flow(z0, pair[0], _times(turn, z0), method=method)
        then = model.flow(first[-1], pair[1], _times(frames - turn, z0), method=method)
        return torch.cat([first, then[1:]])

    batches = list(_batches(data, indices, random_starts, seed, batch_size))
    clock = torch.arange(frames + 1)
    elapsed = [clock.clamp(max=turn), (clock - turn).clamp(min=0)]
    return {pair: _error_of(model, data, pair, batches, elapsed, move) for pair in chosen}


@torch.no_grad()
def reversal_error(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    method: Method | None = None,
    batch_size: int = 250,
) -> dict[str, EquivarianceError]:
    r"""Return the error of every flow that runs backwards from the last frame to the first.

    .. code-block:: text

        z_T = encoder mean of x_T;   dz/dt = grad u^k(z, t) from t = T to 0
        E = mean_{images} sum_{t=T-1..0} sum_{channels, pixels} |x_t - decode(z_t)|

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
    chosen = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    errors = {}
    for k, rows in rows_undergoing(data, chosen).items():
        name, parts = data.names[k], []
        for batch in chosen[rows].split(batch_size):
            x = data.sample(batch, k).frames[:, : frames + 1].flip(1).to(_device(model))
            z = model.represent(x[:, 0])
            z = model.flow(z, name, _times(frames, z).flip(0), method=method)
            parts.append(frame_errors(model, x, z))
        errors[name] = joined(parts)
    return errors


class Commutation(NamedTuple):
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
    model: SequenceModel,
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
    chosen = _pairs(model, data, pairs, 1, ordered=False)
    found = {}
    for a, b in chosen:
        sums = torch.zeros(4, dtype=torch.float64)
        for batch, _ in _batches(data, indices, False, 0, batch_size):
            clock = torch.zeros(len(batch), 1, dtype=torch.long)
            x = data.compose(batch, (a, b), clock).frames[:, 0].to(_device(model))
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
            sums += torch.stack([part.double().sum().cpu() for part in parts])
        count = len(data) if indices is None else len(indices)
        apart, moved, pixels, moved_pixels = (sums / count).tolist()
        latent = apart / moved if moved > 0 else 0.0
        found[a, b] = Commutation(latent, pixels, moved_pixels)
    return found


def _pairs(
    model: SequenceModel,
    data: SequenceDataset,
    pairs: Sequence[Pair] | None,
    frames: int,
    *,
    ordered: bool,
) -> list[Pair]:
    """Check data and pairs; make all pairs if none are given."""
    check_comparable(model, data, frames)
    if pairs is None:
        every = itertools.permutations if ordered else itertools.combinations
        return list(every(data.names, 2))
    for pair in pairs:
        if len(pair) != 2 or not set(pair) <= set(data.names):
            raise ValueError(
                f"{tuple(pair)} is not a pair of the transformations {', '.join(data.names)}"
            )
    return [(a, b) for a, b in pairs]


def _error_of(
    model: SequenceModel,
    data: SequenceDataset,
    pair: Pair,
    batches: Sequence[Batch],
    elapsed: Sequence[Int[Tensor, "f"]],
    move: Callable[[Tensor, Pair], Tensor],
) -> EquivarianceError:
    """Return the error of a path against frames that undergo both transformations of a pair.

    Args:
        model: encodes and decodes.
        data: of the frames.
        pair: names of the transformations.
        batches: samples, and where they start.
        elapsed: for how long each transformation has acted at each frame.
        move: gives the latents at each frame, from those of frame 0.
    """
    parts = []
    for batch, start in batches:
        clock = torch.arange(len(elapsed[0])).expand(len(batch), -1)
        acted = [each.expand(len(batch), -1) for each in elapsed]
        x = data.compose(batch, pair, clock, start, elapsed=acted).frames.to(_device(model))
        parts.append(frame_errors(model, x, move(model.represent(x[:, 0]), pair)))
    return joined(parts)


def _batches(
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None,
    random_starts: bool,
    seed: int,
    batch_size: int,
) -> Iterator[Batch]:
    """Yield samples and where they start."""
    chosen = torch.arange(len(data)) if indices is None else torch.as_tensor(indices)
    starts = torch.rand(len(chosen), data.start_size, generator=torch.Generator().manual_seed(seed))
    for batch, start in zip(chosen.split(batch_size), starts.split(batch_size), strict=True):
        yield batch, start if random_starts else None


def _times(horizon: int, like: Tensor) -> Float[Tensor, "t"]:
    return torch.arange(horizon + 1, dtype=like.dtype, device=like.device)


def _device(model: SequenceModel) -> torch.device:
    return next(model.parameters()).device
