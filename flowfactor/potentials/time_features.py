"""The functions of time that the coefficients of a potential are made of."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class TimeFeatures(NamedTuple):
    """The functions 1, t / T, and the sines and cosines of F frequencies, with their derivatives.

    A coefficient is a learned combination of these ``R = 2 + 2 F`` functions, so that its
    derivative in time is the same combination of theirs, and exact.

    Attributes:
        frequencies: ``(F,)``, radians per frame, as :func:`spectrum` gives them.
        horizon: the time T that the linear function is measured in.
    """

    frequencies: Float[Tensor, "f"]
    horizon: float

    def values(self, t: Float[Tensor, "*n 1"]) -> Float[Tensor, "*n r"]:
        """Return the functions at the times ``t``, the last dimension being 1."""
        angle = t * self.frequencies
        return torch.cat(
            [torch.ones_like(t), t / self.horizon, angle.sin(), angle.cos()],
            dim=-1,
        )

    def rates(self, t: Float[Tensor, "*n 1"]) -> Float[Tensor, "*n r"]:
        """Return the derivatives of the functions at the times ``t``."""
        angle = t * self.frequencies
        return torch.cat(
            [
                torch.zeros_like(t),
                torch.full_like(t, 1 / self.horizon),
                angle.cos() * self.frequencies,
                -angle.sin() * self.frequencies,
            ],
            dim=-1,
        )


def spectrum(
    frequencies: int, horizon: float, dtype: torch.dtype | None = None
) -> Float[Tensor, "f"]:
    """Return ``pi / (2 T) * 2^i`` for i = 0..F-1: slow enough that a frame is a small step."""
    exact = math.pi / (2 * horizon) * 2.0 ** torch.arange(frequencies, dtype=torch.float64)
    return exact.to(torch.get_default_dtype() if dtype is None else dtype)
