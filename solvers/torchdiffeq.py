"""Any method of torchdiffeq, called with the arguments that keep it out of its traps."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.adaptive import check_tolerances
from solvers.errors import Stopped
from solvers.fixed import (
    Counts,
    check_counts,
    check_intervals,
    check_limit,
    divide_intervals,
    spread,
)
from solvers.methods import METHODS
from solvers.registry import UnknownNameError, suggest
from solvers.step import Method
from solvers.types import Parts, Problem, State, Status

RESERVED = ("step_size", "grid_constructor", "step_t", "norm")
"""Options of torchdiffeq that follow from the output times."""


@METHODS.register("torchdiffeq")
@dataclass(frozen=True)
class TorchDiffEq(Method):
    """Any method of the installed torchdiffeq, by its name there.

    For methods that have no class here, such as ``heun3``, ``fehlberg2`` and the multistep
    methods ``explicit_adams`` and ``implicit_adams``, or ``scipy_solver``, which reaches SciPy's
    implicit ones without gradients. Interpolation, events, ``per_sample`` and
    :class:`solvers.Checkpoint` are not available. The Adams methods (``*_adams``) remember earlier
    steps as if all were of one size, so that output times must then be equally spaced.

    Args:
        solver: the name in torchdiffeq.
        steps: steps in every output interval, for the methods that work on a fixed grid.
        rtol: relative tolerance, of steps or, for ``implicit_adams``, of its iteration.
        atol: absolute tolerance, likewise.
        max_steps: attempted steps allowed in the whole integration, for methods that choose them;
            for ``scipy_solver``, whose steps are out of sight, a twentieth of the evaluations
            allowed.
        options: further options of torchdiffeq, such as ``{"max_iters": 8}`` for
            ``implicit_adams`` or ``{"solver": "LSODA"}`` for ``scipy_solver``.

    Raises:
        TypeError: an option is not of the right kind.
        ValueError: the installed torchdiffeq has no such solver; a number out of range; an option
            that is decided by ``steps``.

    Source: Chen, https://github.com/rtqichen/torchdiffeq.

    Example:
        >>> import torch
        >>> from solvers import TorchDiffEq, solve
        >>> method = TorchDiffEq("implicit_adams", steps=20)
        >>> z0 = torch.tensor([1.0], dtype=torch.float64)
        >>> solve(lambda t, z: -z, z0, [0.0, 1.0], method).ys[-1]
        tensor([0.3679], dtype=torch.float64)
    """

    solver: str
    steps: Counts = 1
    rtol: float = 1e-5
    atol: float = 1e-6
    max_steps: int = 10_000
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        solvers = list_solvers()
        if self.solver not in solvers:
            raise UnknownNameError(
                f"the installed torchdiffeq has no solver {self.solver!r}; "
                f"{suggest(self.solver, solvers)}"
            )
        check_counts("TorchDiffEq.steps", self.steps)
        check_tolerances(self)
        if not isinstance(self.options, Mapping):
            raise TypeError(f"TorchDiffEq.options must be a mapping, got {self.options!r}")
        for key in RESERVED:
            if key in self.options:
                raise ValueError(
                    f"TorchDiffEq.options[{key!r}] is set by the output times; give steps=..., the "
                    "number of steps in every interval"
                )

    @property
    def kind(self) -> Literal["fixed", "adaptive", "other"]:
        """Whether its steps are given, chosen by their error, or out of sight (SciPy's)."""
        ancestors = {base.__name__ for base in list_solvers()[self.solver].__mro__}
        if "FixedGridODESolver" in ancestors:
            return "fixed"
        return "adaptive" if "RKAdaptiveStepsizeODESolver" in ancestors else "other"

    @property
    def is_adaptive(self) -> bool:
        """Whether it chooses its steps by their error, in sight."""
        return self.kind == "adaptive"

    def check(self, values: Sequence[float], where: str) -> None:
        """Refuse numbers of steps that do not fit, and unequal steps for the Adams methods."""
        check_intervals(self.steps, len(values) - 1, where)
        if "adams" not in self.solver or len(values) < 3:
            return
        counts = spread(self.steps, len(values) - 1)
        sizes = [abs(b - a) / n for (a, b), n in zip(pairwise(values), counts, strict=True)]
        if max(sizes) > (1 + 1e-4) * min(sizes):
            raise ValueError(
                f"{where}: {self.solver} takes all steps for equally long, but here they are "
                f"{min(sizes):g} to {max(sizes):g}; give equally spaced ts, or steps=(...) that "
                "make up for it"
            )

    def limit(self, max_steps: int, intervals: int) -> TorchDiffEq:
        """Return the method with another ``max_steps``, or refuse given steps."""
        if self.kind != "fixed":
            return replace(self, max_steps=max_steps)
        check_limit(self.steps, max_steps, intervals)
        return self

    def restrict(self, interval: int) -> TorchDiffEq:
        """Return the method with the number of steps of one interval."""
        return self if isinstance(self.steps, int) else replace(self, steps=self.steps[interval])

    def integrate(self, problem: Problem) -> list[Parts]:
        """Return the states at the output times; with gradients, autograd records every step.

        Raises:
            Stopped: an adaptive method could not go on.
        """
        stats, options = problem.stats, dict(self.options)
        kinds = {part.dtype for part in problem.z0}
        if len(kinds) > 1 or (self.kind == "other" and next(iter(kinds)).is_complex):
            raise TypeError(
                f"z0 is {', '.join(sorted(map(str, kinds)))}: torchdiffeq takes no mixture of real "
                "and complex tensors, and SciPy's methods none that are complex"
            )
        watched = _WatchedField(problem, self)
        if self.kind == "fixed":
            options["grid_constructor"] = lambda _f, _z, ts: divide_intervals(ts, self.steps)
        elif self.kind == "adaptive":
            # Steps then end on the output times. Otherwise they end somewhere behind, the field is
            # evaluated there, and the output is interpolated, less accurately than the method is.
            options["step_t"] = problem.times[1:].detach()
            options["norm"] = lambda z: _compute_norm(_split(z)[: problem.controlled])
            watched.guard(self.max_steps)
        from torchdiffeq import odeint  # which imports SciPy: seconds that others need not wait

        ys = odeint(
            watched,
            _join(problem.z0),
            problem.times,
            rtol=self.rtol,  # methods that iterate, such as implicit_adams, do so to it
            atol=self.atol,
            method=self.solver,
            options=options,
        )
        if self.kind == "fixed":
            # Known beforehand: a callback in every step would only cost time.
            steps = sum(spread(self.steps, len(problem.values) - 1))
            stats.steps += steps
            stats.accepted += steps
        return list(zip(*(column.unbind() for column in _split(ys)), strict=True))


def list_solvers() -> dict[str, type]:
    """Return the solvers of the installed torchdiffeq, by name."""
    # The package has a function of the same name as this module in its place.
    module = importlib.import_module("torchdiffeq._impl.odeint")
    solvers: dict[str, type] = module.SOLVERS
    return solvers


def _join(parts: Parts) -> State:
    return parts if len(parts) > 1 else parts[0]


def _split(z: State) -> Parts:
    return z if isinstance(z, tuple) else (z,)


@torch.no_grad()
def _compute_norm(z: Parts) -> Tensor:
    """Return the root mean square of a tensor, the largest of them for several.

    As torchdiffeq's own, with two differences. A NaN in any part of a tuple gives NaN, so that the
    step is rejected. And it is no part of the graph: the size of the first step is not what a
    gradient should follow (at an entry of 0, moreover, the square root's is infinite).
    """
    norms = [part.abs().square().mean().sqrt() for part in z if part.numel()]
    return norms[0] if len(norms) == 1 else torch.stack(norms).max()


class _WatchedField:
    """The field as torchdiffeq calls it, with the callbacks that it looks for.

    The times of evaluation are clamped to the interval, which its methods leave: by rounding
    (``heun2``: ``t0 + (t1 - t0)`` need not be ``t1``), or in the guess of the first step.
    """

    # torchdiffeq warns about callbacks that a method does not use; so they are set only where
    # they are wanted.
    callback_step: Callable[[Tensor, State, Tensor], None]
    callback_accept_step: Callable[[Tensor, State, Tensor], None]
    callback_reject_step: Callable[[Tensor, State, Tensor], None]

    def __init__(self, problem: Problem, method: TorchDiffEq) -> None:
        self._problem = problem
        self._low, self._high = min(problem.values), max(problem.values)
        # SciPy's integrators know no limit of their own.
        self._left = 20 * method.max_steps if method.kind == "other" else None

    def __call__(self, t: Float[Tensor, ""], z: State) -> State:
        """Return ``dz/dt`` at ``(t, z)``, in the structure of the state."""
        start = self._problem.z0
        if self._left is not None:
            if not self._left:
                raise Stopped(Status.MAX_STEPS, self._problem.values[0], [start])
            self._left -= 1
        # torchdiffeq's guess of the first step promotes a 0-dimensional float32 state.
        parts = tuple(part.to(like.dtype) for part, like in zip(_split(z), start, strict=True))
        t = t.to(self._problem.times.dtype)
        inside = t.clamp(self._low, self._high)
        # Where a clamp acts its derivative is 0, which would lose gradients with respect to ts.
        t = t + (inside - t).detach() if t.requires_grad else inside
        return _join(self._problem.field(t, parts))

    def guard(self, max_steps: int) -> None:
        """Count the steps, and end the integration where it is pointless to go on."""
        stats = self._problem.stats

        def accept(_t: Tensor, _z: State, _dt: Tensor) -> None:
            stats.accepted += 1

        def reject(_t: Tensor, _z: State, _dt: Tensor) -> None:
            stats.rejected += 1

        self.callback_step = _StepGuard(self._problem, max_steps)
        self.callback_accept_step = accept
        self.callback_reject_step = reject


class _StepGuard:
    """Called before every attempted step of an adaptive method.

    Args:
        problem: what is integrated; its statistics count the steps.
        max_steps: attempts allowed. torchdiffeq's own limit starts anew at every output time.

    Raises:
        Stopped: from the call, with the reason.
    """

    def __init__(self, problem: Problem, max_steps: int) -> None:
        self._problem = problem
        self._max_steps = max_steps
        self._reached: list[Parts] = []
        self._last_dt = float("inf")
        self._good_time: float | None = None

    def __call__(self, t: Float[Tensor, ""], z: State, dt: Float[Tensor, ""]) -> None:
        """Let the attempt at ``t`` with step ``dt >= 0`` pass, or raise."""
        time, h = t.detach().item(), dt.detach().item()
        direction, stats = self._problem.direction, self._problem.stats
        if self._next_output() == time:
            self._reached.append(_split(z))
        if not all(bool(torch.isfinite(part.detach()).all()) for part in _split(z)):
            good = time if self._good_time is None else self._good_time
            raise self._stop(Status.NON_FINITE, good)
        self._good_time = time
        # torchdiffeq makes the step 0 after an error estimate that is not a number (shrinking
        # by rejections, it would get from above 1e-300 to 0 only through smaller steps). If
        # the state overflowed within the attempt, a smaller step may do.
        nan = h == 0.0 and self._last_dt > 1e-300
        if nan and self._last_dt < float("inf"):
            h = 0.2 * self._last_dt
            dt.detach().fill_(h)
        if not direction * time + h > direction * time:
            raise self._stop(Status.NON_FINITE if nan else Status.DT_UNDERFLOW, time)
        if stats.steps == self._max_steps:
            raise self._stop(Status.MAX_STEPS, time)
        self._last_dt = h
        stats.steps += 1
        # torchdiffeq goes on to its next prescribed time only when a step had to be cut there. A
        # step that ends on one by itself leaves it waiting for a time that has passed, and it
        # would overshoot all later outputs. A step longer by one part in 1e15 is cut.
        if self._next_output() == time + direction * h:
            dt.detach().mul_(1.0 + 4 * torch.finfo(dt.dtype).eps)

    def _next_output(self) -> float | None:
        values = self._problem.values
        return values[len(self._reached)] if len(self._reached) < len(values) else None

    def _stop(self, status: Status, time: float) -> Stopped:
        return Stopped(status, time, self._reached)
