"""Recorded films on disk or in memory, opened without reading more than is asked for.

Arrays in `.npy`, `.npz` and HDF5 files, folders of pictures, and videos all become `Films`: a
number of recordings, each with its frames as bytes of one shape.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from flowfactor.data.images import _EIGHT_BIT, _PICTURES
from flowfactor.errors import DataError

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv")
_HDF5 = (".h5", ".hdf5")
_LUMINANCE = (0.299, 0.587, 0.114)
# Frames of a recording that are read and kept together.
_CHUNK = 64

Array = npt.NDArray[Any]
Labels = list[str | int | None]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What every frame undergoes: to grey, and to one size."""

    size: tuple[int, int] | None = None
    grey: bool = False

    def __call__(self, frames: UInt8[Tensor, "f c h w"]) -> UInt8[Tensor, "f k u v"]:
        """Frames made grey, resized to cover the size, and the middle of that cut out."""
        same_size = self.size is None or tuple(frames.shape[2:]) == self.size
        to_grey = self.grey and frames.shape[1] == 3
        if same_size and not to_grey:
            return frames
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
            pixels = functional.interpolate(
                pixels, covering, mode="bilinear", antialias=True, align_corners=False
            )
            top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
            pixels = pixels[..., top : top + height, left : left + width]
        return pixels.round().clamp(0, 255).to(torch.uint8)


class Films(ABC):
    """Recordings of any length, and their frames as bytes `(C, H, W)` of one shape.

    Attributes:
        names: of the recordings.
        lengths: how many frames each has.
        labels: what was found with them that says how they differ, one value each, if anything.
        image_shape: of a prepared frame.
    """

    names: list[str]
    lengths: list[int]
    labels: Labels | None
    image_shape: tuple[int, int, int]

    @abstractmethod
    def frames(
        self, recordings: Int[Tensor, " b"], numbers: Int[Tensor, "b f"]
    ) -> UInt8[Tensor, "b f c h w"]:
        """Frames `numbers` of `recordings`, in memory."""


class HeldFilms(Films):
    """All frames in memory, as many for each recording."""

    def __init__(
        self, array: Array, labels: Labels | None, prepare: Preparation, where: str
    ) -> None:
        layout = _Layout.of(array.shape, array.dtype, where)
        parts = [
            prepare(layout.as_bytes(film, f"recording {number} of {where}"))
            for number, film in enumerate(array)
        ]
        self._held = torch.stack(parts)
        self.names = [str(number) for number in range(len(array))]
        self.lengths = [array.shape[1]] * len(array)
        self.labels = labels
        self.image_shape = _shape(self._held.shape[2:])

    def frames(
        self, recordings: Int[Tensor, " b"], numbers: Int[Tensor, "b f"]
    ) -> UInt8[Tensor, "b f c h w"]:
        """Frames `numbers` of `recordings`."""
        frames: Tensor = self._held[recordings[:, None], numbers]
        return frames


class LazyFilms(Films):
    """Frames that are read when they are asked for, and kept as long as memory allows.

    Up to 64 consecutive frames are read at once. Those that were not used for longest are
    forgotten first; films that fit into `memory` bytes are read once.
    """

    def __init__(self, prepare: Preparation, memory: int) -> None:
        self.prepare = prepare
        self.memory = memory
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._bytes = 0

    @abstractmethod
    def _read(self, recording: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        """Consecutive frames of a recording as they are in the file."""

    def frames(
        self, recordings: Int[Tensor, " b"], numbers: Int[Tensor, "b f"]
    ) -> UInt8[Tensor, "b f c h w"]:
        """Frames `numbers` of `recordings`."""
        wanted = [
            self._chunk(recording, number // _CHUNK)[number % _CHUNK]
            for recording, row in zip(recordings.tolist(), numbers.tolist(), strict=True)
            for number in row
        ]
        frames: Tensor = torch.stack(wanted).unflatten(0, tuple(numbers.shape))
        return frames

    def _chunk(self, recording: int, chunk: int) -> Tensor:
        key = (recording, chunk)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        first = chunk * _CHUNK
        count = min(_CHUNK, self.lengths[recording] - first)
        frames = self.prepare(self._read(recording, first, count))
        if frames.shape[1:] != self.image_shape or len(frames) != count:
            raise DataError(
                f"Recording {self.names[recording]!r} has frames of (channels, height, width) "
                f"{tuple(frames.shape[1:])} where others have {self.image_shape}. Give a size, "
                "to which all are brought."
            )
        self._kept[key] = frames
        self._bytes += frames.nbytes
        while self._bytes > self.memory and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return frames

    def _set_image_shape(self, shapes: Iterable[tuple[int, int, int]]) -> None:
        """Take the shape of prepared frames from those of all recordings, which must agree."""
        seen: dict[tuple[int, int, int], str] = {}
        for name, (channels, height, width) in zip(self.names, shapes, strict=True):
            shape = (1 if self.prepare.grey else channels, *(self.prepare.size or (height, width)))
            seen.setdefault(shape, name)
        if len(seen) > 1:
            (first, one), (second, other) = list(seen.items())[:2]
            raise DataError(
                f"All recordings must have frames of one shape, but {one!r} has (channels, height, "
                f"width) {first} and {other!r} has {second}. Give a size, to which all are brought."
            )
        (self.image_shape,) = seen

    def __getstate__(self) -> dict[str, Any]:
        # What was read can be read again, wherever this goes.
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}


class ArrayFile(LazyFilms):
    """An array in a `.npy` or HDF5 file, opened for each reading, so that no file stays open."""

    def __init__(self, path: Path, prepare: Preparation, memory: int) -> None:
        super().__init__(prepare, memory)
        self.path = path
        self.labels = None
        self._key: str | None = None
        if path.suffix.lower() in _HDF5:
            self._key, self.labels = _look_into_hdf5(path)
        with _Opened(path, self._key) as array:
            shape, dtype = tuple(array.shape), np.dtype(array.dtype)
        self._layout = _Layout.of(shape, dtype, str(path))
        self.names = [str(number) for number in range(shape[0])]
        self.lengths = [shape[1]] * shape[0]
        self._set_image_shape([self._layout.image_shape] * shape[0])

    def _read(self, recording: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        with _Opened(self.path, self._key) as array:
            frames = np.asarray(array[recording, first : first + count])
        return self._layout.as_bytes(frames, f"recording {recording} of {self.path}", first)


class PictureFolders(LazyFilms):
    """Folders of picture files, the frames of a recording in the natural order of their names."""

    def __init__(
        self,
        folders: Sequence[Path],
        root: Path,
        labels: Labels | None,
        prepare: Preparation,
        memory: int,
    ) -> None:
        super().__init__(prepare, memory)
        self.names = [_name(folder, root) for folder in folders]
        self.labels = labels
        self._paths = [_pictures(folder) for folder in folders]
        self.lengths = [len(paths) for paths in self._paths]
        # Of each recording one picture is looked at, the others when they are asked for.
        heads = [_open_picture(paths[0], None)[1:] for paths in self._paths]
        self._mode = "L" if all(grey for grey, _ in heads) else "RGB"
        channels = len(self._mode)
        self._set_image_shape((channels, *size) for _, size in heads)

    def _read(self, recording: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        frames: list[Tensor] = []
        for path in self._paths[recording][first : first + count]:
            pixels, grey, _ = _open_picture(path, self._mode)
            if self._mode == "L" and not grey:
                raise DataError(
                    f"The picture {path} has colours, but the first of each recording is grey. "
                    "Choose grey=True, or save all of them in colour."
                )
            if frames and pixels.shape != frames[0].shape and self.prepare.size is None:
                raise DataError(
                    f"The picture {path} has {pixels.shape[2]}x{pixels.shape[1]} pixels, another "
                    f"before it {frames[0].shape[2]}x{frames[0].shape[1]}. Give a size, to which "
                    "all are brought."
                )
            # Here, because pictures of one recording need not have one size.
            frames.append(self.prepare(pixels[None])[0])
        return torch.stack(frames)


class VideoFiles(LazyFilms):
    """Video files, decoded by PyAV from the key frame before what is asked for."""

    def __init__(
        self,
        paths: Sequence[Path],
        root: Path,
        labels: Labels | None,
        prepare: Preparation,
        memory: int,
    ) -> None:
        super().__init__(prepare, memory)
        self._paths = list(paths)
        self.names = [_name(path, root) for path in paths]
        self.labels = labels
        self._stamps: list[Array | None] = []
        self.lengths = []
        shapes = []
        for path in paths:
            length, stamps, size = _scan_video(path)
            self.lengths.append(length)
            self._stamps.append(stamps)
            shapes.append((3, *size))
        self._set_image_shape(shapes)

    def _read(self, recording: int, first: int, count: int) -> UInt8[Tensor, "f c h w"]:
        path, stamps = self._paths[recording], self._stamps[recording]
        frames: Array | None = None
        if first > 0 and stamps is not None:
            frames = _decode(path, first, count, stamps)
        if frames is None:
            # Without time stamps, or where a key frame was not one: from the beginning.
            frames = _decode(path, first, count, None)
        if frames is None:
            raise DataError(
                f"The video {path} ends before frame {first + count - 1}, though it announces "
                f"{self.lengths[recording]} frames. Repair or remove it."
            )
        return torch.from_numpy(frames).permute(0, 3, 1, 2)


def open_films(frames: Tensor | Array | str | Path, prepare: Preparation, memory: int) -> Films:
    """The recordings in an array, a file or a folder.

    Args:
        frames: see `Recordings`.
        prepare: what every frame undergoes.
        memory: bytes of frames to keep of what is read on demand.

    Raises:
        DataError: something that is not there, cannot be read, or is of another type or shape.
    """
    if isinstance(frames, Tensor):
        return HeldFilms(frames.detach().cpu().numpy(), None, prepare, "the array")
    if not isinstance(frames, str | Path):
        return HeldFilms(np.asarray(frames), None, prepare, "the array")
    path = Path(frames)
    if path.is_dir():
        return _open_folder(path, prepare, memory)
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return HeldFilms(*_load_npz(path), prepare, str(path))
    if suffix == ".npy" or suffix in _HDF5:
        return ArrayFile(path, prepare, memory)
    if suffix in VIDEOS:
        return VideoFiles([path], path.parent, None, prepare, memory)
    raise DataError(
        f"{path} is none of what can be read: .npy, .npz, {', '.join(_HDF5)}, a folder of "
        f"folders of pictures, a folder of videos, or a video ({', '.join(VIDEOS)})."
    )


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts as people count: `frame9` before `frame10`.

    Example:
        >>> sorted(["frame10", "frame9", "Frame1"], key=natural)
        ['Frame1', 'frame9', 'frame10']
    """
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts]


def optional_module(name: str, extra: str) -> Any:
    """A package that not everybody needs.

    Raises:
        DataError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"This needs the package {name}. Install it with `pip install 'flowfactor[{extra}]'`."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where an array of films has its channels."""

    image_shape: tuple[int, int, int]
    channels: str
    """`none`, `first` or `last`."""

    @classmethod
    def of(cls, shape: Sequence[int], dtype: np.dtype[Any], where: str) -> _Layout:
        """The layout of an array of this shape.

        Raises:
            DataError: no array of films has this shape or type.
        """
        if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
            raise DataError(
                f"Frames must be uint8 (0..255) or floating point in [0, 1], but {where} is of "
                f"type {dtype}. Convert values of 0..255 with `frames.astype('uint8')`."
            )
        if 0 not in shape:
            if len(shape) == 4:
                return cls((1, shape[2], shape[3]), "none")
            if len(shape) == 5 and shape[2] in (1, 3):
                return cls((shape[2], shape[3], shape[4]), "first")
            if len(shape) == 5 and shape[4] in (1, 3):
                return cls((shape[4], shape[2], shape[3]), "last")
        raise DataError(
            "Frames must be of shape (N, T+1, C, H, W), (N, T+1, H, W, C) or (N, T+1, H, W) with "
            f"C = 1 or 3 and nothing empty, but the shape of {where} is {tuple(shape)}."
        )

    def as_bytes(self, frames: Array, where: str, first: int = 0) -> UInt8[Tensor, "f c h w"]:
        """The frames of one film, as bytes, channels first.

        Raises:
            DataError: floating point numbers that are not in [0, 1].
        """
        if frames.dtype != np.uint8:
            bad = ~((frames >= 0) & (frames <= 1))
            if bad.any():
                place = tuple(int(i) for i in np.argwhere(bad)[0])
                raise DataError(
                    f"Floating point frames must be finite and in [0, 1], but {int(bad.sum())} of "
                    f"{bad.size} values in {where} are not: the first is {frames[place]:g} in "
                    f"frame {first + place[0]}. Divide values of 0..255 by 255, and repair or "
                    "remove recordings with NaN."
                )
            frames = np.rint(frames * 255.0).astype(np.uint8)
        # A copy in order, because data must not change when the array it was made from does.
        pixels = torch.from_numpy(np.array(frames, order="C"))
        if self.channels == "none":
            return pixels.unsqueeze(1)
        return pixels if self.channels == "first" else pixels.permute(0, 3, 1, 2).contiguous()


class _Opened:
    """An array in a file while it is open: mapped, or a data set of HDF5."""

    def __init__(self, path: Path, key: str | None) -> None:
        self.path, self.key = path, key
        self._file: Any = None

    def __enter__(self) -> Any:
        try:
            if self.key is None:
                # Arrays of objects would execute code when they are read.
                return np.load(self.path, mmap_mode="r", allow_pickle=False)
            self._file = optional_module("h5py", "data").File(self.path, "r")
            return self._file[self.key]
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise _unreadable(self.path, error) from error

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._file is not None:
            self._file.close()
        if isinstance(error, OSError):
            raise _unreadable(self.path, error) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"The file {path} cannot be read ({error}). Repair or remove it.")


def _look_into_hdf5(path: Path) -> tuple[str, Labels | None]:
    """The name of the frames in an HDF5 file, and the labels in it, if there are any."""
    h5py = optional_module("h5py", "data")
    try:
        with h5py.File(path, "r") as file:
            arrays = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
            labels = _plain(file["labels"][()]) if "labels" in arrays else None
            return _which(arrays, path), labels
    except OSError as error:
        raise _unreadable(path, error) from error


def _load_npz(path: Path) -> tuple[Array, Labels | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            array: Array = file[_which(file.files, path)]
            return array, _plain(file["labels"]) if "labels" in file.files else None
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise _unreadable(path, error) from error


def _which(names: Sequence[str], path: Path) -> str:
    """The array that holds the frames: `frames`, or the only one beside `labels`."""
    others = [name for name in names if name != "labels"]
    if "frames" in others:
        return "frames"
    if len(others) != 1:
        raise DataError(
            f"{path} must hold an array named `frames`, or a single one beside `labels`, but it "
            f"holds {', '.join(names) or 'none'}."
        )
    return others[0]


def _plain(labels: Array) -> Labels:
    values: Labels = [v.decode() if isinstance(v, bytes) else v for v in labels.tolist()]
    return values


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else path.name


def _shape(sizes: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (int(size) for size in sizes)
    return channels, height, width


def _open_folder(root: Path, prepare: Preparation, memory: int) -> Films:
    if _pictures(root):
        return PictureFolders([root], root, None, prepare, memory)
    if videos := _files(root, VIDEOS):
        return VideoFiles(videos, root, None, prepare, memory)
    folders = _folders(root)
    if not folders:
        raise DataError(
            f"The folder {root} holds no pictures ({', '.join(_PICTURES)}), no videos "
            f"({', '.join(VIDEOS)}) and no folders of them."
        )
    if any(_pictures(folder) for folder in folders):
        _check_all_hold_pictures(folders)
        return PictureFolders(folders, root, None, prepare, memory)
    # One level more: classes, each with videos or with folders of pictures.
    films = {folder: _files(folder, VIDEOS) or _folders(folder) for folder in folders}
    for folder, inside in films.items():
        if not inside:
            raise DataError(f"The folder {folder} holds no pictures, videos or folders of them.")
    paths = [path for inside in films.values() for path in inside]
    labels: Labels = [folder.name for folder, inside in films.items() for _ in inside]
    if all(path.is_file() for path in paths):
        return VideoFiles(paths, root, labels, prepare, memory)
    _check_all_hold_pictures(paths)
    return PictureFolders(paths, root, labels, prepare, memory)


def _check_all_hold_pictures(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not folder.is_dir() or not _pictures(folder):
            raise DataError(
                f"{folder} is no folder with pictures ({', '.join(_PICTURES)}), as others beside "
                "it are. Remove it, or move the others into folders of the same depth."
            )


def _folders(folder: Path) -> list[Path]:
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    return sorted(inside, key=lambda path: natural(path.name))


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    inside = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file()
    ]
    return sorted(inside, key=lambda path: natural(path.name))


def _pictures(folder: Path) -> list[Path]:
    return _files(folder, _PICTURES)


def _open_picture(path: Path, mode: str | None) -> tuple[Tensor, bool, tuple[int, int]]:
    """The pixels of a picture (none without a mode), whether it is grey, its height and width."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.mode not in _EIGHT_BIT:
                raise DataError(
                    f"The picture {path} is of PIL's mode {picture.mode!r}, not 8 bits per "
                    "channel. Save it with 8 bits."
                )
            grey, size = picture.mode in ("1", "L", "LA"), (picture.height, picture.width)
            if mode is None:
                return torch.empty(0), grey, size
            pixels = torch.from_numpy(np.array(picture.convert(mode)))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(
            f"The picture {path} cannot be read ({error}). Repair or remove it."
        ) from error
    return pixels.view(*size, -1).permute(2, 0, 1), grey, size


def _scan_video(path: Path) -> tuple[int, Array | None, tuple[int, int]]:
    """Number of frames, their time stamps in order (none if any lacks one), height and width.

    The packets are counted and not decoded, for what a container announces is often wrong.
    """
    av = optional_module("av", "video")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"The file {path} holds no video.")
            stream = container.streams.video[0]
            size = (stream.codec_context.height, stream.codec_context.width)
            stamps = [
                packet.pts
                for packet in container.demux(stream)
                if packet.size and not packet.is_discard
            ]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"The video {path} cannot be read ({error}). Repair or remove it."
        ) from error
    if not stamps:
        raise DataError(f"The video {path} has no frames. Repair or remove it.")
    known = None if None in stamps else np.unique(np.array(stamps, dtype=np.int64))
    return len(stamps), known if known is not None and len(known) == len(stamps) else None, size


def _decode(path: Path, first: int, count: int, stamps: Array | None) -> Array | None:
    """Frames `first .. first + count - 1`, `(count, H, W, 3)`, or nothing if one is missing.

    With time stamps from the key frame before `first`, else from the beginning.
    """
    av = optional_module("av", "video")
    frames: list[Array] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stamps is not None:
                container.seek(int(stamps[first]), stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                if stamps is not None:
                    # No stamp is none of those known, like one that was never announced.
                    at = -1 if frame.pts is None else int(frame.pts)
                    if at < stamps[first]:
                        continue
                    if at != stamps[first + len(frames)]:
                        return None
                elif number < first:
                    continue
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == count:
                    return np.stack(frames)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"The video {path} cannot be decoded ({error}). Repair or remove it."
        ) from error
    return None
