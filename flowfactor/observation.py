"""Observation models ``p(x | z)``: what a decoder's output says about the pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.registries import OBSERVATIONS


class Observation(nn.Module, ABC):
    """A distribution of an image given the decoder's output, one logit for each pixel.

    Every model has the pixel mean ``sigmoid(logit)`` in (0, 1), so that one decoder can be judged
    under several observation models.
    """

    @abstractmethod
    def log_prob(
        self, logits: Float[Tensor, "*b c h w"], x: Float[Tensor, "*b c h w"]
    ) -> Float[Tensor, "*b"]:
        """Return ``log p(x | z)`` in nats, summed over channels and pixels."""

    def mean(self, logits: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Return the mean of every pixel, in [0, 1]."""
        return logits.sigmoid()


@OBSERVATIONS.register("bernoulli")
class Bernoulli(Observation):
    """``-log p(x | z)`` is the binary cross-entropy of each pixel.

    With pixels between 0 and 1 this is the customary pseudo-likelihood of image models, not the
    density of a continuous pixel: comparable between models, not between observation models.
    """

    def log_prob(
        self, logits: Float[Tensor, "*b c h w"], x: Float[Tensor, "*b c h w"]
    ) -> Float[Tensor, "*b"]:
        """Return ``sum x log m + (1 - x) log(1 - m)`` with ``m = sigmoid(logits)``."""
        cost = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return -cost.flatten(-3).sum(-1)


@OBSERVATIONS.register("gaussian")
class Gaussian(Observation):
    """``x ~ N(sigmoid(logit), scale^2)`` for each pixel.

    Args:
        learned: learn one scale for all pixels, starting from ``scale``; else it is fixed.
        scale: the standard deviation; 1 is the unit Gaussian, under which no image of
            3 x 28 x 28 pixels has more than -2161.3 nats.

    Raises:
        ValueError: ``scale`` is not positive.

    Example:
        >>> import torch
        >>> x = torch.full((1, 3, 28, 28), 0.5)
        >>> round(Gaussian().log_prob(torch.zeros_like(x), x).item(), 1)
        -2161.3
    """

    def __init__(self, learned: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive; it is {scale}")
        log_scale = torch.tensor(math.log(scale))
        self.log_scale: Tensor
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale, persistent=False)

    def log_prob(
        self, logits: Float[Tensor, "*b c h w"], x: Float[Tensor, "*b c h w"]
    ) -> Float[Tensor, "*b"]:
        """Return the log-density of the normal distribution, summed over the image."""
        squares = (x - self.mean(logits)).square().flatten(-3)
        constant = squares.shape[-1] * (self.log_scale + 0.5 * math.log(2 * math.pi))
        return -0.5 * squares.sum(-1) * torch.exp(-2 * self.log_scale) - constant


@OBSERVATIONS.register("gaussian_learned")
def learned_gaussian() -> Gaussian:
    """Return a Gaussian whose scale is learned."""
    # Closer to the residuals of a trained decoder than 1, so that training starts well.
    return Gaussian(learned=True, scale=0.2)


@OBSERVATIONS.register("laplace")
class Laplace(Observation):
    """``x ~ Laplace(sigmoid(logit), scale)`` for each pixel, with one scale that is learned.

    Absolute errors are its costs, and those the tables show. Under uncertainty the others draw
    the mean of what may be there, which is a blur; this one draws the median of each pixel, which
    is what is there in most cases: where a thing may have gone to many places, it is in none.

    Args:
        scale: ``s`` at first; the standard deviation is ``sqrt(2) s``.

    Raises:
        ValueError: ``scale`` is not positive.
    """

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be positive; it is {scale}")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def log_prob(
        self, logits: Float[Tensor, "*b c h w"], x: Float[Tensor, "*b c h w"]
    ) -> Float[Tensor, "*b"]:
        """Return the log-density of the Laplace distribution, summed over the image."""
        distances = (x - self.mean(logits)).abs().flatten(-3)
        constant = distances.shape[-1] * (self.log_scale + math.log(2))
        return -distances.sum(-1) * torch.exp(-self.log_scale) - constant
