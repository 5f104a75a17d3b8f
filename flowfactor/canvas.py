"""Networks that code an image square by square, and move and colour it as a whole."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.networks import (
    ImageShape,
    NetworkOptions,
    ResidualBlock,
    initialise,
    single_precision,
    start_moderate,
)
from flowfactor.options import NonNegativeInt, PositiveInt, options
from flowfactor.registries import DECODERS, ENCODERS

_EDGE = 1e-4
"""How near a pixel's mean comes to 0 and 1."""


@options
class CanvasOptions(NetworkOptions):
    """Options that an encoder and a decoder share, and must share to understand each other."""

    patch: PositiveInt = 8
    """Side of a square, in pixels; it divides both sides of the image."""
    code: PositiveInt = 24
    """Latents of each square; the rest of ``latent_dim`` are of the whole image."""
    width: PositiveInt = 64
    """Channels of a square between its code and its pixels."""
    blocks: NonNegativeInt = 1
    """Residual blocks, in which a square sees its neighbours."""

    def split(self, image_shape: ImageShape, latent_dim: int) -> tuple[int, int, int]:
        """Return rows and columns of squares, and the latents that are of the whole image.

        Raises:
            ValueError: the image cannot be cut into such squares, or too few latents.
        """
        _, height, width = image_shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height} x {width} pixels cannot be cut into squares of {self.patch} "
                "pixels; patch must divide both sides"
            )
        rows, columns = height // self.patch, width // self.patch
        whole = latent_dim - rows * columns * self.code
        if whole < 1:
            raise ValueError(
                f"latent_dim must be more than {rows * columns * self.code}, which {rows} x "
                f"{columns} squares of code {self.code} take; it is {latent_dim}"
            )
        return rows, columns, whole


@ENCODERS.register("canvas")
@options
class CanvasEncoderOptions(CanvasOptions):
    """Options of a :class:`CanvasEncoder`, for photographs that are moved or coloured."""

    hidden: PositiveInt = 128
    """Width of the layer from which the latents of the whole image are read."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained encoder."""
        return CanvasEncoder(image_shape, latent_dim, self)


@DECODERS.register("canvas")
@options
class CanvasDecoderOptions(CanvasOptions):
    """Options of a :class:`CanvasDecoder`, for photographs that are moved or coloured."""

    recolour: bool = True
    """Whether colours are transformed, beside places."""

    def build(self, image_shape: ImageShape, latent_dim: int) -> nn.Module:
        """Return the untrained decoder."""
        return CanvasDecoder(image_shape, latent_dim, self)


class CanvasEncoder(nn.Module):
    """A code of each square of an image, and some numbers of the whole.

    A latent is ``(codes of the squares, whole)``. A linear layer that all squares share, residual
    blocks in which they see their neighbours, and a linear layer give the codes; two linear layers
    on all squares together the rest. What a square shows is coded in the same way wherever it is,
    so that images unlike those of the training are coded nearly as well.

    Maps images ``(B, C, H, W)`` to ``(B, 2 D)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``options.patch``.
        latent_dim: D, more than the codes take.
        options: the sizes of the layers.

    Raises:
        ValueError: the image cannot be cut into such squares, or too few latents.

    Example:
        >>> import torch
        >>> encoder = CanvasEncoder((3, 16, 16), 40, CanvasEncoderOptions(code=8))
        >>> encoder(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 80])
    """

    def __init__(
        self, image_shape: ImageShape, latent_dim: int, options: CanvasEncoderOptions
    ) -> None:
        super().__init__()
        rows, columns, whole = options.split(image_shape, latent_dim)
        width = options.width
        self.squares = nn.Sequential(
            nn.Conv2d(image_shape[0], width, options.patch, options.patch),
            *(ResidualBlock(width) for _ in range(options.blocks)),
        )
        codes = nn.Conv2d(width, 2 * options.code, 1)
        rest = nn.Linear(options.hidden, 2 * whole)
        self.codes = nn.Sequential(codes, nn.Flatten(2))
        self.whole = nn.Sequential(
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(rows * columns * width, options.hidden),
            nn.SiLU(),
            rest,
        )
        initialise(self)
        start_moderate(codes, options.code, -2.0)
        start_moderate(rest, whole, -2.0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m"]:
        """Return mean and log standard deviation, side by side."""
        squares = self.squares(x - 0.5)
        codes, log_scales = self.codes(squares).chunk(2, dim=1)
        whole, whole_log_scales = self.whole(squares).chunk(2, dim=1)
        return torch.cat([codes.flatten(1), whole, log_scales.flatten(1), whole_log_scales], dim=1)


class CanvasDecoder(nn.Module):
    r"""Draw a picture from the codes of its squares, and move and colour it by group elements.

    .. math::

        \begin{aligned}
        \mathrm{picture}(p) &= \mathrm{sigmoid}(\mathrm{drawing}(\mathrm{codes}))(p), \\
        \mathrm{image}(p) &= \exp(L_{\mathrm{colour}}\, \mathrm{whole})\;
          \mathrm{picture}(\exp(L_{\mathrm{place}}\, \mathrm{whole})\, p)
        \end{aligned}

    The drawing sees the codes alone, the affine maps of the plane and of the colours see the rest
    of the latent alone: exponentials of linear functions of it. A latent that moves on a straight
    line at constant speed thus moves or colours its image by a one-parameter group, from any
    latent on, and a sum of such motions by the exponential of the sum of the generators. Which
    groups these are is learned. Beyond the picture its outermost pixels go on.

    Maps latents ``(B, D)`` to logits ``(B, C, H, W)``.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``options.patch``.
        latent_dim: D, more than the codes take.
        options: the sizes of the layers.

    Raises:
        ValueError: the image cannot be cut into such squares, or too few latents.

    Source: Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, arXiv:1506.02025, for
    the warp.

    Example:
        >>> import torch
        >>> decoder = CanvasDecoder((3, 16, 16), 40, CanvasDecoderOptions(code=8))
        >>> decoder(torch.randn(2, 40)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self, image_shape: ImageShape, latent_dim: int, options: CanvasDecoderOptions
    ) -> None:
        super().__init__()
        channels = image_shape[0]
        rows, columns, whole = options.split(image_shape, latent_dim)
        self.sizes = (latent_dim - whole, whole)
        width, code = options.width, options.code
        last = nn.Conv2d(width, channels * options.patch**2, 3, padding=1)
        self.drawing = nn.Sequential(
            nn.Unflatten(1, (code, rows, columns)),
            nn.Conv2d(code, width, 1),
            *(ResidualBlock(width) for _ in range(options.blocks)),
            last,
            nn.PixelShuffle(options.patch),
        )
        initialise(self)
        with torch.no_grad():
            last.weight *= 0.3
        # All pixels depend on these few numbers, and places are more sensitive than colours.
        self.place = _Exponential(whole, 2, 0.1)
        self.colour = _Exponential(whole, channels, 0.3) if options.recolour else None

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return one logit for each pixel."""
        codes, whole = z.split(self.sizes, dim=1)
        x = single_precision(self.drawing(codes)).sigmoid()
        if self.colour is not None:
            matrix, shift = self.colour(whole).split([x.shape[1], 1], dim=2)
            x = torch.baddbmm(shift, matrix, x.flatten(2)).view_as(x)
        grid = F.affine_grid(self.place(whole), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        return x.clamp(_EDGE, 1 - _EDGE).logit()


class _Exponential(nn.Module):
    """The affine map of n dimensions that is the exponential of a linear function of a latent."""

    def __init__(self, size: int, dimensions: int, scale: float) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.generator = nn.Linear(size, dimensions * (dimensions + 1), bias=False)
        nn.init.normal_(self.generator.weight, std=1 / math.sqrt(size))
        self.scale = scale

    def forward(self, whole: Float[Tensor, "b p"]) -> Float[Tensor, "b n m"]:
        n = self.dimensions
        generator = self.scale * single_precision(self.generator(whole)).view(-1, n, n + 1)
        return torch.matrix_exp(F.pad(generator, (0, 0, 0, 1)))[:, :n]
