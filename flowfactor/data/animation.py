"""Read animated pictures (GIF, WebP, PNG) as films, as a viewer shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from flowfactor.data.io import ANIMATED, open_film_picture, picture_pixels, reading
from flowfactor.data.video import constant_rate
from flowfactor.errors import DataError


class Animation:
    """An animated picture, whose frames are unpacked from its beginning when they are asked for.

    What is transparent is black. Frames that are shown for different times become frames at a
    constant rate, like those of a :class:`Video`.

    Args:
        path: the file.
        as_stamped: take each frame once, and say when it is.

    Attributes:
        size: height and width.
        shown: the number of the frame in the file for each frame of the film.
        times: if ``as_stamped``, when each frame is, in seconds from the first one, else None.

    Raises:
        DataError: a file that cannot be read, or whose frames are too large.
    """

    def __init__(self, path: Path, as_stamped: bool = False) -> None:
        self.path = path
        with open_film_picture(path) as picture, reading(path):
            self.size = (picture.height, picture.width)
            durations = [
                float(_loaded(frame).info.get("duration", 0))
                for frame in ImageSequence.Iterator(picture)
            ]
        # Viewers take a tenth of a second for a frame that is shown for none.
        times = np.cumsum([0.0, *(duration or 100.0 for duration in durations[:-1])])
        self.times = times / 1000 if as_stamped else None
        if as_stamped:
            self.shown = np.arange(len(times))
        else:
            self.shown = constant_rate(np.rint(times).astype(np.int64), path)

    def __len__(self) -> int:
        return len(self.shown)

    def read(self, first: int, count: int) -> UInt8[np.ndarray, "f h w 3"]:
        """Return consecutive frames.

        Raises:
            DataError: the file cannot be unpacked.
        """
        numbers = self.shown[first : first + count].tolist()
        frames = {}
        with open_film_picture(self.path) as picture, reading(self.path):
            for number in range(numbers[-1] + 1):
                picture.seek(number)
                if number in numbers:
                    frames[number] = picture_pixels(picture.copy(), 3)
        return np.stack([frames[number] for number in numbers])


def is_animated(path: Path) -> bool:
    """Return whether a picture has several frames that are shown one after the other."""
    if path.suffix.lower() not in ANIMATED:
        return False
    try:
        with open_film_picture(path) as picture:
            return bool(getattr(picture, "is_animated", False))
    except DataError:
        return False  # whoever reads it says why


def _loaded(frame: Image.Image) -> Image.Image:
    """Return a frame after it is unpacked, before which some formats do not say its time."""
    frame.load()
    return frame
