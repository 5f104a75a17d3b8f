"""PoFlow: latent traversals as flows of potentials that obey a wave equation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flowfactor.data import SequenceBatch
from flowfactor.flow import Path, full_precision
from flowfactor.models.autoencoder import (
    PotentialAutoencoder,
    PotentialOptions,
    kl_to_standard_normal,
    make_network,
)
from flowfactor.options import Weight, options
from flowfactor.potentials import Potential, PotentialBank, Time
from flowfactor.potentials.query import as_time
from flowfactor.registries import MODELS
from flowfactor.transport import trace_with_random_times


@options
class PoFlowOptions(PotentialOptions):
    """Options of :class:`PoFlow`."""

    beta: Weight = 1.0
    """Weight of ``KL(q(z_0|x_0) || N(0, I))``."""
    wave: Weight = 1.0
    """Weight of the mean squared residual of the wave equation."""
    initial: Weight = 1.0
    """Weight of ``||grad u(z_0, 0)||^2``, which lets every flow start from rest."""
    jacobian: Weight = 0.01
    """Weight of the squared change of the pixels along the flow, which is *subtracted*. Only the
    reconstruction bounds it: keep it small."""


@MODELS.register("poflow")
class PoFlow(PotentialAutoencoder):
    r"""A VAE whose latent flows along potentials that obey the wave equation.

    With ``dz/dt = grad u^k(z, t)`` as in the flow model, training minimises

    .. math::

        \begin{aligned}
        & -\mathbb{E}_q[\log p(x_0 \mid z_0)]
          + \beta\, \mathrm{KL}(q(z_0 \mid x_0) \parallel N(0, I)) \\
        & -\mathbb{E}_q \Bigl[ \sum_{t=1}^T \log p(x_t \mid z_t) \Bigr] \\
        +\, \mathrm{wave} \;& \mathrm{mean}_{t \in [0, T]}
          \bigl( \partial_t^2 u - c_k^2 \Delta u \bigr)^2 \\
        +\, \mathrm{initial} \;& |\nabla u(z_0, 0)|^2 \\
        -\, \mathrm{jacobian} \;& \mathrm{mean}_{t \in [0, T]}\, |J(z_t) \nabla u(z_t, t)|^2
        \end{aligned}

    averaged over the batch, in nats, with c_k learned, J the Jacobian of the decoded pixel means,
    and both means over time estimated at one random time in each interval between frames, the last
    one of them in one interval at random. The true Laplacian is used and the true second
    derivative in time. The first two lines are the negative evidence bound of the sequence for
    ``beta = 1``. The authors' potentials are networks; here they are the flow model's.

    Args:
        options: :class:`PoFlowOptions`.
        names, image_shape, horizon: see :class:`~flowfactor.models.SequenceModel`.

    Source: Song, Keller, Sebe, Welling, "Latent Traversals in Generative Models as Potential
    Flows", ICML 2023, arXiv:2304.12944.

    Example:
        >>> import torch
        >>> from flowfactor.data import SequenceBatch
        >>> from flowfactor.models import PoFlow
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = PoFlow.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 1]))
        >>> sorted(model.loss(films))
        ['initial', 'jacobian', 'kl', 'reconstruction', 'wave']
    """

    Options: ClassVar[type[Any]] = PoFlowOptions
    potentials: PotentialBank

    def __init__(
        self,
        options: PoFlowOptions,
        names: Sequence[str],
        image_shape: Sequence[int],
        horizon: int,
    ) -> None:
        # The weights of these are drawn before those of the potentials.
        networks = {
            "encoder": make_network("encoder", options, image_shape, options.latent_dim),
            "decoder": make_network("decoder", options, image_shape, options.latent_dim),
        }
        super().__init__(options, names, image_shape, horizon, **networks)
        self.speeds = nn.Parameter(torch.ones(len(names)))
        # Without the residual nothing teaches the speeds, and distributed training would wait for
        # their gradient.
        self.speeds.requires_grad_(options.wave > 0)

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        With some frames of each sequence only, the reconstruction is an unbiased estimate of that
        over all frames. Terms of weight 0 are left out and cost nothing.
        """
        weights, k = self.options, self.choose(sequences)
        posterior = self.encode(sequences.frames[:, 0])
        z0 = posterior.rsample()
        potential = self.potentials.select(k)
        path, between = trace_with_random_times(
            z0, potential, sequences.horizon, method=self.method, gradient=self.gradient
        )
        places = sequences.times.long().unsqueeze(-1).expand(-1, -1, z0.shape[-1])
        z = rearrange(path.z, "t b d -> b t d").gather(1, places)
        log_likelihood = self.log_likelihood(rearrange(z, "b f d -> (b f) d"), sequences)
        costs = {
            "reconstruction": -(log_likelihood * sequences.weights).sum(1),
            "kl": weights.beta * kl_to_standard_normal(posterior),
        }
        if weights.wave > 0:
            squared = [
                wave_residual(potential, at, t, self.speeds[k]).square()
                for at, t in zip(between.z, between.times, strict=True)
            ]
            costs["wave"] = weights.wave * torch.stack(squared).mean(0)
        if weights.initial > 0:
            with full_precision(z0):
                start = potential.gradient(z0, 0.0)
            costs["initial"] = weights.initial * start.square().sum(-1)
        if weights.jacobian > 0:
            costs["jacobian"] = -weights.jacobian * self.pixel_change(potential, between)
        return {name: cost.mean() for name, cost in costs.items()}

    def pixel_change(self, potential: Potential, between: Path) -> Float[Tensor, "b"]:
        """Return ``||J grad u||^2`` at one of the random times, drawn anew for each batch."""
        at = int(torch.randint(len(between.times), ()))
        z = between.z[at]
        with full_precision(z):
            velocity = potential.gradient(z, between.times[at])
        pushed: Any = torch.func.jvp(self.decode, (z,), (velocity,))
        squared: Tensor = pushed[1].square().flatten(1).sum(1)
        return squared


def wave_residual(
    potential: Potential,
    z: Float[Tensor, "b d"],
    t: Time,
    speed: Float[Tensor, "b"] | float,
) -> Float[Tensor, "b"]:
    r"""Return ``d2u/dt2 - c^2 laplacian u`` at every latent; 0 where u solves the wave equation.

    The time derivative and the Laplacian are those of the potential, in closed form where it has
    them; the second time derivative is the exact forward derivative of the first.

    Args:
        potential: u.
        z: latents ``(B, D)``.
        t: one time, or one per latent ``(B,)``.
        speed: c, ``(B,)`` or a number.

    Example:
        >>> import torch
        >>> from flowfactor import AutogradPotential
        >>> u = AutogradPotential(lambda z, t: torch.sin(z[:, 0] - 2 * t), dim=2)
        >>> wave_residual(u, torch.tensor([[1.0, 2.0]]), 3.0, 2.0).abs() < 1e-5
        tensor([True])
    """
    time = as_time(t, z)

    def rate(at: Tensor) -> Tensor:
        return potential.evaluate(z, at, ("time",))[0]

    with full_precision(z):
        pushed: Any = torch.func.jvp(rate, (time,), (torch.ones_like(time),))
        laplacian = potential.laplacian(z, t)
    residual: Tensor = pushed[1] - speed**2 * laplacian
    return residual
