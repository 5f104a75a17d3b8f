"""Falcor3D and Isaac3D: photorealistic rooms by NVIDIA, large grids of pictures in a folder.

Nie et al., *Semi-Supervised StyleGAN for Disentanglement Learning*, 2020. The data and the names
of the factors: https://github.com/NVlabs/High-res-disentanglement-datasets (CC BY 4.0), with the
hyphens of the names written as underscores. Each picture is named by its number, ``000000.png``,
and lies in the folder ``images`` of the archive that is downloaded, at full size or at 128 by 128.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from flowfactor.data.checks import check_choice
from flowfactor.data.factor_grid import FactorGrid, GridOptions
from flowfactor.data.io import open_store
from flowfactor.data.options import Name, Side
from flowfactor.data.transformations import Transformation
from flowfactor.options import options
from flowfactor.registries import DATA

FALCOR3D_FACTORS: Mapping[str, int] = {
    "lighting_intensity": 5,
    "lighting_x_dir": 6,
    "lighting_y_dir": 6,
    "lighting_z_dir": 6,
    "camera_x_pos": 6,
    "camera_y_pos": 6,
    "camera_z_pos": 6,
}
"""A living room: 233,280 images of 1024 by 1024 pixels."""

# The description of the data lists the factors in an order that contradicts the strides it gives
# beside them (30720 for object_scale, after which 8 values remain where the scale has 4). The
# program that comes with the data has this order, and the sizes then give exactly those strides.
ISAAC3D_FACTORS: Mapping[str, int] = {
    "object_shape": 3,
    "robot_x_move": 8,
    "robot_y_move": 5,
    "camera_height": 4,
    "object_scale": 4,
    "lighting_intensity": 4,
    "lighting_y_dir": 6,
    "object_color": 4,
    "wall_color": 4,
}
"""A robot arm in a kitchen: 737,280 images of 512 by 512 pixels."""

FALCOR3D_TRANSFORMATIONS: Mapping[str, Transformation] = {
    name: Transformation(name) for name in FALCOR3D_FACTORS
}
"""All factors of Falcor3D; the five levels of light leave room for frames 0..4."""

ISAAC3D_TRANSFORMATIONS: Mapping[str, Transformation] = {
    name: Transformation(name)
    for name in ISAAC3D_FACTORS
    if name not in ("object_shape", "object_color", "wall_color")
}
"""The factors of Isaac3D that have an order, which shape and colours have not; frames 0..3."""


def falcor3d(path: str | Path, **options: Any) -> FactorGrid:
    """Return Falcor3D: a living room, seven factors of its light and of the camera.

    Args:
        path: folder with the pictures ``000000.png`` to ``233279.png``, or the HDF5 file that
            :meth:`FactorGrid.write_h5` of this data set has written.
        options: ``transformations``, by default of all factors; ``sizes``, other sizes for some of
            the factors, for a part of the data; ``size``, to which pictures are reduced as they are
            read; else as for :class:`FactorGrid`. For training, ``falcor3d(folder,
            size=64).write_h5(path)`` reduces and unpacks the pictures once for all.

    Raises:
        DataError: no such path, another number of pictures; see :class:`FactorGrid`.

    Example:
        >>> import tempfile
        >>> one = dict.fromkeys(FALCOR3D_FACTORS, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(6):
        ...         Image.new("RGB", (16, 16), (51 * i,) * 3).save(f"{folder}/{i:06}.png")
        ...     grid = falcor3d(
        ...         folder,
        ...         sizes={**one, "camera_x_pos": 3, "camera_z_pos": 2},
        ...         transformations={"camera_x_pos": Transformation()},
        ...         split="all",
        ...         size=8,
        ...     )
        ...     grid.sample([1], "camera_x_pos").frames.mean(dim=(2, 3, 4))
        tensor([[0.2000, 0.6000, 1.0000]])
    """
    return _open(path, FALCOR3D_FACTORS, **{"transformations": FALCOR3D_TRANSFORMATIONS, **options})


def isaac3d(path: str | Path, **options: Any) -> FactorGrid:
    """Return Isaac3D: a robot arm that holds an object in a kitchen, nine factors.

    Args:
        path: folder with the pictures ``000000.png`` to ``737279.png``, or such a file.
        options: as for :func:`falcor3d`. Transformations are by default of the six factors that
            have an order; the arm alone (``robot_x_move``) has room for frames 0..7.

    Raises:
        DataError: no such path, another number of pictures; see :class:`FactorGrid`.

    Example:
        >>> isaac3d("data/isaac3d/images")
        Traceback (most recent call last):
        flowfactor.errors.DataError: There is no file or folder .../data/isaac3d/images.
    """
    return _open(path, ISAAC3D_FACTORS, **{"transformations": ISAAC3D_TRANSFORMATIONS, **options})


def _open(
    path: str | Path,
    factors: Mapping[str, int],
    *,
    sizes: Mapping[str, int] | None = None,
    size: int | tuple[int, int] | None = None,
    **options: Any,
) -> FactorGrid:
    for name in sizes or {}:
        check_choice("sizes", name, factors)
    store = open_store(path, layout="nhwc", size=size)
    return FactorGrid(store, {**factors, **(sizes or {})}, **options)


@options
class _NvidiaOptions(GridOptions):
    irrelevant: ClassVar[frozenset[str]] = GridOptions.irrelevant | {"path"}

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = dataclasses.field(kw_only=True)
    """The folder of pictures, or the HDF5 file that was made of it."""

    size: Side | None = None
    """Height and width to which pictures are reduced as they are read; their own by default."""

    sizes: dict[Name, Side] = dataclasses.field(default_factory=dict)
    """Other numbers of positions for some of the factors, for a part of the data."""

    def sized(self, split: str, seed: int) -> dict[str, Any]:
        """Return the arguments of the grid."""
        given = self.arguments(split, seed)
        if self.transformations is None:
            del given["transformations"]
        return {"sizes": self.sizes, "size": self.size, **given}


@DATA.register("falcor3d")
@options
class Falcor3DOptions(_NvidiaOptions):
    """Falcor3D, photorealistic pictures of a living room."""

    def load(self, split: str, seed: int) -> FactorGrid:
        """Return the sequences of a split."""
        return falcor3d(self.path, **self.sized(split, seed))

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes a folder of pictures."""
        sizes = dict.fromkeys(FALCOR3D_FACTORS, 2)
        sizes |= {"lighting_intensity": 3, "camera_y_pos": 1, "camera_z_pos": 1}
        return _tiny(folder, sizes, "lighting_intensity")


@DATA.register("isaac3d")
@options
class Isaac3DOptions(_NvidiaOptions):
    """Isaac3D, photorealistic pictures of a robot arm."""

    def load(self, split: str, seed: int) -> FactorGrid:
        """Return the sequences of a split."""
        return isaac3d(self.path, **self.sized(split, seed))

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes a folder of pictures."""
        sizes = dict.fromkeys(ISAAC3D_FACTORS, 1)
        sizes |= dict.fromkeys(("object_shape", "robot_y_move", "camera_height", "wall_color"), 2)
        return _tiny(folder, sizes | {"robot_x_move": 3}, "robot_x_move")


def _tiny(folder: Path, sizes: dict[str, int], moved: str) -> dict[str, Any]:
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(int(np.prod(list(sizes.values())))):
        colour = (5 * number % 256, 255 - 5 * number % 256, 90)
        Image.new("RGB", (16, 16), colour).save(pictures / f"{number:06}.png")
    return {
        "path": str(pictures),
        "sizes": sizes,
        "transformations": {moved: {}},
        "size": 16,
        "validation": 2,
        "test": 2,
        "horizon": 2,
    }
