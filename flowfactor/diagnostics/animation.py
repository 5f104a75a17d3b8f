"""Animated digits: several images under every transformation, there and back."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowfactor.diagnostics.sampling import (
    as_pixels,
    chosen_names,
    decode_all,
    encode_means,
    evaluating,
    positions,
    time_grid,
)
from flowfactor.diagnostics.saving import write_file
from flowfactor.models.base import SequenceModel


@dataclasses.dataclass(frozen=True, eq=False)
class Animation:
    """Pictures that follow each other and start again after the last.

    Attributes:
        pictures: ``(N, height, width, 3)``, bytes.
        milliseconds: for which each picture is shown, ``(N,)``.
    """

    pictures: UInt8[np.ndarray, "n height width 3"]
    milliseconds: tuple[int, ...]

    def gif(self, colours: int = 64) -> bytes:
        """Return the content of a GIF file that loops for ever.

        All pictures share one palette, so that a colour does not flicker.

        Args:
            colours: size of the palette, 2 to 256: fewer make a smaller file.

        Raises:
            ValueError: another number of colours.
        """
        if not 2 <= colours <= 256:
            raise ValueError(f"a GIF has 2 to 256 colours, not {colours}")
        images = [Image.fromarray(picture) for picture in self.pictures]
        # The palette is that of pictures from all of the animation, one above the other; some
        # greys are kept for the labels, which would else get a tint.
        greys = min(8, colours // 2)
        some = self.pictures[:: max(1, len(images) // 12)]
        found = Image.fromarray(np.concatenate(list(some))).quantize(
            colours - greys, method=Image.Quantize.MEDIANCUT
        )
        entries = (found.getpalette() or [])[: 3 * (colours - greys)]
        for level in np.linspace(0, 255, greys).round():
            entries += [int(level)] * 3
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

    def save(self, path: str | os.PathLike[str], colours: int = 64) -> Path:
        """Write a GIF atomically; missing folders are made.

        Raises:
            ValueError: the name does not end in ``.gif``.
            RunError: the file cannot be written.
        """
        if Path(path).suffix.lower() != ".gif":
            raise ValueError(
                f"an animation is saved as a GIF; the name {Path(path).name!r} must end in .gif"
            )
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
    """Animate images along the flow of each transformation, to the last frame and back.

    Rows are transformations, columns are images; a bar at the bottom shows the time. The time runs
    in steps finer than the frames that the model was trained on, which only a flow can do.

    Args:
        model: any sequence model.
        images: first frames ``(B, C, H, W)``, pixels in [0, 1].
        names: of the transformations; all if not given.
        substeps: pictures per frame.
        horizon: the time to turn back at; default: the model's last frame.
        scale: how often each pixel is repeated; default: so that an image is at most 84
            pixels and all are about 350 pixels wide.
        seconds: from the start to the last frame.

    Returns:
        ``2 substeps last`` pictures: the first and last time are shown once (and for longer), the
        others twice.

    Raises:
        ValueError: images of another shape than the model's, an unknown name, a number out of
            range.

    Example:
        >>> import torch, flowfactor
        >>> _ = torch.manual_seed(0)
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> animation = animate(model, torch.rand(3, 3, 28, 28), substeps=2)
        >>> len(animation.pictures)
        32
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive; it is {seconds}")
    height, width = model.image_shape[1:]
    if scale is None:
        # Of this size, films of 28 x 28 pixels make a file of less than about 1 MB.
        side = min(84.0, 350 / max(1, len(images)))
        scale = max(1, int(side / max(height, width)))
    if scale < 1:
        raise ValueError(f"scale must be at least 1; it is {scale}")
    chosen = chosen_names(model, names)
    end = float(model.horizon) if horizon is None else float(horizon)
    with evaluating(model):
        z0 = encode_means(model, images)
        times = time_grid(0.0, end, substeps).to(z0)
        films = torch.stack(
            [decode_all(model, positions(model, z0, name, times)) for name in chosen]
        )
    forth = [_picture(films[:, i], chosen, float(t), end, scale) for i, t in enumerate(times.cpu())]
    order = [*range(len(forth)), *range(len(forth) - 2, 0, -1)]
    pause = max(20, round(1000 * seconds / (len(forth) - 1)))
    # The eye needs a moment to compare the two ends.
    shown = [pause + (500 if i in (0, len(forth) - 1) else 0) for i in order]
    return Animation(np.stack([forth[i] for i in order]), tuple(shown))


def _picture(
    films: Float[Tensor, "k b c h w"], names: Sequence[str], t: float, end: float, scale: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw one time: a row for each transformation, its name to the left, the time below."""
    rows, columns, _, height, width = films.shape
    gap = 4
    font, small = _font(15), _font(13)
    margin = max(int(font.getlength(name)) for name in names) + 14
    cell_h, cell_w = scale * height + gap, scale * width + gap
    canvas = Image.new("RGB", (margin + columns * cell_w, rows * cell_h + gap + 26), "white")
    draw = ImageDraw.Draw(canvas)
    for k, name in enumerate(names):
        top = gap + k * cell_h
        draw.text((margin - 8, top + scale * height // 2), name, "#222222", font, anchor="rm")
        for b in range(columns):
            pixels = (255 * as_pixels(films[k, b]) + 0.5).astype(np.uint8)
            tile = Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)).convert("RGB")
            canvas.paste(tile, (margin + b * cell_w, top))
    middle = rows * cell_h + gap + 11
    left, right = margin, margin + columns * cell_w - gap
    draw.text((margin - 8, middle), f"t = {t:.1f}", "#222222", small, anchor="rm")
    draw.rectangle((left, middle - 2, right - 1, middle + 2), fill="#D9D9D9")
    now = left + (right - left) * t / end
    draw.rectangle((left, middle - 2, max(left, now - 1), middle + 2), fill="#0072B2")
    return np.asarray(canvas)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib ships, so that a label looks alike everywhere."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
