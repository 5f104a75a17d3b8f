"""Still photographs, and the sequences of a camera that pans, zooms and turns over them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Complex, Float, Int, Real
from PIL import Image
from pydantic import Field
from torch import Tensor

from flowfactor.data.activity import PathRange
from flowfactor.data.checks import check_choice, check_range
from flowfactor.data.coverage import Coverage
from flowfactor.data.io import (
    PICTURES,
    ZARR,
    Array,
    list_files,
    local_path,
    open_picture,
    picture_channels,
    picture_pixels,
    read_images,
)
from flowfactor.data.options import DrawnOptions, Side, Transformations
from flowfactor.data.pyramids import Pyramids
from flowfactor.data.splits import SPLITS, Part, split_indices
from flowfactor.data.transformations import ParametricDataset, Transformation
from flowfactor.errors import DataError
from flowfactor.extras import find_extra
from flowfactor.options import PositiveInt, options
from flowfactor.registries import DATA

PHOTO_TRANSFORMATIONS: Mapping[str, Transformation] = {
    "x": Transformation("x", 0.0, 0.025, (0.0, 0.0)),
    "y": Transformation("y", 0.0, 0.025, (0.0, 0.0)),
    "zoom": Transformation("zoom", 0.0, 0.1, (0.0, 0.4)),
    "rotation": Transformation("angle", 0.0, 10.0, (0.0, 360.0)),
    "hue": Transformation("hue", 0.0, 20.0, (0.0, 360.0)),
    "brightness": Transformation("brightness", 0.0, -0.1, (-0.8, 0.0)),
}
"""The default transformations: at frame 8 moved by a fifth of the window to the right or upwards,
1.74 times as large, turned by 80 degrees, hues by 160, or at 57 % of the brightness."""

_DEFAULTS = {str(each.parameter): each for each in PHOTO_TRANSFORMATIONS.values()}
NEUTRAL = dict.fromkeys(_DEFAULTS, 0.0)
"""The value of each parameter that leaves a window as it is."""

_COLOUR: Mapping[str, tuple[str, ...]] = {
    "skimage/data": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "ihc.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
    "matplotlib/mpl-data/sample_data": ("grace_hopper.jpg",),
}
_GREY = {
    "skimage/data": ("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "moon.png")
}
# Windows that are drawn for a sample, until one is not of a single shade.
_DRAWS = 8


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A picture and its name.

    Attributes:
        name: of the file, or a number.
        pixels: in [0, 1].
    """

    name: str
    pixels: Float[Tensor, "c h w"]


class Photos(ParametricDataset):
    """Square windows of photographs that pan, zoom, turn and change hue and brightness.

    A *sample* is a window: a photograph, a place in it and a size, drawn from ``seed``, ``split``
    and the sample's number. There are as many as one likes. Photographs are held out as a whole: no
    two splits share one.

    The parameters are ``x`` and ``y``, by how many sides of the window what it shows has moved to
    the right and upwards; ``zoom``, by how many octaves it has grown (1 is twice as large);
    ``angle``, by how many degrees it has turned counter-clockwise; ``hue`` in degrees; and
    ``brightness`` in octaves (-1 is half of every value). Each changes at constant speed, and acts
    on the frame as it is, around the middle of the window: a *one-parameter group* of
    transformations of frames. Several that act together are the exponential of the sum of their
    generators, so that a superposition of true flows is exactly the true composition. One after the
    other they are the product of their own, in this order; panning and turning do not commute, as
    for any camera. Between two frames that are asked for all clocks run evenly.

    *Place.* Frames are resampled from the photograph itself, never from another frame, with
    antialiasing; see :class:`Pyramids`. Windows never leave their photograph: they are drawn where
    sequences of up to ``room`` frames stay inside, whatever acts, together or one after the other,
    from whatever start.

    *Colour.* The hue turns colours around the grey axis of the RGB cube; by 120 degrees red, green
    and blue change places. Colours that would leave the cube at some angle are made paler at their
    mean brightness, once and for all, so that a turn changes no mean and is never cut off, and a
    full turn is the identity. Brightness multiplies: darkening is never cut off, brightening by
    positive values is, at white.

    Args:
        photographs: a folder of pictures of any sizes (and folders in it), a picture, a list of
            arrays or tensors ``(H, W)``, ``(H, W, 3)`` or ``(3, H, W)``, or anything that
            :func:`read_images` reads; by default :func:`free_photographs`.
        count: number of samples.
        size: pixels along each side of a frame.
        transformations: what the sequences undergo, by name; by default
            :data:`PHOTO_TRANSFORMATIONS`, of grey pictures without the hue.
        horizon: ``T``, the number of the last frame.
        split: ``train``, ``validation`` or ``test``.
        validation, test: how many photographs are held out, a number or a part of all.
        window: the smallest and the largest window, as parts of the largest of which a sequence
            stays within its photograph.
        contrast: the standard deviation of grey values that windows should have; of up to eight
            that are drawn the first that does is taken, else the one with the largest.
        room: the largest horizon; by default twice ``horizon``. It decides where windows lie.
        resolution: pixels of the shorter side to which larger photographs are reduced.
        grey: whether colours become their luminance.
        active_start, random_start_prob: see :class:`ParametricDataset`.
        initial_state: see :class:`SequenceDataset`.
        seed: of the samples and of the photographs that are held out.
        device: where photographs are held and frames are made.

    Attributes:
        names_of_photographs: of the split; ``classes`` are indices of it.

    Raises:
        DataError: pictures that cannot be read or are too large together; a hue of grey pictures;
            what :class:`ParametricDataset` refuses.

    Example:
        >>> import torch
        >>> pictures = list(torch.rand(10, 3, 200, 300))
        >>> photos = Photos(pictures, count=100, size=16, horizon=4)
        >>> photos.names
        ('x', 'y', 'zoom', 'rotation', 'hue', 'brightness')
        >>> tuple(photos.sample([0, 1], "zoom").frames.shape)
        (2, 5, 3, 16, 16)
        >>> tuple(photos.compose([0], ("x", "rotation")).frames.shape)
        (1, 5, 3, 16, 16)
    """

    class_name = "photograph"
    depends_on_path: ClassVar[bool] = True
    per_sample: ClassVar[tuple[str, ...]] = (*ParametricDataset.per_sample, "_windows")

    def __init__(
        self,
        photographs: str | Path | Tensor | Array | Sequence[Tensor | Array] | None = None,
        count: int = 60_000,
        size: int = 64,
        transformations: Mapping[str, Transformation] | None = None,
        *,
        horizon: int = 8,
        split: str = "train",
        validation: float = 0.15,
        test: float = 0.15,
        window: tuple[float, float] = (0.6, 1.0),
        contrast: float = 0.05,
        room: int | None = None,
        resolution: int = 512,
        grey: bool = False,
        active_start: str = "random",
        random_start_prob: float = 0.8,
        initial_state: str = "canonical",
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_range("count", count, 1)
        check_range("size", size, 4)
        check_range("window", window[0], 0.01, window[1])
        check_range("window", window[1], window[0], 1)
        pictures = read_photographs(photographs, resolution, grey)
        channels = max(len(each.pixels) for each in pictures)
        if transformations is None:
            transformations = {
                name: each
                for name, each in PHOTO_TRANSFORMATIONS.items()
                if channels == 3 or name != "hue"
            }
        super().__init__(
            transformations,
            _DEFAULTS,
            horizon,
            (channels, size, size),
            rest=NEUTRAL,
            active_start=active_start,
            random_start_prob=random_start_prob,
            initial_state=initial_state,
            device=device,
        )
        coloured = any(motion.parameter == "hue" for motion in self._motions)
        if coloured and channels == 1:
            raise DataError("transformations: grey photographs have no hue. Leave it out.")
        self.room = max(horizon, 2 * horizon if room is None else room)
        chosen = split_indices(len(pictures), validation, test, seed, "photographs")[split]
        pictures = [pictures[number] for number in chosen.tolist()]
        self.names_of_photographs = tuple(each.name for each in pictures)
        pixels = [each.pixels.expand(channels, -1, -1) for each in pictures]
        if coloured:
            pixels = [make_turnable(each) for each in pixels]
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        drawn = self._draw(pixels, count, window, contrast, rng)
        self.classes = drawn[:, 0].long().to(self.device)
        # Its photograph, its middle to the right and downwards, and its side, in pixels.
        self._windows = drawn.to(self.device)
        grown = 2 ** -self._reached("zoom")[0]
        coarsest = float(drawn[:, 3].max()) * grown / size
        self._pyramids = Pyramids(pixels, max(1.0, coarsest)).to(self.device)

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def max_horizon(self) -> float:
        """The largest horizon for which windows stay within their photographs."""
        # Before it is known, where the base class checks its arguments, there is no limit.
        return getattr(self, "room", math.inf)

    def coverage(self, k: int) -> Coverage | None:
        """Return which states training sequences show: of panning all, as windows lie anywhere."""
        if self._motions[k].parameter in ("x", "y"):
            anywhere = (-math.inf, math.inf)
            return Coverage(anywhere, anywhere, None)
        return super().coverage(k)

    def path_range(self, k: int) -> PathRange:
        """Return between which states a transformation moves where activity is drawn.

        Panning may go as far as windows stay within their photographs.
        """
        given = self.transformations[self.names[k]].path_range
        if self._motions[k].parameter not in ("x", "y") or given is not None:
            return super().path_range(k)
        return PathRange(-self.room if self._pans_both_ways else 0, self.room)

    def path_starts(
        self,
        indices: Int[Tensor, "b"],
        moved: Float[Tensor, "b f k"],
        active: Bool[Tensor, "b k"],
        starts: Float[Tensor, "b s"] | None,
    ) -> tuple[Float[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """Return where sequences start that move; windows lie anywhere without panning."""
        offsets, there = super().path_starts(indices, moved, active, starts)
        nearest, _ = super().path_starts(indices, moved, active, None)
        pans = [motion.parameter in ("x", "y") for motion in self._motions]
        return torch.where(torch.tensor(pans, device=self.device), nearest, offsets), there

    def to(self, device: torch.device | str) -> Self:
        """Return the same data set with its photographs, and its frames, on another device."""
        other = super().to(device)
        other._pyramids = self._pyramids.to(device)
        return other

    def render_frames(
        self,
        indices: Int[Tensor, "b"],
        elapsed: Real[Tensor, "k b f"],
        active: Bool[Tensor, "k b"],
        starts: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Return frames of windows while transformations act; see :class:`SequenceDataset`."""
        values = self._parameters(elapsed, active, starts, NEUTRAL)
        growth = torch.complex(values["zoom"] * math.log(2), torch.deg2rad(values["angle"]))
        factor, shift = follow(growth, torch.complex(values["x"], values["y"]))
        number, column, row, side = self._windows[indices, :, None].unbind(1)
        # What is seen at p of the window, from its middle, in its sides, upwards, is at
        # (p - shift) / factor of the window at rest. Rows of pictures are counted downwards.
        middle = (-shift / factor).conj() * side + torch.complex(column, row)
        size = self.image_shape[1]
        steps = (1 / factor).conj() * side / size
        frames = self._pyramids.windows(number[:, 0].long(), middle, steps, size)
        return recolour(frames, values["hue"], values["brightness"])

    def _reached(self, parameter: str) -> tuple[float, float]:
        """Return between which values a parameter can come to lie within ``room`` frames."""
        low, high = (0.0, 0.0)
        given = self.transformations.values()
        for motion, start_range, each in zip(self._motions, self.start_ranges, given, strict=True):
            if motion.parameter == parameter:
                begins = [motion.start, motion.rest]
                begins += start_range if self.random_start_prob > 0 else ()
                begins += each.path_range or ()
                moved = motion.step * self.room
                low += min(begins) + min(0.0, moved)
                high += max(begins) + max(0.0, moved)
        return low, high

    @property
    def _pans_both_ways(self) -> bool:
        """Whether there is as much room on one side as on the other.

        Where something turns or zooms, to pan there and back need not end where it began.
        """
        return any(self._reached(each) != (0.0, 0.0) for each in ("angle", "zoom"))

    def _reach(self) -> tuple[float, float, float, float]:
        """Return how far windows extend to the left, right, top and bottom, in sides of their own.

        From the middle of the window at rest, whatever acts: a bound that is reached if nothing
        turns.
        """
        largest = 2 ** -self._reached("zoom")[0]
        (left, right), (down, up) = self._reached("x"), self._reached("y")
        turns = self._reached("angle")
        if turns == (0.0, 0.0):
            # What moves to the right has the window move to the left, what moves up, down.
            ways = (max(0.0, right), max(0.0, -left), max(0.0, -down), max(0.0, up))
            if self._pans_both_ways:
                ways = (max(ways[:2]),) * 2 + (max(ways[2:]),) * 2
            return tuple(largest * (0.5 + way) for way in ways)  # type: ignore[return-value]
        # The path of its middle, in any direction, and half of its diagonal.
        path = max(abs(left), abs(right)) + max(abs(down), abs(up))
        return (largest * (math.sqrt(0.5) + path),) * 4

    def _draw(
        self,
        pictures: Sequence[Float[Tensor, "c _h _w"]],
        count: int,
        window: tuple[float, float],
        contrast: float,
        rng: np.random.Generator,
    ) -> Float[Tensor, "n 4"]:
        """Return a picture, the place of a window, and its side, for each sample."""
        left, right, top, bottom = self._reach()
        sides = np.array([each.shape[1:] for each in pictures], dtype=np.float64)
        largest = np.minimum(sides[:, 0] / (top + bottom), sides[:, 1] / (left + right))
        if (least := float(largest.min()) * window[0]) < 4:
            height, width = (int(side) for side in sides[largest.argmin()])
            raise DataError(
                f"window: of the smallest photograph, {height} x {width} pixels, it would have "
                f"{least:.1f} pixels of a side. Remove the photograph, or choose smaller steps or "
                f"a smaller room."
            )
        sums = [_Sums(each.mean(0).double().numpy()) for each in pictures]
        # A row of random numbers for each sample, so that more samples leave the first as they are.
        random = rng.random((count, _DRAWS, 4))
        number = (random[:, 0, 0] * len(pictures)).astype(np.int64)[:, None]
        low, high = window
        side = largest[number] * low * (high / low) ** random[..., 1]
        height, width = sides[number].transpose(2, 0, 1)
        column = side * left + (width - side * (left + right)) * random[..., 2]
        row = side * top + (height - side * (top + bottom)) * random[..., 3]
        deviation = np.empty(side.shape)
        for each, sum_ in enumerate(sums):
            of = number[:, 0] == each
            deviation[of] = sum_.deviation(row[of], column[of], side[of])
        best = np.where(
            (deviation >= contrast).any(1), (deviation >= contrast).argmax(1), deviation.argmax(1)
        )[:, None]
        chosen = [np.take_along_axis(each, best, 1) for each in (column, row, side)]
        return torch.from_numpy(np.concatenate([number, *chosen], 1)).float()


class _Sums:
    """Sums over rectangles of an image."""

    def __init__(self, image: Float[np.ndarray, "h w"]) -> None:
        self.sums = np.zeros((2, image.shape[0] + 1, image.shape[1] + 1))
        self.sums[:, 1:, 1:] = np.stack([image, image**2]).cumsum(1).cumsum(2)

    def deviation(self, row: Array, column: Array, side: Array) -> Array:
        """Return the standard deviation in squares around some places."""
        top, left, bottom, right = (
            np.clip(np.rint(place).astype(np.int64), 0, limit)
            for place, limit in (
                (row - side / 2, self.sums.shape[1] - 1),
                (column - side / 2, self.sums.shape[2] - 1),
                (row + side / 2, self.sums.shape[1] - 1),
                (column + side / 2, self.sums.shape[2] - 1),
            )
        )
        area = (bottom - top) * (right - left)
        inside = self.sums[:, bottom, right] + self.sums[:, top, left]
        mean, square = (inside - self.sums[:, top, right] - self.sums[:, bottom, left]) / area
        deviation: Array = np.sqrt(np.maximum(square - mean**2, 0))
        return deviation


def follow(
    growth: Complex[Tensor, "b f"], place: Complex[Tensor, "b f"]
) -> tuple[Complex[Tensor, "b f"], Complex[Tensor, "b f"]]:
    """Return the similarities ``p -> factor p + shift`` along paths of their generators.

    Frame 0 has ``exp(growth) p + place``. From a frame to the next one the generator is constant,
    ``dp = g p + v`` with the differences ``g`` of ``growth`` and ``v`` of ``place``, and acts after
    what acted before: ``p -> exp(g) p + v (exp(g) - 1) / g``.

    Example:
        >>> import torch
        >>> growth = torch.tensor([[0, 0.5j * torch.pi, 0.5j * torch.pi]])
        >>> factor, shift = follow(growth, torch.tensor([[0, 0, 1 + 0j]]))  # turn, then move right
        >>> torch.view_as_real(factor + shift)[0].round().abs().tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    factor, shift = growth[:, 0].exp(), place[:, 0]
    factors, shifts = [factor], [shift]
    for g, v in zip(growth.diff(dim=1).unbind(1), place.diff(dim=1).unbind(1), strict=True):
        grown = g.exp()
        # exp(g) - 1 without cancellation.
        more = torch.complex(
            g.real.expm1() * g.imag.cos() - 2 * (g.imag / 2).sin().square(), grown.imag
        )
        mean = torch.where(g == 0, torch.ones_like(g), more / torch.where(g == 0, 1, g))
        factor, shift = grown * factor, grown * shift + mean * v
        factors.append(factor)
        shifts.append(shift)
    return torch.stack(factors, 1), torch.stack(shifts, 1)


def recolour(
    frames: Float[Tensor, "b f c h w"],
    hue: Float[Tensor, "b f"],
    brightness: Float[Tensor, "b f"],
) -> Float[Tensor, "b f c h w"]:
    """Return frames with colours turned around the grey axis of RGB, and then multiplied.

    The turn by ``a`` is ``cos a I + (1 - cos a) / 3 J + sin a / sqrt(3) K`` (Rodrigues), where all
    of ``J`` is 1 and ``K`` is the cross product with (1, 1, 1).

    Args:
        frames: in [0, 1].
        hue: degrees; at 120 red becomes green, green blue, and blue red. Grey frames have none.
        brightness: octaves.

    Example:
        >>> import torch
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 3, 1, 1)
        >>> zero = torch.zeros(1, 1)
        >>> recolour(red, zero + 120, zero - 1).flatten().round(decimals=4).tolist()
        [0.0, 0.5, 0.0]
    """
    gain = torch.exp2(brightness)[..., None, None]
    if frames.shape[2] == 1:
        return (frames * gain[..., None]).clamp(0, 1)
    turn = torch.deg2rad(hue.remainder(360))[..., None, None]
    one = frames.new_ones(3, 3)
    cross = frames.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    matrix = turn.cos() * one.diag().diag() + (1 - turn.cos()) / 3 * one
    matrix = gain * (matrix + turn.sin() / math.sqrt(3) * cross)
    turned: Tensor = matrix @ rearrange(frames, "b f c h w -> b f c (h w)")
    colours: Tensor = turned.clamp_(0, 1).unflatten(-1, frames.shape[-2:])
    return colours


def make_turnable(picture: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Return a picture whose colours stay in [0, 1] however far their hue is turned.

    A colour is its mean and what differs from it. A turn takes no channel further from the mean
    than ``sqrt(2/3)`` of the length of that difference, which is shortened to the distance of the
    mean from 0 and 1 where it is longer. Colours that can be turned stay as they are.
    """
    mean = picture.mean(0, keepdim=True)
    chroma = picture - mean
    furthest = chroma.norm(dim=0, keepdim=True) * math.sqrt(2 / 3)
    allowed = torch.minimum(mean, 1 - mean)
    paler: Tensor = (allowed / furthest.clamp(min=1e-12)).clamp(max=1)
    return mean + chroma * paler


def free_photographs(grey: bool = False) -> list[Path]:
    """Return the photographs that come with scikit-image, scikit-learn and matplotlib.

    Ten in colour, all of them free; ``docs/data.md`` lists their sources.

    Args:
        grey: with six more that have no colour.

    Raises:
        MissingExtraError: scikit-image or scikit-learn is not installed.
    """
    found = []
    wanted = [*_COLOUR.items(), *(_GREY.items() if grey else ())]
    for folder, names in wanted:
        package, _, inside = folder.partition("/")
        found += [find_extra(package, "photos") / inside / name for name in names]
    return found


def read_photographs(
    source: str | Path | Tensor | Array | Sequence[Tensor | Array] | None,
    resolution: int = 512,
    grey: bool = False,
) -> list[Photograph]:
    """Return photographs in natural order, none with a shorter side above ``resolution``.

    Args:
        source: see :class:`Photos`.
        resolution: to which the shorter side of larger ones is reduced, averaging over pixels.
        grey: whether colours become their luminance.

    Raises:
        DataError: they cannot be read, or there are none.
    """
    paths: list[Path] = []
    if source is None:
        paths = free_photographs(grey)
    elif isinstance(source, str | Path):
        path = local_path(source)
        if path.is_dir() and path.suffix != ZARR:
            paths = _list_pictures(path)
            if not paths:
                raise DataError(
                    f"path: the folder {path.absolute()} holds no pictures ({', '.join(PICTURES)})."
                )
        elif path.suffix.lower() in PICTURES:
            paths = [path]
    if paths:
        return [_read(path, resolution, grey) for path in paths]
    if isinstance(source, Sequence) and not isinstance(source, str):
        arrays = [read_images(each[None])[0] for each in source]
    else:
        arrays = list(read_images(source))  # type: ignore[arg-type]
    photographs = []
    for number, pixels in enumerate(arrays):
        picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
        photographs.append(_reduce(picture, str(number), resolution, grey))
    return photographs


def _list_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder and of the folders in it."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."]
    return [
        *list_files(folder, PICTURES),
        *(path for each in inside for path in _list_pictures(each)),
    ]


def _read(path: Path, resolution: int, grey: bool) -> Photograph:
    with open_picture(path) as picture:
        return _reduce(picture, path.stem, resolution, grey)


def _reduce(picture: Image.Image, name: str, resolution: int, grey: bool) -> Photograph:
    ratio = min(1.0, resolution / min(picture.size))
    size = (max(1, round(picture.height * ratio)), max(1, round(picture.width * ratio)))
    pixels = picture_pixels(picture, 1 if grey else picture_channels(picture), size)
    return Photograph(name, rearrange(torch.from_numpy(pixels), "h w c -> c h w") / 255)


@DATA.register("photos")
@options
class PhotosOptions(DrawnOptions):
    """Windows of photographs that pan, zoom, turn and change hue and brightness."""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str | None = None
    """A folder of pictures of any sizes, a picture, or a ``.npy``, ``.npz`` or HDF5 file of
    pictures; by default ten free photographs of scikit-image, scikit-learn and matplotlib."""

    size: Annotated[Side, Field(ge=4)] = 64
    """Pixels along each side of the frames."""

    transformations: Transformations | None = None
    """What sequences undergo, by name: ``x``, ``y``, ``zoom``, ``angle``, ``hue`` or ``brightness``
    that changes; by default all six, of grey pictures without the hue."""

    grey: bool = False
    """Whether to convert colours to grey (luminance)."""

    window: tuple[
        Annotated[float, Field(ge=0.01, le=1)], Annotated[float, Field(ge=0.01, le=1)]
    ] = (0.6, 1.0)
    """The smallest and the largest window, as fractions of the largest whose sequences stay within
    the photograph."""

    contrast: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Smallest standard deviation of a window's grey values, in 0..1. Of eight random windows the
    first that reaches it is taken, or else the one with the most contrast."""

    room: PositiveInt | None = None
    """The largest horizon for which windows stay within their photograph; by default twice
    ``horizon``."""

    resolution: Side = 512
    """Pixels of the shorter side to which larger photographs are reduced."""

    held_out_validation: Part = 0.15
    """Photographs for validation: a number, or a fraction of all."""

    held_out_test: Part = 0.15
    """Photographs for the test: a number, or a fraction of all."""

    def load(self, split: str, seed: int) -> Photos:
        """Return the windows of a split."""
        return Photos(
            self.path,
            self.count(split),
            self.size,
            self.transformations,
            horizon=self.horizon,
            split=split,
            validation=self.held_out_validation,
            test=self.held_out_test,
            window=self.window,
            contrast=self.contrast,
            room=self.room,
            resolution=self.resolution,
            grey=self.grey,
            active_start=self.active_start,
            random_start_prob=self.random_start_prob,
            initial_state=self.initial_state,
        )

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes pictures of noise."""
        rng = np.random.default_rng(0)
        (folder / "photos").mkdir()
        for number, shape in enumerate(((80, 100), (90, 80), (100, 120), (80, 80))):
            noise = rng.integers(0, 256, (shape[0] // 5, shape[1] // 5, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BICUBIC)
            picture.save(folder / "photos" / f"{number}.png")
        return {
            "path": str(folder / "photos"),
            "size": 16,
            "train": 60,
            "validation": 20,
            "test": 20,
        }
