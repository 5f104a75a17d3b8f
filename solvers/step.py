"""One step of an explicit Runge-Kutta method, and what all methods have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.checks import real_dtype
from solvers.types import Parts, PartsField, Problem


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: ``k_i = f(t + c_i h, z + h sum_j a_ij k_j)``, ``z + h sum_i b_i k_i``.

    Args:
        c: nodes, ``c[0] == 0``, between 0 and 1.
        a: row ``i`` holds the coefficients of the ``i`` stages before it; it sums to ``c[i]``.
        b: weights, with sum 1.
        order: the order of accuracy ``p``: the global error is ``O(h^p)``.
        error: weights of the difference from an embedded method, with sum 0, which estimates the
            error of a step. An adaptive method needs them.
        quartic: weights of the stages, with sum 0, by which a polynomial of degree 4 inside a step
            differs from the cubic through the states and derivatives at its ends, see
            :func:`interpolate`; none: the cubic.

    Attributes:
        first_same_as_last: the last stage is the derivative at the end of the step, and so the
            first stage of the next.
        stages: evaluations in every step.

    Raises:
        ValueError: numbers of coefficients, or sums, that do not fit.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    error: tuple[float, ...] = ()
    quartic: tuple[float, ...] = ()
    first_same_as_last: bool = field(init=False)
    stages: int = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.c)
        lengths = [len(row) for row in self.a]
        extras = len(self.error), len(self.quartic)
        if lengths != list(range(n)) or len(self.b) != n or not {*extras} <= {0, n}:
            raise ValueError(
                f"a tableau of {n} nodes c needs rows a of 0 to {n - 1} coefficients, {n} weights "
                f"b, and as many of error and quartic or none; got {lengths}, {len(self.b)}, "
                f"{extras}"
            )
        sums = [(f"a[{i}]", math.fsum(row), self.c[i]) for i, row in enumerate(self.a)]
        sums += [("b", math.fsum(self.b), 1.0), ("error", math.fsum(self.error), 0.0)]
        sums += [("quartic", math.fsum(self.quartic), 0.0)]
        for where, total, expected in sums:
            if not math.isclose(total, expected, abs_tol=1e-9) or not 0 <= expected <= 1:
                raise ValueError(
                    f"tableau: {where} sums to {total}; rows of a sum to the node c in [0, 1], b "
                    "to 1, error and quartic to 0"
                )
        same = self.c[-1] == 1.0 and (*self.a[-1], 0.0) == self.b
        object.__setattr__(self, "first_same_as_last", same)
        object.__setattr__(self, "stages", n - same)


@dataclass(frozen=True)
class Method(ABC):
    """An integration method with its options. Use one of its subclasses."""

    @property
    @abstractmethod
    def is_adaptive(self) -> bool:
        """Whether it chooses its steps by their error."""

    @abstractmethod
    def check(self, values: Sequence[float], where: str) -> None:
        """Refuse options that do not fit the output times ``values``.

        Raises:
            ValueError: ``where``, an argument of ``solve``, does not fit.
        """

    @abstractmethod
    def limit(self, max_steps: int, intervals: int) -> Method:
        """Return the method with at most ``max_steps`` steps in so many output intervals.

        Raises:
            ValueError: its options ask for more.
        """

    @abstractmethod
    def restrict(self, interval: int) -> Method:
        """Return the method for one of several output intervals."""

    @abstractmethod
    def integrate(self, problem: Problem) -> list[Parts]:
        """Return the states at the output times; fewer if the observer ended the integration.

        Raises:
            Stopped: the integration could not go on.
        """


@dataclass(frozen=True)
class RungeKutta(Method):
    """An explicit Runge-Kutta method.

    Attributes:
        tableau: its coefficients, from which the rest follows.
    """

    tableau: ClassVar[Tableau]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not isinstance(getattr(cls, "tableau", None), Tableau | None):
            raise TypeError(f"{cls.__name__}.tableau must be a Tableau, got {cls.tableau!r}")

    def __post_init__(self) -> None:
        if not hasattr(self, "tableau"):
            raise TypeError(f"{type(self).__name__} has no tableau; use one of its subclasses")

    @property
    def order(self) -> int:
        """The order of accuracy."""
        return self.tableau.order

    @property
    def stages(self) -> int:
        """Evaluations of the field in every step."""
        return self.tableau.stages


class Step(NamedTuple):
    """When a step evaluates the field, for all samples or each, and how long it is.

    A size that is a number costs nothing and carries no gradient. A tensor carries the gradient
    with respect to the output times, or gives every sample a size of its own, ``(B,)``.
    """

    times: Float[Tensor, "s *b"]
    size: float | Tensor


def take_step(
    tableau: Tableau, field: PartsField, step: Step, z: Parts, first: Parts | None = None
) -> tuple[Parts, list[Parts]]:
    """Return the state at the end of a step, and the derivatives at its stages.

    Args:
        tableau: the method.
        field: ``dz/dt`` on parts.
        step: times of the stages, and size.
        z: the state at the start.
        first: the derivative there if it is known already.
    """
    start, *times = step.times.unbind()
    stages = [field(start, z) if first is None else first]
    for time, row in zip(times, tableau.a[1:], strict=True):
        at = advance(z, stages, row, step.size)
        stages.append(field(time, at))
    if tableau.first_same_as_last:
        return at, stages  # what the last stage was evaluated at
    return advance(z, stages, tableau.b, step.size), stages


def advance(
    z: Parts, stages: Sequence[Parts], weights: Sequence[float], size: float | Tensor
) -> Parts:
    """Return ``z + size * sum_i weights[i] stages[i]``."""
    used = [(w, k) for w, k in zip(weights, stages, strict=False) if w]
    result = []
    for i, y in enumerate(z):
        if isinstance(size, Tensor):
            h = append_axes(size, y)
            for w, k in used:
                y = torch.addcmul(y, k[i], h, value=w)
        else:
            for w, k in used:
                y = torch.add(y, k[i], alpha=w * size)
        result.append(y)
    return tuple(result)


def combine(weights: Sequence[float | Tensor], terms: Sequence[Parts]) -> Parts:
    """Return ``sum_i weights[i] terms[i]``; weights are for all samples, or each ``(B,)``."""
    used = [(w, k) for w, k in zip(weights, terms, strict=True) if isinstance(w, Tensor) or w]
    result = []
    for i in range(len(terms[0])):
        total: Tensor | None = None
        for w, k in used:
            if isinstance(w, Tensor):
                more = append_axes(w, k[i]) * k[i]
                total = more if total is None else total + more
            else:
                total = w * k[i] if total is None else torch.add(total, k[i], alpha=w)
        assert total is not None
        result.append(total)
    return tuple(result)


def interpolate(
    z: Parts,
    after: Parts,
    slopes: tuple[Parts, Parts],
    size: float | Tensor,
    place: float | Tensor,
    quartic: Parts | None = None,
) -> Parts:
    """Return the state inside a step, on a polynomial.

    The cubic through the states and derivatives at both ends has order 3; a weighted sum of the
    stages ``q`` adds ``size * x^2 (1 - x)^2 q``, which vanishes there like the derivative.

    Args:
        z: the state at the start.
        after: that at the end.
        slopes: the derivatives at both.
        size: of the step; for all samples, or each.
        place: where in the step, 0 to 1; for all samples, or each.
        quartic: ``q``; None: the cubic.

    Source: HNW II.6, formula (6.12) and the code at its end.
    """
    x, y, h = place, 1 - place, size
    weights = [y * y * (1 + 2 * x), x * x * (1 + 2 * y), h * x * y * y, -h * x * x * y]
    if quartic is None:
        return combine(weights, (z, after, *slopes))
    return combine([*weights, h * x * x * y * y], (z, after, *slopes, quartic))


def append_axes(size: Tensor, z: Tensor) -> Tensor:
    """Return a number, or one for each sample ``(B,)``, in a shape that broadcasts with ``z``."""
    return size.reshape(size.shape + (1,) * (z.ndim - size.ndim))


def select(which: Tensor, a: Parts, b: Parts) -> Parts:
    """Return ``a`` where ``which`` is true, else ``b``: for the whole state, or each sample."""
    return tuple(torch.where(append_axes(which, x), x, y) for x, y in zip(a, b, strict=True))


def make_time(t: float, like: Tensor) -> Tensor:
    """Return a time as the scalar that the field is called with."""
    return torch.full((), t, dtype=real_dtype(like.dtype), device=like.device)


def make_times(values: Sequence[float], like: Tensor) -> Float[Tensor, "n"]:
    """Return several times at once, see :func:`make_time`."""
    return torch.tensor(values, dtype=real_dtype(like.dtype), device=like.device)


def make_step(tableau: Tableau, t: float, end: float, size: float, like: Tensor) -> Step:
    """Return the step from ``t`` to ``end``, none of its stages outside of it."""
    return Step(make_times(list(_place_stages(tableau, t, end)), like), size)


def make_steps(
    tableau: Tableau,
    grid: Float[Tensor, "m"],
    values: list[float],
    starts: list[float] | None = None,
) -> list[Step]:
    """Return the steps between the points of a grid.

    Args:
        tableau: the method.
        grid: step boundaries. If it carries a gradient, or values of it cannot be read, the sizes
            of the steps are tensors.
        values: the same on the host; empty if they cannot be read.
        starts: where the steps begin if not all of them do so at the end of the one before.
    """
    if not values or grid.requires_grad:
        begin = grid
        if starts is not None and starts != values[:-1]:
            offsets = [a - b for a, b in zip(starts, values, strict=False)]
            begin = grid + make_times([*offsets, 0.0], grid)
        lengths = grid.diff() if begin is grid else grid[1:] - begin[:-1]
        sizes: Sequence[float | Tensor] = lengths.unbind()
        # The last node is the next point itself, not one a rounding away from it.
        nodes = [
            grid[1:] if c == 1.0 else begin[:-1] + c * (grid[1:] - begin[:-1]) for c in tableau.c
        ]
        rows = torch.stack(nodes, dim=1)
    else:
        pairs = list(zip(values[:-1] if starts is None else starts, values[1:], strict=True))
        sizes = [b - a for a, b in pairs]
        flat = [time for a, b in pairs for time in _place_stages(tableau, a, b)]
        # All at once: one transfer to the device.
        rows = make_times(flat, grid).view(len(sizes), -1)
    return [Step(row, h) for row, h in zip(rows.unbind(), sizes, strict=True)]


def shift_step(step: Step, nodes: Sequence[float], start: Tensor, stretch: Tensor) -> Step:
    """Return the step as a function of the output times around it.

    Args:
        step: the step, of constant times.
        nodes: where its stages are, from 0 to 1.
        start: 0 that moves with its start.
        stretch: 0 that moves with its size.
    """
    times = [t + start + c * stretch for t, c in zip(step.times, nodes, strict=True)]
    return Step(torch.stack(times), step.size + stretch)


def _place_stages(tableau: Tableau, t: float, end: float) -> Iterator[float]:
    low, high = min(t, end), max(t, end)
    for c in tableau.c:
        yield end if c == 1.0 else min(max(t + c * (end - t), low), high)
