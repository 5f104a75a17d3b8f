"""What an integration returns: the states, how it ended, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from solvers.dense import DenseOutput

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
        samples: with ``per_sample=True``, how each sample of the batch got on; else None.
    """

    ts: Float[Tensor, " n"]
    ys: Float[Tensor, "n ..."] | tuple[Float[Tensor, "n ..."], ...]
    status: Status
    stats: Stats
    samples: Samples | None = None
    _dense: DenseOutput | None = field(default=None, repr=False)

    def interpolate(self, t: float | Sequence[float | Tensor] | Tensor) -> State:
        """The state at any time within the integration, to the order of the method.

        Needs ``solve(..., dense=True)``. Takes one step of the method from the last step before
        ``t``, which evaluates the field ``method.stages`` times for every ``t`` asked for (and is
        counted). Differentiable as the solution is, and with respect to ``t``.

        Args:
            t: a number, or a sequence or tensor ``(m,)`` of them, in any order.

        Returns:
            The state for a number, shape ``(*shape)``; else rows ``(m, *shape)``.

        Raises:
            ValueError: the integration kept no steps, or ended early; a time is outside of it.
            TypeError: ``t`` is no number.

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
            raise ValueError(f"the integration ended early, with {self.status}")
        if self._dense is None:
            raise ValueError("the steps were not kept: integrate by solve(..., dense=True)")
        found = self._dense.at(t)
        return found if isinstance(self.ys, tuple) else found[0]


@dataclass(frozen=True)
class Samples:
    """How each sample of a batch got on that was integrated with ``per_sample=True``.

    Attributes:
        status: the status of every sample.
        time: the last time that it reached.
        accepted: steps taken.
        rejected: steps that failed the error test and were tried again.
    """

    status: tuple[Status, ...]
    time: Float[Tensor, " b"]
    accepted: Int[Tensor, " b"]
    rejected: Int[Tensor, " b"]

    @property
    def steps(self) -> Int[Tensor, " b"]:
        """Attempted steps."""
        return self.accepted + self.rejected

    @classmethod
    def at_rest(cls, z0: Tensor, t: float) -> Samples:
        """Samples that did not need to move."""
        none = torch.zeros(len(z0), dtype=torch.long, device=z0.device)
        time = torch.full_like(none, t, dtype=torch.float64)
        return cls((Status.SUCCESS,) * len(z0), time, none, none)

    def checked(self, rows: Sequence[tuple[Tensor, ...]]) -> Samples:
        """The same, but samples that arrived with a state that is not finite have failed."""
        finite = torch.ones_like(self.accepted, dtype=torch.bool)
        for part in (part for row in rows for part in row):
            finite &= (
                part.detach().isfinite().reshape(len(finite), part.shape[1:].numel()).all(dim=1)
            )
        status = tuple(
            Status.NON_FINITE if each is Status.SUCCESS and not fine else each
            for each, fine in zip(self.status, finite.tolist(), strict=True)
        )
        return replace(self, status=status)


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
