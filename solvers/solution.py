"""What an integration returns: the states, how it ended, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from jaxtyping import Float
from torch import Tensor

State = Tensor | tuple[Tensor, ...]
"""A state, or its time derivative: one tensor, or a tuple of tensors of any shapes."""


@dataclass(frozen=True)
class Solution:
    """The result of :func:`solvers.solve`.

    Attributes:
        ts: the output times, shape ``(n,)``, in the dtype and on the device of the state.
        ys: the states at these times, the first being the initial state: ``(n, *shape)``, or a
            tuple of such tensors if the state is a tuple. After a failure (``throw=False``) the
            outputs that were not reached are NaN.
        status: ``Status.SUCCESS``, or why the integration stopped.
        stats: the work done. Its backward counters grow when gradients are computed.
    """

    ts: Float[Tensor, " n"]
    ys: Float[Tensor, "n ..."] | tuple[Float[Tensor, "n ..."], ...]
    status: Status
    stats: Stats


class Status(Enum):
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
    """The work of one integration, as counters.

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
