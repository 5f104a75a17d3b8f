"""Step-size control of adaptive methods: error norms, the next step, the first step.

Nothing here is differentiated: the sequence of steps is taken as given.

Source: HNW (see :mod:`solvers.methods`) II.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from solvers.methods import AdaptiveMethod
from solvers.stepping import Parts

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 10.0


def error_ratio(
    method: AdaptiveMethod,
    z: Parts,
    end: Parts,
    stages: Sequence[Parts],
    per_sample: bool = False,
) -> Tensor:
    """The estimated error of a step of size 1, over what the tolerance allows.

    To be multiplied by the size of the step. A scalar, or ``(B,)`` if every sample is for itself.
    """
    ratios = []
    used = [(w, k) for w, k in zip(method.tableau.error, stages, strict=True) if w]
    for i, (a, b) in enumerate(zip(z, end, strict=True)):
        if not a.numel():
            continue
        (weight, first), *others = used
        error = first[i].detach() * weight
        for w, k in others:
            error = torch.add(error, k[i].detach(), alpha=w)
        allowed = torch.maximum(a.detach().abs(), b.detach().abs()) * method.rtol + method.atol
        # Only now: within vmap the tensors may differ in which of them has samples, and where.
        ratios.append(_norm(underlying(error / allowed), per_sample))
    # amax, unlike Python's max, hands a NaN on: the step is then rejected.
    return ratios[0] if len(ratios) == 1 else torch.stack(ratios).amax(0)


def resized(method: AdaptiveMethod, ratio: float, after_rejection: bool) -> float:
    """The factor by which the next step should be longer, given this one's error ratio."""
    if not math.isfinite(ratio):
        return SMALLEST
    if ratio == 0.0:
        factor = LARGEST
    else:
        factor = min(max(SAFETY * ratio ** (-1 / method.order), SMALLEST), LARGEST)
    return min(factor, 1.0) if after_rejection else factor


def resized_per_sample(method: AdaptiveMethod, ratio: Tensor, after_rejection: Tensor) -> Tensor:
    """:func:`resized` for every sample."""
    # Not by a power, whose last bits depend on the place in the batch.
    factor = (SAFETY * (ratio.log() / -method.order).exp()).clamp(SMALLEST, LARGEST)
    factor = torch.where(after_rejection, factor.clamp(max=1.0), factor)
    return torch.where(ratio.isfinite(), factor, SMALLEST)


def magnitudes(
    method: AdaptiveMethod, z: Parts, others: Sequence[Parts], per_sample: bool = False
) -> list[Tensor]:
    """The norms of ``others``, in units of what the tolerance allows at ``z``."""
    found: list[list[Tensor]] = [[] for _ in others]
    for i, part in enumerate(z):
        if not part.numel():
            continue
        allowed = part.detach().abs() * method.rtol + method.atol
        for norms, other in zip(found, others, strict=True):
            norms.append(_norm(underlying(other[i].detach() / allowed), per_sample))
    return [torch.stack(norms).amax(0) for norms in found]


def underlying(x: Tensor) -> Tensor:
    """The plain values of a tensor, also within ``torch.func.vmap`` and other transforms."""
    x = x.detach()
    if torch.compiler.is_compiling():  # which sees through the transforms by itself
        return x
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def carries_gradient(times: Tensor) -> bool:
    """Whether a derivative with respect to the output times may be asked for."""
    if times.requires_grad or torch.compiler.is_compiling():
        return times.requires_grad
    return bool(
        torch._C._functorch.is_functorch_wrapped_tensor(times)
        or torch.autograd.forward_ad.unpack_dual(times).tangent is not None
    )


def _norm(x: Tensor, per_sample: bool) -> Tensor:
    """Root mean square of all entries, or of every sample's."""
    if not per_sample:
        norm: Tensor = torch.linalg.vector_norm(x)
        return norm / math.sqrt(x.numel())
    rows = x.reshape(len(x), -1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms / math.sqrt(rows.shape[1])
