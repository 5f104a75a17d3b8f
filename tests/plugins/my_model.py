"""Models in one file: one from scratch, and a shipped one that is changed."""

import torch
from torch import nn
from torch.distributions import Independent, Normal

from flowfactor.models import FlowVAE, SequenceModel
from flowfactor.observation import Bernoulli
from flowfactor.options import PositiveInt, Weight, options
from flowfactor.registries import MODELS


@options
class ShiftVAEOptions:
    """A VAE whose latents move along a straight line for each transformation."""

    latent_dim: PositiveInt = 4
    """The size D of the latent."""
    beta: Weight = 1.0
    """The weight of the Kullback-Leibler divergence."""


@MODELS.register("shift_vae")
class ShiftVAE(SequenceModel):
    """A VAE whose latents move along a straight line for each transformation."""

    Options = ShiftVAEOptions

    def __init__(self, options, names, image_shape, horizon):
        super().__init__(options, names, image_shape, horizon)
        self.names = tuple(names)
        self.latent_dim = options.latent_dim
        self.observation = Bernoulli()
        pixels = self.image_shape[0] * self.image_shape[1] * self.image_shape[2]
        self.encoder = nn.Linear(pixels, 2 * self.latent_dim)
        self.decoder = nn.Linear(self.latent_dim, pixels)
        self.velocity = nn.Parameter(0.1 * torch.randn(len(names), self.latent_dim))

    def encode(self, x):
        mean, log_scale = self.encoder(x.flatten(1)).chunk(2, 1)
        return Independent(Normal(mean, log_scale.exp()), 1)

    def decode_logits(self, z):
        return self.decoder(z).unflatten(1, self.image_shape)

    def flow(self, z, k, t, **_):
        index = self.names.index(k) if isinstance(k, str) else k
        velocity = self.velocity[index]
        if isinstance(t, float | int):
            return z + t * velocity
        times = torch.as_tensor(t, dtype=z.dtype, device=z.device)
        return z + (times - times[0])[:, None, None] * velocity

    def loss(self, sequences):
        posterior = self.encode(sequences.frames[:, 0])
        z0 = posterior.rsample()
        moved = sequences.times[..., None] * self.velocity[self.choose(sequences)][:, None]
        logits = self.decode_logits((z0[:, None] + moved).flatten(0, 1))
        frames = sequences.frames.flatten(0, 1)
        costs = -self.observation.log_prob(logits, frames).unflatten(0, sequences.times.shape)
        kl = torch.distributions.kl_divergence(
            posterior, Independent(Normal(torch.zeros_like(z0), torch.ones_like(z0)), 1)
        )
        return {
            "reconstruction": (sequences.weights * costs).sum(1).mean(),
            "kl": self.options.beta * kl.mean(),
        }


@MODELS.register("quiet_flow_vae")
class QuietFlowVAE(FlowVAE):
    """The flow model, its objective divided by the number of frames."""

    def loss(self, sequences):
        return {name: term / (self.horizon + 1) for name, term in super().loss(sequences).items()}
