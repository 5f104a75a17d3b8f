"""Where numbered images lie: in memory, in an HDF5 or NumPy file, in a folder of pictures.

A store gives any of its images by number and never holds more of a file in memory than was asked
for. It opens its file when it is first read, once in each process, so that it can be pickled and
sent to the workers of a data loader.
"""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flowfactor.errors import DataError

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

_CHANNELS = (1, 3, 4)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".webp")
# What PIL calls black and white, grey, palette and colour; all have 8 bits per channel.
_EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA")
# HDF5 keeps the chunks it has unpacked up to this size; its own default is the size of four.
_CHUNK_CACHE = 64 * 2**20
# A chunk of more images than this makes one image cost the unpacking of all of them.
_MANY_IMAGES = 64


class ImageStore(ABC):
    """Images of one size that are known by their numbers `0..N-1`."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    @abstractmethod
    def __len__(self) -> int:
        """`N`, how many images there are."""

    @abstractmethod
    def read(self, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """The images of these numbers, in [0, 1], on the device of `numbers`; none is checked."""

    @property
    def where(self) -> str:
        """Where the images are, for messages."""
        return "in memory"

    def to(self, device: torch.device | str) -> ImageStore:
        """The same store, holding what it holds in memory on another device."""
        return self


class TensorStore(ImageStore):
    """Images in memory.

    Args:
        images: `uint8`, `(N, H, W, C)` or `(N, C, H, W)`.
        layout: `nhwc`, `nchw`, or `auto` to tell by which side has 1, 3 or 4 channels.

    Raises:
        DataError: another type or shape.

    Example:
        >>> import torch
        >>> store = TensorStore(torch.full((6, 8, 8, 3), 255, dtype=torch.uint8))
        >>> len(store), store.image_shape, float(store.read(torch.tensor([4])).mean())
        (6, (3, 8, 8), 1.0)
    """

    def __init__(self, images: Tensor, layout: str = "auto") -> None:
        if images.dtype != torch.uint8:
            raise DataError(f"images must be uint8 (0..255), but they are {images.dtype}.")
        if channels_last(tuple(images.shape), layout, "images"):
            images = images.movedim(-1, 1)
        self.images = images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """The images of these numbers, in [0, 1]."""
        return self.images[numbers].contiguous().float().div_(255)

    def to(self, device: torch.device | str) -> TensorStore:
        """The same images on another device."""
        return TensorStore(self.images.to(device), "nchw")


class FileStore(ImageStore):
    """Images outside of memory: each batch reads the images that it needs, each of them once.

    A subclass says how rows are read; this class sorts what is asked for, because files are read
    forwards, and brings it to the device as bytes.
    """

    path: Path

    @property
    def where(self) -> str:
        """The file or folder."""
        return str(self.path)

    @abstractmethod
    def _rows(self, numbers: Numbers) -> Bytes:
        """Images of increasing numbers, none twice, `(n, h, w, c)`."""

    def read(self, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """The images of these numbers, in [0, 1], on the device of `numbers`."""
        distinct, place = np.unique(numbers.cpu().numpy(), return_inverse=True)
        rows = torch.from_numpy(self._rows(distinct)).to(numbers.device)
        images = rows[torch.from_numpy(place).to(numbers.device)].permute(0, 3, 1, 2)
        return images.contiguous().float().div_(255)


class NpyStore(FileStore):
    """A `.npy` file, mapped into memory: only the pages of the images asked for are read.

    Args:
        path: of an array `uint8`, `(N, H, W, C)` or `(N, C, H, W)`.
        layout: as for `TensorStore`.

    Raises:
        DataError: a file that is missing, damaged, or holds something else.
    """

    def __init__(self, path: str | Path, layout: str = "auto") -> None:
        self.path = Path(path)
        self._array: npt.NDArray[Any] | None = None
        array = self._open()
        _check_bytes(array.dtype, self.path)
        self._channels_last = channels_last(array.shape, layout, str(self.path))
        self._shape = array.shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return _image_shape(self._shape, self._channels_last)

    def __len__(self) -> int:
        return int(self._shape[0])

    def __getstate__(self) -> Mapping[str, object]:
        return {**self.__dict__, "_array": None}

    def _open(self) -> npt.NDArray[Any]:
        if self._array is None:
            try:
                self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError as error:
                raise DataError(f"There is no file {self.path}.") from error
            except (OSError, ValueError, EOFError) as error:
                raise _unreadable(self.path, "an array of numbers", error) from error
        return self._array

    def _rows(self, numbers: Numbers) -> Bytes:
        rows = self._open()[numbers]
        return rows if self._channels_last else np.moveaxis(rows, 1, -1)


class H5Store(FileStore):
    """A data set in an HDF5 file.

    Rows are read one by one, or as a slice where they follow each other: on gzipped chunks of one
    image that gives some 10,000 images a second, twenty times as many as a selection by a list of
    numbers. Files whose chunks hold pieces of very many images, as `h5py` cuts them if it is not
    told otherwise, cannot be read at random at any useful speed; `chunks_are_long` tells, and
    `repack_h5` writes them anew.

    Args:
        path: the file.
        key: name of the data set in it, `uint8` of shape `(N, H, W, C)` or `(N, C, H, W)`.
        layout: as for `TensorStore`.

    Raises:
        DataError: `h5py` is not installed; the file is missing, truncated or not HDF5; it has no
            such data set; its type or shape is another.
    """

    def __init__(self, path: str | Path, key: str = "images", layout: str = "auto") -> None:
        self.path, self.key = Path(path), key
        self._handle: tuple[int, Any, Any] | None = None
        images = self._open()
        _check_bytes(images.dtype, self.path)
        self._channels_last = channels_last(images.shape, layout, f"{self.path}:{key}")
        self._shape: tuple[int, ...] = images.shape
        self.chunks: tuple[int, ...] | None = images.chunks

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return _image_shape(self._shape, self._channels_last)

    @property
    def chunks_are_long(self) -> bool:
        """Whether one image can only be had by unpacking very many."""
        return self.chunks is not None and self.chunks[0] > _MANY_IMAGES

    def __len__(self) -> int:
        return self._shape[0]

    def __getstate__(self) -> Mapping[str, object]:
        return {**self.__dict__, "_handle": None}

    def close(self) -> None:
        """Close the file; it opens again when it is next read."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def _open(self) -> Any:
        # A forked process must not share the position of its parent's file.
        if self._handle is None or self._handle[0] != os.getpid():
            file = open_h5(self.path)
            images = file.get(self.key)
            if not hasattr(images, "chunks"):
                known = ", ".join(sorted(file)) or "none"
                file.close()
                raise DataError(
                    f"The file {self.path} has no data set {self.key!r}. It has: {known}. Name "
                    "the right one with key."
                )
            self._handle = (os.getpid(), file, images)
        return self._handle[2]

    def _rows(self, numbers: Numbers) -> Bytes:
        images = self._open()
        rows = np.empty((len(numbers), *self._shape[1:]), np.uint8)
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        ends = [*breaks.tolist(), len(numbers)]
        begin = 0
        for end in ends:
            first, stop = int(numbers[begin]), int(numbers[end - 1]) + 1
            try:
                rows[begin:end] = images[first:stop]
            except (OSError, ValueError) as error:
                raise _unreadable(
                    self.path, f"images, at numbers {first} to {stop - 1}", error
                ) from error
            begin = end
        return rows if self._channels_last else np.moveaxis(rows, 1, -1)


class FolderStore(FileStore):
    """A folder of pictures, numbered in the natural order of their names (`2.png`, `10.png`).

    Args:
        folder: with the pictures themselves.
        size: height and width to which a picture is reduced when it is read, averaging over the
            pixels that fall into one; its own by default.

    Raises:
        DataError: no such folder, no pictures in it, names that are numbers but leave some out;
            when reading, a picture of another size or mode, or a damaged one.
    """

    def __init__(self, folder: str | Path, size: int | tuple[int, int] | None = None) -> None:
        self.path = Path(folder)
        self.names = _picture_names(self.path)
        with _picture(self.path / self.names[0]) as first:
            self._channels = 1 if first.mode in ("1", "L", "LA") else 3
            self._original = (first.height, first.width)
        self._size = (size, size) if isinstance(size, int) else size or self._original
        if not all(1 <= side <= own for side, own in zip(self._size, self._original, strict=True)):
            raise DataError(
                f"size must be in 1..{self._original[0]} by 1..{self._original[1]}, for the "
                f"pictures in {self.path} have {_by(self._original)} pixels, but it is "
                f"{_by(self._size)}."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (self._channels, *self._size)

    def __len__(self) -> int:
        return len(self.names)

    def _rows(self, numbers: Numbers) -> Bytes:
        # Unpacking a picture lets other threads run.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return np.stack(list(pool.map(self._pixels, numbers.tolist())))

    def _pixels(self, number: int) -> Bytes:
        path = self.path / self.names[number]
        with _picture(path) as picture:
            size = (picture.height, picture.width)
            if size != self._original:
                raise DataError(
                    f"All pictures must have one size, but {path} has {_by(size)} pixels and "
                    f"{self.names[0]} has {_by(self._original)}. Resize it, or take it out."
                )
            pixels = picture.convert("L" if self._channels == 1 else "RGB")
            if self._size != size:
                pixels = pixels.resize(self._size[::-1], Image.Resampling.BOX)
            return np.array(pixels, dtype=np.uint8).reshape(*self._size, self._channels)


def open_store(
    images: Tensor | npt.NDArray[np.generic] | str | Path | ImageStore,
    key: str | None = None,
    layout: str = "auto",
    size: int | tuple[int, int] | None = None,
) -> ImageStore:
    """The store for a tensor, an array, a file or a folder.

    Args:
        images: a tensor or array in memory; a `.npy` file (mapped), a `.npz` archive (read into
            memory, for it cannot be mapped), an HDF5 file (any other file), or a folder of
            pictures; a store is given back as it is.
        key: which array of an archive or data set of an HDF5 file, by default `images`, or the
            only array of an archive.
        layout: `nhwc`, `nchw` or `auto`, see `TensorStore`.
        size: for a folder, see `FolderStore`.

    Raises:
        DataError: as the stores do.
    """
    path = Path(images) if isinstance(images, str | Path) else None
    if path is not None and path.is_dir():
        return FolderStore(path, size)
    if path is not None and not path.exists():
        raise DataError(f"There is no file or folder {path.absolute()}.")
    if size is not None:
        raise DataError("size is for folders of pictures, which are reduced as they are read.")
    if isinstance(images, ImageStore):
        return images
    if isinstance(images, Tensor):
        return TensorStore(images, layout)
    if isinstance(images, np.ndarray):
        _check_bytes(images.dtype, "images")
        return TensorStore(torch.tensor(images), layout)
    path = Path(images)
    if path.suffix == ".npy":
        return NpyStore(path, layout)
    if path.suffix == ".npz":
        return TensorStore(_npz_array(path, key), layout)
    return H5Store(path, key or "images", layout)


def open_h5(path: str | Path, mode: str = "r") -> Any:
    """An HDF5 file, for reading if not said otherwise.

    Raises:
        DataError: `h5py` is not installed; the file is missing, truncated or not HDF5.
    """
    try:
        import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(
            "HDF5 files need the package h5py, which is not installed. Install it with "
            "`pip install 'flowfactor[data]'`."
        ) from error
    if mode == "r" and not Path(path).is_file():
        raise DataError(f"There is no file {Path(path).absolute()}.")
    try:
        return h5py.File(path, mode, rdcc_nbytes=_CHUNK_CACHE)
    except OSError as error:
        detail = " ".join(str(error).split())
        raise DataError(
            f"The file {path} cannot be opened as HDF5 ({detail}). If it was downloaded, the "
            "download may be incomplete: fetch it again from its origin."
        ) from error


def repack_h5(source: str | Path, target: str | Path, key: str = "images") -> None:
    """Write an HDF5 file anew with one image a chunk, so that it can be read at random.

    Other data sets on the file's top level are copied as they are. Memory holds one row of the
    old chunks and what HDF5 needs for it, some 400 MB for chunks across 15,000 images of 64 by 64
    colour pixels.

    Args:
        source: the file.
        target: the new file, written completely or not at all.
        key: name of the images in it.

    Raises:
        DataError: as `H5Store` does; a target that exists or cannot be written.
    """
    store = H5Store(source, key)
    old, file = store._open(), open_h5(source)
    rows = max(old.chunks[0] if old.chunks else 0, 1024)
    with file, H5Writer(target) as new:
        for name, item in file.items():
            if name != key:
                file.copy(item, new, name=name)
        for name, value in file.attrs.items():
            new.attrs[name] = value
        images = create_images(new, old.shape, key)
        block = np.empty((min(rows, len(old)), *old.shape[1:]), np.uint8)
        for begin in range(0, len(old), rows):
            count = min(rows, len(old) - begin)
            old.read_direct(block, np.s_[begin : begin + count], np.s_[:count])
            images[begin : begin + count] = block[:count]
    store.close()


def create_images(file: Any, shape: tuple[int, ...], key: str = "images") -> Any:
    """A data set for images in an open HDF5 file, gzipped, one image a chunk.

    Level 1 takes half the time of level 4 and saves all but 3 % of what that saves.
    """
    return file.create_dataset(
        key, shape, np.uint8, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
    )


class H5Writer:
    """A new HDF5 file that appears under its name only when it is complete.

    Raises:
        DataError: the file exists already or its folder cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._file: Any = None

    def __enter__(self) -> Any:
        if self.path.exists():
            raise DataError(f"The file {self.path} exists. Remove it, or choose another name.")
        if not os.access(self.path.absolute().parent, os.W_OK):
            raise DataError(f"The folder {self.path.absolute().parent} cannot be written.")
        self._file = open_h5(self._part, "w")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)


def channels_last(shape: tuple[int, ...], layout: str, what: str) -> bool:
    """Whether the last dimension holds the channels, after checking the shape of images.

    Raises:
        DataError: an unknown layout, a shape that is not of images, or one that could be both.
    """
    if layout not in ("auto", "nhwc", "nchw"):
        raise DataError(f"layout must be 'auto', 'nhwc' or 'nchw', but it is {layout!r}.")
    last = len(shape) == 4 and shape[-1] in _CHANNELS
    first = len(shape) == 4 and shape[1] in _CHANNELS
    if layout == "auto" and first and last:
        raise DataError(
            f"{what}: the shape {tuple(shape)} may be (N, H, W, C) or (N, C, H, W). Say which by "
            "layout 'nhwc' or 'nchw'."
        )
    found = (last and layout != "nchw") or (first and layout != "nhwc")
    if not found or 0 in shape:
        raise DataError(
            f"{what} must be of shape (N, H, W, C) or (N, C, H, W), layout {layout!r}, with 1, 3 "
            f"or 4 channels and none of them empty, but the shape is {tuple(shape)}."
        )
    return last and layout != "nchw"


def _image_shape(shape: tuple[int, ...], last: bool) -> tuple[int, int, int]:
    height, width, channels = shape[1:] if last else (*shape[2:], shape[1])
    return (channels, height, width)


def _check_bytes(dtype: np.dtype[Any], what: str | Path) -> None:
    if dtype != np.uint8:
        raise DataError(f"{what}: images must be uint8 (0..255), but they are {dtype}.")


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    detail = " ".join(str(error).split())
    return DataError(f"{path} cannot be read as {what} ({detail}). Copy it again from its origin.")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _npz_array(path: Path, key: str | None) -> Tensor:
    if not path.is_file():
        raise DataError(f"There is no file {path.absolute()}.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an archive as `numpy.savez` writes it, or is truncated.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            known = list(archive)
            if key is None:
                key = known[0] if len(known) == 1 else "images"
            if key not in known:
                raise DataError(
                    f"The file {path} has no array {key!r}. It has: {', '.join(known) or 'none'}. "
                    "Name the right one with key."
                )
            array = archive[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, "an archive of arrays", error) from error
    _check_bytes(array.dtype, path)
    return torch.from_numpy(array)


def _picture_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder.absolute()}.")
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if os.path.splitext(e.name)[1].lower() in _PICTURES]
    if not names:
        raise DataError(
            f"The folder {folder.absolute()} holds no pictures ({', '.join(_PICTURES)}). Give the "
            "folder that holds the files themselves, not one above it."
        )
    stems = [os.path.splitext(name)[0] for name in names]
    if all(stem.isdecimal() for stem in stems):
        numbers = np.array([int(stem) for stem in stems])
        order = numbers.argsort(kind="stable")
        wrong = np.flatnonzero(np.diff(numbers[order]) != 1)
        if len(wrong):
            before = int(order[wrong[0]])
            raise DataError(
                f"The pictures in {folder.absolute()} are numbered, but after {names[before]} "
                f"comes {names[int(order[wrong[0] + 1])]}. Copy what is missing, or remove what "
                "is twice."
            )
        return tuple(names[i] for i in order.tolist())
    return tuple(sorted(names, key=_natural))


@contextlib.contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            if picture.mode not in _EIGHT_BIT:
                raise DataError(
                    f"The picture {path} is of PIL's mode {picture.mode!r}, not 8 bits per "
                    "channel. Save it with 8 bits."
                )
            yield picture
    except FileNotFoundError as error:
        raise DataError(f"The picture {path} has been removed.") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(
            f"The picture {path} cannot be read ({error}). Copy it again from its origin."
        ) from error


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
