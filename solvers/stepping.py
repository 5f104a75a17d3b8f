"""One step of an explicit Runge-Kutta method, on a state given as a tuple of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from solvers.tableaus import Tableau

Parts = tuple[Tensor, ...]
"""A state as the tensors that it consists of: one, unless the caller's state is a tuple."""

PartsField = Callable[[Tensor, Parts], Parts]


class Step(NamedTuple):
    """Where a step evaluates the field, and how long it is.

    A size that is a number costs nothing and carries no gradient. A tensor carries the gradient
    with respect to the output times, or gives every sample a size of its own, ``(B,)``.
    """

    times: Sequence[Tensor]
    size: float | Tensor


def take_step(
    tableau: Tableau, field: PartsField, step: Step, z: Parts, first: Parts | None = None
) -> tuple[Parts, list[Parts]]:
    """The state at the end of a step, and the derivatives at its stages.

    Args:
        tableau: the method.
        field: ``dz/dt`` on parts.
        step: times of the stages, and size.
        z: the state at the start.
        first: the derivative there if it is known already.
    """
    stages = [field(step.times[0], z) if first is None else first]
    for time, row in zip(step.times[1:], tableau.a[1:], strict=True):
        at = advance(z, stages, row, step.size)
        stages.append(field(time, at))
    if tableau.first_same_as_last:
        return at, stages  # what the last stage was evaluated at
    return advance(z, stages, tableau.b, step.size), stages


def advance(
    z: Parts, stages: Sequence[Parts], weights: Sequence[float], size: float | Tensor
) -> Parts:
    """``z + size * sum_i weights[i] stages[i]``."""
    used = [(w, k) for w, k in zip(weights, stages, strict=False) if w]
    result = []
    for i, y in enumerate(z):
        if isinstance(size, Tensor):
            h = like(size, y)
            for w, k in used:
                y = torch.addcmul(y, k[i], h, value=w)
        else:
            for w, k in used:
                y = torch.add(y, k[i], alpha=w * size)
        result.append(y)
    return tuple(result)


def like(size: Tensor, z: Tensor) -> Tensor:
    """A number, or one for each sample ``(B,)``, in a shape that broadcasts with ``z``."""
    return size.reshape(size.shape + (1,) * (z.ndim - size.ndim))


def chosen(which: Tensor, a: Parts, b: Parts) -> Parts:
    """``a`` where ``which`` is true, ``b`` elsewhere: for the whole state, or each sample."""
    return tuple(torch.where(like(which, x), x, y) for x, y in zip(a, b, strict=True))


def stage_time(t: float, like: Tensor) -> Tensor:
    """A time as the scalar that the field is called with."""
    return torch.full((), t, dtype=like.dtype, device=like.device)


def stage_times(tableau: Tableau, t: float, end: float, like: Tensor) -> list[Tensor]:
    """The times of the stages of a step from ``t`` to ``end``, never outside of it."""
    return [stage_time(value, like) for value in _stage_values(tableau, t, end)]


def steps_on_grid(tableau: Tableau, grid: Float[Tensor, " m"], values: list[float]) -> list[Step]:
    """The steps between the points of a grid.

    Args:
        tableau: the method.
        grid: step boundaries. If it carries a gradient, or values of it cannot be read, the sizes
            of the steps are tensors.
        values: the same on the host; empty if they cannot be read.
    """
    if not values or grid.requires_grad:
        sizes: Sequence[float | Tensor] = grid.diff().unbind()
        # The last node is the next point itself, not one a rounding away from it.
        nodes = [
            grid[1:] if c == 1.0 else grid[:-1] + c * (grid[1:] - grid[:-1]) for c in tableau.c
        ]
        rows = torch.stack(nodes, dim=1)
    else:
        sizes = [b - a for a, b in pairwise(values)]
        flat = [time for a, b in pairwise(values) for time in _stage_values(tableau, a, b)]
        # All at once: one transfer to the device.
        rows = torch.tensor(flat, dtype=grid.dtype, device=grid.device).view(len(sizes), -1)
    return [Step(row.unbind(), h) for row, h in zip(rows.unbind(), sizes, strict=True)]


def _stage_values(tableau: Tableau, t: float, end: float) -> Iterator[float]:
    low, high = min(t, end), max(t, end)
    for c in tableau.c:
        yield end if c == 1.0 else min(max(t + c * (end - t), low), high)
