"""Encoders and decoders of images."""

from __future__ import annotations

import inspect
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
        channels: of each convolution, every one of which halves the image;
            :func:`default_channels` if not given.
        hidden: the width of the layer before the head.

    Raises:
        ValueError: the image cannot be halved so often, or a size is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        channels: Sequence[int] | None = None,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        channels = default_channels(image_shape) if channels is None else channels
        c, h, w = reduced_shape(image_shape, channels)
        _check_sizes("hidden", [hidden])
        layers = halving_convolutions(image_shape[0], channels)
        head = nn.Linear(hidden, 2 * latent_dim)
        self.network = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(c * h * w, hidden), nn.SiLU(), head
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
        channels: from the image inwards, as in the encoder; :func:`default_channels` if not given.
        hidden: the width of the first layer.
        brightness: the mean pixel that an untrained decoder draws, in (0, 1).

    Raises:
        ValueError: a size that does not fit, or a brightness outside of (0, 1).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        channels: Sequence[int] | None = None,
        hidden: int = 256,
        brightness: float = 0.05,
    ) -> None:
        super().__init__()
        channels = default_channels(image_shape) if channels is None else channels
        c, h, w = reduced_shape(image_shape, channels)
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


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity (He et al., ECCV 2016): ``x + f(x)``, f = 0 at first.

    ``f`` is [norm], SiLU, 3x3 convolution, twice, the last of them with weights 0. An untrained
    network of any depth is then as easy to train as one without blocks.

    Args:
        channels: of input and output.
        norm: ``none``, or ``group`` for GroupNorm (Wu and He, ECCV 2018).

    Raises:
        ValueError: another norm.
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


class ResidualEncoder(nn.Module):
    """Strided convolutions with residual blocks after each: ``(B, C, H, W)`` to ``(B, 2 D)``.

    For images of 64 pixels and more, where the plain encoder is too shallow. No block works at
    the resolution of the image itself, the most expensive one.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D; the head gives mean and log standard deviation.
        channels: of each level, every one of which halves the image; :func:`default_channels` if
            not given.
        hidden: the width of the layer before the head.
        blocks: residual blocks at each level.
        norm: ``none`` or ``group``, see :class:`ResidualBlock`.

    Raises:
        ValueError: the image cannot be halved so often, a size is not positive, an unknown norm.

    Example:
        >>> import torch
        >>> encoder = ResidualEncoder((3, 64, 64), 10, channels=(8, 8, 16, 16))
        >>> tuple(encoder(torch.rand(2, 3, 64, 64)).shape)
        (2, 20)
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        channels: Sequence[int] | None = None,
        hidden: int = 256,
        blocks: int = 1,
        norm: str = "none",
    ) -> None:
        super().__init__()
        channels = default_channels(image_shape) if channels is None else channels
        c, h, w = reduced_shape(image_shape, channels)
        _check_sizes("hidden", [hidden])
        _check_sizes("blocks", [blocks])
        layers: list[nn.Module] = []
        for before, after in zip([image_shape[0], *channels[:-1]], channels, strict=True):
            # The image itself enters as it is; blocks leave their output before the nonlinearity.
            layers += [*_norm(norm, before), nn.SiLU()] if layers else []
            layers.append(nn.Conv2d(before, after, 4, 2, 1))
            layers += [ResidualBlock(after, norm) for _ in range(blocks)]
        head = nn.Linear(hidden, 2 * latent_dim)
        self.network = nn.Sequential(
            *layers,
            *_norm(norm, c),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(c * h * w, hidden),
            nn.SiLU(),
            head,
        )
        _initialise(self.network)
        _start_moderate(head, latent_dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """Return mean and log standard deviation, side by side."""
        out: Tensor = self.network(x)
        return out


class ResidualDecoder(nn.Module):
    """Two linear layers, then residual blocks and upsampling: latents to logits ``(B, C, H, W)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** len(channels)``.
        latent_dim: D.
        channels: from the image inwards, as in the encoder; :func:`default_channels` if not given.
        hidden: the width of the first layer.
        blocks: residual blocks at each level.
        norm: ``none`` or ``group``, see :class:`ResidualBlock`.
        upsampling: ``transposed``, a strided transposed convolution, or ``nearest``, every pixel
            repeated and a 3x3 convolution, which is dearer and leaves no chequered pattern
            (Odena et al., Distill 2016).
        brightness: the mean pixel that an untrained decoder draws, in (0, 1).

    Raises:
        ValueError: a size that does not fit, an unknown norm or upsampling, or a brightness
            outside of (0, 1).

    Example:
        >>> import torch
        >>> decoder = ResidualDecoder((3, 64, 64), 10, channels=(8, 8, 16, 16))
        >>> tuple(decoder(torch.randn(2, 10)).shape)
        (2, 3, 64, 64)
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        channels: Sequence[int] | None = None,
        hidden: int = 256,
        blocks: int = 1,
        norm: str = "none",
        upsampling: str = "transposed",
        brightness: float = 0.05,
    ) -> None:
        super().__init__()
        channels = default_channels(image_shape) if channels is None else channels
        c, h, w = reduced_shape(image_shape, channels)
        _check_sizes("hidden", [hidden])
        _check_sizes("blocks", [blocks])
        layers: list[nn.Module] = []
        inwards = list(channels)[::-1]
        for before, after in zip(inwards, [*inwards[1:], image_shape[0]], strict=True):
            layers += [ResidualBlock(before, norm) for _ in range(blocks)]
            layers += [*_norm(norm, before), nn.SiLU(), *_upsampled(upsampling, before, after)]
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


ENCODERS: dict[str, type[nn.Module]] = {"conv": ConvEncoder, "residual": ResidualEncoder}
DECODERS: dict[str, type[nn.Module]] = {
    "mlp": MLPDecoder,
    "conv": ConvDecoder,
    "residual": ResidualDecoder,
}


def make_encoder(
    image_shape: ImageShape, latent_dim: int, kind: str = "conv", **options: Any
) -> nn.Module:
    """Return the encoder of a name, ``conv`` or ``residual``, with its options.

    Raises:
        ValueError: no such encoder, or an option that it does not have.

    Example:
        >>> type(make_encoder((3, 64, 64), 10, "residual", blocks=2)).__name__
        'ResidualEncoder'
    """
    return _made("encoder", ENCODERS, kind, image_shape, latent_dim, options)


def make_decoder(image_shape: ImageShape, latent_dim: int, kind: str, **options: Any) -> nn.Module:
    """Return the decoder of a name, ``mlp``, ``conv`` or ``residual``, with its options.

    Raises:
        ValueError: no such decoder, or an option that it does not have.
    """
    return _made("decoder", DECODERS, kind, image_shape, latent_dim, options)


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


def _made(
    what: str,
    networks: dict[str, type[nn.Module]],
    kind: str,
    image_shape: ImageShape,
    latent_dim: int,
    options: dict[str, Any],
) -> nn.Module:
    if kind not in networks:
        raise ValueError(f"no {what} is named {kind!r}; there are {', '.join(networks)}")
    parameters = inspect.signature(networks[kind]).parameters
    known = [name for name in parameters if name not in ("image_shape", "latent_dim")]
    for option in options:
        if option not in known:
            raise ValueError(
                f"the {kind} {what} has no option {option!r}; it has {', '.join(known)}"
            )
    try:
        return networks[kind](image_shape, latent_dim, **options)
    except TypeError as error:
        raise ValueError(f"the {kind} {what}: {error}") from error


def _norm(norm: str, channels: int) -> list[nn.Module]:
    """Return the layers of a norm: none, or GroupNorm of up to 8 groups of 4 channels or more."""
    if norm == "none":
        return []
    if norm != "group":
        raise ValueError(f"norm is {norm!r}; it is either 'none' or 'group'")
    most = max(1, min(8, channels // 4))
    groups = max(count for count in range(1, most + 1) if channels % count == 0)
    return [nn.GroupNorm(groups, channels)]


def _upsampled(upsampling: str, before: int, after: int) -> list[nn.Module]:
    """Return the layers that double both sides."""
    if upsampling == "transposed":
        return [nn.ConvTranspose2d(before, after, 4, 2, 1)]
    if upsampling != "nearest":
        raise ValueError(f"upsampling is {upsampling!r}; it is either 'transposed' or 'nearest'")
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
    if not 0 < brightness < 1:
        raise ValueError(f"brightness must be between 0 and 1; it is {brightness}")
    assert isinstance(last, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= 0.3
        last.bias.fill_(math.log(brightness / (1 - brightness)))


def _check_sizes(what: str, sizes: Sequence[int]) -> None:
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{what} must be one or more positive numbers; it is {list(sizes)}")


def reduced_shape(image_shape: ImageShape, channels: Sequence[int]) -> tuple[int, int, int]:
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
