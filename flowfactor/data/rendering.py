"""Frames of still images: scaled, rotated and coloured, a whole batch in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from flowfactor.data.checks import check_choice

CENTRES = ("true", "authors")
"""The fixed points of scaling and rotation to choose from, see :func:`render`."""


def hue_to_rgb(hue: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape 3"]:
    """Return the fully saturated, fully bright colour of a hue.

    ``channel = 1 - clip(min(k, 4 - k), 0, 1)`` with ``k = (n + hue / 60) mod 6`` and
    ``n = 5, 3, 1`` for red, green and blue: the HSV hexagon at saturation and value 1.

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


def shift_hue(
    images: Float[Tensor, "*b 3 h w"], shift: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 3 h w"]:
    """Return colour images with all hues shifted, their HSV saturation and value kept.

    A colour is ``low + chroma * hue_to_rgb(hue)``, where ``low`` is its smallest channel and
    ``low + chroma`` its largest. Greys have no hue and stay as they are.

    Args:
        images: in [0, 1].
        shift: degrees; red becomes green at 120.

    Example:
        >>> import torch
        >>> red = torch.tensor([0.8, 0.2, 0.2]).view(3, 1, 1)
        >>> [round(x, 3) for x in shift_hue(red, torch.tensor(120.0)).flatten().tolist()]
        [0.2, 0.8, 0.2]
    """
    high, low = images.amax(-3), images.amin(-3)
    chroma = high - low
    red, green, blue = images.unbind(-3)
    inverse = 1 / chroma.clamp(min=torch.finfo(images.dtype).tiny)
    # Which sixth of the colour circle, counted from red, and where in it.
    sector = torch.where(
        red == high,
        (green - blue) * inverse,
        torch.where(green == high, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    )
    colours = rearrange(hue_to_rgb(60 * sector + shift[..., None, None]), "... c -> c ...")
    shifted = (low + chroma * colours).movedim(0, -3)
    return torch.where((shift.remainder(360) == 0)[..., None, None, None], images, shifted)


def render(
    images: Float[Tensor, "b c h w"],
    scale: Float[Tensor, "b f"],
    angle: Float[Tensor, "b f"],
    hue: Float[Tensor, "b f"],
    centre: str = "true",
) -> Float[Tensor, "b f 3 h w"]:
    """Return frames of images at the given size, orientation and hue, in one batched warp.

    Pixel ``p`` shows ``image(c + R(-angle) (p - c) / scale)``, bilinear between pixels and black
    outside of the image. A grey image has the colour of the hue, ``rgb(hue)`` times its grey value;
    the hues of a colour image are shifted by it (:func:`shift_hue`). All three parameters may
    differ from their neutral value at once; scaling and rotation share the centre ``c``, so their
    order does not matter.

    Args:
        images: in [0, 1], with 1 or 3 channels.
        scale: size relative to the original, positive.
        angle: degrees, counter-clockwise if positive (as ``torchvision``'s ``rotate``).
        hue: degrees, of a grey image 0 red, 120 green, 240 blue.
        centre: the fixed point. ``true`` is the centre of the image, ``(h - 1) / 2`` in pixels
            counted from 0 (13.5 of 28). ``authors`` is ``h / 2`` (14 of 28), half a pixel off,
            for comparison with numbers published for that choice.

    Returns:
        Colour frames in [0, 1]. Where ``scale`` is 1 and ``angle`` is 0 the pixels are exactly the
        image's own.

    Raises:
        DataError: another centre.

    Example:
        >>> import torch
        >>> image = torch.eye(4).view(1, 1, 4, 4)
        >>> zero = torch.zeros(1, 1)
        >>> turned = render(image, zero + 1, zero + 90, zero)
        >>> turned[0, 0, 0].round().int().tolist()
        [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    """
    check_choice("centre", centre, CENTRES)
    height, width = images.shape[-2:]
    # Positions x + iy in units of half the width, in which turning and growing is one complex
    # product; as y points down, exp(i angle) looks clockwise of each pixel, so that the picture
    # turns counter-clockwise. The sampler has each side reach from -1 to 1.
    aspect = height / width
    shift_x, shift_y = (1 / width, 1 / height) if centre == "authors" else (0.0, 0.0)
    x = _centres(width, scale) - shift_x
    y = (_centres(height, scale) - shift_y) * aspect
    look = torch.polar(1 / scale, torch.deg2rad(angle))[..., None, None]
    columns, rows = look * x, look * (1j * y[:, None]) + complex(shift_x, shift_y * aspect)
    # Only this sum is of full size. (`affine_grid` makes a matrix product of it, which is slower
    # and, on devices where TF32 is allowed, rounds positions to 10 bits.)
    grid = torch.view_as_real(columns + rows)
    if aspect != 1:
        grid = grid / grid.new_tensor([1.0, aspect])

    # The frames of one image are stacked in height, so that the image is not copied for each.
    warped = F.grid_sample(
        images, rearrange(grid, "b f h w xy -> b (f h) w xy"), align_corners=False
    )
    frames = rearrange(warped, "b c (f h) w -> b f c h w", h=height)
    # The identity goes through the sampler with an error of rounding: take the image itself.
    still = ((scale == 1) & (angle == 0))[..., None, None, None]
    frames = torch.where(still, images[:, None], frames).clamp(0, 1)
    if images.shape[1] == 3:
        return shift_hue(frames, hue)
    return frames * hue_to_rgb(hue)[..., None, None]


def _centres(side: int, like: Tensor) -> Float[Tensor, "side"]:
    """Return the middles of pixels where a side reaches from -1 to 1."""
    return (2 * torch.arange(side, dtype=like.dtype, device=like.device) + 1) / side - 1
