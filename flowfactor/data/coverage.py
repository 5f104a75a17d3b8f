"""Which states of a transformation training sequences show."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

Interval = tuple[float, float]
Seen = Literal["covered", "at rest", "extrapolation"]
"""How training has shown a state: while its transformation acts, only while others do, or not."""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Which states of a transformation training sequences show, from any start that they have.

    A state is the time, in frames, after which the transformation reaches it from its canonical
    start; negative times are those before.

    Attributes:
        moving: between which states the transformation is seen to act.
        resting: between which states it is at rest while others act.
        period: the frames after which states repeat, None if they do not.

    Example:
        >>> Coverage(moving=(0, 8), resting=(-3, 3), period=12).seen(10)
        'at rest'
    """

    moving: Interval
    resting: Interval = (0.0, 0.0)
    period: float | None = None

    def seen(self, time: float) -> Seen:
        """Return how training has shown a state."""
        if self._holds(self.moving, time):
            return "covered"
        return "at rest" if self._holds(self.resting, time) else "extrapolation"

    def _holds(self, interval: Interval, time: float) -> bool:
        # Times are quotients of parameters, and not exact.
        first, last = interval[0] - 1e-6, interval[1] + 1e-6
        if self.period is not None and math.isfinite(first):
            time += self.period * math.ceil((first - time) / self.period)
        return first <= time <= last

    @classmethod
    def of_values(
        cls,
        start: float,
        step: float,
        *,
        moving: Interval,
        resting: Interval,
        cycle: float | None = None,
    ) -> Coverage:
        """Return the coverage of a parameter that changes by ``step`` from frame to frame.

        Args:
            start: its value at a canonical start.
            step: not 0.
            moving, resting: between which values.
            cycle: the change after which it is back where it was, if there is one.
        """

        def times(values: Interval) -> Interval:
            first, last = sorted((value - start) / step for value in values)
            return first, last

        period = None if cycle is None else cycle / abs(step)
        return cls(times(moving), times(resting), period)
