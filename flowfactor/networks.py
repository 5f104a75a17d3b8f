"""Encoders and decoders of images, and their options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
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


@ENCODERS.register("patch")
@options
class PatchEncoderOptions(NetworkOptions):
    """Options of a :class:`PatchEncoder`, the fastest for images of some 28 pixels."""

    patch: PositiveInt = 4
    """Side of a square, in pixels; it divides both sides of the image."""
    width: PositiveInt = 64
    """Channels of a square."""
    hidden: tuple[PositiveInt, ...] = (256,)
    """Widths of the layers between the squares and the head."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained encoder."""
        return PatchEncoder(image_shape, latent_dim, self)


@ENCODERS.register("warp")
@options
class WarpEncoderOptions(PatchEncoderOptions):
    """Options of a :class:`WarpEncoder`, for images that are moved, turned or zoomed."""

    width: PositiveInt = 32
    """Channels of a square in the layers that encode what an image shows."""
    pose_width: PositiveInt = 32
    """Channels of a square in the layers that find the pose."""
    pose_hidden: PositiveInt = 128
    """Width of the layer from which the pose is read."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained encoder."""
        return WarpEncoder(image_shape, latent_dim, self)


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


@DECODERS.register("warp")
@options
class WarpDecoderOptions(MLPDecoderOptions):
    """Options of a :class:`WarpDecoder`, for images that are moved, turned or zoomed."""

    tint: bool = False
    """Whether an image has one colour: a grey picture and a colour are decoded, and multiplied."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained decoder."""
        return WarpDecoder(image_shape, latent_dim, self)


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
        image_shape: ``(C, H, W)``; H and W at least ``2 ** len(channels)``.
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
        c, h, w = reduced_shape(image_shape, channels, exact=False)
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
        initialise(self.network)
        start_moderate(head, latent_dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """Return mean and log standard deviation, side by side."""
        out: Tensor = self.network(x)
        return out


class PatchEncoder(nn.Module):
    """Squares of an image through one shared linear layer, all of them together through others.

    Maps images ``(B, C, H, W)`` to ``(B, 2 D)``. Every layer is one large matrix product, which
    is what a CPU does fastest.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``options.patch``.
        latent_dim: D; the head gives mean and log standard deviation.
        options: the sizes of the layers.

    Raises:
        ValueError: the image cannot be cut into such squares.

    Example:
        >>> import torch
        >>> encoder = PatchEncoder((3, 28, 28), 10, PatchEncoderOptions(patch=7))
        >>> encoder(torch.rand(2, 3, 28, 28)).shape
        torch.Size([2, 20])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        options: PatchEncoderOptions = PatchEncoderOptions(),
    ) -> None:
        super().__init__()
        squares, size = _squares(image_shape, options.patch, options.width, options.hidden)
        head = nn.Linear(size, 2 * latent_dim)
        self.network = nn.Sequential(*squares, head)
        initialise(self.network)
        start_moderate(head, latent_dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """Return mean and log standard deviation, side by side."""
        out: Tensor = self.network(x)
        return out


class WarpEncoder(nn.Module):
    r"""Find the pose of an image, undo it by an affine warp, and encode both.

    .. math::

        \begin{aligned}
        \mathrm{pose} &= \mathrm{squares}(x), \\
        \mathrm{content} &= \mathrm{squares}(x \circ \theta(\mathrm{pose})), \\
        \mathrm{out} &= \mathrm{linear}(\mathrm{pose}, \mathrm{content})
        \end{aligned}

    with ``squares`` as in a :class:`PatchEncoder` and ``theta`` an affine map of the plane. An
    image that was moved, turned or zoomed then looks the same to the layers that encode what it
    shows. Nobody teaches the pose: it is learned with the rest, starting from ``theta = 1``.

    Maps images ``(B, C, H, W)`` to ``(B, 2 D)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``options.patch``.
        latent_dim: D; the head gives mean and log standard deviation.
        options: the sizes of the layers.

    Raises:
        ValueError: the image cannot be cut into such squares.

    Source: Jaderberg, Simonyan, Zisserman, Kavukcuoglu, "Spatial Transformer Networks", NeurIPS
    2015, arXiv:1506.02025.

    Example:
        >>> import torch
        >>> encoder = WarpEncoder((3, 28, 28), 10)
        >>> encoder(torch.rand(2, 3, 28, 28)).shape
        torch.Size([2, 20])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        options: WarpEncoderOptions = WarpEncoderOptions(),
    ) -> None:
        super().__init__()
        pose, pose_size = _squares(
            image_shape, options.patch, options.pose_width, (options.pose_hidden,)
        )
        content, size = _squares(image_shape, options.patch, options.width, options.hidden)
        self.pose = nn.Sequential(*pose)
        self.theta = _Affine(pose_size)
        self.content = nn.Sequential(*content)
        self.head = nn.Linear(pose_size + size, 2 * latent_dim)
        initialise(self)
        start_moderate(self.head, latent_dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """Return mean and log standard deviation, side by side."""
        pose = self.pose(x)
        upright = _warp(x, self.theta(pose))
        out: Tensor = self.head(torch.cat([pose, self.content(upright)], dim=1))
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
        layers = _hidden_layers(latent_dim, options.hidden)
        last = nn.Linear(options.hidden[-1], math.prod(image_shape))
        self.network = nn.Sequential(*layers, last, nn.Unflatten(1, image_shape))
        initialise(self.network)
        _start_dark(last, options.brightness)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        logits: Tensor = self.network(z)
        return logits


class WarpDecoder(nn.Module):
    r"""Draw an upright picture and give it a pose, by an affine warp, and a colour if asked for.

    .. math::

        \begin{aligned}
        \mathrm{logits} &= \mathrm{picture}(h) \circ \theta(h), \qquad h = \mathrm{MLP}(z), \\
        p &= \mathrm{sigmoid}(\mathrm{logits})\; \mathrm{sigmoid}(\mathrm{colour}(h))
        \end{aligned}

    with the second factor, a colour for the picture of one channel, only if ``tint`` is set. What
    moves, turns or zooms an image then moves six numbers instead of all pixels. Beyond the picture
    all is dark. With ``tint`` the logits returned are those of the product p.

    Maps latents ``(B, D)`` to logits ``(B, C, H, W)``.

    Args:
        image_shape: ``(C, H, W)``.
        latent_dim: D.
        options: the sizes of the layers.

    Raises:
        ValueError: there is no hidden layer.

    Source: Jaderberg et al., arXiv:1506.02025, for the warp.

    Example:
        >>> import torch
        >>> decoder = WarpDecoder((3, 28, 28), 10, WarpDecoderOptions(tint=True))
        >>> decoder(torch.randn(2, 10)).shape
        torch.Size([2, 3, 28, 28])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        options: WarpDecoderOptions = WarpDecoderOptions(),
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.hidden = nn.Sequential(*_hidden_layers(latent_dim, options.hidden))
        size = options.hidden[-1]
        drawn = (1 if options.tint else channels, height, width)
        last = nn.Linear(size, math.prod(drawn))
        self.picture = nn.Sequential(last, nn.Unflatten(1, drawn))
        self.theta = _Affine(size)
        self.colour = nn.Linear(size, channels) if options.tint else None
        initialise(self)
        _start_dark(last, options.brightness)
        if self.colour is not None:
            _start_dark(self.colour, 0.6)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        h = self.hidden(z)
        picture = single_precision(self.picture(h))
        # The warp fills up with zeros what it sees beyond the picture.
        logits = _warp(picture - _DARK, self.theta(h)) + _DARK
        if self.colour is None:
            return logits
        colour = single_precision(self.colour(h))[:, :, None, None]
        # With odds 1 / a and 1 / b of the factors, those of the product are 1 / (a + b + a b).
        a, b = ((-each).clamp(-40, 40).exp() for each in (logits, colour))
        return -torch.addcmul(b, a, 1 + b).log()


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
        initialise(self.network)
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


def initialise(network: nn.Module) -> None:
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


def _hidden_layers(size: int, hidden: Sequence[int]) -> list[nn.Module]:
    """Return linear layers of some widths, each with its nonlinearity.

    Raises:
        ValueError: there is none.
    """
    if not hidden:
        raise ValueError("hidden must name the width of at least one layer")
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([size, *hidden]):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return layers


def _squares(
    image_shape: ImageShape, side: int, width: int, hidden: Sequence[int]
) -> tuple[list[nn.Module], int]:
    """Return layers that see an image in squares, and the number of their outputs.

    Raises:
        ValueError: the image cannot be cut into such squares.
    """
    channels, height, image_width = image_shape
    if height % side or image_width % side:
        raise ValueError(
            f"images of {height} x {image_width} pixels cannot be cut into squares of {side} "
            "pixels; patch must divide both sides"
        )
    layers: list[nn.Module] = [
        Rearrange("b c (h p) (w q) -> b (h w) (c p q)", p=side, q=side),
        nn.Linear(channels * side * side, width),
        nn.SiLU(),
        nn.Flatten(),
    ]
    sizes = [(height // side) * (image_width // side) * width, *hidden]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return layers, sizes[-1]


_DARK = -8.0
"""The logit of a pixel beyond the picture."""


def _warp(x: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b c h w"]:
    """Return ``x(theta(p))`` at all pixels p, 0 where theta leaves the image."""
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(single_precision(x), grid, align_corners=False)


class _Affine(nn.Module):
    """An affine map of the plane for each sample, near the identity: ``1 + 0.1 linear(h)``.

    All pixels depend on these six numbers, so that they must not change as fast as others.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.change = nn.Linear(size, 6)
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(2, 3), persistent=False)

    def forward(self, h: Float[Tensor, "b m"]) -> Float[Tensor, "b 2 3"]:
        return self.identity + 0.1 * single_precision(self.change(h)).view(-1, 2, 3)


def start_moderate(head: nn.Linear | nn.Conv2d, latent_dim: int, log_scale: float = -1.0) -> None:
    """Let the untrained encoder give posteriors of moderate width, the same for all images."""
    assert head.bias is not None
    with torch.no_grad():
        head.weight[latent_dim:] *= 0.1
        head.bias[latent_dim:] = log_scale


def _start_dark(last: nn.Module, brightness: float) -> None:
    """Let the untrained decoder draw faint images of a given mean pixel."""
    assert isinstance(last, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= 0.3
        last.bias.fill_(math.log(brightness / (1 - brightness)))


def reduced_shape(
    image_shape: ImageShape, channels: Sequence[int], *, exact: bool = True
) -> tuple[int, int, int]:
    """Return the shape after ``len(channels)`` halvings.

    Args:
        image_shape: ``(C, H, W)``.
        channels: after each of them.
        exact: whether the halves must double to the image again, as a decoder's do; else sides are
            rounded down, as strided convolutions do.

    Raises:
        ValueError: the image cannot be halved so often, or there is no channel.
    """
    if not channels:
        raise ValueError("channels must name at least one level")
    factor = 2 ** len(channels)
    _, height, width = image_shape
    if min(height, width) < factor or (exact and (height % factor or width % factor)):
        raise ValueError(
            f"images of {height} x {width} pixels cannot be halved {len(channels)} times, once for "
            f"each of the channels {tuple(channels)}; both sides must be "
            f"{'divisible by' if exact else 'at least'} {factor}"
        )
    return channels[-1], height // factor, width // factor


def single_precision(x: Tensor) -> Tensor:
    """Return a network's output in float32 where it is in half precision."""
    return x if x.dtype == torch.float64 else x.float()
