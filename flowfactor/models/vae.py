"""The variational autoencoder of single images, and beta-VAE: the plainest baselines."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import (
    AutoencoderOptions,
    flatten_frames,
    kl_to_standard_normal,
    sum_over_frames,
)
from flowfactor.models.traversal import TraversalModel
from flowfactor.options import Weight, options
from flowfactor.registries import MODELS


@options
class VAEOptions(AutoencoderOptions):
    """Options of :class:`VAE`."""

    beta: Weight = 1.0
    """Weight of the KL divergence; 4 is customary for a beta-VAE."""


@MODELS.register("vae")
class VAE(TraversalModel):
    r"""A VAE that sees every frame as an image of its own; with ``beta > 1`` a beta-VAE.

    .. math::

        \sum_{t=0}^T \bigl( -\mathbb{E}_q[\log p(x_t \mid z_t)]
          + \beta\, \mathrm{KL}(q(z_t \mid x_t) \parallel N(0, I)) \bigr),
        \qquad z_t \sim q(\cdot \mid x_t)

    averaged over sequences, in nats; with ``beta = 1`` the negative evidence bound of the frames as
    independent images. It knows nothing of transformations: how its latents move is learned
    afterwards, by :func:`~flowfactor.models.fit_traversals`.

    Args:
        options: :class:`VAEOptions`.
        names, image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

    Source: Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014, arXiv:1312.6114; Higgins
    et al., "beta-VAE", ICLR 2017.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import VAE
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = VAE.build(("rotation", "hue"), latent_dim=8, beta=4.0)
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> sorted(model.loss(films))
        ['kl', 'reconstruction']
    """

    Options: ClassVar[type[Any]] = VAEOptions
    encodes_any_frame = True

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        With some frames of each sequence only, both are unbiased estimates of those over all.
        """
        sequences = sequences.counted
        posterior = self.encode(flatten_frames(sequences))
        log_likelihood = self.log_likelihood(posterior.rsample(), sequences)
        kl = kl_to_standard_normal(posterior).view_as(log_likelihood)
        return {
            "reconstruction": -sum_over_frames(log_likelihood, sequences),
            "kl": self.options.beta * sum_over_frames(kl, sequences),
        }
