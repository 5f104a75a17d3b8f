"""Methods to try, and an oracle of the statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from solvers import (
    RK4,
    AdaptiveHeun,
    Adjoint,
    Bosh3,
    Checkpoint,
    Direct,
    Dopri5,
    Dopri8,
    Euler,
    Gradient,
    Heun,
    Method,
    Midpoint,
    Tsit5,
)

FIXED: list[Method] = [Euler(steps=3), Midpoint(steps=3), Heun(steps=3), RK4(steps=3)]
ADAPTIVE: list[Method] = [
    Dopri5(rtol=1e-6, atol=1e-8),
    Tsit5(rtol=1e-6, atol=1e-8),
    Bosh3(rtol=1e-5, atol=1e-6),
    AdaptiveHeun(rtol=1e-3, atol=1e-4),
    Dopri8(rtol=1e-9, atol=1e-10),
]
GRADIENTS: list[Gradient] = [Direct(), Checkpoint(every=2), Adjoint()]
COMBINATIONS = [
    pytest.param(method, gradient, id=f"{type(method).__name__}-{type(gradient).__name__}")
    for method in FIXED + ADAPTIVE
    for gradient in GRADIENTS
]


def name_of(option: object) -> str:
    """Readable test ids."""
    return type(option).__name__


class Recorded:
    """The oracle of the statistics: a field that notes the times at which it is evaluated."""

    def __init__(self, field: Callable[[Tensor, Any], Any]) -> None:
        self.field = field
        self.times: list[float] = []

    def __call__(self, t: Tensor, z: Any) -> Any:
        self.times.append(t.detach().item())
        return self.field(t, z)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
