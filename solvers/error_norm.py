"""Norms by which adaptive methods judge errors, in units of what the tolerance allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from solvers.checks import unwrap
from solvers.step import combine
from solvers.types import Parts

Tolerance = tuple[float | Tensor, float | Tensor]
"""The relative and the absolute one."""


def estimate_error(
    weights: Sequence[float],
    tolerance: Tolerance,
    z: Parts,
    end: Parts,
    stages: Sequence[Parts],
    controlled: int | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Return the estimated error of a step of size 1, over what the tolerance allows.

    To be multiplied by the size of the step. A scalar, or ``(B,)`` if every sample is for itself.

    Args:
        weights: those of the stages in the difference from the embedded method.
        tolerance: the relative and the absolute one.
        z: the state at the start of the step.
        end: that at its end.
        stages: the derivatives in between.
        controlled: how many leading parts of the state count; None: all.
        per_sample: whether every sample has a norm of its own.
    """
    rtol, atol = tolerance
    ratios = []
    plain = [tuple(part.detach() for part in k[:controlled]) for k in stages]
    errors = combine(weights, plain)
    for a, b, error in zip(z[:controlled], end[:controlled], errors, strict=True):
        if not a.numel():
            continue
        allowed = torch.maximum(a.detach().abs(), b.detach().abs()) * rtol + atol
        # Only now: within vmap the tensors may differ in which of them has samples, and where.
        ratios.append(_compute_norm(unwrap(error / allowed), per_sample))
    # amax, unlike Python's max, hands a NaN on: the step is then rejected.
    return ratios[0] if len(ratios) == 1 else torch.stack(ratios).amax(0)


def measure(
    tolerance: Tolerance, z: Parts, others: Sequence[Parts], per_sample: bool = False
) -> list[Tensor]:
    """Return the norms of ``others``, in units of what the tolerance allows at ``z``."""
    rtol, atol = tolerance
    norms: list[list[Tensor]] = [[] for _ in others]
    for i, part in enumerate(z):
        if not part.numel():
            continue
        allowed = part.detach().abs() * rtol + atol
        for row, other in zip(norms, others, strict=True):
            row.append(_compute_norm(unwrap(other[i].detach() / allowed), per_sample))
    return [torch.stack(row).amax(0) for row in norms]


def _compute_norm(x: Tensor, per_sample: bool) -> Tensor:
    """Return the root mean square of all entries, or of every sample's."""
    if not per_sample:
        norm: Tensor = torch.linalg.vector_norm(x)
        return norm / math.sqrt(x.numel())
    rows = x.reshape(len(x), -1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms / math.sqrt(rows.shape[1])
