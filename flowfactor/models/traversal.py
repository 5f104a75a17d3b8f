"""Models whose latents move by a learned traversal, not by a flow."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.checks import brief, kind_of
from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import Autoencoder, AutoencoderOptions
from flowfactor.potentials import Selector, VectorField
from solvers.registry import suggest

FINISH_SEQUENCES = 250
"""Training sequences of each transformation from which :meth:`TraversalModel.finish` learns."""
SEARCH_SEQUENCES = 16
"""Sequences of each transformation that every single dimension is tried with."""
SEARCH_RANGES = (-4.0, -2.0, 2.0, 4.0)
"""How far a single dimension is tried to move over ``[0, T]``, in units of the prior's scale."""

logger = logging.getLogger(__name__)


class TraversalModel(Autoencoder):
    r"""A model of single images, whose latents are moved by a traversal that is learned afterwards.

    Two traversals move the latent ``z_0`` of frame 0 under transformation k:

    .. math::

        \begin{aligned}
        \text{single:} \quad z_t &= z_0 + r_k \frac{t}{T} e_{j_k} \\
        \text{mean:} \quad z_t &= z_0 + m_k(t), \qquad m_k(t) = \mathrm{mean}[\mu(x_t) - \mu(x_0)]
        \end{aligned}

    The first moves one dimension ``j_k`` over the range ``r_k``; the second follows the mean
    displacement, linear between the frames: before frame 0 and after frame T it goes on as in the
    first and in the last interval. :func:`fit_traversals` learns both, after training;
    :meth:`finish` also chooses the better one. What is learned is saved with the model.

    Args:
        options: of the model.
        names, image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.
        networks: others than those of the options, see
            :class:`~flowfactor.models.autoencoder.Autoencoder`.

    Attributes:
        traversal: the one that moves the latent, one of :attr:`TRAVERSALS`.
        single_dimension, single_range: ``(K,)``, j and r.
        mean_displacement: ``(K, T + 1, D)``.

    Raises:
        ValueError: names that repeat, or sizes that do not fit.
    """

    TRAVERSALS: ClassVar[tuple[str, ...]] = ("single", "mean")

    single_dimension: Tensor
    single_range: Tensor
    mean_displacement: Tensor
    fitted: Tensor

    def __init__(
        self,
        options: AutoencoderOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
        **networks: Any,
    ) -> None:
        super().__init__(options, names, image_shape, horizon, **networks)
        self.names = tuple(names)
        self.traversal = "mean"
        K = len(self.names)
        self.register_buffer("single_dimension", torch.zeros(K, dtype=torch.long))
        self.register_buffer("single_range", torch.zeros(K))
        self.register_buffer("mean_displacement", torch.zeros(K, horizon + 1, self.latent_dim))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def traversal(self) -> str:
        """The traversal that moves the latent, one of :attr:`TRAVERSALS`."""
        return self._traversal

    @traversal.setter
    def traversal(self, traversal: str) -> None:
        if traversal not in self.TRAVERSALS:
            raise ValueError(f"traversal must be one of {', '.join(self.TRAVERSALS)}: {traversal}")
        self._traversal = traversal

    def spec(self) -> dict[str, Any] | None:
        """Return plain data from which :meth:`from_spec` makes the same model, untrained."""
        spec = super().spec()
        return spec and spec | {"traversal": self.traversal}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Self:
        """Return an untrained model from what :meth:`spec` returned."""
        model = super().from_spec(spec)
        model.traversal = spec["traversal"]
        return model

    def flow(
        self,
        z: Float[Tensor, "b d"],
        k: VectorField | Selector,
        t: float | Sequence[float] | Tensor,
        **options: Any,
    ) -> Tensor:
        """Move latents by the traversal of a transformation.

        Args:
            z: latents ``(B, D)``.
            k: a name, an index, or one index per sample ``(B,)``.
            t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]``, where the latents are
                ``z``, through all of them.
            options: of a solver; a traversal solves no equation.

        Returns:
            ``(B, D)`` for a number t, else ``(T, B, D)``, the first being ``z``.

        Raises:
            ValueError: the traversal has not been learned yet, k is a field or soft weights,
                or z or t has another shape.
            KeyError, IndexError: no such transformation.
        """
        times = torch.as_tensor(t, dtype=z.dtype, device=z.device)
        chosen = indices_of(k, self.names, z)
        if times.ndim == 0:
            return self._move(z, chosen, torch.stack([torch.zeros_like(times), times]))[-1]
        return self._move(z, chosen, times)

    def _move(
        self, z: Float[Tensor, "b d"], k: Int[Tensor, "b"], times: Float[Tensor, "t"]
    ) -> Float[Tensor, "t b d"]:
        """Return the latents at each time; at the first they are ``z``."""
        if not bool(self.fitted):
            raise ValueError(
                f"this {type(self).__name__} has not learned yet how its latents move; call "
                f"fit_traversals(model, batches) with sequences of the training data"
            )
        single = self.traversal == "single"
        at = self._single(times) if single else interpolate(self.mean_displacement, times)
        displacement: Tensor = at[:, k].to(z.dtype)
        # In this order the latents at the first time are z to the last bit.
        return z + (displacement - displacement[:1])

    def _single(self, times: Float[Tensor, "t"]) -> Float[Tensor, "t k d"]:
        ranges = self.single_range.to(times.dtype)
        direction = F.one_hot(self.single_dimension, self.latent_dim)
        return (times / self.horizon).view(-1, 1, 1) * (ranges.unsqueeze(1) * direction)

    @torch.no_grad()
    def finish(
        self, training: Iterable[SequenceBatch], validation: Iterable[SequenceBatch]
    ) -> dict[str, Any]:
        """Learn every traversal and choose the best one, all from training sequences.

        Returns:
            ``traversals``: the ``chosen`` one, and the ``training_errors`` by which it was.
        """
        count, batches = 0, []
        for batch in training:
            batches.append(batch)
            count += len(batch)
            if count >= FINISH_SEQUENCES * len(self.names):
                break
        fit_traversals(self, batches)
        errors = {}
        for traversal in self.TRAVERSALS:
            self.traversal = traversal
            errors[traversal] = super().measure(batches[0])["error"]
        self.traversal = min(errors, key=lambda traversal: errors[traversal])
        logger.info("errors of the traversals on training sequences: %s", errors)
        return {"traversals": {"chosen": self.traversal, "training_errors": errors}}

    @torch.no_grad()
    def measure(
        self, sequences: SequenceBatch, shown: Iterable[SequenceBatch] = ()
    ) -> dict[str, float]:
        """Return the mean equivariance error under the mean displacement of ``shown``.

        Or under a traversal that need not be learned, if the model has one that does better.
        """
        sequences = sequences.to(self.device)
        displacements = mean_displacements(self, shown)[self.choose(sequences)]
        z0 = self.represent(sequences.frames[:, 0])
        path = rearrange(z0.unsqueeze(1) + displacements, "b f d -> f b d")
        errors = [self.path_error(sequences, path)]
        if self.traversal not in TraversalModel.TRAVERSALS:
            errors.append(super().measure(sequences)["error"])
        return {"error": min(errors)}


@torch.no_grad()
def fit_traversals(
    model: TraversalModel,
    batches: Iterable[SequenceBatch],
    *,
    sequences: int = SEARCH_SEQUENCES,
    ranges: Sequence[float] = SEARCH_RANGES,
) -> None:
    r"""Learn from training sequences how the latents of a model without flows move.

    Both traversals of :class:`TraversalModel` are learned and stored in the model;
    ``model.traversal`` chooses.

    The *mean* displacement ``mean[mu(x_t) - mu(x_0)]`` is taken over all sequences given. For the
    *single* dimension every dimension j is tried with every range r, and the pair with the lowest
    ``E_k`` kept, ``sum_{t >= 1} sum_{channels, pixels} |x_t - decode(z_t)|`` averaged over
    sequences; then r alone is refined by halving the spacing between ranges four times.

    Args:
        model: trained; it is put into evaluation mode while this runs.
        batches: complete labelled training sequences, of every transformation.
        sequences: how many of each transformation the single dimension is searched with; each of
            them is decoded D times as often as there are ``ranges``.
        ranges: what r is tried, in latent units over ``[0, T]``.

    Raises:
        ValueError: there is a transformation that no sequence shows, or the sequences are
            incomplete.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import VAE, fit_traversals
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = VAE.build(("left", "right"), (1, 8, 8), horizon=2, latent_dim=3,
        ...                   encoder={"channels": [4]}, decoder={"hidden": [16]})
        >>> films = SequenceBatch.full(torch.rand(4, 3, 1, 8, 8), torch.tensor([0, 0, 1, 1]))
        >>> fit_traversals(model, [films])
        >>> model.flow(torch.zeros(2, 3), "left", [0.0, 1.0, 2.0]).shape
        torch.Size([3, 2, 3])
    """
    training = model.training
    model.eval()
    try:
        displacements, samples = _mean_displacements(model, batches, sequences)
        model.mean_displacement.copy_(displacements)
        best = [_fit_single(model, each, ranges) for each in samples]
        model.single_dimension.copy_(torch.tensor([j for j, _ in best]))
        model.single_range.copy_(torch.tensor([r for _, r in best], dtype=torch.float64))
        model.fitted.fill_(True)
    finally:
        model.train(training)


@torch.no_grad()
def mean_displacements(
    model: TraversalModel, batches: Iterable[SequenceBatch]
) -> Float[Tensor, "k f d"]:
    """Return ``m_k(t) = mean[mu(x_t) - mu(x_0)]``, shape ``(K, T + 1, D)``.

    The displacements that the model moves by stay as they are.

    Args:
        model: in evaluation mode.
        batches: complete labelled sequences, of every transformation.

    Raises:
        ValueError: there is a transformation that no sequence shows, or the sequences are
            incomplete.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import VAE, mean_displacements
        >>> model = VAE.build(("left", "right"), (1, 8, 8), horizon=2, latent_dim=3,
        ...                   encoder={"channels": [4]}, decoder={"hidden": [16]})
        >>> films = SequenceBatch.full(torch.rand(4, 3, 1, 8, 8), torch.tensor([0, 0, 1, 1]))
        >>> mean_displacements(model, [films]).shape
        torch.Size([2, 3, 3])
    """
    return _mean_displacements(model, batches, 0)[0]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Some complete sequences of one transformation and the means of their first latents."""

    frames: Float[Tensor, "n f c h w"]
    start: Float[Tensor, "n d"]

    def error(self, model: TraversalModel, displacement: Float[Tensor, "f d"]) -> float:
        """Return ``E_k`` of latents that are displaced alike."""
        z = self.start.unsqueeze(1) + displacement[1:].to(self.start.dtype)
        moved = model.decode(rearrange(z, "b f d -> (b f) d"))
        moved = rearrange(moved, "(b f) c h w -> b f c h w", b=len(z))
        return float((self.frames[:, 1:] - moved).abs().flatten(1).sum(1).mean())


def _mean_displacements(
    model: TraversalModel, batches: Iterable[SequenceBatch], count: int
) -> tuple[Tensor, list[_Sample]]:
    """Return the mean displacements, and the first ``count`` sequences of each transformation."""
    K, frames, device = len(model.names), model.horizon + 1, model.device
    sums = torch.zeros(K, frames, model.latent_dim, dtype=torch.double)
    counts = torch.zeros(K, dtype=torch.long)
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(K)]
    for batch in batches:
        if batch.frames.shape[1] != frames or batch.horizon != model.horizon:
            raise ValueError(
                f"traversals are learned from complete sequences of {frames} frames; these have "
                f"{batch.frames.shape[1]} of {batch.horizon + 1}"
            )
        sequences = batch.to(device)
        labels = model.choose(sequences).cpu()
        images = rearrange(sequences.frames, "b f c h w -> (b f) c h w")
        means = rearrange(model.represent(images), "(b f) d -> b f d", f=frames)
        displacements = (means - means[:, :1]).cpu().double()
        for k in range(K):
            of_k: Tensor = labels.eq(k)
            rows = of_k.nonzero()[: max(0, count - int(counts[k])), 0]
            sums[k] += displacements[of_k].sum(0)
            counts[k] += int(of_k.sum())
            if len(rows):
                rows = rows.to(device)
                kept[k].append((sequences.frames[rows], means[rows, 0]))
    missing = [name for name, shown in zip(model.names, counts, strict=True) if not shown]
    if missing:
        raise ValueError(f"no sequence undergoes {', '.join(missing)}")
    samples = [_Sample(*map(torch.cat, zip(*parts, strict=True))) for parts in kept if parts]
    return (sums / counts.view(-1, 1, 1)).to(means), samples


def _fit_single(
    model: TraversalModel, sample: _Sample, ranges: Sequence[float]
) -> tuple[int, float]:
    """Return the best dimension and range of a transformation."""
    steps = torch.arange(model.horizon + 1).to(sample.start) / model.horizon
    unit = torch.eye(model.latent_dim).to(sample.start)

    def error(j: int, r: float) -> float:
        return sample.error(model, r * steps.unsqueeze(1) * unit[j])

    tried = itertools.product(range(model.latent_dim), ranges)
    best = min((error(j, r), j, r) for j, r in tried)
    spread = max(abs(r) for r in ranges) / max(len(ranges) / 2, 1)
    for _ in range(4):
        spread /= 2
        _, j, r = best
        best = min([best, *((error(j, r + step), j, r + step) for step in (-spread, spread))])
    _, j, r = best
    return j, r


def indices_of(k: VectorField | Selector, names: Sequence[str], z: Tensor) -> Int[Tensor, "b"]:
    """Return the index of the transformation of each latent, from a name or indices.

    Raises:
        KeyError, IndexError: no such transformation.
        ValueError: a field, weights, or another number of indices than latents.
    """
    if isinstance(k, str):
        if k not in names:
            raise KeyError(f"k: no transformation is named {k[:80]!r}; {suggest(k, names)}")
        k = names.index(k)
    if (
        isinstance(k, bool)
        or not isinstance(k, int | Tensor)
        or (isinstance(k, Tensor) and k.is_floating_point())
    ):
        raise ValueError(
            f"k must be a name, an index or a tensor of one index per sample, as this model has no "
            f"potentials; it is {kind_of(k)}"
        )
    chosen = torch.as_tensor(k, device=z.device).long()
    if chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != len(z)):
        raise ValueError(
            f"k has the shape {tuple(chosen.shape)}; one index per sample has the shape ({len(z)},)"
        )
    count = len(names)
    if chosen.ndim == 0 and -count <= int(chosen) < 0:
        chosen = chosen + count
    if chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < count):
        raise IndexError(
            f"k holds an index out of range: there are {count} transformations ({brief(names)})"
        )
    return chosen.expand(len(z))


def interpolate(
    at_frames: Float[Tensor, "k f d"], times: Float[Tensor, "t"]
) -> Float[Tensor, "t k d"]:
    """Return values at times between frames, and beyond them as in the first and last interval.

    Example:
        >>> import torch
        >>> at_frames = torch.tensor([0.0, 1.0, 4.0]).view(1, 3, 1)
        >>> interpolate(at_frames, torch.tensor([-1.0, 0.5, 1.5, 3.0])).flatten()
        tensor([-1.0000,  0.5000,  2.5000,  7.0000])
    """
    left = times.floor().long().clamp(0, at_frames.shape[1] - 2)
    share = (times - left).view(-1, 1, 1)
    values = rearrange(at_frames.to(times.dtype), "k f d -> f k d")
    return values[left] + share * (values[left + 1] - values[left])
