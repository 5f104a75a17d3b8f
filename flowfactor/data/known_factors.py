"""What a data set offers whose generative factors are known."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class KnownFactors(Protocol):
    """Images drawn at random together with the factors that made them.

    The values of a factor are numbered from 0; one that is continuous is cut into bins.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the F factors."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values, or bins, each factor has: at least two."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    def sample_factors(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n k"]]:
        """Draw images and their factors.

        Args:
            count: how many.
            generator: on the CPU, so that every device gives the same.
            fixed: number of a factor that is the same in all of them, itself drawn at random. A
                continuous one is then the same exactly, not only in its bin.
        """
