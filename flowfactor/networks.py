"""Encoders and decoders of images, and their options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.options import NonNegativeInt, OpenFraction, PositiveInt, options
from flowfactor.registries import DECODERS, ENCODERS

ImageShape = tuple[int, int, int]


@options
class NetworkOptions:
    """Options of an encoder or a decoder; a new kind subclasses this and registers itself.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from flowfactor.networks import NetworkOptions
        >>> from flowfactor.options import options
        >>> @options
        ... class LinearOptions(NetworkOptions):
        ...     def build(self, image_shape, latent_dim):
        ...         channels, height, width = image_shape
        ...         size = channels * height * width
        ...         return nn.Sequential(nn.Flatten(), nn.Linear(size, 2 * latent_dim))
        >>> LinearOptions().build((1, 8, 8), 3)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 6])
    """

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained network.

        Args:
            image_shape: ``(C, H, W)``.
            latent_dim: D. An encoder maps images ``(B, C, H, W)`` to ``(B, 2 D)``, mean and log
                standard deviation side by side; a decoder maps ``(B, D)`` to logits
                ``(B, C, H, W)``.

        Raises:
            ValueError: sizes that do not fit the image.
        """
        raise NotImplementedError


@ENCODERS.register("conv")
@options
class ConvEncoderOptions(NetworkOptions):
    """Options of a :class:`ConvEncoder`."""

    channels: tuple[PositiveInt, ...] | None = None
    """Channels of each level, which halves the image; null: :func:`default_channels`."""
    hidden: PositiveInt = 256
    """Width of the layer before the head."""
    blocks: NonNegativeInt = 0
    """Residual blocks at each level."""
    norm: Literal["none", "group"] = "none"
    """Normalisation between convolutions with blocks: none, or GroupNorm."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained encoder."""
        return ConvEncoder(image_shape, latent_dim, self)


@ENCODERS.register("residual")
@options
class ResidualEncoderOptions(ConvEncoderOptions):
    """Options of a :class:`ConvEncoder` with residual blocks, for images of 64 pixels and more."""

    blocks: NonNegativeInt = 1


@DECODERS.register("mlp")
@options
class MLPDecoderOptions(NetworkOptions):
    """Options of an :class:`MLPDecoder`."""

    hidden: tuple[PositiveInt, ...] = (1024, 1024)
    """Widths of the hidden layers."""
    brightness: OpenFraction = 0.05
    """Mean pixel that the untrained decoder draws."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained decoder."""
        return MLPDecoder(image_shape, latent_dim, self)


@DECODERS.register("conv")
@options
class ConvDecoderOptions(NetworkOptions):
    """Options of a :class:`ConvDecoder`."""

    channels: tuple[PositiveInt, ...] | None = None
    """Channels from the image inwards, as in the encoder; null: :func:`default_channels`."""
    hidden: PositiveInt = 256
    """Width of the first layer."""
    blocks: NonNegativeInt = 0
    """Residual blocks at each level."""
    norm: Literal["none", "group"] = "none"
    """Normalisation between convolutions with blocks: none, or GroupNorm."""
    upsampling: Literal["transposed", "nearest"] = "transposed"
    """``transposed``: a strided transposed convolution. ``nearest``: every pixel repeated, then a
    3x3 convolution; slower, without checkerboard artefacts (Odena et al., Distill 2016)."""
    brightness: OpenFraction = 0.05
    """Mean pixel that the untrained decoder draws."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained decoder."""
        return ConvDecoder(image_shape, latent_dim, self)


@DECODERS.register("residual")
@options
class ResidualDecoderOptions(ConvDecoderOptions):
    """Options of a :class:`ConvDecoder` with residual blocks, for images of 64 pixels and more."""

    blocks: NonNegativeInt = 1


class ConvEncoder(nn.Module):
    """Strided convolutions, residual blocks after each if asked for, and a linear head.

    Maps images ``(B, C, H, W)`` to ``(B, 2 D)``. No block works at the resolution of the image
    itself, the most expensive one.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D; the head gives mean and log standard deviation.
        options: the sizes of the layers.

    Raises:
        ValueError: the image cannot be halved so often.

    Example:
        >>> import torch
        >>> options = ResidualEncoderOptions(channels=(8, 8, 16, 16))
        >>> encoder = ConvEncoder((3, 64, 64), 10, options)
        >>> encoder(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 20])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        options: ConvEncoderOptions = ConvEncoderOptions(),
    ) -> None:
        super().__init__()
        channels = default_channels(image_shape) if options.channels is None else options.channels
        c, h, w = reduced_shape(image_shape, channels)
        layers: list[nn.Module] = []
        for before, after in zip([image_shape[0], *channels[:-1]], channels, strict=True):
            # The image itself enters as it is; blocks leave their output before the nonlinearity.
            layers += [*_norm(options.norm, before), nn.SiLU()] if layers else []
            layers.append(nn.Conv2d(before, after, 4, 2, 1))
            layers += [ResidualBlock(after, options.norm) for _ in range(options.blocks)]
        head = nn.Linear(options.hidden, 2 * latent_dim)
        self.network = nn.Sequential(
            *layers,
            *_norm(options.norm, c),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(c * h * w, options.hidden),
            nn.SiLU(),
            head,
        )
        _initialise(self.network)
        _start_moderate(head, latent_dim)

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
        options: the sizes of the layers.

    Raises:
        ValueError: there is no hidden layer.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        options: MLPDecoderOptions = MLPDecoderOptions(),
    ) -> None:
        super().__init__()
        hidden = options.hidden
        if not hidden:
            raise ValueError("hidden must name the width of at least one layer")
        layers: list[nn.Module] = []
        for before, after in zip([latent_dim, *hidden[:-1]], hidden, strict=True):
            layers += [nn.Linear(before, after), nn.SiLU()]
        last = nn.Linear(hidden[-1], math.prod(image_shape))
        self.network = nn.Sequential(*layers, last, nn.Unflatten(1, image_shape))
        _initialise(self.network)
        _start_dark(last, options.brightness)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        logits: Tensor = self.network(z)
        return logits


class ConvDecoder(nn.Module):
    """Two linear layers, then residual blocks if asked for and upsampling convolutions.

    Maps latents ``(B, D)`` to logits ``(B, C, H, W)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D.
        options: the sizes of the layers.

    Raises:
        ValueError: the image cannot be halved so often.

    Example:
        >>> import torch
        >>> options = ResidualDecoderOptions(channels=(8, 8, 16, 16))
        >>> decoder = ConvDecoder((3, 64, 64), 10, options)
        >>> decoder(torch.randn(2, 10)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        options: ConvDecoderOptions = ConvDecoderOptions(),
    ) -> None:
        super().__init__()
        channels = default_channels(image_shape) if options.channels is None else options.channels
        c, h, w = reduced_shape(image_shape, channels)
        layers: list[nn.Module] = []
        inwards = list(channels)[::-1]
        for before, after in zip(inwards, [*inwards[1:], image_shape[0]], strict=True):
            layers += [ResidualBlock(before, options.norm) for _ in range(options.blocks)]
            layers += [*_norm(options.norm, before), nn.SiLU()]
            layers += _upsample(options.upsampling, before, after)
        self.network = nn.Sequential(
            nn.Linear(latent_dim, options.hidden),
            nn.SiLU(),
            nn.Linear(options.hidden, c * h * w),
            nn.Unflatten(1, (c, h, w)),
            *layers,
        )
        _initialise(self.network)
        _start_dark(layers[-1], options.brightness)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        logits: Tensor = self.network(z)
        return logits


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity (He et al., ECCV 2016): ``x + f(x)``, f = 0 at first.

    ``f`` is [norm], SiLU, 3x3 convolution, twice, the last of them with weights 0. An untrained
    network of any depth is then as easy to train as one without blocks.

    Args:
        channels: of input and output.
        norm: ``none``, or ``group`` for GroupNorm (Wu and He, ECCV 2018).
    """

    def __init__(self, channels: int, norm: str = "none") -> None:
        super().__init__()
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.change = nn.Sequential(
            *_norm(norm, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            *_norm(norm, channels),
            nn.SiLU(),
            self.last,
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return ``x + f(x)``."""
        out: Tensor = x + self.change(x)
        return out


def halving_convolutions(before: int, channels: Sequence[int]) -> list[nn.Module]:
    """Return a strided convolution and a SiLU for each of ``channels``, on ``before`` channels."""
    layers: list[nn.Module] = []
    for after in channels:
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()]
        before = after
    return layers


def default_channels(image_shape: ImageShape) -> tuple[int, ...]:
    """Return channels that halve an image until its shorter side has at most 8 pixels.

    At least twice: 28 and 32 pixels have 2 levels, 64 have 3 and 128 have 4. The first level has
    32 channels, the second 64 and the others 128.

    Example:
        >>> default_channels((3, 28, 28)), default_channels((3, 128, 128))
        ((32, 64), (32, 64, 128, 128))
    """
    side = min(image_shape[1:])
    levels = 2
    while side > 8 * 2**levels:
        levels += 1
    return tuple(min(32 * 2**level, 128) for level in range(levels))


def _norm(norm: str, channels: int) -> list[nn.Module]:
    """Return the layers of a norm: none, or GroupNorm of up to 8 groups of 4 channels or more."""
    if norm == "none":
        return []
    most = max(1, min(8, channels // 4))
    groups = max(count for count in range(1, most + 1) if channels % count == 0)
    return [nn.GroupNorm(groups, channels)]


def _upsample(upsampling: str, before: int, after: int) -> list[nn.Module]:
    """Return the layers that double both sides."""
    if upsampling == "transposed":
        return [nn.ConvTranspose2d(before, after, 4, 2, 1)]
    return [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1)]


def _initialise(network: nn.Module) -> None:
    """Draw weights by He et al. (ICCV 2015), biases 0: signals keep their size from layer to layer.

    With torch's default the latent reaches the pixels so faintly that a third of a short training
    goes into amplifying it. Residual blocks begin as the identity.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan = math.prod(layer.weight.shape[1:])
            if isinstance(layer, nn.ConvTranspose2d):
                # Each output pixel sees every input channel through kernel^2 / stride^2 taps.
                taps = math.prod(layer.kernel_size) / math.prod(layer.stride)
                fan = round(layer.in_channels * taps)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            nn.init.zeros_(block.last.weight)


def _start_moderate(head: nn.Linear, latent_dim: int) -> None:
    """Let the untrained encoder give posteriors of moderate width, the same for all images."""
    with torch.no_grad():
        head.weight[latent_dim:] *= 0.1
        head.bias[latent_dim:] = -1.0


def _start_dark(last: nn.Module, brightness: float) -> None:
    """Let the untrained decoder draw faint images of a given mean pixel."""
    assert isinstance(last, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= 0.3
        last.bias.fill_(math.log(brightness / (1 - brightness)))


def reduced_shape(image_shape: ImageShape, channels: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape after ``len(channels)`` halvings.

    Raises:
        ValueError: the image cannot be halved so often, or there is no channel.
    """
    if not channels:
        raise ValueError("channels must name at least one level")
    factor = 2 ** len(channels)
    _, height, width = image_shape
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height} x {width} pixels cannot be halved {len(channels)} times, once for "
            f"each of the channels {tuple(channels)}; both sides must be divisible by {factor}"
        )
    return channels[-1], height // factor, width // factor
