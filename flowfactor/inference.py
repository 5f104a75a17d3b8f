"""What does a sequence undergo? The posterior of the transformation, and how it is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowfactor.networks import ImageShape, halving_convolutions, reduced_shape


@dataclasses.dataclass(frozen=True)
class Inference:
    """How transformations are inferred while a model learns without being told them.

    Attributes:
        estimator: ``enumerate`` weighs the costs of all K flows by their responsibilities, exact
            and without noise; ``gumbel`` draws one flow by the straight-through Gumbel-softmax.
        warmup: steps in which only the autoencoder learns, on single frames.
        anneal: steps after that in which the temperature falls.
        temperature: where it ends: in nats of a sequence's cost for ``enumerate``, of the
            logits' softmax for ``gumbel``; None is 2.0 or 0.3.
        refresh: after the annealing, ``enumerate`` compares all flows in one of so many steps, and
            trusts the inference network in the others.
        weight: of ``KL(q(k|x_0..x_T) || uniform)``, for ``gumbel``.

    Raises:
        ValueError: an unknown estimator, or a number out of range.
    """

    estimator: Literal["enumerate", "gumbel"] = "enumerate"
    warmup: int = 500
    anneal: int = 600
    temperature: float | None = None
    refresh: int = 10
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.estimator not in ("enumerate", "gumbel"):
            raise ValueError(f"estimator is {self.estimator!r}; it is 'enumerate' or 'gumbel'")
        for name in ("warmup", "anneal"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; it is {getattr(self, name)}")
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1; it is {self.refresh}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be positive; it is {self.temperature}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be finite and at least 0; it is {self.weight}")

    @property
    def last_temperature(self) -> float:
        """Where the annealing ends."""
        if self.temperature is not None:
            return self.temperature
        return 2.0 if self.estimator == "enumerate" else 0.3


class TransformationPosterior(nn.Module):
    r"""``q(k | x_0..x_T)``: logits of the K flows from some frames of a sequence.

    .. code-block:: text

        logits = head( mean over t > 0 of g(x_0, x_t, t / T) )

    Every later frame is seen together with frame 0, by strided convolutions and a linear layer, and
    the mean makes one vector of any number of frames.

    Args:
        image_shape: ``(C, H, W)``, sides divisible by ``2 ** len(channels)``.
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
        c, height, width = reduced_shape(image_shape, channels)
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
        self, frames: Float[Tensor, "b f c h w"], times: Int[Tensor, "b f"]
    ) -> Float[Tensor, "b k"]:
        """Return the logits.

        Args:
            frames: frame 0 first, and at least one more.
            times: the number of every frame.

        Raises:
            ValueError: there is no frame beside the first.
        """
        if frames.shape[1] < 2:
            raise ValueError(
                "a single frame does not show what a sequence undergoes; give at least two"
            )
        later = frames[:, 1:]
        pairs = torch.cat([frames[:, :1].expand_as(later), later], dim=2)
        seen = self.pair(pairs.flatten(0, 1)).unflatten(0, later.shape[:2])
        when = self.time(times[:, 1:, None].to(seen.dtype) / self.horizon)
        logits: Tensor = self.logits(self.head(seen + when).mean(1))
        return logits.float()
