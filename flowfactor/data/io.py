"""Read images from arrays, ``.npy``, ``.npz`` and HDF5 files and folders of pictures.

Files are opened when they are first read, once in each process, so that whatever holds one can be
pickled and sent to the workers of a data loader, and no more of a file is in memory than was asked
for (compressed ``.npz`` archives excepted). What a file announces is compared with
what it holds, and bounded, before anything is allocated.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import logging
import math
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from flowfactor.data.checks import check_choice
from flowfactor.errors import DataError, FlowFactorError
from flowfactor.extras import import_extra
from flowfactor.options import shorten

Array = npt.NDArray[Any]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".webp")
ANIMATED = (".gif", ".webp", ".png", ".apng")
UNREAD = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
    *(".flv", ".3gp", ".mts", ".m2ts", ".mxf"),
)
"""Ends of pictures and videos of cameras that have to be converted first."""
HDF5 = (".h5", ".hdf5")
ZARR = ".zarr"
BESIDE = ("labels", "groups", "times")
"""Arrays that a file may have beside its frames."""
METADATA = "metadata.csv"
"""In a folder, the file that lists what it holds: a column ``file_name``, and others."""
LAYOUTS = ("auto", "nhwc", "nchw")

MAX_PIXELS = 1 << 26
"""How many pixels a picture or a frame of a video may have; a picture of 8192 by 8192 has them."""

# What PIL may read; others of its formats run programs, or are none of those in PICTURES.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "PPM", "WEBP")
# Modes in which a picture is grey; those of 16 bits are reduced to 8.
_GREY = ("1", "L", "LA", "La")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_ORIENTATION = 0x0112
# No compression of images gains as much; DEFLATE cannot gain more than 1032.
_MAX_RATIO_HELD, _MAX_RATIO = 200, 1100
# Below this many bytes nobody needs protection.
_HARMLESS = 1 << 28
# An HDF5 file is read by whole chunks.
_MAX_CHUNK = 1 << 30
_MAX_JSON = 1 << 26
# Bytes of a file that are converted at a time, and that still images may take in memory.
_BLOCK = 1 << 26
_HELD = 1 << 30
# HDF5 keeps the chunks it has unpacked up to this size; its own default is the size of four.
_CHUNK_CACHE = 64 * 2**20
# A chunk of more images than this makes one image cost the unpacking of all of them.
_MANY_IMAGES = 64

_log = logging.getLogger(__name__)


# ---- what all readers share


def local_path(path: str | Path) -> Path:
    """Return a path in which ``~`` is the user's home."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong when a stranger's file is read into a :class:`DataError` that names it.

    Readers of damaged files raise nearly everything, so that all exceptions are taken.
    """
    try:
        yield
    except FlowFactorError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no file or folder {path.absolute()}.") from error
    except MemoryError as error:
        raise DataError(f"{path} needs more memory than there is.") from error
    except Exception as error:
        detail = shorten(" ".join(str(error).split()) or type(error).__name__, 300)
        if isinstance(error, BlockingIOError) or "unable to lock file" in detail:
            raise DataError(
                f"{path} is locked: another program is writing it. Wait until it is finished, or "
                "set HDF5_USE_FILE_LOCKING=FALSE if its file system has no locks."
            ) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read: {error.strerror or detail}.") from error
        raise DataError(f"{path} cannot be read ({detail}). Repair or remove it.") from error


def check_unpacked(path: Path, unpacked: int, packed: int, *, held: bool) -> None:
    """Refuse what announces much more than it can hold.

    Args:
        path: the file.
        unpacked: how many bytes it announces.
        packed: how many it has.
        held: whether they will be in memory all at once.

    Raises:
        DataError: it is more than any images, or than the memory that is free.
    """
    ratio = _MAX_RATIO_HELD if held else _MAX_RATIO
    if unpacked > _HARMLESS and unpacked > ratio * max(packed, 1):
        raise DataError(
            f"{path} announces {unpacked / 1e9:,.3g} GB, but holds {packed / 1e9:.3g} GB. It is "
            "damaged, or made to fill the memory."
        )
    if held and unpacked > _HARMLESS and unpacked > (free := _free_memory()):
        raise DataError(
            f"{path} takes {unpacked / 1e9:,.3g} GB of memory, but only {free / 1e9:.3g} GB are "
            "free. Save it as .npy or HDF5, which are read as needed."
        )


def _free_memory() -> float:
    """Return the bytes of memory that can still be taken, infinity where nobody says."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return math.inf
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return math.inf if found is None else 1024.0 * int(found[1])


def read_text(path: Path, limit: int = _MAX_JSON) -> str:
    """Return a text in UTF-8, with or without a byte order mark, of bounded length.

    Raises:
        DataError: it cannot be read, or is longer.
    """
    with reading(path), path.open("rb") as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            raise DataError(f"{path} is too large: it may have {limit:,} bytes.")
        return content.decode("utf-8-sig")


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts as people count: ``frame9`` before ``frame10``.

    Example:
        >>> sorted(["frame10", "frame9", "Frame1"], key=natural_key)
        ['Frame1', 'frame9', 'frame10']
    """
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts]


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the visible files of a folder that end in one of the suffixes, in natural order.

    Raises:
        DataError: the folder cannot be read, or holds a picture or video of a kind that is not
            read, and no other file of its name.
    """
    with reading(folder), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "."]
    kinds = {name: os.path.splitext(name)[1].lower() for name in names}
    read = {os.path.splitext(name)[0] for name in names if kinds[name] not in UNREAD}
    for name in sorted(names):
        if kinds[name] in UNREAD and os.path.splitext(name)[0] not in read:
            raise DataError(
                f"{folder / name} is of a kind that is not read. Convert it, for instance to PNG "
                "or MP4, or move it away."
            )
    listed = (name for name in names if kinds[name] in suffixes)
    return [folder / name for name in sorted(listed, key=natural_key)]


def find_pictures(folder: Path) -> tuple[list[Path], list[str] | None]:
    """Return the pictures of a folder, and their classes if it says any.

    Either those that its ``metadata.csv`` lists, with the column ``label``; or those in it, in
    natural order; or those in the folders in it, which are named after classes.

    Raises:
        DataError: there are none.
    """
    if (folder / METADATA).is_file():
        rows = read_metadata(folder / METADATA)
        labels = [row["label"] for row in rows] if "label" in rows[0] else None
        return [folder / row["file_name"] for row in rows], labels
    if pictures := list_files(folder, PICTURES):
        return pictures, None
    with reading(folder):
        inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    found = [
        (path, each.name)
        for each in sorted(inside, key=lambda path: natural_key(path.name))
        for path in list_files(each, PICTURES)
    ]
    if not found:
        raise DataError(
            f"The folder {folder.absolute()} holds no pictures ({', '.join(PICTURES)})."
        )
    return [path for path, _ in found], [name for _, name in found]


def read_classes(path: str | Path) -> Int[Tensor, "n"] | None:
    """Return the classes of a folder's pictures, numbered in natural order, None if it says none.

    Raises:
        DataError: the folder cannot be read.
    """
    folder = local_path(path)
    names = find_pictures(folder)[1] if folder.is_dir() and folder.suffix != ZARR else None
    if names is None:
        return None
    known = sorted(set(names), key=natural_key)
    return torch.tensor([known.index(name) for name in names])


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture, upright as its EXIF orientation says.

    Raises:
        DataError: it cannot be read, is animated or too large, or has other numbers of bits.
    """
    with open_film_picture(path) as picture:
        # A photo may hold further ones, such as its preview.
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            raise DataError(
                f"{path} holds several pictures, where one is expected. A GIF, WebP or PNG can be "
                "read as a recording; save others as a folder of pictures, or as a video."
            )
        if picture.mode not in (*_GREY, *_SIXTEEN_BIT, *_COLOUR):
            raise DataError(
                f"{path} is of PIL's mode {picture.mode!r}, not 8 or 16 bits per channel. Save "
                "it with 8 bits."
            )
        orientation = 1
        with contextlib.suppress(Exception):  # viewers show pictures with damaged EXIF data
            orientation = picture.getexif().get(_ORIENTATION, 1)
        yield picture if orientation == 1 else ImageOps.exif_transpose(picture)


@contextlib.contextmanager
def open_film_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture with one frame or several.

    Raises:
        DataError: it cannot be read, or is too large.
    """
    with reading(path), Image.open(path, formats=_FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise DataError(
                f"{path} has {picture.width} x {picture.height} pixels; it may have {MAX_PIXELS:,}."
            )
        yield picture


def picture_channels(picture: Image.Image) -> int:
    """Return 1 for a grey picture and 3 for one in colour."""
    return 1 if picture.mode in (*_GREY, *_SIXTEEN_BIT) else 3


def picture_pixels(
    picture: Image.Image, channels: int, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of a picture, averaged down to a height and width if given.

    16 bits become 8, and what is transparent becomes black.
    """
    mode = "L" if channels == 1 else "RGB"
    if picture.mode in _SIXTEEN_BIT:
        picture = Image.fromarray(reduce_bits(np.asarray(picture)))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture)
    picture = picture.convert(mode)
    if size is not None and size != (picture.height, picture.width):
        picture = picture.resize(size[::-1], Image.Resampling.BOX)
    pixels = np.array(picture, dtype=np.uint8)
    return pixels.reshape(picture.height, picture.width, channels)


def reduce_bits(values: Array) -> UInt8[np.ndarray, "*shape"]:
    """Return 16-bit values 0..65535 as the nearest of 0..255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def read_metadata(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``metadata.csv`` by column, at least one.

    Raises:
        DataError: it cannot be read, is empty, or lacks a column ``file_name`` or a value of it.
    """
    text = read_text(path)
    with reading(path):
        rows = list(csv.DictReader(io.StringIO(text, newline=None)))
    if not rows or not all(row.get("file_name") for row in rows):
        raise DataError(f"{path} must have a column file_name, and a file on each line below.")
    return rows


# ---- arrays


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where an array of images has its channels.

    Attributes:
        image_shape: channels, height and width.
        channels: their place, ``none``, ``first`` or ``last``.
        where: the array, for messages.
    """

    image_shape: tuple[int, int, int]
    channels: str
    where: str

    @classmethod
    def of(cls, array: ArrayFile | Array | Tensor, leading: int, layout: str = "auto") -> Layout:
        """Return the layout of an array of images.

        Args:
            array: with ``shape`` and ``dtype``.
            leading: how many dimensions come before those of an image.
            layout: ``nhwc`` or ``nchw`` where the shape does not tell, else ``auto``.

        Raises:
            DataError: no array of images has this shape or type, or the shape is ambiguous.
        """
        where = array.where if isinstance(array, ArrayFile) else "the array"
        check_choice("layout", layout, LAYOUTS)
        kind = str(array.dtype).removeprefix("torch.")
        if kind not in ("uint8", "uint16") and not kind.startswith(("float", "bfloat")):
            raise DataError(
                "Images must be uint8 (0..255), uint16 (0..65535) or floating point in [0, 1], but "
                f"{where} is of type {kind}."
            )
        sides = [int(size) for size in array.shape[leading:]]
        if leading == 2 and len(sides) == 2 and sides[1] in (1, 3):
            raise DataError(
                f"{where} of shape {tuple(array.shape)} would be films whose pictures are "
                f"{sides[1]} pixels wide. A film in colour has the shape (1, F, H, W, C): "
                f"frames[None]."
            )
        if 0 not in array.shape and len(sides) == 2 and layout == "auto":
            return cls((1, sides[0], sides[1]), "none", where)
        first = last = False
        # A side of 1 or 3 holds channels rather than one of 4, which small images have.
        for channels in ((1, 3), (4,)):
            if len(sides) == 3 and first == last:
                first = sides[0] in channels and layout != "nhwc"
                last = sides[2] in channels and layout != "nchw"
        if 0 in array.shape or first == last:
            raise DataError(
                f"layout: {where} of shape {tuple(array.shape)} is not unambiguously (..., H, W), "
                f"(..., H, W, C) or (..., C, H, W) with 1, 3 or 4 channels."
            )
        if first:
            return cls((sides[0], sides[1], sides[2]), "first", where)
        return cls((sides[2], sides[0], sides[1]), "last", where)

    def to_bytes(self, array: Array, first: int = 0) -> UInt8[Tensor, "n c h w"]:
        """Return images of this layout as bytes, channels first, as a copy.

        Args:
            array: with one dimension before those of an image.
            first: number of the first one, for messages.

        Raises:
            DataError: floating point numbers that are not in [0, 1].
        """
        if array.dtype == np.uint16:
            array = reduce_bits(array)
        elif array.dtype != np.uint8:
            # NaN compares false with everything, so that "not inside" finds it too.
            bad = ~((array >= 0) & (array <= 1))
            if bad.any():
                image, *place = np.argwhere(bad)[0].tolist()
                raise DataError(
                    f"Floating point images must be finite and in [0, 1], but {int(bad.sum())} "
                    f"values in {self.where} are not: the first is {array[(image, *place)]:g} in "
                    f"image {first + image}, and they lie between {np.nanmin(array):g} and "
                    f"{np.nanmax(array):g}. Divide values of 0..255 by 255."
                )
            array = np.rint(array * 255.0).astype(np.uint8)
        pixels = torch.from_numpy(np.array(array, order="C"))
        if self.channels == "none":
            return rearrange(pixels, "n h w -> n 1 h w")
        if self.channels == "last":
            return rearrange(pixels, "n h w c -> n c h w").contiguous()
        return pixels


class ArrayFile:
    """An array in a ``.npy``, ``.npz``, HDF5 or zarr file, which gives any of its rows.

    Arrays in compressed ``.npz`` archives are unpacked into memory, all others stay in their file.

    Args:
        path: the file; HDF5 unless its name ends in ``.npy``, ``.npz`` or ``.zarr``.
        key: name of the array in the file.
        usual: name of the array if ``key`` is None; else the only one beside ``labels`` is taken.

    Attributes:
        shape, dtype: of the array.
        chunks: shape of the chunks of an HDF5 file that has them.
        where: the file, for messages.

    Raises:
        DataError: a file that is missing or damaged, or has no such array.
        MissingExtraError: ``h5py`` or ``zarr`` is not installed.
    """

    def __init__(self, path: Path, key: str | None = None, usual: str = "images") -> None:
        self.path, self.key, self.usual = path, key, usual
        self.where = str(path)
        self._handle: tuple[int, Any, Any] | None = None
        array = self._open()
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.chunks: tuple[int, ...] | None = getattr(array, "chunks", None)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        with reading(self.path):
            return np.asarray(self._open()[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def read_beside(self, name: str, count: int) -> list[Any] | None:
        """Return the values of another array, one for each recording, None if there is none."""
        array = self.array_beside(name, (count,))
        if array is None:
            return None
        with reading(self.path):
            values = to_list(array)
        return [value.decode() if isinstance(value, bytes) else value for value in values]

    def array_beside(self, name: str, *shapes: tuple[int, ...]) -> Array | None:
        """Return another array of one of some shapes, None if there is none."""
        with reading(self.path), self._container() as file:
            if file is None or hasattr(file, "dtype") or name not in file:
                return None
            array = _member(file, name, self.path)
            if array.shape not in shapes:
                raise DataError(
                    f"{name}: {self.path} has {name} of shape {tuple(array.shape)}, where "
                    f"{' or '.join(map(str, shapes))} fits the frames."
                )
            return np.asarray(array[()])

    @property
    def is_held(self) -> bool:
        """Whether the whole array is in memory."""
        array = self._open()
        return isinstance(array, np.ndarray) and not isinstance(array, np.memmap)

    def close(self) -> None:
        """Close the file; it opens again when it is next read."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def _open(self) -> Any:
        # A forked process must not share the position of its parent's file.
        if self._handle is None or self._handle[0] != os.getpid():
            stack = contextlib.ExitStack()
            with reading(self.path):
                if self.path.suffix == ".npy":
                    array = map_npy(self.path)
                else:
                    file = stack.enter_context(self._container())
                    # A zarr file may be an array itself.
                    lone = hasattr(file, "dtype")
                    array = file if lone else _member(file, self._find(file), self.path)
            if self.path.suffix == ".npz":
                stack.close()
            self._handle = (os.getpid(), stack, array)
        return self._handle[2]

    def _container(self) -> Any:
        """Return what holds several arrays by name, as a context manager."""
        if self.path.suffix == ".npy":
            return contextlib.nullcontext()
        if self.path.suffix == ".npz":
            if self.path.is_file() and not zipfile.is_zipfile(self.path):
                raise DataError(f"{self.path} cannot be read: it is no archive, or truncated.")
            return np.load(self.path, allow_pickle=False)
        if self.path.suffix == ZARR:
            if not self.path.exists():
                raise FileNotFoundError
            return contextlib.nullcontext(import_extra("zarr", "zarr").open(self.path, mode="r"))
        named = self.path.suffix.lower() in HDF5 or not self.path.is_file()
        if not named and not import_extra("h5py", "data").is_hdf5(self.path):
            raise DataError(
                f"{self.path} holds no arrays. Give a folder of pictures, or a file such as .npy, "
                f".npz, .h5 or .zarr."
            )
        return open_h5(self.path)

    def _find(self, file: Any) -> str:
        # Looking at an array of an archive would read it.
        archive = self.path.suffix == ".npz"
        known = [name for name in file if archive or _is_dataset(file, name)]
        others = [name for name in known if name not in BESIDE]
        key = self.key or (others[0] if len(others) == 1 else self.usual)
        if key not in known:
            listed = shorten(", ".join(known), 400)
            raise DataError(f"key: {self.path} has no array {key!r}; it has {listed or 'none'}.")
        return key


def map_npy(path: Path) -> Array:
    """Return the array in a ``.npy`` file, read from there as it is used.

    Raises:
        DataError: it cannot be read, or announces more than it holds.
    """
    with reading(path):
        # Arrays of objects would execute code when they are read.
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def to_list(array: Array) -> list[Any]:
    """Return the values of an array in a list.

    Raises:
        ValueError: texts in it hold what is no character.
    """
    if array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        if codes.dtype.itemsize and int(codes.view(np.uint32).max()) > 0x10FFFF:
            raise ValueError("texts hold what is no character")
    values: list[Any] = np.atleast_1d(array).tolist()
    return values


def _is_dataset(file: Any, name: str) -> bool:
    """Return whether an HDF5 or zarr file holds an array itself, not by a link to another file."""
    if not hasattr(file, "filename"):
        return hasattr(file[name], "dtype")
    link = file.get(name, getlink=True)
    return not hasattr(link, "filename") and hasattr(file.get(name), "dtype")


def _member(file: Any, name: str, path: Path) -> Any:
    """Return an array of an archive or HDF5 file whose size is that of what is stored."""
    if isinstance(file, np.lib.npyio.NpzFile):
        members = {info.filename: info for info in file.zip.infolist()}  # type: ignore[union-attr]
        info = members.get(f"{name}.npy") or members[name]
        with file.zip.open(info) as member:  # type: ignore[union-attr]
            version = np.lib.format.read_magic(member)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read(member)
            announced = math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and announced != info.file_size - member.tell():
                raise ValueError(f"{name} announces an array of shape {shape}, but holds another")
        if info.compress_type == zipfile.ZIP_STORED and announced and not dtype.hasobject:
            return _map_member(path, info)
        check_unpacked(path, announced, info.compress_size, held=True)
        return file[name]
    array = file[name]
    if not hasattr(array, "external"):  # of zarr, where missing chunks are read as zeros
        stored = _folder_size(path)
        check_unpacked(path, array.nbytes, stored, held=False)
    elif array.external or array.is_virtual or array.file.filename != file.filename:
        raise DataError(f"{path}: {name} takes its values from other files, which are not read.")
    else:
        check_unpacked(path, array.nbytes, array.id.get_storage_size(), held=False)
    chunk = math.prod(array.chunks or (0,)) * array.dtype.itemsize
    if chunk > _MAX_CHUNK:
        raise DataError(
            f"{path}: {name} is stored in chunks of {chunk / 1e9:.3g} GB, which are only read as a "
            "whole. Write it with smaller ones."
        )
    return array


def _map_member(path: Path, info: zipfile.ZipInfo) -> Array:
    """Return an array of an archive that is not compressed, read from there as it is used."""
    with path.open("rb") as file:
        # Name and further fields of the header before the array may differ from those in the index.
        file.seek(info.header_offset)
        header = file.read(30)
        lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        file.seek(info.header_offset + len(header) + sum(lengths))
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        order = "F" if fortran else "C"
        begin = file.tell()
    mapped: Array = np.memmap(path, dtype, "r", begin, shape, order)  # type: ignore[call-overload]
    return mapped


def _folder_size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def open_h5(path: Path, mode: str = "r") -> Any:
    """Return an open HDF5 file.

    Raises:
        DataError: the file is missing, truncated or not HDF5.
        MissingExtraError: ``h5py`` is not installed.
    """
    h5py = import_extra("h5py", "data")
    with reading(path):
        return h5py.File(path, mode, rdcc_nbytes=_CHUNK_CACHE)


def read_images(source: Tensor | Array | str | Path) -> UInt8[Tensor, "n c h w"]:
    """Return still images as bytes in memory.

    Args:
        source: an array or tensor of ``uint8`` or floating point in [0, 1], ``(N, H, W)``,
            ``(N, C, H, W)`` or ``(N, H, W, C)``; the path of a ``.npy``, ``.npz`` or HDF5 file with
            one; or a folder of pictures of one size.

    Raises:
        DataError: something that cannot be read or has another type, shape or value.
    """
    if not isinstance(source, str | Path):
        return _held(source, "auto")
    path = local_path(source)
    if path.is_dir() and path.suffix != ZARR:
        folder = FolderStore(path)
        pixels = torch.from_numpy(folder.rows(np.arange(len(folder))))
        return rearrange(pixels, "n h w c -> n c h w").contiguous()
    return _read_held(ArrayFile(path), "auto")


def open_stills(source: Tensor | Array | str | Path) -> ImageStore:
    """Return still images in memory, or where they are if they would take more than 1 GiB.

    Args:
        source: see :func:`read_images`.

    Raises:
        DataError: something that cannot be read or has another type, shape or value.
    """
    store = open_store(source)
    if isinstance(store, TensorStore) or len(store) * math.prod(store.image_shape) > _HELD:
        return store
    return TensorStore(read_images(source))


def _read_held(file: ArrayFile, layout: str) -> UInt8[Tensor, "n c h w"]:
    """Return the images of a file as bytes, converted some at a time."""
    found = Layout.of(file, 1, layout)
    images = torch.empty((len(file), *found.image_shape), dtype=torch.uint8)
    count = max(1, _BLOCK // max(1, math.prod(file.shape[1:]) * file.dtype.itemsize))
    for begin in range(0, len(file), count):
        images[begin : begin + count] = found.to_bytes(file[begin : begin + count], begin)
    return images


def _held(images: Tensor | Array, layout: str) -> UInt8[Tensor, "n c h w"]:
    """Return images in memory as bytes on the device where they are."""
    if not isinstance(images, Tensor):
        images = np.asarray(images)
        return Layout.of(images, 1, layout).to_bytes(images)
    found = Layout.of(images, 1, layout)
    if found.channels == "first" and images.dtype == torch.uint8:
        return images.contiguous()
    return found.to_bytes(images.detach().cpu().numpy()).to(images.device)


# ---- images by their number, most of which stay in their file


@runtime_checkable
class ImageStore(Protocol):
    """Images of one size that are known by their numbers ``0..N-1``.

    Attributes:
        image_shape: channels, height and width.
        where: where the images are, for messages.
    """

    image_shape: tuple[int, int, int]
    where: str

    def __len__(self) -> int: ...

    def read(self, numbers: Int[Tensor, "n"]) -> Float[Tensor, "n c h w"]:
        """Return images, in [0, 1], on the device of ``numbers``, which are not checked."""

    def to(self, device: torch.device | str) -> ImageStore:
        """Return the same store, holding what it holds in memory on another device."""


class TensorStore:
    """Images in memory, as bytes."""

    where = "in memory"

    def __init__(self, images: UInt8[Tensor, "n c h w"]) -> None:
        self.images = images
        channels, height, width = images.shape[1:]
        self.image_shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, numbers: Int[Tensor, "n"]) -> Float[Tensor, "n c h w"]:
        """Return images; see :class:`ImageStore`."""
        return self.images[numbers].float().div_(255)

    def to(self, device: torch.device | str) -> TensorStore:
        """Return the same images on another device."""
        return TensorStore(self.images.to(device))


class FileStore(ABC):
    """Images outside of memory: each batch reads the images that it needs, each of them once."""

    image_shape: tuple[int, int, int]
    where: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, numbers: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Return images of increasing numbers, no two equal."""

    def read(self, numbers: Int[Tensor, "n"]) -> Float[Tensor, "n c h w"]:
        """Return images; see :class:`ImageStore`."""
        # Files are read forwards, and pixels travel to the device as bytes.
        distinct, place = np.unique(numbers.cpu().numpy(), return_inverse=True)
        rows, order = torch.from_numpy(self.rows(distinct)), torch.from_numpy(place)
        if numbers.is_cuda:  # which then copies while the next ones are read
            rows = rows.pin_memory()
        images = rows.to(numbers.device, non_blocking=numbers.is_cuda)[order.to(numbers.device)]
        return rearrange(images, "n h w c -> n c h w").contiguous().float().div_(255)

    def sample(self) -> UInt8[np.ndarray, "n h w c"]:
        """Return the first, the middle and the last image."""
        return self.rows(np.unique([0, len(self) // 2, len(self) - 1]))

    def to(self, device: torch.device | str) -> FileStore:
        """Return this store, which holds nothing in memory."""
        return self


class ArrayStore(FileStore):
    """Images in a ``.npy`` or HDF5 file.

    Rows are read one by one, or as a slice where they follow each other: on gzipped chunks of one
    image that gives some 10,000 images a second, twenty times as many as a selection by a list of
    numbers. HDF5 files whose chunks hold pieces of very many images, as ``h5py`` cuts them if it is
    not told otherwise, cannot be read at random at any useful speed; ``chunks_are_long`` tells, and
    :func:`repack_h5` writes them anew.
    """

    def __init__(self, file: ArrayFile, layout: str = "auto") -> None:
        self.file = file
        self.where = file.where
        self.layout = Layout.of(file, 1, layout)
        self.image_shape = self.layout.image_shape
        self.chunks_are_long = file.chunks is not None and file.chunks[0] > _MANY_IMAGES

    def __len__(self) -> int:
        return len(self.file)

    def rows(self, numbers: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Return images of increasing numbers."""
        rows = np.empty((len(numbers), *self.file.shape[1:]), self.file.dtype)
        ends = [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for begin, end in zip([0, *ends], ends, strict=False):
            rows[begin:end] = self.file[int(numbers[begin]) : int(numbers[end - 1]) + 1]
        if rows.dtype == np.uint8 and self.layout.channels == "last":
            return rows
        return self.layout.to_bytes(rows).permute(0, 2, 3, 1).numpy()


class FolderStore(FileStore):
    """A folder of pictures, numbered in the natural order of their names (``2.png``, ``10.png``).

    Args:
        folder: see :func:`find_pictures`.
        size: height and width to which a picture is reduced when it is read, averaging over the
            pixels that fall into one; its own by default.

    Raises:
        DataError: no such folder, no pictures in it, names that are numbers but leave some out;
            when reading, a picture of another size or mode, or a damaged one.
    """

    def __init__(self, folder: Path, size: int | tuple[int, int] | None = None) -> None:
        self.where = str(folder)
        self.paths, classes = find_pictures(folder)
        if classes is None and all(path.stem.isdecimal() for path in self.paths):
            numbers = np.array([int(path.stem) for path in self.paths])
            for gap in np.flatnonzero(np.diff(numbers) != 1).tolist():
                raise DataError(
                    f"The pictures in {folder} are numbered, but {self.paths[gap].name} is "
                    f"followed by {self.paths[gap + 1].name}."
                )
        with open_picture(self.paths[0]) as first:
            self._original = (first.height, first.width)
            channels = picture_channels(first)
        self._size = (size, size) if isinstance(size, int) else size or self._original
        if not all(1 <= side <= own for side, own in zip(self._size, self._original, strict=True)):
            raise DataError(
                f"size must be at least 1 and at most that of the pictures in {folder}."
            )
        self.image_shape = (channels, *self._size)

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, numbers: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Return images of increasing numbers."""
        # Unpacking a picture lets other threads run.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return np.stack(list(pool.map(self._pixels, numbers.tolist())))

    def _pixels(self, number: int) -> Array:
        path = self.paths[number]
        with open_picture(path) as picture:
            size = (picture.height, picture.width)
            if size != self._original:
                raise DataError(
                    f"All pictures must have one size, but {path} has {size} (height, width) and "
                    f"{self.paths[0].name} has {self._original}."
                )
            return picture_pixels(picture, self.image_shape[0], self._size)


def open_store(
    images: Tensor | Array | str | Path,
    key: str | None = None,
    layout: str = "auto",
    size: int | tuple[int, int] | None = None,
) -> ImageStore:
    """Return the store for a tensor, an array, a file or a folder.

    Args:
        images: a tensor or array; a file with one, which is read lazily unless it is a compressed
            ``.npz`` archive; a folder of pictures.
        key: which array of an archive or HDF5 file, by default ``images`` or the only one.
        layout: ``nhwc`` or ``nchw``, where the shape does not tell.
        size: height and width to which pictures of a folder are reduced.

    Raises:
        DataError: something that cannot be read or has another type or shape.
    """
    path = local_path(images) if isinstance(images, str | Path) else None
    if path is not None and path.is_dir() and path.suffix != ZARR:
        store: FileStore = FolderStore(path, size)
        warn_range(store.sample(), store.where)
        return store
    if size is not None:
        raise DataError("size is for folders of pictures, which are reduced as they are read.")
    if path is None:
        assert not isinstance(images, str | Path)
        held = _held(images, layout)
        warn_range(held, "the array")
        return TensorStore(held)
    file = ArrayFile(path, key)
    if file.is_held:
        held = _read_held(file, layout)
        warn_range(held, file.where)
        return TensorStore(held)
    store = ArrayStore(file, layout)
    warn_range(store.sample(), store.where)
    return store


def warn_range(pixels: Tensor | Array, where: str) -> None:
    """Log a warning if pixels can hardly be meant: all equal, or only 0 and 1 of 0..255.

    Args:
        pixels: bytes, some of all images or all of them.
        where: the images, for the message.
    """
    low, high = int(pixels.min()), int(pixels.max())
    if low == high:
        _log.warning("All pixels of %s that were looked at are %d (of 0..255).", where, low)
    elif high <= 1:
        _log.warning(
            "The pixels of %s are %d and %d, of 0..255: nearly black. Multiply by 255 what is "
            "black or white.",
            where,
            low,
            high,
        )


# ---- HDF5 files that read fast at random


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
        DataError: a source that cannot be read; a target that exists or cannot be written.
    """
    source = local_path(source)
    with reading(source), open_h5(source) as file, writing_h5(target) as new:
        for name, item in file.items():
            if name != key:
                file.copy(item, new, name=name)
        for name, value in file.attrs.items():
            new.attrs[name] = value
        old = file[key]
        images = create_images(new, old.shape, key)
        rows = max(old.chunks[0] if old.chunks else 0, 1024)
        block = np.empty((min(rows, len(old)), *old.shape[1:]), np.uint8)
        for begin in range(0, len(old), rows):
            count = min(rows, len(old) - begin)
            old.read_direct(block, np.s_[begin : begin + count], np.s_[:count])
            images[begin : begin + count] = block[:count]


def create_images(file: Any, shape: tuple[int, ...], key: str = "images") -> Any:
    """Return a new data set for images in an open HDF5 file, gzipped, one image a chunk.

    Level 1 takes half the time of level 4 and saves all but 3 % of what that saves.
    """
    return file.create_dataset(
        key, shape, np.uint8, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
    )


@contextlib.contextmanager
def writing_h5(path: str | Path) -> Iterator[Any]:
    """Open a new HDF5 file that appears under its name only when it is complete.

    Raises:
        DataError: the file exists already, or its folder cannot be written.
    """
    path = local_path(path)
    if path.exists():
        raise DataError(f"The file {path} exists. Remove it, or choose another name.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise DataError(f"The folder {path.absolute().parent} cannot be written.")
    with replacing(path) as part, open_h5(part, "w") as file:
        yield file


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of another one once that is complete.

    No other process ever meets half a file.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
