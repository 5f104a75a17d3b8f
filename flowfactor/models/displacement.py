"""Models whose latents move by a rule, not by a flow, and how such a rule is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import Autoencoder
from flowfactor.networks import make_decoder, make_encoder
from flowfactor.observation import Observation, observation_from_name
from flowfactor.potentials import Potential, Selector

_RANGES = tuple(float(r) for r in range(-6, 7) if r)
"""How far a single dimension is tried to move over ``[0, T]``, in units of the prior's scale."""


class TraversalModel(Autoencoder):
    """A model of single images, whose latents are moved by a rule that is learned afterwards.

    Two rules move the latent ``z_0`` of frame 0 under transformation k:

    .. code-block:: text

        single:  z_t = z_0 + r_k (t / T) e_{j_k}       one dimension j_k, over the range r_k
        mean:    z_t = z_0 + m_k(t)                     m_k(t) = mean[mu(x_t) - mu(x_0)]

    ``m_k`` is linear between the frames; before frame 0 and after frame T it goes on as it went in
    the first and in the last interval. :func:`fit_traversals` learns both, after training, and
    :attr:`rule` says which one moves. The rules are buffers, saved with the model.

    Attributes:
        rule: one of :attr:`TRAVERSALS`.
        single_dimension, single_range: ``(K,)``, j and r.
        mean_displacement: ``(K, T + 1, D)``.

    Args:
        names: the names of the K transformations.
        encoder, decoder, image_shape, latent_dim, last, observation: see
            :class:`~flowfactor.models.autoencoder.Autoencoder`.
        rule: which rule moves.

    Raises:
        ValueError: names that repeat, or an unknown rule.
    """

    TRAVERSALS: ClassVar[tuple[str, ...]] = ("single", "mean")

    single_dimension: Tensor
    single_range: Tensor
    mean_displacement: Tensor
    fitted: Tensor

    def __init__(
        self,
        names: Sequence[str],
        encoder: nn.Module,
        decoder: nn.Module,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        *,
        horizon: int = 8,
        observation: Observation | None = None,
        rule: str = "mean",
    ) -> None:
        super().__init__(
            encoder, decoder, image_shape, latent_dim, horizon=horizon, observation=observation
        )
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a model needs names that are all different; it got {list(names)}")
        self._names = tuple(names)
        self.rule = rule
        K = len(self._names)
        self.register_buffer("single_dimension", torch.zeros(K, dtype=torch.long))
        self.register_buffer("single_range", torch.zeros(K))
        self.register_buffer("mean_displacement", torch.zeros(K, horizon + 1, latent_dim))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the transformations."""
        return self._names

    @property
    def rule(self) -> str:
        """The rule that moves the latent, one of :attr:`TRAVERSALS`."""
        return self._rule

    @rule.setter
    def rule(self, rule: str) -> None:
        if rule not in self.TRAVERSALS:
            raise ValueError(f"rule is {rule!r}; it is one of {', '.join(self.TRAVERSALS)}")
        self._rule = rule

    def spec(self) -> dict[str, Any]:
        """Return the arguments of ``build`` that made this model, with the rule that it has now."""
        return super().spec() | {"rule": self.rule}

    def flow(
        self,
        z: Float[Tensor, "b d"],
        k: Potential | Selector,
        t: float | Sequence[float] | Tensor,
        *,
        log_density: bool = False,
        **options: Any,
    ) -> Tensor:
        """Move latents by the rule of a transformation.

        Args:
            z: latents ``(B, D)``.
            k: a name, an index, or one index per sample ``(B,)``.
            t: a number: from time 0 to t. Or times ``(T,)``: from ``t[0]``, where the latents are
                ``z``, through all of them.
            log_density: there is none; only False.
            options: those of the solver of :func:`flowfactor.flow`; a rule solves no equation.

        Returns:
            ``(B, D)`` for a number t, else ``(T, B, D)``, the first being ``z``.

        Raises:
            ValueError: the rule has not been learned yet, k is a potential or soft weights, z or t
                has another shape, or a log-density was asked for.
            KeyError, IndexError: no such transformation.
        """
        if log_density:
            raise ValueError(f"a {type(self).__name__} moves by a rule, which has no log-density")
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(
                f"z has the shape {tuple(z.shape)}; the rule moves latents (B, {self.latent_dim})"
            )
        times = torch.as_tensor(t, dtype=z.dtype, device=z.device)
        if times.ndim > 1 or not times.numel():
            raise ValueError(
                f"t has the shape {tuple(times.shape)}; give a number or a 1-D tensor of times"
            )
        chosen = indices_of(k, self.names, z)
        if times.ndim == 0:
            return self._moved(z, chosen, torch.stack([torch.zeros_like(times), times]))[-1]
        return self._moved(z, chosen, times)

    def _moved(
        self, z: Float[Tensor, "b d"], k: Int[Tensor, "b"], times: Float[Tensor, "t"]
    ) -> Float[Tensor, "t b d"]:
        """Return the latents at each time; at the first they are ``z``."""
        if not bool(self.fitted):
            raise ValueError(
                f"this {type(self).__name__} has not learned yet how its latents move; call "
                f"fit_traversals(model, batches) with sequences of the training data"
            )
        single = self.rule == "single"
        at = self._single(times) if single else interpolated(self.mean_displacement, times)
        way: Tensor = at[:, k].to(z.dtype)
        # In this order the latents at the first time are z to the last bit.
        return z + (way - way[:1])

    def _single(self, times: Float[Tensor, "t"]) -> Float[Tensor, "t k d"]:
        ranges = self.single_range.to(times.dtype)
        direction = torch.nn.functional.one_hot(self.single_dimension, self.latent_dim)
        return (times / self.horizon).view(-1, 1, 1) * (ranges.unsqueeze(1) * direction)

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        image_shape: Sequence[int] = (3, 28, 28),
        *,
        horizon: int = 8,
        latent_dim: int = 48,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        observation: str = "bernoulli",
        rule: str = "mean",
        **own: Any,
    ) -> TraversalModel:
        """Make a model from plain data.

        Args:
            names: of the K transformations.
            image_shape: ``(C, H, W)``.
            horizon: the last frame T.
            latent_dim: D.
            encoder: ``kind`` and options, as in :meth:`FlowVAE.build
                <flowfactor.models.FlowVAE.build>`.
            decoder: likewise.
            observation: ``bernoulli``, ``gaussian`` or ``gaussian_learned``.
            rule: ``mean`` or ``single``, how latents move.
            own: the weights and sizes that the model has of its own, as its class describes them.

        Raises:
            ValueError: a size, name or option that is not allowed.
            TypeError: an option that the model does not have.
        """
        channels, height, width = image_shape
        shape = (int(channels), int(height), int(width))
        model = cls(
            names,
            make_encoder(shape, latent_dim, **{"kind": "conv", **(encoder or {})}),
            make_decoder(shape, latent_dim, **{"kind": "mlp", **(decoder or {})}),
            shape,
            latent_dim,
            horizon=horizon,
            observation=observation_from_name(observation),
            rule=rule,
            **own,
        )
        model._spec = {
            "names": list(names),
            "image_shape": list(shape),
            "horizon": horizon,
            "latent_dim": latent_dim,
            "encoder": dict(encoder or {}),
            "decoder": dict(decoder or {}),
            "observation": observation,
            **model._own_options(),
        }
        return model

    def _own_options(self) -> dict[str, Any]:
        """Return the options that this model has of its own, with the values that it has."""
        return {}


@dataclasses.dataclass(frozen=True)
class DisplacementFit:
    """How well both rules do on the sequences that they were learned from.

    Attributes:
        single, mean: the error ``E_k`` by name of the transformation, ``sum_{t >= 1} sum_{channels,
            pixels} |x_t - decode(z_t)|`` averaged over the sequences, for each rule.
    """

    single: dict[str, float]
    mean: dict[str, float]


@torch.no_grad()
def fit_traversals(
    model: TraversalModel,
    batches: Iterable[SequenceBatch],
    *,
    images: int = 64,
    ranges: Sequence[float] = _RANGES,
) -> DisplacementFit:
    r"""Learn from training sequences how the latents of a model without flows move.

    Both rules of :class:`TraversalModel` are learned and stored in the model; ``model.rule`` chooses.

    The *mean* displacement ``mean[mu(x_t) - mu(x_0)]`` is taken over all sequences given. For the
    *single* dimension every dimension j is tried with every range r, and the pair with the lowest
    ``E_k`` kept; then r alone is refined by halving the spacing between ranges four times.

    Args:
        model: trained; it is put into evaluation mode while this runs.
        batches: complete training sequences, of every transformation.
        images: how many sequences of each transformation the single dimension is searched with;
            D times as many as ``ranges`` films of each of them are decoded.
        ranges: what r is tried, in latent units over ``[0, T]``.

    Returns:
        The error of each rule, over the sequences that the single dimension was searched with.

    Raises:
        ValueError: there is a transformation or a frame of it that no sequence shows, or a number
            out of range.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import VAE, fit_traversals
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = VAE.build(("left", "right"), (1, 8, 8), horizon=2, latent_dim=3,
        ...                   encoder={"channels": [4]}, decoder={"hidden": [16]})
        >>> films = SequenceBatch.full(torch.rand(4, 3, 1, 8, 8), torch.tensor([0, 0, 1, 1]))
        >>> fit = fit_traversals(model, [films])
        >>> sorted(fit.mean)
        ['left', 'right']
        >>> model.flow(torch.zeros(2, 3), "left", [0.0, 1.0, 2.0]).shape
        torch.Size([3, 2, 3])
    """
    if images < 1 or not ranges:
        raise ValueError(f"images must be at least 1 and ranges not empty; {images=}, {ranges=}")
    training = model.training
    model.eval()
    try:
        kept = _fit_mean(model, batches, images)
        fits = [_fit_single(model, k, kept[k], ranges) for k in range(len(model.names))]
        model.single_dimension.copy_(torch.tensor([j for j, _, _ in fits]))
        model.single_range.copy_(torch.tensor([r for _, r, _ in fits]))
        model.fitted.fill_(True)
        single = {name: error for name, (_, _, error) in zip(model.names, fits, strict=True)}
        mean = {
            name: _error(model, kept[k], model.mean_displacement[k])
            for k, name in enumerate(model.names)
        }
    finally:
        model.train(training)
    return DisplacementFit(single, mean)


class _Films:
    """Some complete sequences of one transformation and the means of their first latents."""

    def __init__(self, frames: Float[Tensor, "n f c h w"], start: Float[Tensor, "n d"]) -> None:
        self.frames = frames
        self.start = start


@torch.no_grad()
def mean_displacements(
    model: TraversalModel, batches: Iterable[SequenceBatch]
) -> Float[Tensor, "k f d"]:
    """Return ``m_k(t) = mean[mu(x_t) - mu(x_0)]``, shape ``(K, T + 1, D)``.

    The displacements that the model moves by stay as they are.

    Args:
        model: in evaluation mode.
        batches: complete sequences, of every transformation.

    Raises:
        ValueError: there is a transformation or a frame of it that no sequence shows.

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


def _mean_displacements(
    model: TraversalModel, batches: Iterable[SequenceBatch], images: int
) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]]]:
    """Return the mean displacements, and some sequences of each transformation with their means."""
    K, frames_each, device = len(model.names), model.horizon + 1, model.mean_displacement.device
    sums = torch.zeros(K, frames_each, model.latent_dim, dtype=torch.double, device=device)
    counts = torch.zeros(K, dtype=torch.long)
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(K)]
    for batch in batches:
        if batch.frames.shape[1] != frames_each or batch.horizon != model.horizon:
            raise ValueError(
                f"displacements are learned from complete sequences of {frames_each} frames; these "
                f"have {batch.frames.shape[1]} of {batch.horizon + 1}"
            )
        sequences = batch.to(device)
        means = model.represent(sequences.frames.flatten(0, 1)).unflatten(0, (-1, frames_each))
        ways = (means - means[:, :1]).double()
        for k in range(K):
            of_k = sequences.labels == k
            rows = of_k.nonzero()[: max(0, images - int(counts[k])), 0]
            sums[k] += ways[of_k].sum(0)
            counts[k] += int(of_k.sum())
            if len(rows):
                kept[k].append((sequences.frames[rows], means[rows, 0]))
    missing = [name for name, count in zip(model.names, counts, strict=True) if not count]
    if missing:
        raise ValueError(f"no sequence undergoes {', '.join(missing)}")
    return (sums / counts.to(device).view(-1, 1, 1)).float(), kept


def _fit_mean(model: TraversalModel, batches: Iterable[SequenceBatch], images: int) -> list[_Films]:
    """Store the mean displacements; return the first sequences of each transformation."""
    displacements, kept = _mean_displacements(model, batches, images)
    model.mean_displacement.copy_(displacements)
    return [_Films(*map(torch.cat, zip(*films, strict=True))) for films in kept]


def _fit_single(
    model: TraversalModel, k: int, films: _Films, ranges: Sequence[float]
) -> tuple[int, float, float]:
    """Return the best dimension and range of a transformation, and their error."""
    steps = torch.arange(model.horizon + 1, device=films.start.device) / model.horizon
    unit = torch.eye(model.latent_dim, device=films.start.device)

    def error(j: int, r: float) -> float:
        return _error(model, films, r * steps.unsqueeze(1) * unit[j])

    best = min((error(j, r), j, r) for j in range(model.latent_dim) for r in ranges)
    spread = max(abs(r) for r in ranges) / max(len(ranges) / 2, 1)
    for _ in range(4):
        spread /= 2
        _, j, r = best
        best = min([best, *((error(j, r + step), j, r + step) for step in (-spread, spread))])
    lowest, j, r = best
    return j, r, lowest


def _error(model: TraversalModel, films: _Films, way: Float[Tensor, "f d"]) -> float:
    """Return ``E_k`` of latents that move by the same ``way (T + 1, D)``."""
    z = films.start.unsqueeze(1) + way[1:].to(films.start.dtype)
    moved = model.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    return float((films.frames[:, 1:] - moved).abs().flatten(1).sum(1).mean())


def indices_of(k: Potential | Selector, names: Sequence[str], z: Tensor) -> Int[Tensor, "b"]:
    """Return the index of the transformation of each latent, from a name or indices.

    Raises:
        KeyError, IndexError: no such transformation.
        ValueError: a potential, weights, or another number of indices than latents.
    """
    if isinstance(k, str):
        if k not in names:
            raise KeyError(f"no transformation is named {k!r}; there are {', '.join(names)}")
        k = names.index(k)
    if not isinstance(k, (int, Tensor)) or (isinstance(k, Tensor) and k.is_floating_point()):
        raise ValueError(
            "this model moves latents by a rule, for a name, an index or one index per sample; "
            "potentials and weights of potentials are for models that have some"
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
            f"k holds an index out of range: there are {count} transformations, 0 to {count - 1} "
            f"({', '.join(names)})"
        )
    return chosen.expand(len(z))


def interpolated(
    at_frames: Float[Tensor, "k f d"], times: Float[Tensor, "t"]
) -> Float[Tensor, "t k d"]:
    """Return values at times between frames, and beyond them as in the first and last interval.

    Example:
        >>> import torch
        >>> at_frames = torch.tensor([0.0, 1.0, 4.0]).view(1, 3, 1)
        >>> interpolated(at_frames, torch.tensor([-1.0, 0.5, 1.5, 3.0])).flatten()
        tensor([-1.0000,  0.5000,  2.5000,  7.0000])
    """
    left = times.floor().long().clamp(0, at_frames.shape[1] - 2)
    share = (times - left).view(-1, 1, 1)
    values = at_frames.to(times.dtype).transpose(0, 1)
    return values[left] + share * (values[left + 1] - values[left])
