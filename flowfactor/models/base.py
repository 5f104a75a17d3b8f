"""What every model of image sequences offers to training, metrics and diagnostics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from flowfactor.data import Sequences
from flowfactor.flow import flow
from flowfactor.observation import Observation
from flowfactor.potentials import Choice, Potential, PotentialBank
from solvers import Gradient, Method


class SequenceModel(nn.Module, ABC):
    """A model that encodes frame 0, moves the latent, and decodes every frame.

    Attributes:
        potentials: the bank of the K transformations.
        names: their names.
        image_shape: ``(C, H, W)``.
        latent_dim: D.
        last: the last frame T that the model is trained on.
        method: the solver of its flows; ``gradient``: how it is differentiated.
        observation: the model of the pixels given the decoder's output.
    """

    potentials: PotentialBank
    image_shape: tuple[int, int, int]
    latent_dim: int
    last: int
    method: Method
    gradient: Gradient
    observation: Observation

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the transformations."""
        return self.potentials.names

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return plain data from which :meth:`build` makes the same model, untrained."""

    @abstractmethod
    def loss(self, sequences: Sequences) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the objective, weighted: their sum is to be minimised."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "b c h w"]) -> Distribution:
        """Return the posterior ``q(z_0 | x_0)``; its ``mean`` is ``(B, D)``."""

    @abstractmethod
    def decode_logits(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the decoder's output, one logit for each pixel."""

    def decode(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the mean of every pixel, in [0, 1]."""
        return self.observation.mean(self.decode_logits(z))

    def flow(
        self,
        z: Float[Tensor, "b d"],
        k: Potential | Choice,
        t: float | Sequence[float] | Tensor,
        **options: Any,
    ) -> Any:
        """Move latents: :func:`flowfactor.flow` with this model and its solver."""
        return flow(z, k, t, self, **options)
