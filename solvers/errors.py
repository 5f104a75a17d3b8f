"""How a failed integration ends: the exception that it raises, and its message."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from solvers.types import Parts, Stats, Status


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
    status: Status, time: float, end: float, method: object, dtype: torch.dtype, what: str
) -> str:
    """Return one paragraph: what stopped ``what`` on its way to ``end``, and what to do about it.

    Args:
        status: why it stopped.
        time: where it stopped.
        end: where it was to end.
        method: the method, with its options.
        dtype: that of the state.
        what: the subject of the sentence.
    """
    precision = (
        f"{str(dtype).removeprefix('torch.')} resolves relative errors down to about "
        f"{10 * torch.finfo(dtype).eps:.0e}"
    )
    advice = {
        Status.NON_FINITE: (
            "the field or the state became NaN or infinite. Evaluate the field there; if its "
            "values are right, the state grows without bound: take smaller steps or a tighter "
            "tolerance, or end the integration earlier."
        ),
        Status.MAX_STEPS: (
            "it used up its max_steps. Raise max_steps if the problem is that long, or loosen rtol "
            f"and atol ({precision}). If the steps shrink because the field is stiff or jumps, "
            "smooth it, or use fixed steps."
        ),
        Status.DT_UNDERFLOW: (
            "the step that its tolerance asks for is too small to move the time. The field is "
            "stiff, jumps, or has a singularity there: end the integration before it, or smooth "
            f"the field; or the tolerance cannot be met ({precision}): loosen rtol and atol."
        ),
    }
    where = f"{what} with {method} stopped at t = {time:.9g} on its way to t = {end:.9g}"
    return f"{where}: {advice[status]}"
