"""Falcor3D and Isaac3D: photorealistic rooms by NVIDIA, large grids of pictures in a folder.

Nie et al., *Semi-Supervised StyleGAN for Disentanglement Learning*, 2020. The data and the names
of the factors: https://github.com/NVlabs/High-res-disentanglement-datasets (CC BY 4.0), with the
hyphens of the names written as underscores. Each picture is named by its number, `000000.png`,
and lies in the folder `images` of the archive that is downloaded, at full size or at 128 by 128.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from flowfactor.data.factor_grid import FactorGrid, Move
from flowfactor.data.image_stores import open_store
from flowfactor.errors import DataError

#: A living room: 233,280 images of 1024 by 1024 pixels.
FALCOR3D_FACTORS: Mapping[str, int] = {
    "lighting_intensity": 5,
    "lighting_x_dir": 6,
    "lighting_y_dir": 6,
    "lighting_z_dir": 6,
    "camera_x_pos": 6,
    "camera_y_pos": 6,
    "camera_z_pos": 6,
}
# The description of the data lists the factors in an order that contradicts the strides it gives
# beside them (30720 for object_scale, after which 8 values remain where the scale has 4). The
# program that comes with the data has this order, and the sizes then give exactly those strides.
#: A robot arm in a kitchen: 737,280 images of 512 by 512 pixels.
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

#: All factors of Falcor3D; the five levels of light leave room for frames 0..4.
FALCOR3D_MOVES: tuple[Move, ...] = tuple(Move(name) for name in FALCOR3D_FACTORS)
#: The factors of Isaac3D that have an order, which shape and colours have not; frames 0..3.
ISAAC3D_MOVES: tuple[Move, ...] = tuple(
    Move(name)
    for name in ISAAC3D_FACTORS
    if name not in ("object_shape", "object_color", "wall_color")
)


class GridOptions(TypedDict, total=False):
    """What `FactorGrid` lets one choose of data whose images and factors are fixed."""

    horizon: int | None
    split: str
    held_out: Mapping[str, Collection[int]] | None
    validation: int | None
    test: int | None
    seed: int
    size: int | tuple[int, int] | None
    device: torch.device | str | None


def falcor3d(
    path: str | Path,
    moves: Sequence[Move] = FALCOR3D_MOVES,
    sizes: Mapping[str, int] | None = None,
    **options: Unpack[GridOptions],
) -> FactorGrid:
    """Falcor3D: a living room, seven factors of its light and of the camera.

    Args:
        path: folder with the pictures `000000.png` to `233279.png`, or the HDF5 file that
            `write_h5` of this data set has written.
        moves: the transformations; by default all factors.
        sizes: other sizes for some of the factors, for a part of the data.
        options: see `FactorGrid`. `horizon` is by default the largest for which all moves have room,
            4 for the default moves. `size` reduces pictures as they are read; for training,
            `falcor3d(folder, size=64).write_h5(path)` reduces and unpacks them once for all.

    Raises:
        DataError: no such path, another number of pictures; see `FactorGrid`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> one = dict.fromkeys(FALCOR3D_FACTORS, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(6):
        ...         Image.new("RGB", (16, 16), (51 * i,) * 3).save(f"{folder}/{i:06}.png")
        ...     small = {**one, "camera_x_pos": 3, "camera_z_pos": 2}
        ...     moves = [Move("camera_x_pos")]
        ...     grid = falcor3d(folder, moves, small, split="all", size=8)
        ...     grid.sample([1], "camera_x_pos").frames.mean(dim=(2, 3, 4))
        tensor([[0.2000, 0.6000, 1.0000]])
    """
    return _grid(path, FALCOR3D_FACTORS, moves, sizes or {}, options)


def isaac3d(
    path: str | Path,
    moves: Sequence[Move] = ISAAC3D_MOVES,
    sizes: Mapping[str, int] | None = None,
    **options: Unpack[GridOptions],
) -> FactorGrid:
    """Isaac3D: a robot arm that holds an object in a kitchen, nine factors.

    Args:
        path: folder with the pictures `000000.png` to `737279.png`, or such a file.
        moves: the transformations; by default the six factors that have an order, which the
            object's shape and the two colours have not.
        sizes: other sizes for some of the factors, for a part of the data.
        options: as for `falcor3d`. `horizon` is 3 for the default moves; the arm alone, moved by
            `Move("robot_x_move")`, has room for 7.

    Raises:
        DataError: no such path, another number of pictures; see `FactorGrid`.

    Example:
        >>> isaac3d("data/isaac3d/images")
        Traceback (most recent call last):
        flowfactor.errors.DataError: There is no file or folder .../data/isaac3d/images.
    """
    return _grid(path, ISAAC3D_FACTORS, moves, sizes or {}, options)


def _grid(
    path: str | Path,
    factors: Mapping[str, int],
    moves: Sequence[Move],
    sizes: Mapping[str, int],
    options: GridOptions,
) -> FactorGrid:
    for name in sizes:
        if name not in factors:
            raise DataError(f"sizes names {name!r}; the factors are {', '.join(factors)}.")
    store = open_store(path, layout="nhwc", size=options.pop("size", None))
    return FactorGrid(store, {**factors, **sizes}, moves=moves, **options)
