"""How a failed integration ends: the exception that it raises, and its message."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from solvers.methods import AdaptiveMethod, Method, TorchDiffEq
from solvers.solution import Stats, Status
from solvers.stepping import Parts


class SolverError(RuntimeError):
    """An integration could not be completed.

    Bad arguments are not reported this way: they raise ``ValueError`` or ``TypeError`` before the
    field is evaluated.

    Attributes:
        status: why the integration stopped (never ``Status.SUCCESS``).
        time: the last time at which the state is known to be finite, in the units of ``ts``.
        stats: the work done until then.
    """

    def __init__(self, message: str, status: Status, time: float, stats: Stats) -> None:
        super().__init__(message)
        self.status = status
        self.time = time
        self.stats = stats

    def __reduce__(self) -> tuple[type[SolverError], tuple[str, Status, float, Stats]]:
        # By default an exception is rebuilt from its message alone, which fails here; and errors
        # must survive the way back from a worker process.
        return (type(self), (str(self), self.status, self.time, self.stats))


class Stopped(Exception):  # noqa: N818 (like StopIteration: it says that, not what, is over)
    """Carries the reason of a stop, and the outputs reached, from an integrator to ``solve``."""

    def __init__(self, status: Status, time: float, reached: Sequence[Parts]) -> None:
        super().__init__(status, time)
        self.status = status
        self.time = time
        self.reached = reached


def explain(
    status: Status, time: float, end: float, method: Method, dtype: torch.dtype, what: str
) -> str:
    """One paragraph: what happened to ``what`` on its way to ``end``, and what to do about it."""
    where = f"{what} with {method} stopped at t = {time:.9g} on its way to t = {end:.9g}"
    if status is Status.NON_FINITE:
        return (
            f"{where}: the field or the state became NaN or infinite. Evaluate the field there; if "
            "its values are right, the state grows without bound: take smaller steps or a tighter "
            "tolerance, or end the integration earlier."
        )
    if status is Status.MAX_STEPS:
        assert isinstance(method, AdaptiveMethod | TorchDiffEq)
        return (
            f"{where}: it used up its max_steps = {method.max_steps}. Raise max_steps if the "
            f"problem is that long, or loosen rtol and atol ({_precision(dtype)}). If the steps "
            "shrink because the field is stiff or jumps, smooth it, or use fixed steps."
        )
    return (
        f"{where}: the step that its tolerance asks for is too small to move the time. The field "
        "is stiff, jumps, or has a singularity there: end the integration before it, or smooth the "
        f"field; or the tolerance cannot be met ({_precision(dtype)}): loosen rtol and atol."
    )


def _precision(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return f"{name} resolves relative errors down to about {10 * torch.finfo(dtype).eps:.0e}"
