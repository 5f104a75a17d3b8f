"""3D Shapes: a coloured object in a coloured room, from its file or ray traced anew.

Six factors, 480,000 images of 64 by 64 pixels (Burgess and Kim, *3D Shapes Dataset*,
https://github.com/google-deepmind/3d-shapes, 2018; Kim and Mnih, *Disentangling by Factorising*,
2018). Without the file the images are a *re-creation*: the same factors, sizes and order, drawn
by a ray tracer of ours that imitates the look of the scene. Numbers measured on one are not
comparable with numbers measured on the other.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from flowfactor.data import shapes3d_renderer as renderer
from flowfactor.data.checks import check_choice, check_range
from flowfactor.data.factor_grid import FactorGrid, GridOptions, grid_positions
from flowfactor.data.io import (
    ArrayFile,
    ArrayStore,
    ImageStore,
    local_path,
    open_h5,
    replacing,
)
from flowfactor.data.options import Name
from flowfactor.data.transformations import Transformation
from flowfactor.errors import DataError
from flowfactor.options import PositiveInt, options
from flowfactor.registries import DATA

_log = logging.getLogger(__name__)

SHAPES3D_FACTORS: Mapping[str, int] = {
    "floor_hue": 10,
    "wall_hue": 10,
    "object_hue": 10,
    "scale": 8,
    "shape": 4,
    "orientation": 15,
}
"""Factors of 3D Shapes and their sizes, slowest first."""

SHAPES3D_TRANSFORMATIONS: Mapping[str, Transformation] = {
    "floor_hue": Transformation(),
    "wall_hue": Transformation(),
    "object_hue": Transformation(),
    "scale": Transformation(),
    "orientation": Transformation(step=2),
}
"""All factors but the shape, each with room for frames 0..7: eight of the ten hues, the eight
scales, and every other of the fifteen orientations."""

_HUES = ("floor_hue", "wall_hue", "object_hue")
_SCALES, _ORIENTATIONS = (0.75, 1.25), (-30.0, 30.0)
_RECREATED = "re-creation of 3D Shapes by flowfactor's ray tracer, not the original file"
# What the geometries of a re-creation may take in memory.
_MAX_BYTES = 1 << 31
# Images that are drawn at a time on a processor.
_IN_CACHE = 32


class Shapes3D(FactorGrid):
    """3D Shapes as sequences in which a hue, the scale or the orientation moves.

    Factors, slowest first: floor hue, wall hue and object hue (10 each, a tenth of a turn apart,
    cyclic), scale (8, from 0.75 to 1.25), shape (cube, cylinder, sphere, capsule) and
    orientation (15, from -30 to 30 degrees). The shape does not move and can be held out.

    Args:
        path: the original file ``3dshapes.h5``, or one written by :meth:`write_h5`. If not given,
            images are re-created: no original pixel is among them; ``description`` says so.
        transformations: by default :data:`SHAPES3D_TRANSFORMATIONS`.
        cache: folder where the re-creation keeps its 20 MB of geometries, which take some 20 s of
            one core; by default ``flowfactor`` in the user's cache folder (``XDG_CACHE_HOME``, or
            ``~/.cache``). Several processes may share it.
        side: height and width of re-created images.
        sizes: other sizes for some of the factors, for a coarser re-creation or the file of one;
            values keep their range.
        options: see :class:`FactorGrid`.

    Attributes:
        recreated: whether the images are a re-creation, drawn now or read from a file.

    Raises:
        DataError: a file that is missing, damaged, of another type or shape, or whose labels are
            in another order; what :class:`FactorGrid` refuses.

    Example:
        >>> import tempfile
        >>> small = {"scale": 3, "shape": 1, "orientation": 5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shapes = Shapes3D(side=8, sizes=small, horizon=2, cache=folder)
        >>> shapes.names
        ('floor_hue', 'wall_hue', 'object_hue', 'scale', 'orientation')
        >>> tuple(shapes.sample([0, 100], "wall_hue").frames.shape)
        (2, 3, 3, 8, 8)
        >>> shapes.description
        "re-creation of 3D Shapes by flowfactor's ray tracer, not the original file"
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        transformations: Mapping[str, Transformation] = SHAPES3D_TRANSFORMATIONS,
        cache: str | Path | None = None,
        side: int = 64,
        sizes: Mapping[str, int] | None = None,
        **options: Any,
    ) -> None:
        for name in sizes or {}:
            check_choice("sizes", name, SHAPES3D_FACTORS)
        factors = {**SHAPES3D_FACTORS, **(sizes or {})}
        check_range("sizes.shape", factors["shape"], 1, len(renderer.SHAPES))
        store: ImageStore
        if path is None:
            store = RenderedShapes(factors, side, cache)
            description = _RECREATED
        else:
            store = ArrayStore(ArrayFile(local_path(path), "images"), layout="nhwc")
            description = _check_file(store, factors)
        super().__init__(store, factors, cyclic=_HUES, transformations=transformations, **options)
        self.description = description
        self.recreated = description == _RECREATED

    def factor_values(self, indices: Tensor | Sequence[int]) -> Float[Tensor, "b 6"]:
        """Return the values of the factors of samples, as the file has them, ``float64``.

        Hues in turns, scale, number of the shape, orientation in degrees.
        """
        return self._values(self.positions(indices))

    def write_h5(self, path: str | Path) -> None:
        """Write all images of the grid, whatever the split, in the format of the original file.

        As :meth:`FactorGrid.write_h5`, with the values of the factors as labels, `float64`, and an
        attribute that says that a re-creation is one. The full grid takes two to three minutes of
        one core and 1.2 GB. (In chunks across 15,000 images it would take an eighth of that, and
        a third of a second for each image that is read at random.)

        Raises:
            DataError: the file exists, or cannot be written.
        """
        super().write_h5(path)

    def _values(self, positions: Int[Tensor, "b j"]) -> Float[Tensor, "b j"]:
        return _factor_values(positions, self.factors)


class RenderedShapes:
    """The images of 3D Shapes, re-created from geometries that are ray traced once.

    An :class:`ImageStore`.

    Args:
        factors: the six factors and their sizes.
        side: height and width of the images.
        cache: see :class:`Shapes3D`.
    """

    where = "in memory"

    def __init__(
        self, factors: Mapping[str, int], side: int = 64, cache: str | Path | None = None
    ) -> None:
        check_range("side", side, 1)
        self.sizes = tuple(factors.values())
        size = math.prod(self.sizes[3:]) * len(renderer.SURFACES) * side**2 * 2
        check_range("sizes, side: the bytes of all geometries", size, 1, _MAX_BYTES)
        self.image_shape = (3, side, side)
        # Rounding to half precision is less than a tenth of a step of 8 bits.
        self.maps = _cached(
            self.sizes[3:], side, _cache_folder() if cache is None else local_path(cache)
        )

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def read(self, numbers: Int[Tensor, "n"]) -> Float[Tensor, "n 3 h w"]:
        """Return images, rounded to 8 bits as in a file; see :class:`ImageStore`."""
        # A processor's cache holds few images with their maps; a GPU wants all of them at once.
        chunk = _IN_CACHE if numbers.device.type == "cpu" else max(1, len(numbers))
        images = self.maps.new_empty(len(numbers), *self.image_shape, dtype=torch.float32)
        for some, target in zip(numbers.split(chunk), images.split(chunk), strict=True):
            positions = grid_positions(some, self.sizes)
            floor, wall, object_ = (positions[:, j] / self.sizes[j] for j in range(3))
            maps = self.maps[some % len(self.maps)].float()
            target.copy_(renderer.colour(maps, floor, wall, object_))
        return images.mul_(255).round_().div_(255)

    def to(self, device: torch.device | str) -> RenderedShapes:
        """Return the same images, drawn on another device."""
        other = copy.copy(self)
        other.maps = self.maps.to(device)
        return other


def _factor_values(positions: Tensor, factors: Mapping[str, int]) -> Tensor:
    scales, orientations = _axes(factors["scale"], factors["orientation"])
    positions = positions.cpu()
    return torch.stack(
        [
            *(positions[:, j].double() / factors[name] for j, name in enumerate(_HUES)),
            scales[positions[:, 3]],
            positions[:, 4].double(),
            orientations[positions[:, 5]],
        ],
        dim=1,
    )


def _axes(scales: int, orientations: int) -> tuple[Tensor, Tensor]:
    return (
        torch.linspace(*_SCALES, scales, dtype=torch.float64),
        torch.linspace(*_ORIENTATIONS, orientations, dtype=torch.float64),
    )


def _check_file(store: ArrayStore, factors: Mapping[str, int]) -> str:
    """Return what a file says it is, after checking that its labels have the order of factors."""
    if store.chunks_are_long:
        _log.warning(
            "%s keeps pieces of many images in each chunk, so that reading at random is very slow. "
            "Write it anew once with flowfactor.data.repack_h5(%r, NEW_PATH).",
            store.where,
            store.where,
        )
    with open_h5(Path(store.where)) as file:
        labels = file.get("labels")
        shape = getattr(labels, "shape", None)
        if shape != (len(store), len(factors)):
            raise DataError(
                f"{store.where} needs a data set 'labels' of shape ({len(store)}, {len(factors)}), "
                f"one row an image, but its shape is {shape}."
            )
        # One position further along a factor, the label must differ in that factor only.
        stride = math.prod(factors.values())
        if len(store) == stride:
            for j, (name, size) in enumerate(factors.items()):
                stride //= size
                changed = np.flatnonzero(labels[stride % len(store)] != labels[0]).tolist()
                if changed != [j] * (size > 1):
                    raise DataError(
                        f"The labels of {store.where} are in another order: image {stride} should "
                        f"differ from image 0 in factor {j} ({name}) only, but it differs in "
                        f"{changed}. The factors must be {', '.join(factors)}, last fastest."
                    )
        description = file.attrs.get("description")
    return f"3D Shapes, {store.where}" if description is None else str(description)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flowfactor"


def _cached(sizes: tuple[int, ...], side: int, folder: Path) -> Tensor:
    """Coefficient maps of all geometries in the order of their factors, `float16 (n, 5, h, w)`."""
    # A changed renderer draws other images, and must not be given those of the old one.
    version = zlib.crc32(Path(renderer.__file__).read_bytes())
    by = "x".join(map(str, sizes))
    path = folder / f"shapes3d-{by}-{side}-{version:08x}.npy"
    shape = (math.prod(sizes), len(renderer.SURFACES), side, side)
    try:
        array = np.load(path, allow_pickle=False)
        if array.shape == shape and array.dtype == np.float16:
            return torch.from_numpy(array)
        _log.warning("%s holds something else and is written anew.", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        _log.warning("%s is damaged (%s) and is written anew.", path, error)
    _log.info("Ray tracing %d geometries of 3D Shapes, once; they are kept in %s.", shape[0], path)
    maps = _render(sizes, side)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, maps.numpy())
    except OSError as error:
        _log.warning("The geometries could not be kept in %s: %s.", folder, error)
    return maps


def _render(sizes: tuple[int, ...], side: int) -> Tensor:
    scales, shapes, orientations = sizes
    scale, orientation = (axis.float() for axis in _axes(scales, orientations))
    maps = [
        renderer.render_maps(
            scale.repeat_interleave(orientations), shape, orientation.repeat(scales), side=side
        ).half()
        for shape in renderer.SHAPES[:shapes]
    ]
    return rearrange(torch.stack(maps), "shape (s o) c h w -> (s shape o) c h w", s=scales)


@DATA.register("shapes3d")
@options
class Shapes3DOptions(GridOptions):
    """3D Shapes: the original file, or without one a re-creation."""

    irrelevant: ClassVar[frozenset[str]] = GridOptions.irrelevant | {"cache"}

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str | None = None
    """The original file ``3dshapes.h5``; without it images are re-created by a ray tracer."""

    cache: str | None = None
    """Folder where the re-creation keeps its geometries; by default in the user's cache."""

    side: Annotated[PositiveInt, Field(le=1024)] = 64
    """Height and width of re-created images."""

    sizes: dict[Name, Annotated[PositiveInt, Field(le=256)]] = dataclasses.field(
        default_factory=dict
    )
    """Other numbers of positions for some of the factors, for a coarser re-creation."""

    def load(self, split: str, seed: int) -> Shapes3D:
        """Return the sequences of a split."""
        given = self.arguments(split, seed)
        if self.transformations is None:
            del given["transformations"]
        return Shapes3D(self.path, cache=self.cache, side=self.side, sizes=self.sizes, **given)

    def held_out_sequences(self) -> dict[str, Any]:
        """Return the options on which held-out sequences depend."""
        content = super().held_out_sequences()
        # The file is the same everywhere, but not a re-creation.
        return content | {"path": "re-creation" if self.path is None else "file"}

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny."""
        sizes = {"floor_hue": 3, "wall_hue": 3, "object_hue": 3, "scale": 3}
        return {
            "sizes": {**sizes, "orientation": 5, "shape": 2},
            "side": 16,
            "cache": str(folder / "cache"),
            "validation": 2,
            "test": 2,
            "horizon": 2,
        }
