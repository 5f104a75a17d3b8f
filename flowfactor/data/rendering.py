"""Colour frames of grey images: scaled, rotated and coloured, a whole batch in one pass.

The image has one channel until the very end, so that the warp, the only costly step, is done
once and not for each colour.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowfactor.errors import DataError

#: The fixed points of scaling and rotation to choose from, see `render`.
Centre = Literal["true", "authors"]


def check_centre(centre: str) -> None:
    """Raise a `DataError` unless `centre` is one that `render` knows."""
    if centre not in get_args(Centre):
        raise DataError(f"centre must be 'true' or 'authors', but it is {centre!r}.")


def hue_to_rgb(hue: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 3"]:
    """The fully saturated, fully bright colour of a hue.

    `channel = 1 - clip(min(k, 4 - k), 0, 1)` with `k = (n + hue / 60) mod 6` and `n = 5, 3, 1`
    for red, green and blue: the HSV hexagon at saturation and value 1.

    Args:
        hue: degrees, any shape, any real number (360 is 0 again).

    Returns:
        Red, green and blue in [0, 1], in a new last dimension.

    Example:
        >>> import torch
        >>> hue_to_rgb(torch.tensor([0.0, 60.0, 120.0, 240.0])).tolist()
        [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    sector = (hue.unsqueeze(-1) / 60 + hue.new_tensor([5.0, 3.0, 1.0])).remainder(6)
    return 1 - torch.minimum(sector, 4 - sector).clamp(0, 1)


def render(
    images: Float[Tensor, "b 1 h h"],
    scale: Float[Tensor, "b f"],
    angle: Float[Tensor, "b f"],
    hue: Float[Tensor, "b f"],
    centre: str = "true",
) -> Float[Tensor, "b f 3 h h"]:
    """Frames of grey images at the given size, orientation and colour, in one batched warp.

    The colour at pixel `p` is `rgb(hue) * image(c + R(-angle) (p - c) / scale)`, bilinear between
    pixels and black outside the image. All three parameters may differ from their neutral value
    at once; scaling and rotation share the centre `c`, so their order does not matter.

    Args:
        images: grey values in [0, 1], `(b, 1, h, h)`.
        scale: size relative to the original, positive, `(b, f)`.
        angle: degrees, counter-clockwise if positive (as `torchvision`'s `rotate`), `(b, f)`.
        hue: degrees, 0 red, 120 green, 240 blue, `(b, f)`.
        centre: the fixed point. `"true"` is the centre of the image, `(h - 1) / 2` in pixels
            counted from 0 (13.5 of 28). `"authors"` is `h / 2` (14 of 28), half a pixel off,
            for comparison with numbers published for that choice.

    Raises:
        DataError: another centre.

    Returns:
        Colour frames in [0, 1], `(b, f, 3, h, h)`. Where `scale` is 1 and `angle` is 0 the pixels
        are exactly the image's own.

    Example:
        >>> import torch
        >>> image = torch.eye(4).view(1, 1, 4, 4)
        >>> zero = torch.zeros(1, 1)
        >>> turned = render(image, zero + 1, zero + 90, zero)
        >>> turned[0, 0, 0].round().int().tolist()
        [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    """
    check_centre(centre)
    batch, frames = scale.shape
    side = images.shape[-1]
    # Positions x + iy in the sampler's units, where the image reaches from -1 to 1: turning and
    # growing is then one complex product, and as y points down, exp(i angle) looks clockwise of
    # each pixel, so that the picture turns counter-clockwise.
    shift = 1 / side if centre == "authors" else 0.0
    pixels = (2 * torch.arange(side, dtype=scale.dtype, device=scale.device) + 1) / side - 1 - shift
    look = torch.polar(1 / scale, torch.deg2rad(angle))[..., None, None]
    columns, rows = look * pixels, look * (1j * pixels[:, None]) + complex(shift, shift)
    # Only this sum is of full size. (`affine_grid` makes a matrix product of it, which is slower
    # and, on devices where TF32 is allowed, rounds positions to 10 bits.)
    grid = torch.view_as_real(columns + rows)

    # The frames of one image are stacked in height, so that the image is not copied for each.
    grey = functional.grid_sample(
        images, grid.view(batch, frames * side, side, 2), align_corners=False
    ).view(batch, frames, side, side)
    # The identity goes through the sampler with an error of rounding: take the image itself.
    still = ((scale == 1) & (angle == 0))[..., None, None]
    grey = torch.where(still, images, grey).clamp(0, 1)
    return grey.unsqueeze(2) * hue_to_rgb(hue)[..., None, None]
