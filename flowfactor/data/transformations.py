"""Transformations: which parameter of an image changes over time, and how."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from flowfactor.data.activity import PathRange
from flowfactor.data.base import SequenceDataset
from flowfactor.data.checks import check_choice, check_range
from flowfactor.data.coverage import Coverage
from flowfactor.data.factor_sampling import StartFactors
from flowfactor.data.known_factors import KnownFactors
from flowfactor.errors import DataError
from flowfactor.options import FiniteFloat, options
from flowfactor.options import Int as Integer


@options
class Transformation:
    """A parameter of an image that changes at constant speed: ``start + step * t`` at frame ``t``.

    What is left out is the data set's default for the parameter.

    Example:
        >>> Transformation("angle", step=5.0)
        Transformation(parameter='angle', start=None, step=5.0, start_range=None, path_range=None)
    """

    parameter: str | None = None
    """What changes: ``scale``, ``angle`` (degrees, counter-clockwise), ``hue`` (degrees, 0 red, 120
    green), of sprites also ``x`` and ``y`` (in sides of the image), or a factor of a grid; by
    default the parameter that the transformation is named after."""

    start: Integer | FiniteFloat | Literal["own"] | None = None
    """Value at frame 0 of a canonical sequence. Of a grid a position, from the end if negative, or
    ``own`` for that of the sample itself, or the nearest with room for a whole sequence."""

    step: Integer | FiniteFloat | None = None
    """Change from one frame to the next; of a grid a number of positions."""

    start_range: tuple[FiniteFloat, FiniteFloat] | None = None
    """Between which values random starts lie; by default between those of frames 0 and T. Not for
    grids, whose random starts are all positions with room."""

    path_range: tuple[FiniteFloat, FiniteFloat] | None = None
    """Between which values whole sequences stay where activity is drawn, at any speed and either
    way; by default between those that sequences at random starts reach. A whole turn of angle or
    hue has no ends. Not for grids, which have their positions."""

    def resolve(self, name: str, defaults: Mapping[str, Transformation]) -> Transformation:
        """Return the same transformation with the defaults of its parameter filled in.

        Args:
            name: of the transformation.
            defaults: for each parameter of the data set.

        Raises:
            DataError: the data set has no such parameter.
        """
        parameter = self.parameter or name
        check_choice(f"transformations.{name}.parameter", parameter, defaults)
        given = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(defaults[parameter], **given | {"parameter": parameter})


# After which change a parameter is back where it was.
_CYCLES = {"angle": 360.0, "hue": 360.0}


class _Motion(NamedTuple):
    """A transformation as numbers: its value at frame 0, its change, its value at rest."""

    parameter: str
    start: float
    step: float
    rest: float


class ParametricDataset(SequenceDataset):
    """A data set whose transformations move continuous parameters at constant speed.

    Args:
        transformations: by name, in the order of their index.
        defaults: transformations that say the default start, step and range of each parameter.
        horizon, image_shape, options: as for :class:`SequenceDataset`.
        rest: the value of each parameter that no transformation moves; by default, where the
            transformation starts.
        active_start: where active transformations begin at a random start: ``random`` like those
            at rest, or ``canonical``, so that the sequences stay within what canonical ones and
            their compositions show.
        random_start_prob: the probability that a random start is not canonical after all.

    Attributes:
        transformations: as given, with defaults filled in.
        start_ranges: between which values each transformation starts at random.

    Raises:
        DataError: an unknown parameter or choice, a number out of range, a scale that is not
            positive at some frame.
    """

    class_name = "class"
    moves_by_whole_steps: ClassVar[bool] = False

    def __init__(
        self,
        transformations: Mapping[str, Transformation],
        defaults: Mapping[str, Transformation],
        horizon: int,
        image_shape: tuple[int, int, int],
        *,
        rest: Mapping[str, float] | None = None,
        active_start: str = "random",
        random_start_prob: float = 0.8,
        **options: Any,
    ) -> None:
        check_choice("active_start", active_start, ("random", "canonical"))
        check_range("random_start_prob", random_start_prob, 0, 1)
        # One random number for each transformation, and one that says whether they count.
        super().__init__(
            tuple(transformations),
            horizon,
            image_shape,
            start_size=len(transformations) + 1,
            **options,
        )
        self.active_start = active_start
        self.random_start_prob = random_start_prob
        self.transformations = {
            name: each.resolve(name, defaults) for name, each in transformations.items()
        }
        motions, ranges = [], []
        for name, each in self.transformations.items():
            if isinstance(each.start, str):
                raise DataError(f"transformations.{name}.start must be a number.")
            parameter, start, step = str(each.parameter), float(each.start or 0), each.step or 0
            motions.append(
                _Motion(parameter, start, float(step), start if rest is None else rest[parameter])
            )
            ranges.append(each.start_range or (start, start + step * horizon))
        self._motions = tuple(motions)
        self.start_ranges: tuple[tuple[float, float], ...] = tuple(ranges)
        check_range("horizon: as scales are positive it", horizon, 1, self.max_horizon)

    @property
    def max_horizon(self) -> float:
        """The largest horizon at which all scales are positive."""
        longest = math.inf
        for motion, start_range in zip(self._motions, self.start_ranges, strict=True):
            if motion.parameter != "scale":
                continue
            smallest = min(motion.start, *start_range)
            if smallest <= 0:
                return 0
            if motion.step < 0:
                last = math.ceil(smallest / -motion.step)
                last -= smallest + motion.step * last <= 0
                longest = min(longest, last)
        return longest

    def known_factors(self, bins: int = 10) -> KnownFactors:
        """Return images at random starts with their class and the bins of their parameters.

        Raises:
            DataError: nothing varies at random starts.
        """
        # Starts are random with this probability; without it nothing varies.
        ranges = self.start_ranges if self.random_start_prob > 0 else ()
        return StartFactors(self, ranges, bins, self.class_name)

    def random_starts(
        self, count: int, generator: torch.Generator, *, always: bool = False
    ) -> Float[Tensor, "count s"] | None:
        """Draw where sequences start at random; see :class:`SequenceDataset`."""
        starts = super().random_starts(count, generator)
        if always and starts is not None:
            starts[:, -1] = 0.0  # the number that decides whether a start is random
        return starts

    def coverage(self, k: int) -> Coverage | None:
        """Return which states of a transformation training sequences show; None if it has none."""
        motion, (low, high) = self._motions[k], sorted(self.start_ranges[k])
        if motion.step == 0:
            return None
        starts, rests = [motion.start], [motion.rest]
        if self.initial_state == "random" and self.random_start_prob > 0:
            rests += [low, high]
            starts += [low, high] if self.active_start == "random" else []
        values = [start + motion.step * t for start in starts for t in (0, self.horizon)]
        return Coverage.of_values(
            motion.start,
            motion.step,
            moving=(min(values), max(values)),
            resting=(min(rests), max(rests)),
            cycle=_CYCLES.get(motion.parameter),
        )

    def path_range(self, k: int) -> PathRange:
        """Return between which states a transformation moves where activity is drawn."""
        motion, given = self._motions[k], self.transformations[self.names[k]].path_range
        if motion.step == 0:
            raise DataError(f"transformations.{self.names[k]}: with step 0 it has no activity.")
        moved = motion.step * self.horizon
        begins = (motion.start, *self.start_ranges[k])
        values = given or (min(begins) + min(moved, 0.0), max(begins) + max(moved, 0.0))
        if motion.parameter == "scale" and min(values) <= 0:
            raise DataError(f"transformations.{self.names[k]}.path_range: scales are positive.")
        low, high = sorted((value - motion.start) / motion.step for value in values)
        cycle = _CYCLES.get(motion.parameter)
        return PathRange(low, high, None if cycle is None else cycle / abs(motion.step))

    def path_starts(
        self,
        indices: Int[Tensor, "b"],
        moved: Float[Tensor, "b f k"],
        active: Bool[Tensor, "b k"],
        starts: Float[Tensor, "b s"] | None,
    ) -> tuple[Float[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """Return where sequences start that move; see :class:`SequenceDataset`."""
        nearest, _ = super().path_starts(indices, moved, active, None)
        if starts is None:
            return nearest, active
        anywhere, _ = super().path_starts(indices, moved, active, starts)
        random = (starts[:, -1:] < self.random_start_prob).expand_as(active)
        if self.active_start == "canonical":
            random = random & ~active
        return torch.where(random, anywhere, nearest), random | active

    def _parameters(
        self,
        elapsed: Real[Tensor, "k b f"],
        active: Bool[Tensor, "k b"],
        starts: Float[Tensor, "b s"] | None,
        unmoved: Mapping[str, float],
    ) -> dict[str, Float[Tensor, "b f"]]:
        """Return the values of all parameters; ``unmoved`` has those that nothing moves."""
        values: dict[str, Tensor] = {}
        # Every transformation is evaluated for every sample: K is small, a time is one number, and
        # nothing has to be looked up or brought back from the device.
        for k, (motion, (low, high)) in enumerate(
            zip(self._motions, self.start_ranges, strict=True)
        ):
            begin: float | Tensor = motion.start
            resting: float | Tensor = motion.rest
            if starts is not None:
                anywhere = low + starts[:, k : k + 1] * (high - low)
                random = starts[:, -1:] < self.random_start_prob
                resting = torch.where(random, anywhere, motion.rest)
                if self.active_start == "random":
                    begin = torch.where(random, anywhere, motion.start)
            moving = begin + motion.step * elapsed[k].float()
            value = torch.where(active[k][:, None], moving, resting)
            before = values.get(motion.parameter)
            if before is not None:
                value = before * value if motion.parameter == "scale" else before + value
            values[motion.parameter] = value
        return {
            name: values[name]
            if name in values
            else torch.full(elapsed.shape[1:], value, device=self.device)
            for name, value in unmoved.items()
        }
