"""Watches an adaptive method of torchdiffeq step by step, and stops it when that is pointless."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.errors import Stopped
from solvers.solution import State, Status
from solvers.stepping import Parts


class StepGuard:
    """Called before every attempted step of an adaptive method.

    Args:
        count: called once for every attempted step.
        max_steps: attempts allowed. torchdiffeq's own limit starts anew at every output time.
        direction: 1.0 if time increases along the integration, else -1.0.
        targets: the output times, at which the states are kept for ``Stopped.reached``.

    Raises:
        Stopped: from ``step``, with the reason.
    """

    def __init__(
        self,
        count: Callable[[], None],
        max_steps: int,
        direction: float,
        targets: Sequence[float] = (),
    ) -> None:
        self._count = count
        self._max_steps = max_steps
        self._direction = direction
        self._targets = targets
        self.restart()

    def restart(self) -> None:
        """Begin a new integration."""
        self._reached: list[Parts] = []
        self._attempts = 0
        self._last_dt = float("inf")
        self._good_time: float | None = None

    def step(self, t: Float[Tensor, ""], z: State, dt: Float[Tensor, ""]) -> None:
        """Let the attempt at ``t`` with step ``dt >= 0`` pass, or raise."""
        time, h = t.detach().item(), dt.detach().item()
        if self._next_target() == time:
            self._reached.append(z if isinstance(z, tuple) else (z,))
        if not _is_finite(z):
            good = time if self._good_time is None else self._good_time
            raise self._stopped(Status.NON_FINITE, good)
        self._good_time = time
        # torchdiffeq makes the step 0 after an error estimate that is not a number (shrinking
        # by rejections, it would get from above 1e-300 to 0 only through smaller steps). If
        # the state overflowed within the attempt, a smaller step may do.
        nan = h == 0.0 and self._last_dt > 1e-300
        if nan and self._last_dt < float("inf"):
            h = 0.2 * self._last_dt
            dt.detach().fill_(h)
        if not self._direction * time + h > self._direction * time:
            raise self._stopped(Status.NON_FINITE if nan else Status.DT_UNDERFLOW, time)
        if self._attempts == self._max_steps:
            raise self._stopped(Status.MAX_STEPS, time)
        self._last_dt = h
        self._attempts += 1
        self._count()
        # torchdiffeq goes on to its next prescribed time only when a step had to be cut there. A
        # step that ends on one by itself leaves it waiting for a time that has passed, and it
        # would overshoot all later outputs. A step longer by one part in 1e15 is cut.
        if self._next_target() == time + self._direction * h:
            dt.detach().mul_(1.0 + 4 * torch.finfo(dt.dtype).eps)

    def _next_target(self) -> float | None:
        index = len(self._reached)
        return self._targets[index] if index < len(self._targets) else None

    def _stopped(self, status: Status, time: float) -> Stopped:
        return Stopped(status, time, self._reached)


def _is_finite(z: State) -> bool:
    if isinstance(z, tuple):
        return all(_is_finite(part) for part in z)
    return bool(torch.isfinite(z.detach()).all())
