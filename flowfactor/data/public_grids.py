"""Grids that others publish: dSprites, MPI3D, and objects that fulfil a protocol."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from flowfactor.data.factor_grid import FactorGrid, GridOptions
from flowfactor.data.io import FileStore, Layout, check_unpacked, local_path, reading
from flowfactor.data.options import Name, Side
from flowfactor.data.transformations import Transformation
from flowfactor.errors import DataError
from flowfactor.options import options
from flowfactor.registries import DATA

DSPRITES_FACTORS: Mapping[str, int] = {
    "color": 1,
    "shape": 3,
    "scale": 6,
    "orientation": 40,
    "pos_x": 32,
    "pos_y": 32,
}
"""White sprites on black: 737,280 images of 64 by 64 pixels (Matthey et al., 2017). The first and
the last orientation are the same."""

MPI3D_FACTORS: Mapping[str, int] = {
    "object_color": 6,
    "object_shape": 6,
    "object_size": 2,
    "camera_height": 3,
    "background_color": 3,
    "horizontal_axis": 40,
    "vertical_axis": 40,
}
"""An object on a robot arm: 1,036,800 images of 64 by 64 colour pixels (Gondal et al., 2019)."""

DSPRITES_TRANSFORMATIONS: Mapping[str, Transformation] = {
    "scale": Transformation("scale"),
    "orientation": Transformation("orientation", step=2),
    "pos_x": Transformation("pos_x", step=2),
    "pos_y": Transformation("pos_y", step=2),
}
"""What moves in dSprites by default; six scales leave room for frames 0..5."""

MPI3D_TRANSFORMATIONS: Mapping[str, Transformation] = {
    "horizontal_axis": Transformation("horizontal_axis", step=4),
    "vertical_axis": Transformation("vertical_axis", step=4),
}
"""The two axes of the robot arm."""

# Bytes of an archive that are unpacked at a time.
_BLOCK = 1 << 24


@runtime_checkable
class FactorObject(Protocol):
    """Images of a grid of factors, the last one fastest, as data sets of ``disent`` are.

    Attributes:
        factor_names: slowest first.
        factor_sizes: numbers of their positions.
    """

    factor_names: Sequence[str]
    factor_sizes: Sequence[int]

    def __getitem__(self, number: int) -> Any:
        """Return an image ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, bytes or in [0, 1]."""


class ObjectStore(FileStore):
    """Images of an object that returns them one by one.

    Args:
        source: the object.

    Raises:
        DataError: it returns something that is no image.
    """

    def __init__(self, source: FactorObject) -> None:
        self.source = source
        self.where = type(source).__name__
        self.image_shape = self._layout(self._image(0)).image_shape
        self.count = math.prod(int(size) for size in source.factor_sizes)

    def __len__(self) -> int:
        return self.count

    def rows(self, numbers: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Return images of increasing numbers."""
        images = np.stack([self._image(int(number)) for number in numbers])
        pixels = self._layout(images[0]).to_bytes(images, int(numbers[0]))
        rows: np.ndarray = rearrange(pixels, "n c h w -> n h w c").numpy()
        return rows

    def _image(self, number: int) -> np.ndarray:
        image = self.source[number]
        return image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)

    def _layout(self, image: np.ndarray) -> Layout:
        return dataclasses.replace(Layout.of(image, 0), where=self.where)


def grid_of(source: FactorObject, **options: Any) -> FactorGrid:
    """Return the sequences along the axes of an object that has ``factor_names``.

    Data sets of ``disent`` (Cars3D, SmallNORB, ...) are such objects.

    Args:
        source: see :class:`FactorObject`.
        options: as for :class:`FactorGrid`.

    Raises:
        DataError: what :class:`FactorGrid` refuses.

    Example:
        >>> import numpy as np
        >>> class Bars:
        ...     factor_names, factor_sizes = ("row", "column"), (4, 5)
        ...
        ...     def __getitem__(self, number):
        ...         image = np.zeros((8, 8), np.uint8)
        ...         image[number // 5, number % 5] = 255
        ...         return image
        >>> grid = grid_of(Bars(), split="all", horizon=3)
        >>> grid.names, grid.sample([7], "column").frames.argmax(-1).amax((2, 3)).tolist()
        (('row', 'column'), [[0, 1, 2, 3]])
    """
    factors = dict(zip(source.factor_names, map(int, source.factor_sizes), strict=True))
    return FactorGrid(ObjectStore(source), factors, **options)


class BitStore:
    """Images of pixels that are black or white, a bit each: dSprites in 377 MB of memory."""

    def __init__(self, bits: UInt8[Tensor, "n h w8"], width: int, where: str) -> None:
        self.bits, self.where = bits, where
        self.image_shape = (1, bits.shape[1], width)

    def __len__(self) -> int:
        return len(self.bits)

    def read(self, numbers: Int[Tensor, "n"]) -> Float[Tensor, "n 1 h w"]:
        """Return images; see :class:`ImageStore`."""
        places = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.bits.device)
        pixels = (self.bits[numbers][..., None] >> places) & 1
        return pixels.flatten(2)[:, None, :, : self.image_shape[2]].float()

    def to(self, device: torch.device | str) -> BitStore:
        """Return the same images on another device."""
        return BitStore(self.bits.to(device), self.image_shape[2], self.where)


def read_bits(path: str | Path, key: str = "imgs") -> BitStore:
    """Return the images of 0 and 1 in an ``.npz`` archive, unpacked a part at a time.

    Raises:
        DataError: it cannot be read, has no such array, or one of other values.
    """
    path = local_path(path)
    with reading(path), zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            raise DataError(f"path: {path} has no array {key!r}.")
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as member:
            np.lib.format.read_magic(member)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            announced = math.prod(shape)
            if len(shape) != 3 or dtype != np.uint8 or fortran or not announced:
                raise DataError(f"path: {key} of {path} must be bytes of shape (N, H, W).")
            if announced != info.file_size - member.tell():
                raise ValueError(f"{key} announces an array of shape {shape}, but holds another")
            packed = (shape[0], shape[1], -(-shape[2] // 8))
            check_unpacked(path, math.prod(packed), info.compress_size, held=True)
            bits = np.empty(packed, np.uint8)
            count = max(1, _BLOCK // math.prod(shape[1:]))
            for begin in range(0, shape[0], count):
                part = bits[begin : begin + count]
                block = member.read(len(part) * math.prod(shape[1:]))
                pixels = np.frombuffer(block, np.uint8).reshape(len(part), *shape[1:])
                if pixels.max() > 1:
                    raise DataError(f"path: {key} of {path} must be 0 or 1 only.")
                part[:] = np.packbits(pixels, axis=-1)
    return BitStore(torch.from_numpy(bits), shape[2], str(path))


@options
class _PublicOptions(GridOptions):
    irrelevant: ClassVar[frozenset[str]] = GridOptions.irrelevant | {"path"}
    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = dataclasses.field(kw_only=True)
    """The ``.npz`` file that is published, or an HDF5 or ``.npy`` file that was made of it."""

    sizes: dict[Name, Side] = dataclasses.field(default_factory=dict)
    """Other numbers of positions for some of the factors, for a part or a variant of the data."""

    def open(
        self,
        images: Any,
        factors: Mapping[str, int],
        transformations: Mapping[str, Transformation],
        split: str,
        seed: int,
    ) -> FactorGrid:
        """Return the sequences of a split."""
        given = self.arguments(split, seed)
        if self.transformations is None:
            given["transformations"] = transformations
        return FactorGrid(images, {**factors, **self.sizes}, **given)


@DATA.register("dsprites")
@options
class DSpritesOptions(_PublicOptions):
    """DSprites: white squares, ellipses and hearts on black."""

    def load(self, split: str, seed: int) -> FactorGrid:
        """Return the sequences of a split."""
        archive = local_path(self.path).suffix == ".npz"
        images = read_bits(self.path) if archive else self.path
        return self.open(images, DSPRITES_FACTORS, DSPRITES_TRANSFORMATIONS, split, seed)

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes an archive like the one published."""
        sizes = {"shape": 2, "scale": 3, "orientation": 3, "pos_x": 3, "pos_y": 3}
        images = np.random.default_rng(0).integers(0, 2, (162, 16, 16), dtype=np.uint8)
        np.savez_compressed(folder / "dsprites.npz", imgs=images)
        moves: dict[str, Any] = {"scale": {}, "pos_x": {}}
        return {
            "path": str(folder / "dsprites.npz"),
            "sizes": sizes,
            "transformations": moves,
            "validation": 2,
            "test": 2,
            "horizon": 2,
        }


@DATA.register("mpi3d")
@options
class MPI3DOptions(_PublicOptions):
    """MPI3D: an object on a robot arm, real or rendered."""

    def load(self, split: str, seed: int) -> FactorGrid:
        """Return the sequences of a split."""
        return self.open(self.path, MPI3D_FACTORS, MPI3D_TRANSFORMATIONS, split, seed)

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes an archive like the one published."""
        sizes = dict.fromkeys(MPI3D_FACTORS, 2) | {"horizontal_axis": 3, "vertical_axis": 3}
        images = np.random.default_rng(0).integers(0, 256, (288, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / "mpi3d.npz", images=images)
        moves: dict[str, Any] = {"horizontal_axis": {}, "vertical_axis": {}}
        return {
            "path": str(folder / "mpi3d.npz"),
            "sizes": sizes,
            "transformations": moves,
            "validation": 2,
            "test": 2,
            "horizon": 2,
        }
