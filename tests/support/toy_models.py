"""Models that are functions, so that what metrics must measure is known in closed form."""

import torch
from torch.distributions import Independent, Normal

from flowfactor import AutogradPotential
from flowfactor.models import PotentialModel
from flowfactor.observation import Gaussian
from flowfactor.potentials import IndependentPotentials
from solvers import RK4, Direct


class Toy(PotentialModel):
    """A model of given potentials.

    Args:
        potentials: functions of ``(z, t)`` by name.
        image_shape: of its images.
        dim: of its latents.
        mean: returns the latents of images.
        logits: returns the logits of latents.
        horizon: of its training.
        scale: the standard deviation of its posterior.
    """

    def __init__(self, potentials, image_shape, dim, mean, logits, horizon=8, scale=1.0):
        super().__init__(None, tuple(potentials), image_shape, horizon)
        self.potentials = IndependentPotentials(
            {name: AutogradPotential(function, dim) for name, function in potentials.items()}
        )
        self.latent_dim, self.scale = dim, scale
        self.mean, self.logits = mean, logits
        self.method, self.gradient, self.observation = RK4(steps=1), Direct(), Gaussian()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def loss(self, sequences):
        raise NotImplementedError

    def encode(self, x):
        mean = self.mean(x)
        return Independent(Normal(mean, torch.full_like(mean, self.scale)), 1)

    def decode_logits(self, z):
        return self.logits(z)
