"""Encoder, decoder and observation model: what all models of this package are made of."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from flowfactor.data import SequenceBatch
from flowfactor.models.base import SequenceModel
from flowfactor.observation import Bernoulli, Observation


class Autoencoder(SequenceModel):
    """A sequence model with a Gaussian encoder and a decoder of pixel logits.

    Args:
        encoder: maps images ``(B, C, H, W)`` to ``(B, 2 D)``: mean and log standard deviation.
        decoder: maps latents ``(B, D)`` to logits ``(B, C, H, W)``.
        image_shape: ``(C, H, W)``.
        latent_dim: D.
        horizon: the last frame T.
        observation: ``p(x | z)``; Bernoulli by default.

    Raises:
        ValueError: ``horizon`` is not positive.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        *,
        horizon: int = 8,
        observation: Observation | None = None,
    ) -> None:
        super().__init__()
        if horizon < 1:
            raise ValueError(
                f"last, the number of the last frame, must be positive; it is {horizon}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.latent_dim = latent_dim
        self.horizon = horizon
        self.observation = observation if observation is not None else Bernoulli()
        self._spec: dict[str, Any] | None = None

    def spec(self) -> dict[str, Any]:
        """Return the arguments of ``build`` that made this model.

        Raises:
            TypeError: the model was made from networks of your own, which plain data cannot name;
                save its ``state_dict()`` and make it again by your own code.
        """
        if self._spec is None:
            raise TypeError(
                f"this model was made from networks of your own, so that flowfactor cannot make it "
                f"again from plain data; save its state_dict() instead, or use "
                f"{type(self).__name__}.build"
            )
        return self._spec

    def encode(self, x: Float[Tensor, "b c h w"]) -> Distribution:
        """Return ``q(z_0 | x_0) = N(mu, diag sigma^2)``, over latents ``(B, D)``.

        Raises:
            ValueError: the images have another shape than the model's.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"the images have the shape {tuple(x.shape)}; this model takes "
                f"(B, {', '.join(map(str, self.image_shape))})"
            )
        mean, log_scale = self._posterior(x)
        return diagonal_normal(mean, log_scale.exp())

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of ``q(z | x)``."""
        return bounded(self.encoder(x))

    def decode_logits(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        """Return the logits of every pixel."""
        logits: Tensor = self.decoder(z)
        return logits.float()

    def _decoded(
        self, z: Float[Tensor, "n d"], sequences: SequenceBatch
    ) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b f c h w"]]:
        """Return ``log p(x_t | z_t)`` of every frame, and the logits, from latents ``(B F, D)``."""
        logits = self.decode_logits(z).unflatten(0, sequences.frames.shape[:2])
        return self.observation.log_prob(logits, sequences.frames), logits


def diagonal_normal(mean: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]) -> Distribution:
    """Return ``N(mean, diag scale^2)``, unchecked: it is made at every training step."""
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def bounded(head: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Return mean and log standard deviation from the output of an encoder, in float32."""
    mean, log_scale = head.float().chunk(2, dim=-1)
    # Beyond these bounds the exponential is useless and its gradient explodes.
    return mean, log_scale.clamp(-8, 4)


def kl_to_standard_normal(posterior: Distribution) -> Float[Tensor, "b"]:
    """Return ``KL(N(mu, diag sigma^2) || N(0, I))`` in nats, in closed form."""
    mean, scale = posterior.mean, posterior.stddev
    return 0.5 * (mean.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)


def check_weight(name: str, weight: float) -> float:
    """Return the weight of a term of an objective.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"the weight {name} must be finite and at least 0; it is {weight}")
    return weight


def sum_over_frames(cost: Float[Tensor, "b f"], sequences: SequenceBatch) -> Float[Tensor, ""]:
    """Return the mean over sequences of the sum over frames, estimated from those given."""
    return (cost * sequences.weights).sum(1).mean()


def flatten_frames(sequences: SequenceBatch) -> Float[torch.Tensor, "n c h w"]:
    """Return every frame as an image of its own, ``(B F, C, H, W)``."""
    return sequences.frames.flatten(0, 1)
