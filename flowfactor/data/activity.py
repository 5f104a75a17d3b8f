"""What happens in a sequence and when: transformations that switch and run at any speed."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data.checks import check_choice, check_range
from flowfactor.errors import DataError

ActivityKind = Literal["single", "switch", "pairs", "mixed"]
"""One transformation; one and from some frame on another; two at once; half single, half switch."""
Directions = Literal["forwards", "both"]
"""Whether transformations only run as they are defined, or as often backwards."""

# Which column of the random numbers decides what; two transformations have two of some.
_MIX, _FIRST, _SECOND, _FRAME = range(4)
_SPEEDS, _SIGNS = slice(4, 6), slice(6, 8)
_NUMBERS = 8


class PathRange(NamedTuple):
    """Between which states a transformation may move, in frames from its canonical start.

    Attributes:
        low, high: the states.
        period: the frames after which states repeat, None if they do not. A range of a whole
            period has no ends.
    """

    low: float
    high: float
    period: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it goes around, so that a sequence of any length has room from any start."""
        return self.period is not None and self.high - self.low >= self.period * (1 - 1e-6)


@dataclasses.dataclass(frozen=True)
class ActivityLaw:
    """What may happen in a sequence: the law from which its activity is drawn.

    The activity ``s_{t,k}`` is the signed speed of transformation ``k`` from frame ``t`` to frame
    ``t + 1``, 0 while it rests; 1 is the speed of an ordinary sequence.

    * ``single``: one transformation, at a constant speed.
    * ``switch``: one, and from a frame of ``1..T-1`` on another one at a speed of its own.
    * ``pairs``: two different ones at once, each at a constant speed.
    * ``mixed``: ``single`` or ``switch``, each with probability 1/2.

    Transformations, the frame of a switch, speeds between the two of ``speeds``, and signs are
    uniform and independent.

    Attributes:
        kind: one of the above.
        speeds: the smallest and the largest speed, in steps a frame.
        directions: ``forwards``, or ``both`` with the same probability.

    Raises:
        DataError: an unknown choice, speeds that are not positive, or in the wrong order.

    Example:
        >>> import torch
        >>> law = ActivityLaw("switch", directions="forwards", speeds=(1, 1))
        >>> law.draw(torch.rand(1, law.size, generator=torch.Generator().manual_seed(0)), 3, 4)
        tensor([[[0., 0., 1.],
                 [1., 0., 0.],
                 [1., 0., 0.],
                 [1., 0., 0.]]])
    """

    kind: ActivityKind = "mixed"
    speeds: tuple[float, float] = (0.5, 1.5)
    directions: Directions = "both"

    def __post_init__(self) -> None:
        check_choice("activity", self.kind, get_args(ActivityKind))
        check_choice("directions", self.directions, get_args(Directions))
        slowest, fastest = self.speeds
        if not 0 < slowest <= fastest < math.inf:
            raise DataError(f"speeds must be 0 < slowest <= fastest, but they are {self.speeds}.")

    @property
    def size(self) -> int:
        """How many random numbers decide the activity of a sequence."""
        return _NUMBERS

    def check(self, transformations: int, horizon: int, *, whole: bool = False) -> None:
        """Require the law to be possible; see :meth:`draw`.

        Raises:
            DataError: too few transformations or frames, or no whole speed among ``speeds``.
        """
        switches = self.kind in ("switch", "mixed")
        needed = 1 if self.kind == "single" else 2
        check_range(f"activity {self.kind}: the transformations", transformations, needed)
        check_range(f"activity {self.kind}: the horizon", horizon, 1 + switches)
        if whole and math.ceil(self.speeds[0]) > self.speeds[1]:
            raise DataError(
                f"speeds: this data moves by whole steps, but none is in {list(self.speeds)}."
            )

    def draw(
        self,
        random: Float[Tensor, "b m"],
        transformations: int,
        horizon: int,
        *,
        whole: bool = False,
        first: Int[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Return the activity that random numbers stand for.

        Args:
            random: uniform in [0, 1), ``(b, size)``.
            transformations: ``K``, how many there are.
            horizon: ``T``, number of the last frame.
            whole: whether speeds are whole numbers.
            first: the transformation that acts first, if it is given.

        Raises:
            DataError: what :meth:`check` refuses.
        """
        self.check(transformations, horizon, whole=whole)
        random = random.double()
        if first is None:
            first = (random[:, _FIRST] * transformations).long()
        first = first.to(random.device)
        # Any of the others, counted from the one after the first.
        others = (random[:, _SECOND] * (transformations - 1)).long()
        second = (first + 1 + others) % transformations
        speeds = self._speeds(random[:, _SPEEDS], whole)
        if self.directions == "both":
            speeds = torch.where(random[:, _SIGNS] < 0.5, -speeds, speeds)
        step = torch.arange(horizon, device=random.device)
        begins = 1 + (random[:, _FRAME] * (horizon - 1)).long()[:, None]
        switches = torch.full_like(first, self.kind == "switch", dtype=torch.bool)
        if self.kind == "mixed":
            switches = random[:, _MIX] < 0.5
        before = ~switches[:, None] | (step < begins)
        after = torch.ones_like(before) if self.kind == "pairs" else ~before
        activity = random.new_zeros(len(random), horizon, transformations)
        for k, acts, speed in ((first, before, speeds[:, 0]), (second, after, speeds[:, 1])):
            moved = acts * speed[:, None]
            activity.scatter_add_(2, k[:, None, None].expand(-1, horizon, 1), moved[..., None])
        return activity.float()

    def _speeds(self, random: Float[Tensor, "b 2"], whole: bool) -> Float[Tensor, "b 2"]:
        slowest, fastest = self.speeds
        if not whole:
            return slowest + (fastest - slowest) * random
        low, high = math.ceil(slowest), math.floor(fastest)
        return low + (random * (high - low + 1)).floor()


def accumulate(activity: Float[Tensor, "b n k"]) -> Float[Tensor, "b f k"]:
    """Return by how many frames each transformation has moved at ``t = 0..T``.

    Example:
        >>> import torch
        >>> accumulate(torch.tensor([[[1.0], [-2.0]]])).flatten().tolist()
        [0.0, 1.0, -1.0]
    """
    return F.pad(activity.cumsum(1), (0, 0, 1, 0))
