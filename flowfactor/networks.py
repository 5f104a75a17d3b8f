"""Encoders and decoders of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ImageShape = tuple[int, int, int]


class ConvEncoder(nn.Module):
    """Strided convolutions and a linear head: images ``(B, C, H, W)`` to ``(B, 2 D)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D; the head gives mean and log standard deviation.
        channels: of each convolution, every one of which halves the image.
        hidden: the width of the layer before the head.

    Raises:
        ValueError: the image cannot be halved so often, or a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
    ) -> None:
        super().__init__()
        c, h, w = _reduced(image_shape, channels)
        _check_sizes("hidden", [hidden])
        layers: list[nn.Module] = []
        before = image_shape[0]
        for after in channels:
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()]
            before = after
        head = nn.Linear(hidden, 2 * latent_dim)
        self.network = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(c * h * w, hidden), nn.SiLU(), head
        )
        _initialise(self.network)
        with torch.no_grad():
            # A posterior of moderate width, the same for all images at first.
            head.weight[latent_dim:] *= 0.1
            head.bias[latent_dim:] = -1.0

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """Return mean and log standard deviation, side by side."""
        out: Tensor = self.network(x)
        return out


class MLPDecoder(nn.Module):
    """Fully connected layers: latents ``(B, D)`` to logits ``(B, C, H, W)``.

    For images of some 28 x 28 pixels as good as convolutions at equal steps, and faster on a CPU.

    Args:
        image_shape: ``(C, H, W)``.
        latent_dim: D.
        hidden: the widths of the hidden layers.
        brightness: the mean pixel that an untrained decoder draws, in (0, 1).

    Raises:
        ValueError: a size that is not positive, or a brightness outside of (0, 1).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        hidden: Sequence[int] = (1024, 1024),
        brightness: float = 0.05,
    ) -> None:
        super().__init__()
        _check_sizes("hidden", hidden)
        layers: list[nn.Module] = []
        for before, after in zip([latent_dim, *hidden[:-1]], hidden, strict=True):
            layers += [nn.Linear(before, after), nn.SiLU()]
        last = nn.Linear(hidden[-1], math.prod(image_shape))
        self.network = nn.Sequential(*layers, last, nn.Unflatten(1, image_shape))
        _initialise(self.network)
        _start_dark(last, brightness)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        logits: Tensor = self.network(z)
        return logits


class ConvDecoder(nn.Module):
    """Two linear layers and transposed convolutions: latents to logits ``(B, C, H, W)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D.
        channels: from the image inwards, as in the encoder.
        hidden: the width of the first layer.
        brightness: the mean pixel that an untrained decoder draws, in (0, 1).

    Raises:
        ValueError: a size that does not fit, or a brightness outside of (0, 1).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        brightness: float = 0.05,
    ) -> None:
        super().__init__()
        c, h, w = _reduced(image_shape, channels)
        _check_sizes("hidden", [hidden])
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
        _initialise(self.network)
        _start_dark(layers[-1], brightness)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        logits: Tensor = self.network(z)
        return logits


DECODERS: dict[str, type[MLPDecoder] | type[ConvDecoder]] = {
    "mlp": MLPDecoder,
    "conv": ConvDecoder,
}


def make_decoder(image_shape: ImageShape, latent_dim: int, kind: str, **options: Any) -> nn.Module:
    """Return the decoder of a name, ``mlp`` or ``conv``, with its options.

    Raises:
        ValueError: no such decoder, or an option that it does not have.
    """
    if kind not in DECODERS:
        raise ValueError(f"no decoder is named {kind!r}; there are {', '.join(DECODERS)}")
    try:
        return DECODERS[kind](image_shape, latent_dim, **options)
    except TypeError as error:
        raise ValueError(f"the {kind} decoder: {error}") from error


def _initialise(network: nn.Sequential) -> None:
    """Draw weights by He et al. (ICCV 2015), biases 0: signals keep their size from layer to layer.

    With torch's default the latent reaches the pixels so faintly that a third of a short training
    goes into amplifying it.
    """
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan = math.prod(layer.weight.shape[1:])
            if isinstance(layer, nn.ConvTranspose2d):
                # Each output pixel sees every input channel through kernel^2 / stride^2 taps.
                taps = math.prod(layer.kernel_size) / math.prod(layer.stride)
                fan = round(layer.in_channels * taps)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _start_dark(last: nn.Module, brightness: float) -> None:
    """Let the untrained decoder draw faint images of a given mean pixel."""
    if not 0 < brightness < 1:
        raise ValueError(f"brightness must be between 0 and 1; it is {brightness}")
    assert isinstance(last, nn.Linear | nn.ConvTranspose2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= 0.3
        last.bias.fill_(math.log(brightness / (1 - brightness)))


def _check_sizes(what: str, sizes: Sequence[int]) -> None:
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{what} must be one or more positive numbers; it is {list(sizes)}")


def _reduced(image_shape: ImageShape, channels: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape after ``len(channels)`` halvings.

    Raises:
        ValueError: the image cannot be halved so often, or there is no channel.
    """
    _check_sizes("channels", channels)
    factor = 2 ** len(channels)
    _, height, width = image_shape
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height} x {width} pixels cannot be halved {len(channels)} times, once for "
            f"each of the channels {tuple(channels)}; both sides must be divisible by {factor}"
        )
    return channels[-1], height // factor, width // factor
