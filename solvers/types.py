"""States, what is integrated, and what an integration returns."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

State = Tensor | tuple[Tensor, ...]
"""A state, or its time derivative: one tensor, or a tuple of tensors of any shapes."""

VectorField = Callable[[Tensor, State], State]
"""``field(t, z)`` returns ``dz/dt`` with the structure, shapes and dtype of ``z``."""

Parts = tuple[Tensor, ...]
"""A state as the tuple of its tensors: of one, unless the caller's state is a tuple."""

PartsField = Callable[[Tensor, Parts], Parts]
"""A vector field on the parts of a state."""

StepHook = Callable[[float, Parts, float, Parts, Sequence[Parts]], bool]
"""``observe(t, z, end, after, stages)``, called after every step with the derivatives at its
stages; True ends the integration."""

SampleHook = Callable[[Tensor, Parts], None]
"""``observe(t, z)``, called before every attempt with the times ``(B,)`` of all samples."""

Interpolant = Callable[[float | Sequence[float | Tensor] | Tensor], Parts]
"""Returns the parts of the state at a time, or in rows at several."""


class Status(enum.Enum):
    """How an integration ended.

    ``SUCCESS``: every output time was reached, and every output is finite.
    ``MAX_STEPS``: an adaptive method used up its ``max_steps``.
    ``DT_UNDERFLOW``: the step that the tolerance asks for is too small to move the time: the
    problem is stiff, has a singularity, or the tolerance is beyond the dtype's precision.
    ``NON_FINITE``: the field or the state became NaN or infinite.
    """

    SUCCESS = "success"
    MAX_STEPS = "max_steps"
    DT_UNDERFLOW = "dt_underflow"
    NON_FINITE = "non_finite"


@dataclass
class Stats:
    """Count the work of one integration.

    The object is live: with a gradient that evaluates the field on its way back
    (:class:`solvers.Adjoint`, :class:`solvers.Checkpoint`), the ``backward_`` counters grow during
    every ``backward()`` through the solution, and add up over several. With
    :class:`solvers.Direct` they stay 0, because autograd re-evaluates nothing.

    Attributes:
        evaluations: calls of the field while integrating.
        steps: attempted steps, ``accepted + rejected`` once the integration has ended.
        accepted: steps taken. Every step of a fixed method is.
        rejected: steps of an adaptive method that failed its error test and were tried again.
        backward_evaluations: calls of the field while computing gradients.
        backward_steps: attempted steps while computing gradients.
    """

    evaluations: int = 0
    steps: int = 0
    accepted: int = 0
    rejected: int = 0
    backward_evaluations: int = 0
    backward_steps: int = 0


@dataclass(frozen=True)
class Attempt:
    """A step that a method has tried, as an observer gets it.

    With ``per_sample`` numbers and truth values are tensors ``(B,)``; a sample that has arrived, or
    failed, waits by steps of size 0.

    Attributes:
        t: where it began.
        size: how far it went; negative backwards in time.
        accepted: whether it was taken, or is tried again with a smaller size.
        error: its estimated error over what the tolerance allows: accepted up to 1. None if the
            steps are given.
        z: a copy of the state behind it: at ``t + size``, or still at ``t`` if it was rejected.
    """

    t: float | Float[Tensor, "b"]
    size: float | Float[Tensor, "b"]
    accepted: bool | Bool[Tensor, "b"]
    error: float | Float[Tensor, "b"] | None
    z: State


Observer = Callable[[Attempt], object]
"""``observer(attempt)``, called after each attempted step."""


@dataclass(frozen=True)
class Problem:
    """What a method integrates.

    Attributes:
        field: the derivative.
        z0: the state at the start.
        times: the output times, at least two; or a row for every sample, filled up by NaN.
        values: the same on the host, in double precision; NaN if every sample has its own.
        stats: where steps are counted.
        observe: called after every accepted step.
        report: called after every attempt, with the fields of :class:`Attempt`.
        controlled: how many leading parts of the state the error norm looks at; None: all.
    """

    field: PartsField
    z0: Parts
    times: Float[Tensor, "*b n"]
    values: list[float]
    stats: Stats
    observe: StepHook | None = None
    report: Callable[..., None] | None = None
    controlled: int | None = None

    @property
    def direction(self) -> float:
        """1.0 forwards in time, -1.0 backwards."""
        return 1.0 if self.values[-1] > self.values[0] else -1.0


@dataclass(frozen=True)
class Samples:
    """What became of each sample of a batch that was integrated with ``per_sample=True``.

    Attributes:
        status: the status of every sample.
        time: the last time that it reached.
        accepted: steps taken.
        rejected: steps that failed the error test and were tried again.
    """

    status: tuple[Status, ...]
    time: Float[Tensor, "b"]
    accepted: Int[Tensor, "b"]
    rejected: Int[Tensor, "b"]

    @property
    def steps(self) -> Int[Tensor, "b"]:
        """Attempted steps."""
        return self.accepted + self.rejected


@dataclass(frozen=True)
class Solution:
    """The result of :func:`solvers.solve`.

    Attributes:
        ts: the output times, shape ``(n,)``, in the precision and on the device of the state; or
            ``(B, n)`` if every sample has its own.
        ys: the states at these times, the first being the initial state: ``(n, *shape)``, or a
            tuple of such tensors if the state is a tuple. After a failure (``throw=False``) the
            outputs that were not reached are NaN, and so are those at a sample's times that are.
        status: ``Status.SUCCESS``, or why the integration stopped.
        stats: the work done. Its backward counters grow when gradients are computed.
        samples: with ``per_sample=True``, what became of each sample of the batch; else None.
        interpolant: with ``dense=True``, the function behind :meth:`interpolate`; else None.
    """

    ts: Float[Tensor, "*b n"]
    ys: Inexact[Tensor, "n ..."] | tuple[Inexact[Tensor, "n ..."], ...]
    status: Status
    stats: Stats
    samples: Samples | None = None
    interpolant: Interpolant | None = field(default=None, repr=False)

    def interpolate(self, t: float | Sequence[float | Tensor] | Tensor) -> State:
        """Return the state at any time within the integration, to the order of the method.

        Needs ``solve(..., dense=True)``. Takes one step of the method from the last step before
        ``t``, which evaluates the field ``len(method.tableau.c)`` times for every ``t`` asked for
        (and is counted). Differentiable as the solution is, and with respect to ``t``.

        Args:
            t: a number, or a sequence or tensor ``(m,)`` of them, in any order. If every sample
                has times of its own: a tensor ``(B,)``, or ``(B, m)``; NaN where none is wanted.

        Returns:
            The state for a number (for one of each sample), shape ``(*shape)``; else rows
            ``(m, *shape)``.

        Raises:
            ValueError: the integration kept no steps, or ended early; a time is outside of it.
            TypeError: ``t`` is no number.

        Example:
            >>> import torch
            >>> from solvers import Dopri5, solve
            >>> _ = torch.manual_seed(0)
            >>> z0 = torch.rand(2, dtype=torch.float64)
            >>> tight = Dopri5(rtol=1e-9, atol=1e-9)
            >>> solution = solve(lambda t, z: z, z0, [0.0, 1.0], tight, dense=True)
            >>> torch.allclose(solution.interpolate(0.37), z0 * 2.718281828459045 ** 0.37)
            True
        """
        if self.status is not Status.SUCCESS:
            raise ValueError(f"interpolate: the integration ended early, with {self.status}")
        if self.interpolant is None:
            raise ValueError("interpolate needs the steps: integrate by solve(..., dense=True)")
        parts = self.interpolant(t)
        return parts if isinstance(self.ys, tuple) else parts[0]
