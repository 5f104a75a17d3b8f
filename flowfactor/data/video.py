"""Read video files with PyAV."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Int, UInt8

from flowfactor.data.io import import_extra, reading
from flowfactor.errors import DataError

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv")


class Video:
    """A video file, decoded from the key frame before what is asked for.

    Args:
        path: the file.

    Attributes:
        size: height and width.
        stamps: the time stamps of its frames in order, None if any lacks one.

    Raises:
        DataError: PyAV is not installed; a file that cannot be read or holds no video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Packets are counted and not decoded, for what a container announces is often wrong.
        with _open(path) as container:
            if not container.streams.video:
                raise DataError(f"{path} holds no video.")
            stream = container.streams.video[0]
            self.size = (stream.codec_context.height, stream.codec_context.width)
            stamps = [
                packet.pts
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
        if not stamps:
            raise DataError(f"{path} holds no video frames.")
        self._count = len(stamps)
        self.stamps: Int[np.ndarray, "f"] | None = None
        if None not in stamps and len(set(stamps)) == len(stamps):
            self.stamps = np.unique(np.array(stamps, dtype=np.int64))

    def __len__(self) -> int:
        return self._count

    def read(self, first: int, count: int) -> UInt8[np.ndarray, "f h w 3"]:
        """Return consecutive frames.

        Raises:
            DataError: the file cannot be decoded, or ends before.
        """
        frames = None
        if first > 0 and self.stamps is not None:
            frames = self._decode(first, count, self.stamps)
        if frames is None:
            # Without time stamps, or where a key frame was not one: from the beginning.
            frames = self._decode(first, count, None)
        if frames is None:
            raise DataError(
                f"{self.path} ends before frame {first + count - 1}, though it announces "
                f"{len(self)} frames. Repair or remove it."
            )
        return frames

    def _decode(
        self, first: int, count: int, stamps: Int[np.ndarray, "n"] | None
    ) -> UInt8[np.ndarray, "f h w 3"] | None:
        """Return frames from a key frame on, or the beginning without stamps; None if one lacks."""
        frames: list[npt.NDArray[np.uint8]] = []
        with _open(self.path) as container:
            stream = container.streams.video[0]
            if stamps is not None:
                container.seek(int(stamps[first]), stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                if stamps is not None:
                    # No stamp is none of those known, like one that was never announced.
                    stamp = -1 if frame.pts is None else int(frame.pts)
                    if stamp < stamps[first]:
                        continue
                    if stamp != stamps[first + len(frames)]:
                        return None
                elif number < first:
                    continue
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == count:
                    return np.stack(frames)
        return None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    av = import_extra("av", "video")
    with reading(path, av.FFmpegError), av.open(str(path)) as container:
        yield container
