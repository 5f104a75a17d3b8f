"""Animations: several images under every transformation, there and back."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowfactor.checkpoints import write_file
from flowfactor.diagnostics.sampling import (
    decode_latents,
    encode_images,
    evaluating,
    make_time_grid,
    select_names,
    trace_latents,
)
from flowfactor.models.base import SequenceModel
from flowfactor.names import one_line

# The colour of the bar that shows the time.
_BAR = (0x00, 0x72, 0xB2)

# Pictures from the start to the horizon; more would fill the memory and show nothing new.
_MOST = 65


@dataclasses.dataclass(frozen=True, eq=False)
class Animation:
    """Pictures that follow each other and start again after the last.

    Attributes:
        pictures: ``(N, height, width, 3)``, bytes.
        milliseconds: for which each picture is shown, ``(N,)``.
    """

    pictures: UInt8[np.ndarray, "n height width 3"]
    milliseconds: tuple[int, ...]

    def gif(self, colours: int = 128) -> bytes:
        """Return the content of a GIF file that loops for ever.

        All pictures share one palette, so that a colour does not flicker.

        Args:
            colours: size of the palette, 4 to 256: fewer make a smaller file.

        Raises:
            ValueError: another number of colours.
        """
        if not 4 <= colours <= 256:
            raise ValueError(f"colours of a GIF must be 4 to 256; it is {colours}")
        images = [Image.fromarray(picture) for picture in self.pictures]
        # The palette is that of the colours of some pictures, each counted once so that a black
        # ground takes one entry, and of those of the labels and the bar, which are to keep them.
        greys = min(8, colours // 2)
        fixed = [*np.linspace(0, 255, greys - 1).round().astype(int).repeat(3).tolist(), *_BAR]
        sample = rearrange(self.pictures[:: max(1, len(images) // 12)], "n h w c -> (n h w) c")
        # As numbers: unique rows of an array take a hundred times as long.
        found = np.unique(sample @ np.array([2**16, 2**8, 1], dtype=np.uint32))
        distinct = np.stack([found >> 16, found >> 8, found], axis=-1).astype(np.uint8)
        quantized = Image.fromarray(distinct[None]).quantize(
            colours - greys, method=Image.Quantize.MEDIANCUT
        )
        entries = (quantized.getpalette() or [])[: 3 * (colours - greys)] + fixed
        palette = Image.new("P", (1, 1))
        palette.putpalette(entries)
        indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        buffer = io.BytesIO()
        indexed[0].save(
            buffer,
            format="GIF",
            save_all=True,
            append_images=indexed[1:],
            duration=list(self.milliseconds),
            loop=0,
            optimize=False,
        )
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str], colours: int = 128) -> Path:
        """Write a GIF atomically; missing folders are made.

        Raises:
            ValueError: the name does not end in ``.gif``.
            RunError: the file cannot be written.
        """
        name = Path(path).name
        if not name.lower().endswith(".gif"):
            raise ValueError(f"the name of an animation must end in .gif; it is {name!r}")
        return write_file(path, self.gif(colours))


def animate(
    model: SequenceModel,
    images: Float[Tensor, "b c h w"],
    *,
    names: Sequence[str] | None = None,
    substeps: int = 4,
    horizon: float | None = None,
    scale: int | None = None,
    seconds: float = 2.5,
) -> Animation:
    """Animate images along the flow of each transformation, to the horizon and back.

    Rows are transformations, columns are images; a bar at the bottom shows the time, which runs in
    finer steps than the frames of the training.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; all if not given.
        substeps: pictures per frame.
        horizon: the time to turn back at; default: the model's.
        scale: how often each pixel is repeated; default: so that an image is at most 84
            pixels and all are about 350 pixels wide.
        seconds: from the start to the horizon.

    Returns:
        ``2 substeps horizon`` pictures: the first and last time are shown once (and for longer),
        the others twice. They are at most 128, whatever the horizon.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, a number out of
            range.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8)
        >>> animation = animate(model, torch.rand(3, 3, 28, 28), substeps=2)
        >>> len(animation.pictures)
        32
    """
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be at least 1; it is {scale}")
    names = select_names(model, names)
    end = float(model.horizon) if horizon is None else float(horizon)
    with evaluating(model):
        z0 = encode_images(model, images)
        times = make_time_grid(0.0, end, substeps).to(z0)
        if len(times) > _MOST:
            times = torch.linspace(0, end, _MOST).to(z0)
        paths = torch.stack([trace_latents(model, z0, name, times) for name in names])
        frames = decode_latents(model, rearrange(paths, "k t b d -> t k b d"))
    side = scale * max(model.image_shape[1:]) if scale else min(84, 350 // max(1, len(images)))
    return draw_animation(frames, names, times.tolist(), side=side, seconds=seconds)


def draw_animation(
    frames: Float[Tensor, "t k b c h w"],
    names: Sequence[str],
    times: Sequence[float],
    *,
    side: int = 84,
    seconds: float = 2.5,
) -> Animation:
    """Animate frames that have been decoded, to the last time and back; see :func:`animate`.

    Args:
        frames: of T times, K rows and B columns, pixels in [0, 1].
        names: of the rows.
        times: of the frames, from 0 on.
        side: what the longer side of an image is enlarged to, in pixels, if it is shorter: by
            whole factors.
        seconds: from the first time to the last.

    Raises:
        ValueError: fewer than two times, or seconds that are not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive; it is {seconds}")
    if len(times) < 2:
        raise ValueError(f"an animation needs two times; there are {len(times)}")
    scale = max(1, side // max(frames.shape[-2:]))
    labels = [one_line(name, 24) for name in names]
    pixels = (255 * frames.clamp(0, 1) + 0.5).to(torch.uint8)
    forth = [_draw_picture(pixels[i], labels, t, times[-1], scale) for i, t in enumerate(times)]
    order = [*range(len(forth)), *range(len(forth) - 2, 0, -1)]
    pause = max(20, round(1000 * seconds / (len(forth) - 1)))
    # The eye needs a moment to compare the two ends.
    milliseconds = [pause + (500 if i in (0, len(forth) - 1) else 0) for i in order]
    return Animation(np.stack([forth[i] for i in order]), tuple(milliseconds))


def _draw_picture(
    frames: UInt8[Tensor, "k b c h w"], names: Sequence[str], t: float, end: float, scale: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw one time: a row for each transformation, its name to the left, the time below."""
    gap, ink = 4, "#222222"
    font, small = _load_font(15), _load_font(13)
    tiles = repeat(frames, "k b c h w -> k b c (h r) (w s)", r=scale, s=scale)
    tiles = torch.nn.functional.pad(tiles, (0, gap, 0, gap), value=255)
    grid = rearrange(tiles, "k b c h w -> (k h) (b w) c").numpy()
    row_height = tiles.shape[-2]
    height, width, channels = grid.shape
    margin = max(int(font.getlength(name)) for name in names) + 14
    canvas = Image.new("RGB", (margin + width, gap + height + 26), "white")
    draw = ImageDraw.Draw(canvas)
    canvas.paste(Image.fromarray(grid[..., 0] if channels == 1 else grid), (margin, gap))
    for k, name in enumerate(names):
        middle = gap + k * row_height + (row_height - gap) // 2
        draw.text((margin - 8, middle), name, ink, font, anchor="rm")
    middle = gap + height + 11
    left, right = margin, margin + width - gap
    draw.text((margin - 8, middle), f"t = {t:.1f}", ink, small, anchor="rm")
    draw.rectangle((left, middle - 2, right - 1, middle + 2), fill="#D9D9D9")
    now = left + (right - left) * t / end
    draw.rectangle((left, middle - 2, max(left, now - 1), middle + 2), fill=_BAR)
    return np.asarray(canvas)


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib ships, so that a label looks alike everywhere."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
