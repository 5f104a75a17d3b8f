"""The diffusing prior: the heat equation from a standard normal, in closed form."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class DiffusingPrior(nn.Module):
    r"""``p_t(z | k) = N(0, (1 + 2 D_k t) I)``, the solution of ``dp/dt = D_k laplacian p``.

    Moving along ``psi^k = -D_k log p`` turns the continuity equation into the heat equation,
    whose solution from ``N(0, I)`` is known. ``D_k = softplus(raw_k) >= 0`` is learned.

    Args:
        transformations: their number K.
        diffusion: the value that every ``D_k`` starts from, positive.

    Raises:
        ValueError: ``diffusion`` is not positive.

    Source: Song et al., arXiv:2309.13167, section 3.

    Example:
        >>> import torch
        >>> prior = DiffusingPrior(2, diffusion=0.5)
        >>> prior.variance(torch.tensor([0, 1]), torch.tensor([0.0, 3.0])).detach()
        tensor([[1., 1.],
                [4., 4.]])
    """

    def __init__(self, transformations: int, diffusion: float = 0.05) -> None:
        super().__init__()
        if not diffusion > 0:
            raise ValueError(f"diffusion must be positive; it is {diffusion}")
        raw = math.log(math.expm1(diffusion))
        self.raw_diffusion = nn.Parameter(torch.full((transformations,), raw))

    @property
    def diffusion(self) -> Float[Tensor, "k"]:
        """The coefficients ``D_k``, in squared latent units per frame."""
        return F.softplus(self.raw_diffusion)

    def variance(
        self, k: Int[Tensor, "b"] | Float[Tensor, "b k"], t: Float[Tensor, "t *b"]
    ) -> Float[Tensor, "t b"]:
        """Return ``1 + 2 D_k t`` for every time and sample; with weights k, their mean ``D_k``.

        Args:
            k: of each sample.
            t: the times of all samples ``(T,)``, or of each ``(T, B)``.
        """
        chosen = k @ self.diffusion if k.is_floating_point() else self.diffusion[k]
        return 1 + 2 * (t.unsqueeze(-1) if t.ndim == 1 else t) * chosen

    def log_prob(
        self,
        z: Float[Tensor, "t b d"],
        k: Int[Tensor, "b"] | Float[Tensor, "b k"],
        t: Float[Tensor, "t *b"],
    ) -> Float[Tensor, "t b"]:
        """Return ``log p_t(z_t | k)`` in nats, for the latents of a path."""
        variance = self.variance(k, t)
        D = z.shape[-1]
        return -0.5 * (
            z.square().sum(-1) / variance + D * variance.log() + D * math.log(2 * math.pi)
        )
