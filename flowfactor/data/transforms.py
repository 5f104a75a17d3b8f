"""Transformations of a digit: which parameter of its picture changes over time, and how."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Protocol, overload, runtime_checkable

from torch import Tensor

from flowfactor.errors import DataError

Parameter = Literal["scale", "angle", "hue"]
Number = float | int

#: Value of a parameter that leaves the picture as it is.
NEUTRAL: dict[Parameter, float] = {"scale": 1.0, "angle": 0.0, "hue": 0.0}


@runtime_checkable
class Transformation(Protocol):
    """A change of one parameter of the picture over time."""

    @property
    def name(self) -> str:
        """Name under which configs, tables and figures know it."""

    @property
    def parameter(self) -> Parameter:
        """Which parameter of the renderer it drives: `scale`, `angle` or `hue`."""

    @overload
    def value(self, t: Number, start: Number | None = None) -> float: ...
    @overload
    def value(self, t: Tensor, start: Number | Tensor | None = None) -> Tensor: ...
    def value(self, t: Number | Tensor, start: Number | Tensor | None = None) -> Number | Tensor:
        """The parameter at time `t`, from `start` if given, else from its usual start."""


@dataclasses.dataclass(frozen=True)
class _Linear:
    """A parameter that changes at constant speed, `start + step * t`."""

    start: Number
    step: Number
    name: str

    def __post_init__(self) -> None:
        for field in ("start", "step"):
            if not math.isfinite(getattr(self, field)):
                raise DataError(
                    f"The {field} of transformation {self.name!r} must be a finite number, but it "
                    f"is {getattr(self, field)}."
                )

    @overload
    def value(self, t: Number, start: Number | None = None) -> float: ...
    @overload
    def value(self, t: Tensor, start: Number | Tensor | None = None) -> Tensor: ...
    def value(self, t: Number | Tensor, start: Number | Tensor | None = None) -> Number | Tensor:
        """The parameter at time `t`, `start + step * t`.

        Args:
            t: time in frames, a number or a tensor of any shape.
            start: value at `t = 0`, a number or a tensor that broadcasts against `t` (for
                sequences that start somewhere else); the transformation's own by default.
        """
        return (self.start if start is None else start) + self.step * t


@dataclasses.dataclass(frozen=True)
class Scaling(_Linear):
    """Growth about the centre: size relative to the original, `start + step * t`.

    The default runs from 1.0 to 1.8 over `t = 0..8`.

    Example:
        >>> round(Scaling().value(8), 6)
        1.8
    """

    start: Number = 1.0
    step: Number = 0.1
    name: str = "scaling"

    @property
    def parameter(self) -> Parameter:
        """`scale`."""
        return "scale"


@dataclasses.dataclass(frozen=True)
class Rotation(_Linear):
    """Rotation about the centre by `start + step * t` degrees, counter-clockwise if positive.

    The default runs from 0 to 80 degrees over `t = 0..8`.

    Example:
        >>> Rotation(step=15).value(2)
        30.0
    """

    start: Number = 0.0
    step: Number = 10.0
    name: str = "rotation"

    @property
    def parameter(self) -> Parameter:
        """`angle`."""
        return "angle"


@dataclasses.dataclass(frozen=True)
class Hue(_Linear):
    """Colour of the digit: hue `start + step * t` in degrees (0 red, 120 green, 240 blue).

    The default runs from 0 (red) to 160 over `t = 0..8`.

    Example:
        >>> Hue().value(6)
        120.0
    """

    start: Number = 0.0
    step: Number = 20.0
    name: str = "hue"

    @property
    def parameter(self) -> Parameter:
        """`hue`."""
        return "hue"
