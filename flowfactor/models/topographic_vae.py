"""The topographic VAE: latents on circles, along which a transformation rolls them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pydantic
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import (
    AutoencoderOptions,
    diagonal_normal,
    flatten_frames,
    kl_to_standard_normal,
    make_network,
    split_head,
    sum_over_frames,
)
from flowfactor.models.traversal import TraversalModel
from flowfactor.options import FiniteFloat, NonNegativeInt, PositiveInt, options
from flowfactor.registries import MODELS

_EPSILON = 1e-6


@options
class TopographicVAEOptions(AutoencoderOptions):
    """Options of :class:`TopographicVAE`."""

    latent_dim: PositiveInt = 324
    """Size D of s: the capsules times their positions. What moves, z and u, is twice that."""
    capsules: PositiveInt = 18
    """Number of circles."""
    window: NonNegativeInt = 2
    """W, over how many neighbours to each side the power is summed."""
    mu: FiniteFloat = 30.0
    """Initial value of the learned mu; 30 in the paper."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> TopographicVAEOptions:
        if self.latent_dim % self.capsules:
            raise ValueError(
                f"latent_dim must be a multiple of capsules; {self.latent_dim} is none of "
                f"{self.capsules}"
            )
        if self.latent_dim // self.capsules < 2 * self.window + 1:
            raise ValueError(
                f"window {self.window} is wider than a capsule of "
                f"{self.latent_dim // self.capsules} positions"
            )
        return self


@MODELS.register("topographic_vae")
class TopographicVAE(TraversalModel):
    r"""A VAE whose decoder sees topographic Student-t variables, arranged in circular capsules.

    Two Gaussian latents of every frame, z and u, both ``N(0, I)`` a priori and both arranged in
    capsules of positions c on a circle, make

    .. math::

        \begin{aligned}
        v_{t,c} &= \sum_{|i| \le W} \sum_{|j| \le W} u_{t + i,\, c + j + i}^2, \\
        s_{t,c} &= \frac{z_{t,c} + \mu}{\sqrt{v_{t,c} + \epsilon}}
        \end{aligned}

    where the neighbour in time, ``t + i``, is looked at i positions on: a transformation by one
    frame is to roll a capsule by one position, ``s_t = roll(s_0, t)``. Training minimises

    .. math::

        \sum_{t=0}^T \bigl( -\mathbb{E}_q[\log p(x_t \mid s_t)]
          + \mathrm{KL}(q(z_t \mid x_t) \parallel N(0, I))
          + \mathrm{KL}(q(u_t \mid x_t) \parallel N(0, I)) \bigr)

    averaged over sequences, in nats; mu is learned. Time is cyclic in the original, whose sequences
    return to where they began. Those here do not: before the first and after the last frame, the
    end frames are repeated.

    What :meth:`encode` gives, and what moves, is z and u side by side, so that a single image has
    an exact posterior; as it has no neighbours in time, it is its own. The variables s of a latent
    are :meth:`topographic`. Rolling z and u by t rolls s by t. The roll is the same for all
    transformations: in the original u is inferred from the whole sequence, and tells them apart,
    but an equivariance error allows frame 0 only. The traversals of the other models can be learned
    instead, by :func:`~flowfactor.models.fit_traversals`.

    Args:
        options: :class:`TopographicVAEOptions`.
        names, image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

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

    Options: ClassVar[type[Any]] = TopographicVAEOptions
    needs_all_frames: ClassVar[bool] = True
    TRAVERSALS: ClassVar[tuple[str, ...]] = ("roll", *TraversalModel.TRAVERSALS)

    def __init__(
        self,
        options: TopographicVAEOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
    ) -> None:
        # z and u have an encoder each; weights are drawn for these first.
        encoder, power_encoder = (
            copy.deepcopy(make_network("encoder", options, image_shape, options.latent_dim))
            for _ in range(2)
        )
        super().__init__(
            options,
            names,
            image_shape,
            horizon,
            encoder=encoder,
            latent_dim=2 * options.latent_dim,
        )
        self.power_encoder = power_encoder
        self.positions = options.latent_dim // options.capsules
        self.mu = nn.Parameter(torch.tensor(float(options.mu)))
        self.traversal = "roll"

    def posterior_parameters(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of z and u side by side, ``(B, 2 D)`` each."""
        pairs = (split_head(self.encoder(x)), split_head(self.power_encoder(x)))
        means, log_scales = zip(*pairs, strict=True)
        return torch.cat(means, dim=-1), torch.cat(log_scales, dim=-1)

    def represent(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the mean of z and the root of the mean square of u side by side, ``(B, 2 D)``.

        The decoder sees u by its squares alone, whose means are ``mu_u^2 + sigma_u^2``: the mean of
        u, often near 0, would stand for quite another image.
        """
        mean, log_scale = self.posterior_parameters(x)
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
        own, u = z.unflatten(-1, (2, self.options.capsules, self.positions)).unbind(2)
        s: Tensor = (own + self.mu) * torch.rsqrt(capsule_power(u, self.options.window) + _EPSILON)
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

    def _move(
        self, z: Float[Tensor, "b d"], k: Int[Tensor, "b"], times: Float[Tensor, "t"]
    ) -> Float[Tensor, "t b d"]:
        """Return the latents at each time: rolled, or moved by a traversal that was learned."""
        if self.traversal != "roll":
            return super()._move(z, k, times)
        circles = z.unflatten(-1, (2 * self.options.capsules, self.positions))
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
