"""SlowVAE: a VAE of pairs of frames whose latents change sparsely from one to the next."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from flowfactor.data import SequenceBatch
from flowfactor.models.autoencoder import AutoencoderOptions, flatten_frames
from flowfactor.models.traversal import TraversalModel
from flowfactor.options import PositiveFloat, Weight, options
from flowfactor.registries import MODELS


@options
class SlowVAEOptions(AutoencoderOptions):
    """Options of :class:`SlowVAE`."""

    beta: Weight = 1.0
    """Weight of the term of the normal prior."""
    gamma: Weight = 10.0
    """Weight of the term of the Laplace prior."""
    laplace_rate: PositiveFloat = 6.0
    """Rate lambda of the Laplace prior."""


@MODELS.register("slow_vae")
class SlowVAE(TraversalModel):
    r"""A VAE of frame pairs with a Laplace prior of what changes between the two.

    .. math::

        \begin{aligned}
        & -\mathbb{E}_q[\log p(x_0 \mid z_0) + \log p(x_1 \mid z_1)] \\
        +\, \beta \;& (\mathrm{CE}_N - H_0) \\
        +\, \gamma \;& \bigl( \mathrm{CE}_L(\mu_0 - \mu_1, \sigma_0)
          + \mathrm{CE}_L(\mu_1 - \mu_0, \sigma_1) - \tfrac{1}{2} (H_0 + H_1) \bigr)
        \end{aligned}

    averaged over the pairs of neighbouring frames of a sequence and over sequences, in nats, with
    the entropy H of q and its cross-entropies to the normal prior, for the first frame, and to the
    Laplace prior of the change:

    .. math::

        \begin{aligned}
        H &= \sum_j \bigl( \log \sigma_j + \tfrac{1}{2} \log 2 \pi e \bigr), \\
        \mathrm{CE}_N &= \sum_j \tfrac{1}{2} \bigl( \mu_j^2 + \sigma_j^2 + \log 2 \pi \bigr), \\
        \mathrm{CE}_L(m, s) &= \sum_j \bigl( -\log \tfrac{\lambda}{2}
          + \lambda\, \mathbb{E} |N(m_j, s_j^2)| \bigr)
        \end{aligned}

    As in the authors' program the Laplace terms of both directions share one entropy, the mean of
    the two, so that the term of gamma is no divergence. If some frames are left out of the
    sequences, neighbours are those that are there.

    Args:
        options: :class:`SlowVAEOptions`.
        names, image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

    Source: Klindt et al., "Towards Nonlinear Disentanglement in Natural Data with Temporal Sparse
    Coding", ICLR 2021, arXiv:2007.10930.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import SlowVAE
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = SlowVAE.build(("rotation", "hue"), latent_dim=8)
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> sorted(model.loss(films))
        ['kl_laplace', 'kl_normal', 'reconstruction']
    """

    Options: ClassVar[type[Any]] = SlowVAEOptions

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over all pairs, in nats.

        Raises:
            ValueError: the sequences have a single frame.
        """
        options, shape = self.options, sequences.frames.shape[:2]
        if shape[1] < 2:
            raise ValueError("SlowVAE learns from pairs of frames; the sequences have only one")
        posterior = self.encode(flatten_frames(sequences))
        log_likelihood = self.log_likelihood(posterior.rsample(), sequences)
        mean, scale = (
            rearrange(code, "(b f) d -> b f d", b=shape[0])
            for code in (posterior.mean, posterior.stddev)
        )
        entropy = posterior.entropy().view(shape)
        first, second = slice(None, -1), slice(1, None)
        change = mean[:, first] - mean[:, second]
        normal = 0.5 * (mean.square() + scale.square() + math.log(2 * math.pi)).sum(-1)
        laplace = laplace_cross_entropy(change, scale[:, first], options.laplace_rate)
        laplace = laplace + laplace_cross_entropy(-change, scale[:, second], options.laplace_rate)
        kl_normal = normal[:, first] - entropy[:, first]
        kl_laplace = laplace - 0.5 * (entropy[:, first] + entropy[:, second])
        return {
            "reconstruction": -(log_likelihood[:, first] + log_likelihood[:, second]).mean(),
            "kl_normal": options.beta * kl_normal.mean(),
            "kl_laplace": options.gamma * kl_laplace.mean(),
        }


def laplace_cross_entropy(
    mean: Float[Tensor, "*b d"], scale: Float[Tensor, "*b d"], rate: float
) -> Float[Tensor, "*b"]:
    r"""Return the cross-entropy of ``N(m, diag s^2)`` to a Laplace prior at 0, in nats.

    .. math::

        \begin{aligned}
        & \sum_j \bigl( -\log \tfrac{\lambda}{2} + \lambda\, \mathbb{E} |N(m_j, s_j^2)| \bigr), \\
        & \mathbb{E} |N(m, s^2)| = s \sqrt{2 / \pi}\, \exp(-m^2 / 2 s^2) + m\, (2 \Phi(m / s) - 1)
        \end{aligned}

    Args:
        mean: m.
        scale: s, positive.
        rate: lambda, of the prior ``lambda / 2 exp(- lambda |x|)``.

    Example:
        >>> import torch
        >>> far = laplace_cross_entropy(torch.tensor([[3.0]]), torch.tensor([[1e-3]]), 2.0)
        >>> torch.allclose(far, torch.tensor([6.0]))    # - log 1 + 2 |3|
        True
    """
    ratio = mean / scale
    folded = scale * math.sqrt(2 / math.pi) * torch.exp(-0.5 * ratio.square())
    # 2 Phi(x) - 1 = erf(x / sqrt 2).
    folded = folded + mean * torch.erf(ratio / math.sqrt(2))
    return (rate * folded - math.log(rate / 2)).sum(-1)
