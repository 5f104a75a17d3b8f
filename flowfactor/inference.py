"""The posterior of the transformation given a sequence, and how it is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Real
from torch import Tensor, nn

from flowfactor.networks import (
    ImageShape,
    halving_convolutions,
    reduced_shape,
    single_precision,
)
from flowfactor.options import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Weight,
    options,
)


@options
class Inference:
    """How a weakly supervised model infers which flow a sequence follows."""

    estimator: Literal["enumerate", "gumbel", "fixed"] = "enumerate"
    """``enumerate`` weighs the costs of all K flows by their responsibilities, exactly and without
    noise; ``gumbel`` draws one flow by the straight-through Gumbel-softmax. ``fixed`` goes on from
    the weights of another training (``training.initial_weights``) without comparing flows again:
    the inference network stays as it is, and each sequence follows the flow that it finds most
    likely, from the first step on. The other keys do not matter then."""
    warmup: NonNegativeInt = 500
    """Steps in which only the autoencoder learns, on single frames."""
    anneal: NonNegativeInt = 600
    """Steps after the warm-up in which the temperature falls."""
    temperature: PositiveFloat | None = None
    """Final temperature: in nats of a sequence's cost for ``enumerate``, of the logits' softmax for
    ``gumbel``; null is 2.0 or 0.3."""
    refresh: PositiveInt = 10
    """After the annealing, ``enumerate`` compares all flows in one of this many steps and trusts
    the inference network in the others."""
    restart: bool = False
    """Whether all weights but those of the inference network begin anew after the annealing, by
    when flows and latent have grown together from an autoencoder of single frames. Networks of your
    own keep theirs."""
    weight: Weight = 1.0
    """Weight of ``KL(q(k|x_0..x_T) || uniform)``, for ``gumbel``."""

    @property
    def schedule_steps(self) -> int:
        """Steps of warm-up and annealing."""
        return 0 if self.estimator == "fixed" else self.warmup + self.anneal

    @property
    def last_temperature(self) -> float:
        """The temperature at the end of the annealing."""
        if self.temperature is not None:
            return self.temperature
        return 0.3 if self.estimator == "gumbel" else 2.0


class TransformationPosterior(nn.Module):
    r"""``q(k | x_0..x_T)``: logits of the K flows from some frames of a sequence.

    .. math::

        \mathrm{logits} = \mathrm{head} \bigl( \mathrm{mean}_t\, g(x_s, x_t, (t - s) / T) \bigr)

    Every later frame is seen together with the first one of the batch, whose time is s, by strided
    convolutions and a linear layer, and the mean makes one vector of any number of frames.

    Args:
        image_shape: ``(C, H, W)``, sides at least ``2 ** len(channels)``.
        flows: K.
        horizon: T.
        channels: of the convolutions, each of which halves the image.
        hidden: the width of the vector.

    Raises:
        ValueError: sides that cannot be halved so often.

    Example:
        >>> import torch
        >>> network = TransformationPosterior((3, 28, 28), flows=3, horizon=8)
        >>> frames = torch.rand(5, 2, 3, 28, 28)
        >>> network(frames, torch.tensor([[0, 4]] * 5)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        flows: int,
        horizon: int,
        channels: Sequence[int] = (16, 32),
        hidden: int = 128,
    ) -> None:
        super().__init__()
        c, height, width = reduced_shape(image_shape, channels, exact=False)
        self.pair = nn.Sequential(
            *halving_convolutions(2 * image_shape[0], channels),
            nn.Flatten(),
            nn.Linear(c * height * width, hidden),
        )
        self.time = nn.Linear(1, hidden)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.logits = nn.Linear(hidden, flows)
        self.horizon = horizon
        with torch.no_grad():  # no opinion at first
            self.logits.weight *= 0.1
            self.logits.bias.zero_()

    def forward(
        self, frames: Float[Tensor, "b f c h w"], times: Real[Tensor, "b f"]
    ) -> Float[Tensor, "b k"]:
        """Return the logits.

        Args:
            frames: at least two of each sequence.
            times: of every frame.

        Raises:
            ValueError: there is no frame beside the first.
        """
        if frames.shape[1] < 2:
            raise ValueError(
                "a single frame does not show what a sequence undergoes; give at least two"
            )
        later = frames[:, 1:]
        pairs = torch.cat([frames[:, :1].expand_as(later), later], dim=2)
        seen = self.pair(rearrange(pairs, "b f c h w -> (b f) c h w"))
        seen = rearrange(seen, "(b f) d -> b f d", b=len(frames))
        elapsed = times[:, 1:] - times[:, :1]
        when = self.time(elapsed.unsqueeze(-1).to(seen.dtype) / self.horizon)
        logits: Tensor = self.logits(self.head(seen + when).mean(1))
        return single_precision(logits)
