"""Encoders and decoders of images."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class ConvEncoder(nn.Module):
    """Strided convolutions and a linear head: images ``(B, C, H, W)`` to ``(B, 2 D)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D; the head gives mean and log standard deviation.
        channels: of each convolution, every one of which halves the image.
        hidden: the width of the layer before the head.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        c, h, w = _reduced(image_shape, channels)
        layers: list[nn.Module] = []
        before = image_shape[0]
        for after in channels:
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()]
            before = after
        self.network = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(c * h * w, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * latent_dim),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """Return mean and log standard deviation, side by side."""
        out: Tensor = self.network(x)
        return out


class ConvDecoder(nn.Module):
    """A linear layer and transposed convolutions: latents ``(B, D)`` to logits ``(B, C, H, W)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D.
        channels: from the image inwards, as in the encoder.
        hidden: the width of the first layer.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        channels: Sequence[int] = (24, 48),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        c, h, w = _reduced(image_shape, channels)
        layers: list[nn.Module] = []
        inwards = list(channels)[::-1]
        for before, after in zip(inwards, [*inwards[1:], image_shape[0]], strict=True):
            layers += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.network = nn.Sequential(
            nn.Linear(latent_dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, c * h * w),
            nn.Unflatten(1, (c, h, w)),
            *layers,
        )

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        logits: Tensor = self.network(z)
        return logits


def _reduced(image_shape: tuple[int, int, int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape after ``len(channels)`` halvings.

    Raises:
        ValueError: the image cannot be halved so often, or there is no channel.
    """
    factor = 2 ** len(channels)
    _, height, width = image_shape
    if not channels or min(channels) < 1:
        raise ValueError(f"channels must be one or more positive numbers; they are {channels}")
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height} x {width} pixels cannot be halved {len(channels)} times, once for "
            f"each of the channels {tuple(channels)}; both sides must be divisible by {factor}"
        )
    return channels[-1], height // factor, width // factor
