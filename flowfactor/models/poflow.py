"""PoFlow: latent traversals as flows of potentials that obey a wave equation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import solvers
from flowfactor.data import SequenceBatch
from flowfactor.flow import Path, full_precision
from flowfactor.models.autoencoder import Autoencoder, check_weight, kl_to_standard_normal
from flowfactor.networks import make_decoder, make_encoder
from flowfactor.observation import Observation, observation_from_name
from flowfactor.potentials import Potential, PotentialBank, RidgePotential, Time
from flowfactor.potentials.base import as_time
from flowfactor.transport import trace_with_random_times
from solvers import RK4, Direct, Gradient, Method


@dataclasses.dataclass(frozen=True)
class WaveObjective:
    """The weights of the terms of :class:`PoFlow`, all at least 0.

    Attributes:
        beta: of ``KL(q(z_0|x_0) || N(0, I))``.
        wave: of the mean squared residual of the wave equation.
        initial: of ``||grad u(z_0, 0)||^2``, which lets every flow start from rest.
        jacobian: of the squared change of the pixels along the flow, which is *subtracted*. It has
            no bound below but what the reconstruction sets it: keep it small.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    beta: float = 1.0
    wave: float = 1.0
    initial: float = 1.0
    jacobian: float = 0.01

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            check_weight(name, weight)


class PoFlow(Autoencoder):
    r"""A VAE whose latent flows along potentials that obey the wave equation.

    With ``dz/dt = grad u^k(z, t)`` as in the flow model, training minimises

    .. code-block:: text

        - E_q[log p(x_0 | z_0)]  +  beta KL(q(z_0|x_0) || N(0, I))         the bound of frame 0
        - E_q[ sum_{t=1..T} log p(x_t | z_t) ]                             what flowed to frame t
        + wave     mean_{t in [0, T]} (d2u/dt2 - c_k^2 laplacian u)^2
        + initial  ||grad u(z_0, 0)||^2
        - jacobian mean_{t in [0, T]} ||J(z_t) grad u(z_t, t)||^2

    averaged over the batch, in nats, with c_k learned, J the Jacobian of the decoded pixel means,
    and both means over time estimated at one random time in each interval between frames, the last
    one of them in one interval at random. The true Laplacian is used and the true second
    derivative in time. The first two lines are the negative evidence bound of the sequence for
    ``beta = 1``. The authors' potentials are networks; here they are the flow model's.

    Args:
        encoder, decoder, image_shape, last, observation: see
            :class:`~flowfactor.models.autoencoder.Autoencoder`.
        potentials: the bank of potentials.
        objective: the weights of the terms.
        method: the solver of the flow; the steps of a fixed method are per frame.
        gradient: how the solver is differentiated.

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

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        potentials: PotentialBank,
        image_shape: tuple[int, int, int] = (3, 28, 28),
        *,
        horizon: int = 8,
        objective: WaveObjective = WaveObjective(),
        observation: Observation | None = None,
        method: Method = RK4(steps=2),
        gradient: Gradient = Direct(),
    ) -> None:
        super().__init__(
            encoder, decoder, image_shape, potentials.dim, horizon=horizon, observation=observation
        )
        self.potentials = potentials
        self.objective = objective
        self.speeds = nn.Parameter(torch.ones(len(potentials)))
        # Without the residual nothing teaches the speeds, and distributed training would wait for
        # their gradient.
        self.speeds.requires_grad_(objective.wave > 0)
        self.method = method
        self.gradient = gradient

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        image_shape: Sequence[int] = (3, 28, 28),
        *,
        horizon: int = 8,
        latent_dim: int = 48,
        width: int = 256,
        frequencies: int = 4,
        rank: int = 0,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        observation: str = "bernoulli",
        objective: dict[str, float] | None = None,
        method: dict[str, Any] | None = None,
        gradient: dict[str, Any] | None = None,
    ) -> PoFlow:
        """Make a model with a :class:`~flowfactor.potentials.RidgePotential`, from plain data.

        Args:
            names: of the K transformations.
            image_shape: ``(C, H, W)``.
            horizon: the last frame T.
            latent_dim: D.
            width: the ridge functions of a potential: H.
            frequencies: of the potentials' coefficients in time.
            rank: the squares of the potentials' quadratic term; 0 leaves it out.
            encoder: ``kind`` and options, as in :meth:`FlowVAE.build
                <flowfactor.models.FlowVAE.build>`.
            decoder: likewise.
            observation: ``bernoulli``, ``gaussian`` or ``gaussian_learned``.
            objective: the weights, options of :class:`WaveObjective`.
            method: a solver's ``name`` and options, ``{"name": "rk4", "steps": 2}``.
            gradient: ``{"name": "direct"}`` or ``{"name": "adjoint", ...}``.

        Raises:
            ValueError: a size, name or option that is not allowed.
        """
        channels, height, width_px = image_shape
        shape = (int(channels), int(height), int(width_px))
        model = cls(
            make_encoder(shape, latent_dim, **{"kind": "conv", **(encoder or {})}),
            make_decoder(shape, latent_dim, **{"kind": "mlp", **(decoder or {})}),
            RidgePotential(
                names, latent_dim, width, horizon=horizon, frequencies=frequencies, rank=rank
            ),
            shape,
            horizon=horizon,
            objective=WaveObjective(**(objective or {})),
            observation=observation_from_name(observation),
            method=solvers.method_from_name(**(method or {"name": "rk4", "steps": 2})),
            gradient=solvers.gradient_from_name(**(gradient or {"name": "direct"})),
        )
        model._spec = {
            "names": list(names),
            "image_shape": list(shape),
            "horizon": horizon,
            "latent_dim": latent_dim,
            "width": width,
            "frequencies": frequencies,
            "rank": rank,
            "encoder": dict(encoder or {}),
            "decoder": dict(decoder or {}),
            "observation": observation,
            "objective": dataclasses.asdict(model.objective),
            "method": solvers.to_dict(model.method),
            "gradient": solvers.to_dict(model.gradient),
        }
        return model

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        With some frames of each sequence only, the reconstruction is an unbiased estimate of that
        over all frames. Terms of weight 0 are left out and cost nothing.
        """
        weights, k = self.objective, sequences.labels
        posterior = self.encode(sequences.frames[:, 0])
        z0 = posterior.rsample()
        potential = self.potentials.select(k)
        path, between = trace_with_random_times(z0, potential, sequences.horizon, self)
        place = sequences.times.unsqueeze(-1).expand(-1, -1, z0.shape[-1])
        z = path.z.transpose(0, 1).gather(1, place)
        log_likelihood, _ = self._decoded(z.flatten(0, 1), sequences)
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
            costs["jacobian"] = -weights.jacobian * self._pixel_change(potential, between)
        return {name: cost.mean() for name, cost in costs.items()}

    def _pixel_change(self, potential: Potential, between: Path) -> Float[Tensor, "b"]:
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
