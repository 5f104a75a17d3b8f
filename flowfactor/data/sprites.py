"""Coloured sprites: simple shapes whose size, orientation, place and hue are continuous factors.

In the spirit of dSprites (Matthey et al., 2017), but coloured, without a grid of values, and drawn
when they are asked for: there is no file, and as many samples as one likes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Real
from pydantic import Field
from torch import Tensor

from flowfactor.data.checks import check_choice, check_distinct, check_range
from flowfactor.data.options import DrawnOptions, Transformations
from flowfactor.data.rendering import hue_to_rgb
from flowfactor.data.transformations import ParametricDataset, Transformation
from flowfactor.options import options
from flowfactor.registries import DATA

SHAPES = ("square", "ellipse", "heart")
"""The shapes, in the order of their class."""

SPRITE_TRANSFORMATIONS: Mapping[str, Transformation] = {
    "scaling": Transformation("scale", 0.125, 0.01, path_range=(0.095, 0.215)),
    "rotation": Transformation("angle", 0.0, 10.0, path_range=(0.0, 160.0)),
    "x": Transformation("x", 0.0, 0.024, path_range=(-0.192, 0.192)),
    "y": Transformation("y", 0.0, 0.024, path_range=(-0.192, 0.192)),
    "hue": Transformation("hue", 0.0, 20.0, path_range=(0.0, 320.0)),
}
"""The five default transformations, in the order of their index."""

_SPLITS = ("train", "validation", "test")
_SPLIT_SIZE = 1 << 32
_DEFAULTS = {str(each.parameter): each for each in SPRITE_TRANSFORMATIONS.values()}
# Between which values all parameters of a random start lie if what is active starts there too.
# From any of these and the canonical ones a sprite stays within the image for 8 frames, whatever
# else it undergoes.
_START_RANGES = {
    "scale": (0.115, 0.135),
    "angle": (0.0, 80.0),
    "x": (-0.192, 0.0),
    "y": (-0.192, 0.0),
    "hue": (0.0, 160.0),
}
# Pixels of all frames that a CPU works on at once.
_CACHED = 1 << 17
# From which width by height to which, for each shape.
_STRETCH = ((1.05, 1.25), (1.4, 1.65), (1.0, 1.25))
# 2^64 divided by the golden ratio, as a signed number.
_GOLDEN = -0x61C8864680B583EB

# Each shape of area pi as a box and two discs, all in the frame of the sprite: half the box's
# side, its tilt, how far its middle is moved up; the discs' distance to either side, upwards, and
# their radius. What a shape does not need is hidden inside. A heart is a box on its corner with
# half a disc on both upper sides, moved down to have its enclosing circle around the middle.
_HEART = math.sqrt(math.pi / (4 + math.pi))
_PARTS = torch.tensor(
    [
        [math.sqrt(math.pi) / 2, 0.0, 0.0, 0.0, 0.0, 0.1],
        [0.1, 0.0, 0.0, 0.0, 0.0, 1.0],
        [
            _HEART,
            math.pi / 4,
            -0.37 * _HEART,
            _HEART / math.sqrt(2),
            _HEART / math.sqrt(2) - 0.37 * _HEART,
            _HEART,
        ],
    ]
)


class Sprites(ParametricDataset):
    """Squares, ellipses and hearts under scaling, rotation, motion along x and y, and hue.

    Sample ``i`` is a shape with a size, a stretch and a brightness of its own, a pure function of
    ``seed``, ``split`` and ``i``. Its canonical start is upright, red and in the middle. Frame
    ``x_t`` has the parameter of the transformation at ``start + step * t`` and the others at rest:
    ``scale``, the radius of a disc as large as the sprite, ``x`` (to the right) and ``y``
    (upwards), the place of its middle from that of the image, all three in sides of the image;
    ``angle`` (counter-clockwise) and ``hue`` (0 red, 120 green), both in degrees.

    The picture is drawn from formulas: a pixel is ``clip(1/2 - d, 0, 1)`` of the colour, where
    ``d`` is the signed distance of its middle from the outline, in pixels, so that it changes
    smoothly with every parameter and has no noise. A shape is the union of a box and two discs,
    stretched; the distance from a disc that was stretched is exact to first order at the outline.

    A square looks the same after a quarter of a turn, the other two after half or a whole one.
    What follows a frame is well-defined all the same, as the turned square is the square; but
    frames of one sequence only all differ while it turns by less than 90 degrees. The default 8
    steps of 10 degrees stay below. Squares are stretched by at least 5 %, which tells them from
    their quarter turn, and ellipses by 40 to 65 %.

    Args:
        count: number of samples.
        size: pixels along each side of the frames.
        transformations: what the sequences undergo, by name, each of its own parameter. With the
            defaults a sprite stays in the image for 8 frames from any start.
        horizon: ``T``, the number of the last frame.
        split: ``train``, ``validation`` or ``test``; they share no sample.
        shapes: which of :data:`SHAPES` there are, in equal parts.
        active_start, random_start_prob: see :class:`ParametricDataset`.
        initial_state: see :class:`SequenceDataset`.
        seed: of the samples.
        device: where frames are drawn.

    Raises:
        DataError: a number out of range, an unknown shape or split, two transformations of one
            parameter; what :class:`ParametricDataset` refuses.

    Example:
        >>> sprites = Sprites(1000, horizon=4)
        >>> sprites.names
        ('scaling', 'rotation', 'x', 'y', 'hue')
        >>> batch = sprites.sample([0, 1], "rotation")
        >>> tuple(batch.frames.shape), [SHAPES[k] for k in sprites.classes[:4]]
        ((2, 5, 3, 32, 32), ['heart', 'heart', 'square', 'ellipse'])
    """

    class_name = "shape"
    per_sample: ClassVar[tuple[str, ...]] = (*ParametricDataset.per_sample, "numbers")

    def __init__(
        self,
        count: int = 60_000,
        size: int = 32,
        transformations: Mapping[str, Transformation] = SPRITE_TRANSFORMATIONS,
        *,
        horizon: int = 8,
        split: str = "train",
        shapes: Sequence[str] = SHAPES,
        active_start: str = "random",
        random_start_prob: float = 0.8,
        initial_state: str = "canonical",
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        check_range("count", count, 1, _SPLIT_SIZE)
        check_range("size", size, 8)
        check_range("seed", seed, 0, 2**63 - 1)
        check_choice("split", split, _SPLITS)
        check_distinct("shapes", shapes)
        for shape in shapes:
            check_choice("shapes", shape, SHAPES)
        defaults = _DEFAULTS
        if active_start == "random":
            defaults = {
                name: dataclasses.replace(each, start_range=_START_RANGES[name])
                for name, each in _DEFAULTS.items()
            }
        super().__init__(
            transformations,
            defaults,
            horizon,
            (3, size, size),
            active_start=active_start,
            random_start_prob=random_start_prob,
            initial_state=initial_state,
            device=device,
        )
        check_distinct("transformations (their parameters)", [m.parameter for m in self._motions])
        self.size = size
        self.split = split
        self.shapes = tuple(shapes)
        self.seed = seed
        self.numbers = torch.arange(count, device=self.device)
        self.classes = self.attributes(self.numbers).shape

    def __len__(self) -> int:
        return len(self.numbers)

    def attributes(self, indices: Int[Tensor, "b"]) -> Attributes:
        """Return what is a sample's own and no transformation changes."""
        key = self.numbers[indices.to(self.device)] + _SPLITS.index(self.split) * _SPLIT_SIZE
        key = _mix(key + _mix(torch.tensor(self.seed, device=self.device)))
        shape, size, stretch, brightness = (_uniform(key, number) for number in range(4))
        kinds = torch.tensor([SHAPES.index(s) for s in self.shapes], device=self.device)
        kind = kinds[(shape * len(kinds)).long()]
        low, high = torch.tensor(_STRETCH, device=self.device)[kind].unbind(-1)
        return Attributes(
            shape=kind,
            size=0.95 + 0.1 * size,
            stretch=low + (high - low) * stretch,
            brightness=0.7 + 0.3 * brightness,
        )

    def render_frames(
        self,
        indices: Int[Tensor, "b"],
        elapsed: Real[Tensor, "k b f"],
        active: Bool[Tensor, "k b"],
        starts: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Return frames of sprites while transformations act; see :class:`SequenceDataset`."""
        unmoved = {name: float(default.start or 0) for name, default in _DEFAULTS.items()}
        parameters = self._parameters(elapsed, active, starts, unmoved)
        return draw(self.attributes(indices), **parameters, size=self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Attributes:
    """What a sprite is, one value for each of ``b`` samples.

    Attributes:
        shape: index in :data:`SHAPES`.
        size: by which its scale is multiplied, around 1.
        stretch: width by height, in its own upright frame, as a multiple of the plain shape's.
        brightness: of its colour, in [0, 1].
    """

    shape: Int[Tensor, "b"]
    size: Float[Tensor, "b"]
    stretch: Float[Tensor, "b"]
    brightness: Float[Tensor, "b"]

    def at(self, part: slice) -> Attributes:
        """Return those of some of the samples."""
        return Attributes(
            self.shape[part], self.size[part], self.stretch[part], self.brightness[part]
        )


def draw(
    sprites: Attributes,
    scale: Float[Tensor, "b f"],
    angle: Float[Tensor, "b f"],
    x: Float[Tensor, "b f"],
    y: Float[Tensor, "b f"],
    hue: Float[Tensor, "b f"],
    size: int = 32,
) -> Float[Tensor, "b f 3 h h"]:
    """Return frames of sprites at any value of their parameters.

    Args:
        sprites: what is drawn.
        scale: radius of a disc as large as the sprite, as a part of the image's side.
        angle: degrees, counter-clockwise if positive.
        x: place of the sprite's middle, to the right of the image's, in sides of the image.
        y: the same upwards.
        hue: degrees, 0 red, 120 green, 240 blue.
        size: pixels along each side.

    Returns:
        Colour frames in [0, 1], ``(b, f, 3, size, size)``, black where there is no sprite.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> disc = Attributes(torch.tensor([1]), one, one, one)
        >>> zero = torch.zeros(1, 1)
        >>> frame = draw(disc, zero + 0.25, zero, zero, zero, zero + 120)[0, 0]
        >>> round(frame[1].mean().item(), 3), frame[0].max().item()  # a disc has pi / 16
        (0.196, 0.0)
    """
    # On a CPU a few frames at a time, whose pixels stay in its cache: four times as fast.
    few = max(1, _CACHED // (scale.shape[1] * size**2))
    if scale.device.type == "cpu" and len(scale) > few:
        parts = [
            draw(sprites.at(part), scale[part], angle[part], x[part], y[part], hue[part], size)
            for part in (slice(i, i + few) for i in range(0, len(scale), few))
        ]
        return torch.cat(parts)
    # Lengths are in pixels from here on. A pixel p is seen from the sprite's own frame, in which
    # its plain shape has the area pi: q = R(-angle) (p - middle) / (radius * stretch).
    radius = scale * sprites.size[:, None] * size
    wide = radius * sprites.stretch.sqrt()[:, None]
    high = radius / sprites.stretch.sqrt()[:, None]
    turn = torch.deg2rad(angle)
    centres = torch.arange(size, dtype=scale.dtype, device=scale.device) + 0.5 - size / 2
    columns, rows = centres - (x * size)[..., None], -centres - (y * size)[..., None]

    def along(direction: Float[Tensor, "b #f"], offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return a coordinate in the sprite's frame at each pixel, and its change to the next.

        Only one sum is of full size.
        """
        a, b = direction.cos() / wide, direction.sin() / high
        in_columns = columns * (a * turn.cos() - b * turn.sin())[..., None]
        in_rows = rows * (a * turn.sin() + b * turn.cos())[..., None] - offset[:, None, None]
        slope = (a.square() + b.square()).sqrt()[..., None, None]
        return in_columns[..., None, :] + in_rows[..., :, None], slope

    half, tilt, below, aside, above, reach = _PARTS.to(scale)[sprites.shape].unbind(-1)
    cover: Tensor | float = 1.0
    for turned in (tilt, tilt + math.pi / 2):
        q, slope = along(turned[:, None], below * turned.sin())
        cover = cover * ((half[:, None, None, None] - q.abs()) / slope + 0.5).clamp_(0, 1)

    # The two discs are each other's mirror images: one, for both halves of the plane.
    dx, slope_x = along(torch.zeros_like(tilt)[:, None], torch.zeros_like(tilt))
    dy, slope_y = along(torch.full_like(tilt, math.pi / 2)[:, None], above)
    dx = (dx.abs_() - aside[:, None, None, None]).square_()
    dy = dy.square_()
    # (f - r^2) / |grad f| for f the squared distance in the sprite's frame.
    steepness = 2 * (dx * slope_x.square()).add_(dy * slope_y.square()).sqrt_()
    beyond = dx.add_(dy).sub_(reach.square()[:, None, None, None]).div_(steepness)
    cover = torch.maximum(torch.as_tensor(cover), beyond.neg_().add_(0.5).clamp_(0, 1))
    colour = hue_to_rgb(hue) * sprites.brightness[:, None, None]
    return cover.unsqueeze(2) * colour[..., None, None]


def _mix(key: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Return scattered 64-bit numbers, one to one: SplitMix64 (Steele et al., 2014).

    In whole numbers, so that every device gives the same.
    """
    key = (key + 1) * _GOLDEN
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        # An arithmetic shift copies the sign, which the mask removes.
        key = (key ^ ((key >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return key


def _uniform(key: Int[Tensor, "b"], number: int) -> Float[Tensor, "b"]:
    """Return random number ``number`` of each key, in [0, 1)."""
    return (_mix(key + number * 0x1234567) & 0xFFFFFF).float() / 0x1000000


@DATA.register("sprites")
@options
class SpritesOptions(DrawnOptions):
    """Sprites, drawn as they are asked for; the same for every seed of a run."""

    size: Annotated[int, Field(ge=8)] = 32
    """Pixels along each side of the frames."""

    transformations: Transformations = dataclasses.field(
        default_factory=lambda: dict(SPRITE_TRANSFORMATIONS)
    )
    """What sequences undergo, by name: ``scale``, ``angle``, ``x``, ``y`` or ``hue`` that
    changes."""

    shapes: tuple[Literal["square", "ellipse", "heart"], ...] = SHAPES  # type: ignore[assignment]
    """Which shapes there are, in equal parts."""

    def load(self, split: str, seed: int) -> Sprites:
        """Return the sprites of a split."""
        return Sprites(
            self.count(split),
            self.size,
            self.transformations,
            horizon=self.horizon,
            split=split,
            shapes=self.shapes,
            active_start=self.active_start,
            random_start_prob=self.random_start_prob,
            initial_state=self.initial_state,
        )

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny."""
        return {"size": 16, "train": 60, "validation": 20, "test": 20}
