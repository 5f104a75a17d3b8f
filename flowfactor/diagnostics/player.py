"""Frames that are decoded beforehand, for a page that plays them without a model."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from flowfactor.diagnostics.explorer import Explorer
from flowfactor.diagnostics.sampling import encode_images, evaluating, select_names
from flowfactor.models.base import PotentialModel, SequenceModel

# Times at most; more would fill the memory and show nothing new.
_MOST_TIMES = 65

# Pixels of a sheet, at most, and up to how many are stored without loss.
_MOST_PIXELS = 4_000_000
_LOSSLESS_PIXELS = 600_000


@dataclasses.dataclass(frozen=True, eq=False)
class Player:
    """Decoded frames by flow and time.

    Attributes:
        frames: of P flows at T times, B samples each, ``(P, T, B, H, W, 3)``, bytes.
        labels: what each flow is called, P of them.
        times: in frames, T of them.
        horizon: the last frame of the training.
    """

    frames: UInt8[np.ndarray, "p t b h w 3"]
    labels: tuple[str, ...]
    times: tuple[float, ...]
    horizon: int

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a frame in the sheet, which has room around it if it must."""
        _, _, _, height, width, _ = self.frames.shape
        if self._lossless:
            return height, width
        # The blocks of a JPEG then hold one frame each.
        return 8 * math.ceil(height / 8), 8 * math.ceil(width / 8)

    def sheet(self) -> tuple[str, bytes]:
        """Return all frames as one image: a row for each flow, its times with their samples.

        Returns:
            The media type, and the content of the file: a PNG, or a JPEG of many pixels.
        """
        height, width = self.cell
        room = height - self.frames.shape[3], width - self.frames.shape[4]
        frames = np.pad(self.frames, [(0, 0)] * 3 + [(0, room[0]), (0, room[1]), (0, 0)], "edge")
        image = Image.fromarray(rearrange(frames, "p t b h w c -> (p h) (t b w) c"))
        file = io.BytesIO()
        if self._lossless:
            image.save(file, "PNG", optimize=True)
            return "image/png", file.getvalue()
        # Tables of its own would need a buffer, which PIL makes too small for noise.
        image.save(file, "JPEG", quality=85, subsampling=0)
        return "image/jpeg", file.getvalue()

    @property
    def _lossless(self) -> bool:
        return self.frames[..., 0].size <= _LOSSLESS_PIXELS


def player_data(
    model: SequenceModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    blends: int = 4,
    substeps: int = 2,
) -> Player:
    """Decode images under every flow, and under what lies between two neighbouring ones.

    Between flow k and the next one, ``(1 - r) grad u^k + r grad u^(k+1)`` for ``r = j / blends``.
    There is nothing between the flows of a model without potentials. There are at most 65 times.
    Where all of this would be more than four million pixels there are fewer blends, then times,
    then images.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the flows; all if not given.
        blends: steps from a flow to the next.
        substeps: times per frame.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, a number below 1.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8)
        >>> player = player_data(model, torch.rand(3, 3, 28, 28), blends=2)
        >>> player.frames.shape, player.labels[1]
        ((3, 17, 3, 28, 28, 3), '0.5 rotation + 0.5 hue')
    """
    if blends < 1 or substeps < 1:
        raise ValueError(f"blends and substeps must be at least 1; they are {blends}, {substeps}")
    names = select_names(model, names)
    if not isinstance(model, PotentialModel):
        blends = 1
    size = max(64, model.image_shape[1] * model.image_shape[2])

    def count() -> int:
        return min(model.horizon * substeps + 1, _MOST_TIMES)

    def total() -> int:
        return ((len(names) - 1) * blends + 1) * count() * len(images) * size

    while total() > _MOST_PIXELS and blends > 1:
        blends //= 2
    while total() > _MOST_PIXELS and substeps > 1:
        substeps //= 2
    images = images[: max(1, len(images) * _MOST_PIXELS // max(total(), _MOST_PIXELS))]
    explorer = Explorer(model)
    with evaluating(model):
        z = encode_images(model, images)
    times = torch.linspace(0, model.horizon, count()).to(z)
    labels, rows = [], []
    for position in range((len(names) - 1) * blends + 1):
        k, step = divmod(position, blends)
        weights = {names[k]: 1 - step / blends}
        if step:
            weights[names[k + 1]] = step / blends
        labels.append(explorer.describe(weights))
        frames = explorer.decode(explorer.flow(z, weights, times))
        rows.append((255 * frames + 0.5).byte())
    pixels = rearrange(torch.stack(rows), "p t b c h w -> p t b h w c").numpy()
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    return Player(pixels, tuple(labels), tuple(times.tolist()), model.horizon)
