"""Recorded clips on disk or in memory, opened without reading more than is asked for."""

from __future__ import annotations

import dataclasses
import logging
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import pack, rearrange
from jaxtyping import Int, UInt8
from torch import Tensor

from flowfactor.data.animation import Animation, is_animated
from flowfactor.data.io import (
    ANIMATED,
    HDF5,
    METADATA,
    PICTURES,
    ZARR,
    Array,
    ArrayFile,
    Layout,
    list_files,
    local_path,
    natural_key,
    open_picture,
    picture_channels,
    picture_pixels,
    read_metadata,
    reading,
    warn_range,
)
from flowfactor.data.video import VIDEOS, Video
from flowfactor.errors import DataError

_log = logging.getLogger(__name__)

Labels = list[str | int | None]

_LUMINANCE = (0.299, 0.587, 0.114)
# Frames of a clip that are read and kept together, and the bytes that they may have.
_CHUNK, _CHUNK_BYTES = 64, 1 << 28


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What every frame undergoes: to grey, and to one size; and which frames a film has.

    Attributes:
        crop: top, left, height and width of the part that is taken, before all else.
        size: height and width that frames are resized to cover; the middle is cut out.
        grey: whether colours become their luminance.
        as_stamped: whether films have the frames of their files, at their time stamps, and not at
            a constant rate.
    """

    size: tuple[int, int] | None = None
    grey: bool = False
    crop: tuple[int, int, int, int] | None = None
    as_stamped: bool = False

    def shape(self, shape: tuple[int, int, int], name: str) -> tuple[int, int, int]:
        """Return what becomes of the shape of the frames of a recording.

        Raises:
            DataError: the part to be taken is not inside.
        """
        channels, height, width = shape
        if self.crop is not None:
            top, left, tall, wide = self.crop
            if top + tall > height or left + wide > width:
                raise DataError(
                    f"crop: {list(self.crop)} (top, left, height, width) is not inside the frames "
                    f"of recording {name!r}, which are {height} high and {width} wide."
                )
            height, width = tall, wide
        return (1 if self.grey else channels, *(self.size or (height, width)))

    def __call__(self, frames: UInt8[Tensor, "f c h w"]) -> UInt8[Tensor, "f k u v"]:
        """Return frames of the size and number of channels."""
        if self.crop is not None:
            top, left, height, width = self.crop
            frames = frames[..., top : top + height, left : left + width]
        same_size = self.size is None or tuple(frames.shape[2:]) == self.size
        to_grey = self.grey and frames.shape[1] == 3
        if same_size and not to_grey:
            return frames.contiguous()
        pixels = frames.float()
        if to_grey:
            pixels = (pixels * pixels.new_tensor(_LUMINANCE)[:, None, None]).sum(1, keepdim=True)
        if self.size is not None and not same_size:
            height, width = self.size
            ratio = max(height / pixels.shape[2], width / pixels.shape[3])
            covering = [
                max(wanted, round(side * ratio))
                for wanted, side in zip(self.size, pixels.shape[2:], strict=True)
            ]
            pixels = F.interpolate(
                pixels, covering, mode="bilinear", antialias=True, align_corners=False
            )
            top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
            pixels = pixels[..., top : top + height, left : left + width]
        return pixels.round().clamp(0, 255).to(torch.uint8)


class Clips(ABC):
    """Clips of any length, whose frames are read when they are asked for and kept for a while.

    Up to 64 consecutive frames are read at once, fewer of large ones. Those that were not used for
    longest are forgotten first; clips that fit into ``memory`` bytes are read once.

    Attributes:
        names: of the clips.
        lengths: how many frames each has.
        labels: what was found with them that says how they differ, one value each, if anything.
        groups: what was found with them that says what belongs together, one value each.
        times: what was found with them that says when their frames are, a list of numbers for all
            of them or one for each.
        image_shape: of a prepared frame.
    """

    def __init__(
        self,
        names: Sequence[str],
        lengths: Sequence[int],
        shapes: Iterable[tuple[int, int, int]],
        labels: Labels | None,
        prepare: Preparation,
        memory: int,
    ) -> None:
        self.names, self.lengths, self.labels = list(names), list(lengths), labels
        self.groups: Labels | None = None
        self.times: Array | list[Any] | None = None
        self.prepare, self.memory = prepare, memory
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._bytes = 0
        prepared: dict[tuple[int, ...], str] = {}
        self._count = _CHUNK
        for name, shape in zip(self.names, shapes, strict=True):
            self._count = min(self._count, max(1, _CHUNK_BYTES // math.prod(shape)))
            prepared.setdefault(prepare.shape(shape, name), name)
        if len(prepared) > 1:
            listed = "; ".join(f"{name!r} has {shape}" for shape, name in prepared.items())
            raise DataError(
                f"size: all recordings must have frames of one shape (channels, height, width), "
                f"but {listed}. Give a size, to which all are brought."
            )
        ((channels, height, width),) = prepared
        self.image_shape = (channels, height, width)

    @abstractmethod
    def read(self, clip: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        """Return consecutive frames of a clip as they are in the file."""

    def warn_range(self, where: str) -> None:
        """Log a warning if some frames hardly look like pictures; see :func:`io.warn_range`."""
        some = sorted({0, len(self.names) // 2, len(self.names) - 1})
        middles = [self.read(each, self.lengths[each] // 2, 1).flatten() for each in some]
        warn_range(torch.cat(middles), where)

    def frames(
        self, clips: Int[np.ndarray, "b"], numbers: Int[np.ndarray, "b f"]
    ) -> UInt8[Tensor, "b f c h w"]:
        """Return frames of some clips, prepared, in memory."""
        wanted = [
            self._chunk(clip, number // self._count)[number % self._count]
            for clip, row in zip(clips.tolist(), numbers.tolist(), strict=True)
            for number in row
        ]
        return rearrange(torch.stack(wanted), "(b f) c h w -> b f c h w", b=len(clips))

    def _chunk(self, clip: int, chunk: int) -> Tensor:
        key = (clip, chunk)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        first = chunk * self._count
        count = min(self._count, self.lengths[clip] - first)
        frames = self.prepare(self.read(clip, first, count))
        if frames.shape != (count, *self.image_shape):
            raise DataError(
                f"size: recording {self.names[clip]!r} has frames of (channels, height, width) "
                f"{tuple(frames.shape[1:])} where others have {self.image_shape}."
            )
        self._kept[key] = frames
        self._bytes += frames.nbytes
        while self._bytes > self.memory and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return frames

    def __getstate__(self) -> dict[str, Any]:
        # What was read can be read again, wherever this goes.
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}


class HeldClips(Clips):
    """Clips in memory, prepared once."""

    def __init__(
        self, array: Array, where: str, labels: Labels | None, prepare: Preparation
    ) -> None:
        layout = Layout.of(array, 2)
        clips = [
            prepare(
                dataclasses.replace(layout, where=f"recording {number} of {where}").to_bytes(clip)
            )
            for number, clip in enumerate(array)
        ]
        self.held = torch.stack(clips)
        count, length = array.shape[:2]
        names = [str(number) for number in range(count)]
        shapes = [layout.image_shape] * count
        super().__init__(names, [length] * count, shapes, labels, prepare, 0)

    def read(self, clip: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        """Return consecutive frames of a clip."""
        return self.held[clip, first : first + count]

    def frames(
        self, clips: Int[np.ndarray, "b"], numbers: Int[np.ndarray, "b f"]
    ) -> UInt8[Tensor, "b f c h w"]:
        """Return frames of some clips."""
        frames: Tensor = self.held[torch.from_numpy(clips)[:, None], torch.from_numpy(numbers)]
        return frames


class ArrayClips(Clips):
    """Clips in an array ``(N, T+1, ...)``, or ``(T+1, N, ...)``, in a file that is read lazily."""

    def __init__(
        self,
        array: ArrayFile,
        labels: Labels | None,
        prepare: Preparation,
        memory: int,
        frames_first: bool = False,
    ) -> None:
        self.array, self.layout = array, Layout.of(array, 2)
        self.frames_first = frames_first
        count, length = array.shape[:2][:: -1 if frames_first else 1]
        names = [str(number) for number in range(count)]
        shapes = [self.layout.image_shape] * count
        super().__init__(names, [length] * count, shapes, labels, prepare, memory)

    def read(self, clip: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        """Return consecutive frames of a clip."""
        frames = slice(first, first + count)
        rows = (frames, clip) if self.frames_first else (clip, frames)
        return self.layout.to_bytes(self.array[rows], first)


class FrameFolders(Clips):
    """Folders of pictures, the frames of a clip in the natural order of their names."""

    def __init__(
        self,
        folders: Sequence[Path],
        root: Path,
        labels: Labels | None,
        prepare: Preparation,
        memory: int,
    ) -> None:
        self.paths = [list_files(folder, PICTURES) for folder in folders]
        for folder, paths in zip(folders, self.paths, strict=True):
            if not paths:
                raise DataError(f"{folder} holds no pictures, as others beside it do. Remove it.")
        # Of each clip one picture is looked at, the others when they are asked for.
        sizes = []
        self.channels = 1
        for paths in self.paths:
            with open_picture(paths[0]) as picture:
                self.channels = max(self.channels, picture_channels(picture))
                sizes.append((picture.height, picture.width))
        super().__init__(
            [_name(folder, root) for folder in folders],
            [len(paths) for paths in self.paths],
            [(self.channels, *size) for size in sizes],
            labels,
            prepare,
            memory,
        )

    def read(self, clip: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        """Return consecutive frames of a clip, which are prepared, as their sizes may differ."""
        frames: list[Tensor] = []
        for path in self.paths[clip][first : first + count]:
            with open_picture(path) as picture:
                if picture_channels(picture) > self.channels:
                    raise DataError(
                        f"grey: {path} has colours, the first picture of each has none."
                    )
                pixels = torch.from_numpy(picture_pixels(picture, self.channels))
            frames.append(self.prepare(rearrange(pixels, "h w c -> 1 c h w")))
            if frames[-1].shape != frames[0].shape:
                raise DataError(f"size: {path} has another number of pixels than those before it.")
        return pack(frames, "* c h w")[0]


class VideoClips(Clips):
    """Videos and animated pictures."""

    def __init__(
        self,
        paths: Sequence[Path],
        root: Path,
        labels: Labels | None,
        prepare: Preparation,
        memory: int,
    ) -> None:
        self.videos = [
            (Video if path.suffix.lower() in VIDEOS else Animation)(path, prepare.as_stamped)
            for path in paths
        ]
        super().__init__(
            [_name(path, root) for path in paths],
            [len(video) for video in self.videos],
            [(3, *video.size) for video in self.videos],
            labels,
            prepare,
            memory,
        )
        if prepare.as_stamped:
            self.times = [video.times for video in self.videos]

    def read(self, clip: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        """Return consecutive frames of a clip."""
        frames = torch.from_numpy(self.videos[clip].read(first, count))
        return rearrange(frames, "f h w c -> f c h w")


def open_clips(
    frames: Tensor | Array | str | Path,
    prepare: Preparation = Preparation(),
    memory: int = 1 << 30,
    *,
    frames_first: bool = False,
) -> Clips:
    """Return the clips in an array, a file or a folder.

    Args:
        frames: see :class:`Recordings`.
        prepare: what every frame undergoes.
        memory: bytes of frames to keep of what is read on demand.
        frames_first: whether arrays are ``(T+1, N, ...)`` rather than ``(N, T+1, ...)``.

    Raises:
        DataError: something that is missing, cannot be read, or has another type or shape.
    """
    if not isinstance(frames, str | Path):
        array = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
        array = array.swapaxes(0, 1) if frames_first and array.ndim > 1 else array
        held = HeldClips(array, "the array", None, prepare)
        warn_range(held.held, "the array")
        return held
    path = local_path(frames)
    suffix = path.suffix.lower()
    if path.is_dir() and suffix != ZARR:
        return _open_folder(path, prepare, memory)
    if suffix in VIDEOS or (path.exists() and is_animated(path)):
        return VideoClips([path], path.parent, None, prepare, memory)
    if path.exists() and suffix not in (".npy", ".npz", *HDF5, ZARR):
        raise DataError(
            f"{path} is none of what can be read: .npy, .npz, {', '.join(HDF5)}, {ZARR}, a folder "
            f"of folders of pictures, a folder of videos, a video ({', '.join(VIDEOS)}) or an "
            f"animated picture ({', '.join(ANIMATED)})."
        )
    return _open_array(ArrayFile(path, usual="frames"), prepare, memory, frames_first)


def _open_array(file: ArrayFile, prepare: Preparation, memory: int, frames_first: bool) -> Clips:
    count = file.shape[1 if frames_first and len(file.shape) > 1 else 0]
    labels, groups = (file.read_beside(name, count) for name in ("labels", "groups"))
    clips: Clips
    if file.is_held:
        array = file[:].swapaxes(0, 1) if frames_first else file[:]
        clips = HeldClips(array, str(file.path), labels, prepare)
    else:
        clips = ArrayClips(file, labels, prepare, memory, frames_first)
    clips.groups = groups
    length = clips.lengths[0]
    clips.times = file.array_beside("times", (count, length), (length,))
    return clips


def _open_folder(root: Path, prepare: Preparation, memory: int) -> Clips:
    if (root / METADATA).is_file():
        return _open_listed(root, prepare, memory)
    pictures, folders = list_files(root, PICTURES), _folders(root)
    videos = _list_videos(root)
    films = videos or [each for each in folders if list_files(each, PICTURES + VIDEOS)]
    pictures = [path for path in pictures if path not in videos]
    if pictures and len(films) < len(pictures):
        if films:
            raise DataError(
                f"The folder {root} holds {len(pictures)} pictures and {len(films)} films, such as "
                f"{films[0].name}. Put them into folders of their own."
            )
        return FrameFolders([root], root, None, prepare, memory)
    if pictures:
        _log.warning("%s is ignored, as it is beside films.", pictures[0])
    if videos:
        return VideoClips(videos, root, None, prepare, memory)
    inside = {folder: _list_videos(folder) for folder in folders}
    if any(set(list_files(folder, PICTURES)) - set(videos) for folder, videos in inside.items()):
        return FrameFolders(folders, root, None, prepare, memory)
    # One level more: classes, each with videos or with folders of pictures.
    inside = {folder: videos or _folders(folder) for folder, videos in inside.items()}
    paths = [path for clips in inside.values() for path in clips]
    if not folders or not all(inside.values()):
        empty = next((folder for folder, clips in inside.items() if not clips), root)
        raise DataError(
            f"The folder {empty} holds no pictures ({', '.join(PICTURES)}), videos "
            f"({', '.join(VIDEOS)}) or folders of them."
        )
    labels: Labels = [folder.name for folder, clips in inside.items() for _ in clips]
    kind = VideoClips if all(path.is_file() for path in paths) else FrameFolders
    return kind(paths, root, labels, prepare, memory)


def _list_videos(folder: Path) -> list[Path]:
    """Return the videos of a folder, and its animated pictures if the first picture is one."""
    pictures = list_files(folder, PICTURES)
    if not pictures or not is_animated(pictures[0]):
        return list_files(folder, VIDEOS)
    return list_files(folder, (*VIDEOS, *{path.suffix.lower() for path in pictures}))


def _open_listed(root: Path, prepare: Preparation, memory: int) -> Clips:
    """Return the films that a ``metadata.csv`` lists, with their labels and groups."""
    rows = read_metadata(root / METADATA)
    paths = [root / row["file_name"] for row in rows]
    columns = {
        name: [row[name] for row in rows] if name in rows[0] else None
        for name in ("label", "group")
    }
    kind = FrameFolders if all(path.is_dir() for path in paths) else VideoClips
    clips = kind(paths, root, columns["label"], prepare, memory)  # type: ignore[arg-type]
    clips.groups = columns["group"]  # type: ignore[assignment]
    return clips


def _folders(folder: Path) -> list[Path]:
    with reading(folder):
        inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    return sorted(inside, key=lambda path: natural_key(path.name))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else path.name
