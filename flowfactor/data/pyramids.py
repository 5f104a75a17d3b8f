"""Pictures of any sizes, low-pass filtered for every resolution, from which windows are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor

from flowfactor.errors import DataError

# Resolutions are this factor apart; between two of them the windows are blended.
_RATIO = math.sqrt(2)
MAX_BYTES = 1 << 31
"""What all levels of all pictures may take in memory."""


class Pyramids:
    """Pictures of any sizes, from which square windows of any size and orientation are cut.

    Level ``k`` of a picture is the picture reduced by ``2^(k/2)``, averaged by a triangle of twice
    the distance of its pixels, so that it holds no detail that it cannot show. A window whose
    pixels are ``d`` pixels of the picture apart is read from the two levels around ``d``, bilinear
    between their pixels, and blended by ``2 log2 d``: it changes continuously with its size, and is
    free of aliasing. Windows below the resolution of the picture are bilinear in it.

    All levels of all pictures lie in one large image, so that a batch of windows is one call.

    Args:
        pictures: in [0, 1], each ``(c, h, w)``, all with the same number of channels.
        coarsest: the largest ``d`` that will be asked for.

    Raises:
        DataError: they take more than 2 GiB.

    Example:
        >>> import torch
        >>> pictures = Pyramids([torch.ones(1, 40, 60), torch.zeros(1, 50, 50)], coarsest=4)
        >>> centres = torch.complex(torch.tensor([[30.0], [25.0]]), torch.tensor([[20.0], [25.0]]))
        >>> steps = torch.full((2, 1), 2.0 + 0.0j)
        >>> windows = pictures.windows(torch.tensor([0, 1]), centres, steps, 8)
        >>> windows.shape, windows.mean(dim=(1, 2, 3, 4)).tolist()
        (torch.Size([2, 1, 1, 8, 8]), [1.0, 0.0])
    """

    def __init__(self, pictures: Sequence[Float[Tensor, "c _h _w"]], coarsest: float) -> None:
        self.count = 1 + max(0, math.ceil(math.log(coarsest, _RATIO)))
        sizes = [
            (max(1, round(height / _RATIO**level)), max(1, round(width / _RATIO**level)))
            for height, width in (tuple(picture.shape[1:]) for picture in pictures)
            for level in range(self.count)
        ]
        channels = len(pictures[0])
        total = 4 * channels * sum((height + 2) * (width + 2) for height, width in sizes)
        if total > MAX_BYTES:
            raise DataError(
                f"resolution: {len(pictures)} pictures of this resolution take {total / 1e9:.3g} "
                f"GB; they may take {MAX_BYTES / 1e9:.3g}. Lower it, or leave some out."
            )
        corners, shape = _pack(sizes)
        self.image = torch.zeros(channels, *shape)
        for number, ((top, left), (height, width)) in enumerate(zip(corners, sizes, strict=True)):
            picture = pictures[number // self.count][None]
            level = picture
            if (height, width) != tuple(picture.shape[2:]):
                level = F.interpolate(
                    picture, (height, width), mode="bilinear", antialias=True, align_corners=False
                )
            # One pixel around it, for what is looked up between its outermost ones and its edge.
            self.image[:, top : top + height + 2, left : left + width + 2] = F.pad(
                level, (1, 1, 1, 1), mode="replicate"
            )[0]
        own = torch.tensor([picture.shape[1:] for picture in pictures]).float()
        reduced = torch.tensor(sizes).view(len(pictures), self.count, 2)
        # Rows and columns; a position p of the picture is at corner + p * ratio.
        self.corners = torch.tensor(corners).view(len(pictures), self.count, 2).float() + 1
        self.ratios = reduced / own[:, None]

    def to(self, device: torch.device | str) -> Pyramids:
        """Return the same pictures on another device."""
        other = object.__new__(Pyramids)
        other.count = self.count
        other.image = self.image.to(device)
        other.corners, other.ratios = self.corners.to(device), self.ratios.to(device)
        return other

    def windows(
        self,
        numbers: Int[Tensor, "b"],
        centres: Complex[Tensor, "b f"],
        steps: Complex[Tensor, "b f"],
        size: int,
    ) -> Float[Tensor, "b f c s s"]:
        """Return windows of pictures, which must lie inside of them.

        Positions are ``x + iy`` in pixels of the picture, to the right and downwards, from its
        upper left corner; the middle of the first pixel is at ``0.5 + 0.5i``.

        Args:
            numbers: of the pictures.
            centres: the middles of the windows.
            steps: from a pixel of the window to the next one to the right; the next one below is
                ``i`` times as far.
            size: pixels along each side.
        """
        level = (steps.abs().log2() * 2).clamp(0, self.count - 1)
        lower = level.floor().clamp(max=max(0, self.count - 2))
        windows = self._read(numbers, lower.long(), centres, steps, size)
        if self.count > 1:
            upper = self._read(numbers, lower.long() + 1, centres, steps, size)
            windows = windows.lerp_(upper, (level - lower)[None, :, :, None, None])
        return rearrange(windows, "c b f h w -> b f c h w")

    def _read(
        self,
        numbers: Int[Tensor, "b"],
        levels: Int[Tensor, "b f"],
        centres: Complex[Tensor, "b f"],
        steps: Complex[Tensor, "b f"],
        size: int,
    ) -> Float[Tensor, "c b f s s"]:
        """Return windows of one level, bilinear between its pixels."""
        corner, ratio = (each[numbers[:, None], levels] for each in (self.corners, self.ratios))
        # The sampler has each side of the image reach from -1 to 1, and wants columns first.
        whole = torch.tensor(self.image.shape[1:], device=ratio.device)
        scale = (2 / whole * ratio).flip(-1)
        middle = torch.view_as_real(centres) * scale + (2 / whole * corner - 1).flip(-1)
        right = torch.view_as_real(steps) * scale
        below = torch.view_as_real(1j * steps) * scale
        pixel = torch.arange(size, device=ratio.device) - (size - 1) / 2
        row = middle[..., None, :] + below[..., None, :] * pixel[:, None]
        column = right[..., None, :] * pixel[:, None]
        grid = row[..., None, :] + column[..., None, :, :]  # b f s s 2, the only sum of full size
        read = F.grid_sample(
            self.image[None], rearrange(grid, "b f h w xy -> 1 (b f h) w xy"), align_corners=False
        )
        return rearrange(
            read, "1 c (b f h) w -> c b f h w", b=len(numbers), f=steps.shape[1], h=size
        )


def _pack(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return where to put rectangles and their frames of one pixel, in rows, and the sides of all.

    Args:
        sizes: height and width of each.
    """
    area = sum((height + 2) * (width + 2) for height, width in sizes)
    wide = max(math.ceil(math.sqrt(area)), max(width + 2 for _, width in sizes))
    corners = [(0, 0)] * len(sizes)
    top = left = tall = 0
    for number in np.argsort([-height for height, _ in sizes], kind="stable").tolist():
        height, width = sizes[number][0] + 2, sizes[number][1] + 2
        if left + width > wide:
            top, left, tall = top + tall, 0, 0
        corners[number] = (top, left)
        left, tall = left + width, max(tall, height)
    return corners, (top + tall, wide)
