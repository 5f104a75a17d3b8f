"""The topographic VAE: latents on circles, along which a transformation rolls them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import (
    bounded,
    diagonal_normal,
    flatten_frames,
    kl_to_standard_normal,
    sum_over_frames,
)
from flowfactor.models.displacement import TraversalModel
from flowfactor.networks import make_decoder, make_encoder
from flowfactor.observation import Observation, observation_from_name

_EPSILON = 1e-6
_START = 30.0
"""What mu starts from, as published."""


class TopographicVAE(TraversalModel):
    r"""A VAE whose decoder sees topographic Student-t variables, arranged in circular capsules.

    Two Gaussian latents of every frame, z and u, both ``N(0, I)`` a priori and both arranged in
    capsules of positions c on a circle, make

    .. code-block:: text

        v[t, c] = sum_{|dt| <= W} sum_{|dc| <= W}  u[t + dt, c + dc + dt]^2
        s[t, c] = (z[t, c] + mu) / sqrt(v[t, c] + eps)

    where the neighbour in time, ``t + dt``, is looked at ``dt`` positions on: a transformation by
    one frame is to roll a capsule by one position, ``s_t = roll(s_0, t)``. Training minimises

    .. code-block:: text

        sum_{t=0..T}  - E_q[log p(x_t|s_t)] + KL(q(z_t|x_t) || N(0, I)) + KL(q(u_t|x_t) || N(0, I))

    averaged over sequences, in nats; mu is learned. Time is cyclic in the original, whose sequences
    return to where they began. Those here do not: before the first and after the last frame, the
    end frames are repeated.

    What :meth:`encode` gives, and what moves, is z and u side by side, so that a single image has
    an exact posterior; as it has no neighbours in time, it is its own. The variables s of a latent
    are :meth:`topographic`. Rolling z and u by t rolls s by t. The roll is the same for all
    transformations: in the original u is inferred from the whole sequence, and tells them apart,
    but an equivariance error allows frame 0 only. The rules of the other models can be learned
    instead, by :func:`~flowfactor.models.fit_traversals`.

    Args:
        names: the names of the K transformations.
        encoder, power_encoder: map images ``(B, C, H, W)`` to ``(B, 2 D)``, mean and log standard
            deviation of z and of u.
        decoder: maps s, ``(B, D)``, to logits ``(B, C, H, W)``.
        image_shape: ``(C, H, W)``.
        capsules: how many circles.
        positions: on each of them; ``D = capsules * positions`` and the latent size is ``2 D``.
        window: W.
        mu: where its learned value starts; 30 in the original.
        last, observation: see :class:`~flowfactor.models.autoencoder.Autoencoder`.
        rule: ``roll``, or one of those of :class:`~flowfactor.models.TraversalModel`.

    Raises:
        ValueError: a size is not positive, or the window is wider than a capsule.

    Source: Keller, Welling, "Topographic VAEs learn Equivariant Capsules", NeurIPS 2021,
    arXiv:2109.01394.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import TopographicVAE
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = TopographicVAE.build(("rotation", "hue"), latent_dim=24, capsules=3)
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> sorted(model.loss(films))
        ['kl_u', 'kl_z', 'reconstruction']
        >>> z = model.encode(films.frames[:, 0]).mean
        >>> z.shape, model.topographic(z).shape
        (torch.Size([2, 48]), torch.Size([2, 24]))
        >>> rolled = model.topographic(model.flow(z, "hue", 1.0)).view(2, 3, 8)
        >>> torch.allclose(rolled, model.topographic(z).view(2, 3, 8).roll(1, dims=-1))
        True
    """

    TRAVERSALS: ClassVar[tuple[str, ...]] = ("roll", *TraversalModel.TRAVERSALS)

    def __init__(
        self,
        names: Sequence[str],
        encoder: nn.Module,
        power_encoder: nn.Module,
        decoder: nn.Module,
        image_shape: tuple[int, int, int],
        *,
        capsules: int = 18,
        positions: int = 18,
        window: int = 2,
        mu: float = _START,
        horizon: int = 8,
        observation: Observation | None = None,
        rule: str = "roll",
    ) -> None:
        if capsules < 1 or window < 0 or positions < 2 * window + 1:
            raise ValueError(
                f"there must be a capsule, and each must have at least 2 window + 1 positions; "
                f"{capsules=}, {positions=}, {window=}"
            )
        super().__init__(
            names,
            encoder,
            decoder,
            image_shape,
            2 * capsules * positions,
            horizon=horizon,
            observation=observation,
            rule=rule,
        )
        self.power_encoder = power_encoder
        self.capsules = capsules
        self.positions = positions
        self.window = window
        self.mu = nn.Parameter(torch.tensor(float(mu)))

    @classmethod
    def build(  # type: ignore[override]  # all options are named
        cls,
        names: Sequence[str],
        image_shape: Sequence[int] = (3, 28, 28),
        *,
        horizon: int = 8,
        latent_dim: int = 324,
        capsules: int = 18,
        window: int = 2,
        mu: float = _START,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        observation: str = "bernoulli",
        rule: str = "roll",
    ) -> TopographicVAE:
        """Make a model from plain data.

        Args:
            names: of the K transformations.
            image_shape: ``(C, H, W)``.
            horizon: the last frame T.
            latent_dim: D, the size of s: the capsules times their positions. The model's
                ``latent_dim``, the size of what moves, is twice that.
            capsules: how many.
            window: W.
            mu: where its learned value starts.
            encoder: ``kind`` and options, as in :meth:`FlowVAE.build
                <flowfactor.models.FlowVAE.build>`; z and u have one each.
            decoder: likewise.
            observation: ``bernoulli``, ``gaussian`` or ``gaussian_learned``.
            rule: ``roll``, ``mean`` or ``single``, how latents move.

        Raises:
            ValueError: a size, name or option that is not allowed.
        """
        channels, height, width = image_shape
        shape = (int(channels), int(height), int(width))
        if capsules < 1 or latent_dim % capsules:
            raise ValueError(
                f"latent_dim must be a multiple of the capsules; {latent_dim=}, {capsules=}"
            )
        options = {"kind": "conv", **(encoder or {})}
        model = cls(
            names,
            make_encoder(shape, latent_dim, **options),
            make_encoder(shape, latent_dim, **options),
            make_decoder(shape, latent_dim, **{"kind": "mlp", **(decoder or {})}),
            shape,
            capsules=capsules,
            positions=latent_dim // capsules,
            window=window,
            mu=mu,
            horizon=horizon,
            observation=observation_from_name(observation),
            rule=rule,
        )
        model._spec = {
            "names": list(names),
            "image_shape": list(shape),
            "horizon": horizon,
            "latent_dim": latent_dim,
            "capsules": capsules,
            "window": window,
            "mu": mu,
            "encoder": dict(encoder or {}),
            "decoder": dict(decoder or {}),
            "observation": observation,
        }
        return model

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of z and u side by side, ``(B, 2 D)`` each."""
        pairs = (bounded(self.encoder(x)), bounded(self.power_encoder(x)))
        means, log_scales = zip(*pairs, strict=True)
        return torch.cat(means, dim=-1), torch.cat(log_scales, dim=-1)

    def represent(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the mean of z and the root of the mean square of u side by side, ``(B, 2 D)``.

        The decoder sees u by its squares alone, whose means are ``mu_u^2 + sigma_u^2``: the mean of
        u, often near 0, would stand for quite another image.
        """
        mean, log_scale = self._posterior(x)
        z, u = mean.chunk(2, dim=-1)
        scale = log_scale.chunk(2, dim=-1)[1].exp()
        return torch.cat([z, (u.square() + scale.square()).sqrt()], dim=-1)

    def decode_logits(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the logits of every pixel, of latents that are their own neighbours in time."""
        return super().decode_logits(self.topographic(z))

    def topographic(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b s"]:
        """Return s of single latents ``(B, 2 D)``, shape ``(B, D)``."""
        return self._topographic(z.unsqueeze(1)).squeeze(1)

    def _topographic(self, z: Float[Tensor, "b f d"]) -> Float[Tensor, "b f s"]:
        """Return s of latents of neighbouring frames."""
        own, u = z.unflatten(-1, (2, self.capsules, self.positions)).unbind(2)
        s: Tensor = (own + self.mu) * torch.rsqrt(capsule_power(u, self.window) + _EPSILON)
        return s.flatten(2)

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the objective, each a mean over the batch, in nats.

        Raises:
            ValueError: the frames are not neighbours: some between them were left out.
        """
        if bool((sequences.times.diff(dim=1) != 1).any()):
            raise ValueError(
                "a topographic VAE sums over neighbouring frames, but some were left out; give it "
                "every frame of the sequences"
            )
        shape = sequences.frames.shape[:2]
        posterior = self.encode(flatten_frames(sequences))
        s = self._topographic(posterior.rsample().unflatten(0, shape))
        # Past decode_logits, which would take each frame to be its own neighbour.
        logits = super().decode_logits(s.flatten(0, 1)).unflatten(0, shape)
        log_likelihood = self.observation.log_prob(logits, sequences.frames)
        means = posterior.mean.unflatten(-1, (2, -1)).unbind(1)
        scales = posterior.stddev.unflatten(-1, (2, -1)).unbind(1)
        terms = {"reconstruction": -sum_over_frames(log_likelihood, sequences)}
        for name, mean, scale in zip(("kl_z", "kl_u"), means, scales, strict=True):
            kl = kl_to_standard_normal(diagonal_normal(mean, scale)).view(shape)
            terms[name] = sum_over_frames(kl, sequences)
        return terms

    def _moved(
        self, z: Float[Tensor, "b d"], k: Int[Tensor, "b"], times: Float[Tensor, "t"]
    ) -> Float[Tensor, "t b d"]:
        """Return the latents at each time: rolled, or moved by the rule that was learned."""
        if self.rule != "roll":
            return super()._moved(z, k, times)
        circles = z.unflatten(-1, (2 * self.capsules, self.positions))
        return torch.stack([roll(circles, float(t - times[0])).flatten(1) for t in times])


def capsule_power(u: Float[Tensor, "b f c p"], window: int) -> Float[Tensor, "b f c p"]:
    """Return ``sum_{|dt|, |dc| <= W} u[t + dt, c + dc + dt]^2``.

    Args:
        u: latents of neighbouring frames, in capsules of positions on a circle; before the first
            and after the last frame these are repeated.
        window: W.

    Example:
        >>> import torch
        >>> u = torch.zeros(1, 1, 1, 5)
        >>> u[..., 2] = 1.0
        >>> capsule_power(u, 1).flatten()    # from position 2, over three neighbours, rolled thrice
        tensor([1., 2., 3., 2., 1.])
    """
    offsets = range(-window, window + 1)
    near = sum((u.square().roll(-dc, dims=-1) for dc in offsets), torch.zeros_like(u))
    frames = torch.arange(u.shape[1], device=u.device)
    at = [(frames + dt).clamp(0, u.shape[1] - 1) for dt in offsets]
    parts = (near[:, i].roll(-dt, dims=-1) for i, dt in zip(at, offsets, strict=True))
    return sum(parts, torch.zeros_like(u))


def roll(x: Float[Tensor, "*b p"], by: float) -> Float[Tensor, "*b p"]:
    """Return ``x[c - by]`` on a circle of positions, linear between whole numbers of them.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0, 0.0, 4.0, 0.0])
        >>> roll(x, 1.0), roll(x, 0.25), roll(x, -1.0)
        (tensor([0., 0., 0., 4.]), tensor([0., 0., 3., 1.]), tensor([0., 4., 0., 0.]))
    """
    whole = math.floor(by)
    share = by - whole
    near = x.roll(whole, dims=-1)
    return near if share == 0 else (1 - share) * near + share * near.roll(1, dims=-1)
