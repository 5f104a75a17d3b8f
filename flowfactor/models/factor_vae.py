"""FactorVAE: a VAE whose latents are made independent by a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import (
    AutoencoderOptions,
    flatten_frames,
    kl_to_standard_normal,
    sum_over_frames,
)
from flowfactor.models.traversal import TraversalModel
from flowfactor.networks import single_precision
from flowfactor.options import PositiveFloat, PositiveInt, Weight, options
from flowfactor.registries import MODELS


@options
class FactorVAEOptions(AutoencoderOptions):
    """Options of :class:`FactorVAE`."""

    gamma: Weight = 35.0
    """Weight of the total correlation; 10 to 100 in the paper, 35 for sprites."""
    discriminator_width: PositiveInt = 1000
    """Units of each leaky-ReLU layer of the discriminator."""
    discriminator_layers: PositiveInt = 6
    """Number of these layers."""
    discriminator_rate: PositiveFloat = 1e-4
    """Peak of the discriminator's learning rate, which follows the schedule of the training."""


@MODELS.register("factor_vae")
class FactorVAE(TraversalModel):
    r"""A VAE of single images that penalises the total correlation of its latents.

    .. math::

        \sum_{t=0}^T \bigl( -\mathbb{E}_q[\log p(x_t \mid z_t)]
          + \mathrm{KL}(q(z_t \mid x_t) \parallel N(0, I)) + \gamma\, (l_0 - l_1)(z_t) \bigr)

    averaged over sequences, in nats, where ``l_0, l_1`` are the logits of a discriminator D. It is
    trained at the same time to tell latents (class 0) from latents whose dimensions were permuted
    over the images of the batch, each by itself (class 1):

    .. math::

        \tfrac{1}{2} \bigl[ \mathrm{CE}(D(z), 0) + \mathrm{CE}(D(\text{permuted } z), 1) \bigr]

    so that ``l_0 - l_1`` estimates ``log q(z) / prod_j q(z_j)``: its mean is the total correlation.
    The published algorithm draws the permuted latents from a second batch and steps the
    discriminator after the autoencoder; here both use one batch and one backward pass.

    Args:
        options: :class:`FactorVAEOptions`.
        names, image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

    Source: Kim, Mnih, "Disentangling by Factorising", ICML 2018, arXiv:1802.05983.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import FactorVAE
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = FactorVAE.build(("rotation", "hue"), latent_dim=8, discriminator_width=16)
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> sorted(model.loss(films))
        ['discriminator', 'kl', 'reconstruction', 'total_correlation']
    """

    Options: ClassVar[type[Any]] = FactorVAEOptions
    encodes_any_frame = True

    def __init__(
        self,
        options: FactorVAEOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
    ) -> None:
        super().__init__(options, names, image_shape, horizon)
        width = options.discriminator_width
        layers: list[nn.Module] = []
        before = self.latent_dim
        for _ in range(options.discriminator_layers):
            layers += [nn.Linear(before, width), nn.LeakyReLU(0.2)]
            before = width
        self.discriminator = nn.Sequential(*layers, nn.Linear(before, 2))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the discriminator in a group of its own, with the published betas 0.5 and 0.9."""
        adversary = set(self.discriminator.parameters())
        return [
            {"params": [p for p in self.parameters() if p not in adversary]},
            {
                "params": list(self.discriminator.parameters()),
                "lr": self.options.discriminator_rate,
                "betas": (0.5, 0.9),
            },
        ]

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        The total correlation reaches the encoder only, and the term ``discriminator``, which is
        there in training mode, the discriminator only.
        """
        sequences = sequences.counted
        posterior = self.encode(flatten_frames(sequences))
        z = posterior.rsample()
        log_likelihood = self.log_likelihood(z, sequences)
        kl = kl_to_standard_normal(posterior).view_as(log_likelihood)
        correlation = self.log_ratio(z).view_as(log_likelihood)
        terms = {
            "reconstruction": -sum_over_frames(log_likelihood, sequences),
            "kl": sum_over_frames(kl, sequences),
            "total_correlation": self.options.gamma * sum_over_frames(correlation, sequences),
        }
        if self.training:
            terms["discriminator"] = self.adversary_loss(z.detach())
        return terms

    def log_ratio(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Return the estimate of ``log q(z) / prod_j q(z_j)``; the discriminator learns nothing."""
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        logits: Tensor = torch.func.functional_call(self.discriminator, frozen, (z,))
        joint, permuted = single_precision(logits).unbind(-1)
        return joint - permuted

    def adversary_loss(self, z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """Return the discriminator's loss on latents that are given, and on permuted ones."""
        logits = single_precision(self.discriminator(torch.cat([z, permute_dimensions(z)])))
        classes = torch.arange(2, device=z.device).repeat_interleave(len(z))
        # Both halves are of one size, so that their mean is the half of the sum of two means.
        return F.cross_entropy(logits, classes)


def permute_dimensions(
    z: Float[Tensor, "n d"], generator: torch.Generator | None = None
) -> Float[Tensor, "n d"]:
    """Return latents with each dimension permuted over the batch, independently of the others.

    A sample of the product of the marginals, from samples of the joint distribution.

    Example:
        >>> import torch
        >>> z = torch.arange(6.0).view(3, 2)
        >>> permute_dimensions(z).sort(dim=0).values
        tensor([[0., 1.],
                [2., 3.],
                [4., 5.]])
    """
    order = torch.rand(z.shape, generator=generator, device=z.device).argsort(dim=0)
    return z.gather(0, order)
