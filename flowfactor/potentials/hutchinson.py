"""Hutchinson's estimate of a Laplacian, for networks of your own in many dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Hutchinson:
    r"""Estimate the trace of the Hessian H by ``mean_p e_p . H e_p`` over random signs e_p.

    The entries of e are 1 or -1 with equal probability (Rademacher), independent in every sample:
    ``E[e . H e] = tr H``, and the variance of one probe, ``2 sum_{i != j} H_ij^2``, is the least
    of all distributions with independent entries; it is 0 for a diagonal Hessian. The signs depend
    on the seed and the shape of the batch only, so that the field of a solve is deterministic.
    Training on the same signs in every step would fit them instead of the Laplacian: give each
    step another seed.

    Args:
        probes: the number P of vectors, at least 1; 2 for a standard error.
        seed: of the random signs.

    Raises:
        ValueError: no probe.

    Sources: Hutchinson, "A stochastic estimator of the trace of the influence matrix", Commun.
    Stat. Simul. Comput. 1989, for the estimate and its variance; Grathwohl et al., "FFJORD",
    arXiv:1810.01367, for signs that stay the same during a solve.

    Example:
        >>> import torch
        >>> Hutchinson(probes=3, seed=0).draw(torch.zeros(4, 2)).shape
        torch.Size([3, 4, 2])
    """

    probes: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1; it is {self.probes}")

    def draw(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "p b d"]:
        """Return the random signs for latents ``z``, of their dtype and device."""
        # Drawn on the CPU: the same signs on every device.
        generator = torch.Generator().manual_seed(self.seed)
        bits = torch.randint(2, (self.probes, *z.shape), generator=generator)
        return (2 * bits - 1).to(z)


class LaplacianEstimate(NamedTuple):
    """An estimate of a Laplacian, and how far from it that may be.

    Attributes:
        mean: ``(B,)``, unbiased over seeds.
        standard_error: ``(B,)``, the standard deviation of ``mean`` over seeds, as estimated from
            the spread of the probes; its square is the variance.
    """

    mean: Float[Tensor, "b"]
    standard_error: Float[Tensor, "b"]
