"""Coloured sprites: simple shapes whose size, orientation, place and hue are continuous factors.

In the spirit of dSprites (Matthey et al., 2017), but coloured, without a grid of values, and drawn
when they are asked for: there is no file, and as many samples as one likes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowfactor.data.mnist import Split
from flowfactor.data.rendering import hue_to_rgb
from flowfactor.data.source import SequenceDataset, check_active_start
from flowfactor.errors import DataError

#: The shapes, in the order of their label.
SHAPES = ("square", "ellipse", "heart")

#: What can move, and where it rests while it does not.
USUAL = {"scale": 0.125, "angle": 0.0, "x": 0.0, "y": 0.0, "hue": 0.0}


@dataclasses.dataclass(frozen=True)
class Motion:
    """A factor of a sprite that changes at constant speed, ``start + step * t``.

    Args:
        parameter: which factor: `scale`, the radius of a disc as large as the sprite, or `x` (to
            the right) or `y` (upwards), the place of its middle from that of the image, all three
            as parts of the image's side; `angle` (counter-clockwise) or `hue` (0 red, 120
            green), both in degrees.
        start: its value at frame 0 of a canonical sequence.
        step: its change from a frame to the next, any number.
        starts: between which values a random start lies.
        name: under which configs, tables and figures know it.

    Raises:
        DataError: an unknown parameter, or a number that is not finite.

    Example:
        >>> Motion("x", start=0.0, step=0.024, starts=(-0.192, 0.0), name="x").value(8)
        0.192
    """

    parameter: str
    start: float
    step: float
    starts: tuple[float, float]
    name: str

    def __post_init__(self) -> None:
        if self.parameter not in USUAL:
            raise DataError(
                f"Motion {self.name!r} changes {self.parameter!r}, which is not one of "
                f"{', '.join(USUAL)}."
            )
        for number in (self.start, self.step, *self.starts):
            if not math.isfinite(number):
                raise DataError(
                    f"start, step and starts of motion {self.name!r} must be finite numbers, but "
                    f"they are {self.start}, {self.step} and {self.starts}."
                )

    def value(self, t: float) -> float:
        """The factor at time `t` of a canonical sequence."""
        return self.start + self.step * t


#: The five motions, in the order of their index. From any of their starts, canonical or random,
#: a sprite stays within the image for 8 frames, whatever else it undergoes.
MOTIONS = (
    Motion("scale", USUAL["scale"], 0.01, (0.115, 0.135), "scaling"),
    Motion("angle", USUAL["angle"], 10.0, (0.0, 80.0), "rotation"),
    Motion("x", USUAL["x"], 0.024, (-0.192, 0.0), "x"),
    Motion("y", USUAL["y"], 0.024, (-0.192, 0.0), "y"),
    Motion("hue", USUAL["hue"], 20.0, (0.0, 160.0), "hue"),
)


class Sprites(SequenceDataset):
    """Squares, ellipses and hearts under scaling, rotation, motion along x and y, and hue.

    Sample `i` is a shape with a size, a stretch and a brightness of its own, a pure function of
    `seed`, `split` and `i`. Its canonical start is upright, red and in the middle. Frame `x_t`
    has the factor of the transformation at ``start + step * t`` and the others at rest.

    The picture is drawn from formulas: a pixel is ``clip(1/2 - d, 0, 1)`` of the colour, where
    `d` is the signed distance of its middle from the outline, in pixels, so that it changes
    smoothly with every factor and has no noise. A shape is the union of a box and two discs,
    stretched; the distance from a disc that was stretched is exact to first order at the outline.

    A square looks the same after a quarter of a turn, the other two after half or a whole one.
    What follows a frame is well-defined all the same, as the turned square is the square; but
    frames of one sequence only all differ while it turns by less than 90 degrees. The usual 8
    steps of 10 degrees stay below. Squares are stretched by at least 5 %, which tells them from
    their quarter turn, and ellipses by 40 to 65 %.

    Args:
        count: number of samples.
        size: pixels along each side of the frames.
        transformations: what the sequences undergo, in the order of their index, at most one
            for each factor.
        horizon: `T`, the number of the last frame.
        split: `train`, `validation` or `test`; they share no sample.
        shapes: which of `SHAPES` there are, in equal parts.
        active_start: where at a random start the motions begin that then act: `random` like those
            that rest, or `canonical`; those that rest are then anywhere on their canonical way, so
            that the sequences stay within what canonical ones and their compositions show.
        random_start_prob: the part of the random starts that are not canonical after all is this.
        seed: of the samples.
        device: where frames are drawn.

    Raises:
        DataError: a number out of range, an unknown shape or split, no transformation, two of a
            name or factor, a scale that is not positive at some frame.

    Example:
        >>> sprites = Sprites(1000, horizon=4)
        >>> sprites.names
        ('scaling', 'rotation', 'x', 'y', 'hue')
        >>> batch = sprites.sample([0, 1], "rotation")
        >>> tuple(batch.frames.shape), [SHAPES[k] for k in sprites.labels[:4]]
        ((2, 5, 3, 32, 32), ['heart', 'heart', 'square', 'ellipse'])
    """

    def __init__(
        self,
        count: int = 60_000,
        size: int = 32,
        transformations: Sequence[Motion] = MOTIONS,
        *,
        horizon: int = 8,
        split: str = "train",
        shapes: Sequence[str] = SHAPES,
        active_start: str = "random",
        random_start_prob: float = 0.8,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if not 1 <= count <= _SPLIT_SIZE:
            raise DataError(f"The number of sprites must be in 1..{_SPLIT_SIZE}; it is {count}.")
        if size < 8:
            raise DataError(f"Sprites need at least 8 pixels a side, but size is {size}.")
        if horizon < 1:
            raise DataError(f"A sequence needs a last frame of at least 1, but last is {horizon}.")
        if split not in get_args(Split):
            raise DataError(f"split must be one of {', '.join(get_args(Split))}; it is {split!r}.")
        if not shapes or len(set(shapes)) < len(shapes) or not set(shapes) <= set(SHAPES):
            raise DataError(
                f"shapes must be one or more of {', '.join(SHAPES)}, each once; they are "
                f"{list(shapes)}."
            )
        if not 0 <= random_start_prob <= 1:
            raise DataError(f"random_start_prob must be in [0, 1], but it is {random_start_prob}.")
        if not 0 <= seed < 2**63:
            raise DataError(f"The seed must be in 0..{2**63 - 1}, but it is {seed}.")
        _check_motions(transformations, horizon)
        self.size = size
        self.transformations = tuple(transformations)
        self.split = split
        self.shapes = tuple(shapes)
        check_active_start(active_start)
        self.active_start = active_start
        self.random_start_prob = random_start_prob
        self.seed = seed
        self._count = count
        self._last = horizon
        self._device = torch.device(device or "cpu")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""
        return tuple(motion.name for motion in self.transformations)

    @property
    def horizon(self) -> int:
        """`T`, number of the last frame of a sequence."""
        return self._last

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame, such as `(3, 32, 32)`."""
        return (3, self.size, self.size)

    @property
    def device(self) -> torch.device:
        """Where the frames are drawn."""
        return self._device

    @property
    def start_size(self) -> int:
        """One number for each transformation, and one that says whether they count."""
        return len(self.transformations) + 1

    @property
    def classes(self) -> Int[Tensor, " n"]:
        """The shape of each sample, its index in `SHAPES`."""
        return self.attributes(torch.arange(len(self), device=self.device)).shape

    def __len__(self) -> int:
        return self._count

    def with_last(self, horizon: int) -> Sprites:
        """The same sprites in shorter or longer sequences, for instance to extrapolate.

        Random starts stay where they were; in sequences that are longer than the usual 8 frames,
        sprites may leave the image.
        """
        return self._changed(horizon=horizon)

    def to(self, device: torch.device | str) -> Sprites:
        """The same sprites, drawn on another device."""
        return self._changed(device=torch.device(device))

    def _changed(self, horizon: int | None = None, device: torch.device | None = None) -> Sprites:
        return Sprites(
            self._count,
            self.size,
            self.transformations,
            horizon=self.horizon if horizon is None else horizon,
            split=self.split,
            shapes=self.shapes,
            active_start=self.active_start,
            random_start_prob=self.random_start_prob,
            seed=self.seed,
            device=self.device if device is None else device,
        )

    def attributes(self, indices: Int[Tensor, " b"]) -> Attributes:
        """What is a sample's own and no transformation changes."""
        key = indices.to(self.device).long() + get_args(Split).index(self.split) * _SPLIT_SIZE
        key = _mixed(key + _mixed(torch.tensor(self.seed, device=self.device)))
        shape, size, stretch, brightness = (_uniform(key, number) for number in range(4))
        chosen = torch.tensor([SHAPES.index(s) for s in self.shapes], device=self.device)
        kind = chosen[(shape * len(chosen)).long()]
        low, high = torch.tensor(_STRETCH, device=self.device)[kind].unbind(-1)
        return Attributes(
            shape=kind,
            size=0.95 + 0.1 * size,
            stretch=low + (high - low) * stretch,
            brightness=0.7 + 0.3 * brightness,
        )

    def _frames(
        self,
        indices: Int[Tensor, " b"],
        elapsed: Sequence[Int[Tensor, "b f"]],
        active: Sequence[Bool[Tensor, " b"]],
        start: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Frames in which transformation `k` acts on the samples where `active[k]` is true."""
        shape = elapsed[0].shape
        factors = {
            name: torch.full(shape, value, device=self.device) for name, value in USUAL.items()
        }
        for k, (motion, mask) in enumerate(zip(self.transformations, active, strict=True)):
            begin: Tensor | float = motion.start
            if start is not None:
                low, high = motion.starts
                random = start[:, -1:] < self.random_start_prob
                if self.active_start == "canonical":
                    low, high = motion.start, motion.value(self.horizon)
                    random = random & ~mask[:, None]
                anywhere = low + start[:, k : k + 1] * (high - low)
                begin = torch.where(random, anywhere, motion.start)
            factors[motion.parameter] = begin + motion.step * elapsed[k].float() * mask[:, None]
        return draw(self.attributes(indices), **factors, size=self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Attributes:
    """What a sprite is, one value for each of `b` samples.

    Attributes:
        shape: index in `SHAPES`.
        size: by which its scale is multiplied, around 1.
        stretch: width by height, in its own upright frame, as a multiple of the plain shape's.
        brightness: of its colour, in [0, 1].
    """

    shape: Int[Tensor, " b"]
    size: Float[Tensor, " b"]
    stretch: Float[Tensor, " b"]
    brightness: Float[Tensor, " b"]

    def at(self, part: slice) -> Attributes:
        """Those of some of the samples."""
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
    """Frames of sprites at any value of their factors.

    Args:
        sprites: what is drawn.
        scale: radius of a disc as large as the sprite, as a part of the image's side.
        angle: degrees, counter-clockwise if positive.
        x: place of the sprite's middle, to the right of the image's, in sides of the image.
        y: the same upwards.
        hue: degrees, 0 red, 120 green, 240 blue.
        size: pixels along each side.

    Returns:
        Colour frames in [0, 1], `(b, f, 3, size, size)`, black where there is no sprite.

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
        """A coordinate in the sprite's frame at each pixel, and its change from one to the next.

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


_SPLIT_SIZE = 1 << 32
# Pixels of all frames that a CPU works on at once.
_CACHED = 1 << 17
# From which width by height to which, for each shape.
_STRETCH = ((1.05, 1.25), (1.4, 1.65), (1.0, 1.25))

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


def _mixed(key: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Scattered 64-bit numbers, one to one: the finaliser of SplitMix64 (Steele et al., 2014).

    In whole numbers, so that every device gives the same.
    """
    key = (key + 1) * _GOLDEN
    for shift, labels in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        # An arithmetic shift copies the sign, which the mask removes.
        key = (key ^ ((key >> shift) & ((1 << (64 - shift)) - 1))) * labels
    return key


# 2^64 divided by the golden ratio, as a signed number.
_GOLDEN = -0x61C8864680B583EB


def _uniform(key: Int[Tensor, " b"], number: int) -> Float[Tensor, " b"]:
    """Random number `number` of each key, in [0, 1)."""
    return (_mixed(key + number * 0x1234567) & 0xFFFFFF).float() / 0x1000000


def _check_motions(motions: Sequence[Motion], horizon: int) -> None:
    for what in ("name", "parameter"):
        values = [getattr(motion, what) for motion in motions]
        if not values or len(set(values)) < len(values):
            raise DataError(
                f"There must be at least one transformation, each with a {what} of its own, but "
                f"their {what}s are {values}."
            )
    for motion in motions:
        if motion.parameter == "scale":
            for begin in (motion.start, *motion.starts):
                smallest = min(begin, begin + horizon * motion.step)
                if smallest <= 0:
                    raise DataError(
                        f"Transformation {motion.name!r} has a scale of {smallest:g} within "
                        f"{horizon} frames from {begin:g}, but a scale must be positive. Choose a "
                        "smaller step, fewer frames or another start."
                    )
