"""3D Shapes: a coloured object in a coloured room, from its file or ray traced anew.

Six factors, 480,000 images of 64 by 64 pixels (Burgess and Kim, *3D Shapes Dataset*,
https://github.com/google-deepmind/3d-shapes, 2018; Kim and Mnih, *Disentangling by Factorising*,
2018). Without the file the images are a *re-creation*: the same factors, sizes and order, drawn
by a ray tracer of ours that imitates the look of the scene. Numbers measured on one are not
comparable with numbers measured on the other.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data import shapes3d_renderer as renderer
from flowfactor.data.factor_grid import FactorGrid, Move, grid_positions
from flowfactor.data.image_stores import H5Store, ImageStore, open_h5
from flowfactor.errors import DataError

_log = logging.getLogger(__name__)

#: Factors of 3D Shapes and their sizes, slowest first.
SHAPES3D_FACTORS: Mapping[str, int] = {
    "floor_hue": 10,
    "wall_hue": 10,
    "object_hue": 10,
    "scale": 8,
    "shape": 4,
    "orientation": 15,
}
_HUES = ("floor_hue", "wall_hue", "object_hue")
_SCALES, _ORIENTATIONS = (0.75, 1.25), (-30.0, 30.0)

#: All factors but the shape, each with room for frames 0..7: eight of the ten hues, the eight
#: scales, and every other of the fifteen orientations.
SHAPES3D_MOVES: tuple[Move, ...] = (
    Move("floor_hue"),
    Move("wall_hue"),
    Move("object_hue"),
    Move("scale"),
    Move("orientation", step=2),
)

_RECREATED = "re-creation of 3D Shapes by flowfactor's ray tracer, not the original file"
# Images that are drawn at a time on a processor.
_IN_CACHE = 32


class Shapes3D(FactorGrid):
    """3D Shapes as sequences in which a hue, the scale or the orientation moves.

    Factors, slowest first: floor hue, wall hue and object hue (10 each, a tenth of a turn apart,
    cyclic), scale (8, from 0.75 to 1.25), shape (cube, cylinder, sphere, capsule) and
    orientation (15, from -30 to 30 degrees). The shape does not move and can be held out.

    Args:
        path: the original file `3dshapes.h5`, or one written by `write_h5`. If not given, images
            are re-created: no original pixel is among them; `description` says so.
        moves: the transformations, see `Move`.
        horizon: `T`; 7 by default, for which all of the default moves have room.
        split, held_out, validation, test, seed: see `FactorGrid`.
        cache: folder where the re-creation keeps its 20 MB of geometries, which take some 20 s of
            one core; by default `flowfactor` in the user's cache folder (`XDG_CACHE_HOME`, or
            `~/.cache`). Several processes may share it.
        side: height and width of re-created images.
        sizes: other sizes for some of the factors, for a coarser re-creation or the file of one;
            values keep their range.
        device: where frames are made; a re-creation is drawn there.

    Raises:
        DataError: a file that is missing, damaged, of another type or shape, or whose labels are
            in another order; what `FactorGrid` refuses.

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
        moves: Sequence[Move] = SHAPES3D_MOVES,
        horizon: int | None = None,
        split: str = "train",
        held_out: Mapping[str, Collection[int]] | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
        side: int = 64,
        sizes: Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        factors = _sizes(sizes or {})
        store: ImageStore
        if path is None:
            store = RenderedShapes(factors, side, cache)
            description = _RECREATED
        else:
            store = H5Store(path, layout="nhwc")
            description = _check_file(store, factors)
        super().__init__(
            store,
            factors,
            cyclic=_HUES,
            moves=moves,
            horizon=horizon,
            split=split,
            held_out=held_out,
            validation=validation,
            test=test,
            seed=seed,
            device=device,
        )
        self.description = description

    @property
    def recreated(self) -> bool:
        """Whether the images are a re-creation, drawn now or read from a file written earlier."""
        return self.description == _RECREATED

    def labels(self, indices: Tensor | Sequence[int]) -> Float[Tensor, "b 6"]:
        """Values of the factors of samples, as the file has them, `float64`, `(b, 6)`.

        Hues in turns, scale, number of the shape, orientation in degrees.
        """
        return self._values(self.positions(indices))

    def write_h5(self, path: str | Path) -> None:
        """Write all images of the grid, whatever the split, in the format of the original file.

        As `FactorGrid.write_h5`, with the values of the factors as labels, `float64`, and an
        attribute that says that a re-creation is one. The full grid takes two to three minutes of
        one core and 1.2 GB. (In chunks across 15,000 images it would take an eighth of that, and
        a third of a second for each image that is read at random.)

        Raises:
            DataError: the file exists, or cannot be written.
        """
        super().write_h5(path)

    def _values(self, positions: Int[Tensor, "b j"]) -> Float[Tensor, "b j"]:
        return _labels(positions, self.factors)


class RenderedShapes(ImageStore):
    """The images of 3D Shapes, re-created from geometries that are ray traced once.

    Args:
        factors: the six factors and their sizes.
        side: height and width of the images.
        cache: see `Shapes3D`.
    """

    def __init__(
        self, factors: Mapping[str, int], side: int = 64, cache: str | Path | None = None
    ) -> None:
        if side < 1:
            raise DataError(f"side must be positive, but it is {side}.")
        self.sizes = tuple(factors.values())
        self.side = side
        # Rounding to half precision is less than a tenth of a step of 8 bits.
        self.maps = _cached(self.sizes[3:], side, _cache_folder() if cache is None else Path(cache))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (3, self.side, self.side)

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def read(self, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
        """The images of these numbers, in [0, 1], rounded to 8 bits as in a file."""
        # A processor's cache holds few images with their maps; a GPU wants all of them at once.
        at_once = _IN_CACHE if numbers.device.type == "cpu" else max(1, len(numbers))
        images = self.maps.new_empty(len(numbers), *self.image_shape, dtype=torch.float32)
        for some, target in zip(numbers.split(at_once), images.split(at_once), strict=True):
            positions = grid_positions(some, self.sizes)
            floor, wall, thing = (positions[:, j] / self.sizes[j] for j in range(3))
            maps = self.maps[some % len(self.maps)].float()
            target.copy_(renderer.colour(maps, floor, wall, thing))
        return images.mul_(255).round_().div_(255)

    def to(self, device: torch.device | str) -> RenderedShapes:
        """The same images, drawn on another device."""
        other = object.__new__(RenderedShapes)
        other.sizes, other.side, other.maps = self.sizes, self.side, self.maps.to(device)
        return other


def _sizes(changed: Mapping[str, int]) -> dict[str, int]:
    for name in changed:
        if name not in SHAPES3D_FACTORS:
            raise DataError(f"sizes names {name!r}; the factors are {', '.join(SHAPES3D_FACTORS)}.")
    if not 1 <= changed.get("shape", 4) <= len(renderer.SHAPES):
        raise DataError(
            f"There are {len(renderer.SHAPES)} shapes, but sizes asks for {changed['shape']}."
        )
    return {**SHAPES3D_FACTORS, **changed}


def _labels(positions: Tensor, factors: Mapping[str, int]) -> Tensor:
    scales, orientations = _axes(factors["scale"], factors["orientation"])
    return torch.stack(
        [
            *(positions[:, j].double() / factors[name] for j, name in enumerate(_HUES)),
            scales.to(positions.device)[positions[:, 3]],
            positions[:, 4].double(),
            orientations.to(positions.device)[positions[:, 5]],
        ],
        dim=1,
    )


def _axes(scales: int, orientations: int) -> tuple[Tensor, Tensor]:
    return (
        torch.linspace(*_SCALES, scales, dtype=torch.float64),
        torch.linspace(*_ORIENTATIONS, orientations, dtype=torch.float64),
    )


def _check_file(store: H5Store, factors: Mapping[str, int]) -> str:
    """What a file says it is, after checking that its labels have the order of the factors."""
    if store.chunks_are_long:
        _log.warning(
            "%s keeps pieces of %d images in each chunk, so that reading at random is very slow. "
            "Write it anew once with flowfactor.data.repack_h5(%r, NEW_PATH).",
            store.path,
            (store.chunks or (0,))[0],
            str(store.path),
        )
    total = math.prod(factors.values())
    with open_h5(store.path) as file:
        labels = file.get("labels")
        if labels is None or getattr(labels, "shape", None) != (len(store), len(factors)):
            raise DataError(
                f"The file {store.path} needs a data set 'labels' of shape ({len(store)}, "
                f"{len(factors)}), one row an image, but it has "
                f"{'none' if labels is None else getattr(labels, 'shape', 'something else')}."
            )
        if len(store) == total:
            stride, first = total, labels[0]
            for j, (name, size) in enumerate(factors.items()):
                stride //= size
                if size == 1:
                    continue
                changed = np.flatnonzero(labels[stride] != first).tolist()
                if changed != [j]:
                    raise DataError(
                        f"The labels of {store.path} are in another order: image {stride} should "
                        f"differ from image 0 in factor {j} ({name}) only, but it differs in "
                        f"{changed}. The factors must be {', '.join(factors)}, last fastest."
                    )
        description = file.attrs.get("description")
    return f"3D Shapes, {store.path}" if description is None else str(description)


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
    # Under another name at first, so that no process ever meets half a file.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, maps.numpy())
        part.replace(path)
    except OSError as error:
        _log.warning("The geometries could not be kept in %s: %s.", folder, error)
        with contextlib.suppress(OSError):
            part.unlink()
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
    # From shape, scale, orientation to the order of the factors.
    grid = torch.stack(maps).reshape(shapes, scales, orientations, *maps[0].shape[1:])
    return grid.transpose(0, 1).flatten(0, 2)
