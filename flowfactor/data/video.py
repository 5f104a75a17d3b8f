"""Read video files with PyAV, as a viewer shows them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, UInt8

from flowfactor.data.io import MAX_PIXELS, reading
from flowfactor.errors import DataError
from flowfactor.extras import import_extra

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv")

# Codecs of which each packet is one frame. Packets of others, such as the hidden reference frames
# of VP8, may show nothing, so that these are decoded to be counted.
_FRAME_PER_PACKET = ("h264", "hevc", "mjpeg", "png", "ffv1", "rawvideo", "libdav1d", "av1")
# Frames are at a constant rate if none is off by more than this part of the time between two.
_JITTER = 0.25
_MISSED = 0.02
# A film at a constant rate may have so many times the frames of the one at a variable rate.
_MAX_REPEATS = 4

_log = logging.getLogger(__name__)


class Video:
    """A video file, decoded from the key frame before what is asked for.

    Frames are turned as the file says, and have square pixels. A variable frame rate becomes
    constant: frames are left out or repeated so that they are as far apart as most of them.

    Args:
        path: the file.
        as_stamped: take each frame once, whatever the rate, and say when it is.

    Attributes:
        size: height and width, as shown.
        stamps: the time stamps of its frames in order, None if any lacks one.
        shown: the number of the frame in the file for each frame of the film.
        times: if ``as_stamped``, when each frame is, in seconds from the first one, else None.

    Raises:
        DataError: a file that cannot be read or holds no video, or of which a frame has no time
            stamp of its own that it should have.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: Path, as_stamped: bool = False) -> None:
        self.path = path
        # Frames are counted, for what a container announces is often wrong.
        with _open(path) as container:
            stream = _stream(container, path)
            ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
            self._aspect = float(ratio or 1)
            second = float(stream.time_base or 1)
            stamps: list[int | None]
            if stream.codec_context.name in _FRAME_PER_PACKET:
                packets = container.demux(stream)
                stamps = [each.pts for each in packets if each.size and not each.is_discard]
            else:
                stream.thread_type = "AUTO"
                stamps = [frame.pts for frame in container.decode(stream)]
        if not stamps:
            raise DataError(f"{path} holds no video frames.")
        self.stamps: Int[np.ndarray, "f"] | None = None
        self.shown = np.arange(len(stamps))
        self.times: Float[np.ndarray, "f"] | None = None
        if None not in stamps and len(set(stamps)) == len(stamps):
            self.stamps = np.unique(np.array(stamps, dtype=np.int64))
            if as_stamped:
                self.times = (self.stamps - self.stamps[0]) * second
            else:
                self.shown = constant_rate(self.stamps, path)
        elif as_stamped:
            raise DataError(f"stamps: a frame of {path} has no time stamp of its own.")
        with _open(path) as container:
            first = next(container.decode(_stream(container, path)), None)
            if first is None:
                raise DataError(f"{path} holds no video frames.")
            height, width, _ = self._pixels(first).shape
        self.size = (height, width)

    def __len__(self) -> int:
        return len(self.shown)

    def read(self, first: int, count: int) -> UInt8[np.ndarray, "f h w 3"]:
        """Return consecutive frames.

        Raises:
            DataError: the file cannot be decoded, or ends before.
        """
        numbers = self.shown[first : first + count]
        frames = None
        if numbers[0] > 0 and self.stamps is not None:
            frames = self._decode(numbers, self.stamps)
        if frames is None:
            # Without time stamps, or where a key frame was not one: from the beginning.
            frames = self._decode(numbers, None)
        if frames is None:
            raise DataError(
                f"{self.path} ends before frame {first + count - 1}, though it announces "
                f"{len(self)} frames. Repair or remove it."
            )
        return frames

    def _decode(
        self, numbers: Int[np.ndarray, "f"], stamps: Int[np.ndarray, "n"] | None
    ) -> UInt8[np.ndarray, "f h w 3"] | None:
        """Return frames from a key frame on, or the beginning without stamps; None if one lacks."""
        frames: dict[int, npt.NDArray[np.uint8]] = {}
        wanted, first, last = set(numbers.tolist()), int(numbers[0]), int(numbers[-1])
        with _open(self.path) as container:
            stream = _stream(container, self.path)
            size = stream.codec_context.width, stream.codec_context.height
            number = 0
            if stamps is not None:
                container.seek(int(stamps[first]), stream=stream)
                number = first
            for frame in container.decode(stream):
                if (frame.width, frame.height) != size:
                    raise DataError(
                        f"{self.path} has a frame of {frame.width} x {frame.height} pixels, though "
                        f"it announces {size[0]} x {size[1]}."
                    )
                if stamps is not None:
                    # No stamp is none of those known, like one that was never announced.
                    stamp = -1 if frame.pts is None else int(frame.pts)
                    if stamp < stamps[first]:
                        continue
                    if stamp != stamps[number]:
                        return None
                if number in wanted:
                    frames[number] = self._pixels(frame)
                if number == last:
                    return np.stack([frames[each] for each in numbers.tolist()])
                number += 1
        return None

    def _pixels(self, frame: Any) -> UInt8[np.ndarray, "h w 3"]:
        """Return a frame with square pixels, turned and mirrored as its display matrix says."""
        shape = {"width": max(1, round(frame.width * self._aspect)), "height": frame.height}
        if shape["width"] * shape["height"] > MAX_PIXELS:
            raise DataError(f"{self.path} has a frame of more than {MAX_PIXELS:,} pixels.")
        pixels: npt.NDArray[np.uint8] = frame.to_ndarray(
            format="rgb24", **({} if self._aspect == 1 else shape)
        )
        matrices = [each for each in frame.side_data if each.type.name == "DISPLAYMATRIX"]
        if not matrices:
            return pixels
        # What is at column p and row q is shown at column a p + c q and row b p + d q.
        a, b, _, c, d = np.frombuffer(bytes(matrices[0])[:20], np.int32).tolist()
        if (a or d) and (b or c):
            raise DataError(f"{self.path} is turned by an angle that is no multiple of 90 degrees.")
        if b or c:
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        rows, columns = (slice(None, None, -1 if sign < 0 else 1) for sign in (d, a))
        return np.ascontiguousarray(pixels[rows, columns])


def constant_rate(stamps: Int[np.ndarray, "n"], path: Path) -> Int[np.ndarray, "f"]:
    """Return the number of the frame that is shown at each of equally distant times.

    Args:
        stamps: times at which frames begin, increasing.
        path: the file, for messages.

    Raises:
        DataError: a rate that is so variable that there would be very many.
    """
    count = len(stamps)
    numbers = np.arange(count)
    if count < 3:
        return numbers
    elapsed = stamps - stamps[0]
    gaps = np.diff(elapsed)
    interval = float(np.median(gaps))
    # A camera that misses a single frame now and then is not said to have a variable rate.
    missed = (gaps > 1.5 * interval) & (gaps < 2.5 * interval)
    if missed.mean() <= _MISSED:
        gaps = np.where(missed, interval, gaps)
    times = np.concatenate([[0], np.cumsum(gaps)])
    mean = times[-1] / (count - 1)
    if np.abs(times - mean * numbers).max() <= _JITTER * mean:
        return numbers
    total = round(float(elapsed[-1]) / interval) + 1
    if total > _MAX_REPEATS * count:
        raise DataError(
            f"{path} has a variable frame rate: its {count} frames would be {total} at a "
            "constant one. Re-encode it at a constant rate."
        )
    _log.warning(
        "%s has a variable frame rate: its %d frames become %d at a constant one.",
        path,
        count,
        total,
    )
    middles = interval * (np.arange(total) + 0.5)
    return np.searchsorted(elapsed, middles) - 1


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    av = import_extra("av", "video")
    with reading(path), av.open(str(path)) as container:
        yield container


def _stream(container: Any, path: Path) -> Any:
    """Return the stream of the film, which must not be too large to hold a frame in memory."""
    if not container.streams.video:
        raise DataError(f"{path} holds no video.")
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} has frames of {width} x {height} pixels; they may have {MAX_PIXELS:,}."
        )
    return stream
