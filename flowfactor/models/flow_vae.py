"""The supervised flow model: a VAE whose latent moves along gradient flows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import solvers
from flowfactor.commutator import lie_bracket
from flowfactor.data import SequenceBatch
from flowfactor.flow import (
    LogDensity,
    Path,
    check_discrete,
    flow_to_zero,
    full_precision,
    trace,
)
from flowfactor.models.autoencoder import Autoencoder, kl_to_standard_normal
from flowfactor.networks import make_decoder, make_encoder
from flowfactor.observation import Observation, observation_from_name
from flowfactor.potentials import MLPPotential, Potential, PotentialBank, RidgePotential
from flowfactor.priors import DiffusingPrior
from flowfactor.transport import Force, along_path, trace_with_random_times
from solvers import RK4, Direct, Gradient, Method

POTENTIALS: dict[str, type[RidgePotential] | type[MLPPotential]] = {
    "ridge": RidgePotential,
    "mlp": MLPPotential,
}
"""The banks of potentials that :meth:`FlowVAE.build` knows by name."""


Codes = tuple[Float[Tensor, "b f d"], Float[Tensor, "b f d"]]
"""Mean and log standard deviation of ``q(z | x)`` for some frames of each sequence."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weights of the objective's terms, all at least 0.

    Attributes:
        beta: of ``KL(q(z_0|x_0) || N(0, I))``; 1 gives the evidence bound.
        path_kl: of ``sum_{t>=1} KL(q_t || p_t)`` against the diffusing prior; 1 in the paper.
        hamilton_jacobi: of the mean squared residual of the Hamilton-Jacobi equation.
        initial: of the mean ``||grad u(z_0, 0)||^2``, which lets every flow start from rest.
        consistency: of ``sum_{t>=1} KL(q_t(. | x_0, k) || q(. | x_t))``: what has flowed to
            frame t is to be what that frame is encoded as, so that any flow can go on from there.
        reversal: of ``-log p(x_0 | z_{t->0})``, where ``z_t ~ q(. | x_t)`` of a random frame flows
            back to time 0, so that flows also run backwards.
        commutator: of the mean squared Lie bracket of the sequence's flow and another one, where
            transformations are known to commute.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    beta: float = 1.0
    path_kl: float = 0.0
    hamilton_jacobi: float = 0.01
    initial: float = 0.0
    consistency: float = 0.0
    reversal: float = 0.0
    commutator: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight {name} must be finite and at least 0; it is {weight}")


class FlowVAE(Autoencoder):
    r"""A variational autoencoder of sequences whose latent flows: ``dz/dt = grad u^k(z, t)``.

    With the transformation k of each sequence known, training minimises

    .. code-block:: text

        - E_q[ sum_{t=0..T} log p(x_t | z_t) ]  +  beta KL(q(z_0|x_0) || N(0, I))
        + path_kl         sum_{t=1..T} KL(q_t(. | x_0, k) || p_t(. | k))
        + hamilton_jacobi mean_{t in [0, T]} (du/dt + 1/2 ||grad u||^2 - f)^2
        + initial         ||grad u(z_0, 0)||^2
        + consistency     sum_{t=1..T} KL(q_t(. | x_0, k) || q(. | x_t))
        + reversal        E_{t = 1..T} E_{z_t ~ q(. | x_t)} [ -log p(x_0 | z_{t->0}) ]
        + commutator      ||[grad u^k, grad u^j](z_t, t)||^2

    averaged over the batch, where ``z_t`` is the flow of ``z_0 ~ q(z_0|x_0)``, ``q_t`` its density,
    ``p_t`` the diffusing prior and ``z_{t->0}`` what flows back to time 0, and j is another
    transformation and t a time at random in the last line. The first line is the negative
    evidence bound for ``beta = 1``; the transitions are deterministic, so that it needs no further
    term.

    Args:
        encoder: maps images ``(B, C, H, W)`` to ``(B, 2 D)``: mean and log standard deviation.
        decoder: maps latents ``(B, D)`` to logits ``(B, C, H, W)``.
        potentials: the bank of potentials.
        image_shape: ``(C, H, W)``.
        horizon: the last frame T.
        objective: the weights of the terms.
        observation: ``p(x | z)``; Bernoulli by default.
        force: the force f of the Hamilton-Jacobi equation; None is 0.
        method: the solver of the flow; the steps of a fixed method are per frame.
        gradient: how the solver is differentiated.
        density: how the path term computes ``q_t``: ``integral`` of the Laplacian, or the exact
            ``discrete`` determinant of the steps of Euler's method, which training cannot exploit
            however large they are.

    Raises:
        ValueError: ``horizon`` is not positive, ``density`` is unknown or does not fit the method, or
            the objective weighs the commutator of a single transformation.

    Use :meth:`build` to make one with the networks of this package.

    Source: Song, Keller, Sebe, Welling, arXiv:2309.13167.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> model = flowfactor.FlowVAE.build(("rotation", "hue"), latent_dim=8, width=16)
        >>> films = SequenceBatch.full(torch.rand(4, 9, 3, 28, 28), torch.tensor([0, 0, 1, 1]))
        >>> sorted(model.loss(films))
        ['hamilton_jacobi', 'kl', 'reconstruction']
        >>> model.decode(model.flow(model.encode(films.frames[:, 0]).mean, "hue", 2.5)).shape
        torch.Size([4, 3, 28, 28])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        potentials: PotentialBank,
        image_shape: tuple[int, int, int] = (3, 28, 28),
        *,
        horizon: int = 8,
        objective: Objective = Objective(),
        observation: Observation | None = None,
        force: Force | None = None,
        diffusion: float = 0.05,
        method: Method = RK4(steps=2),
        gradient: Gradient = Direct(),
        density: Literal["integral", "discrete"] = "integral",
    ) -> None:
        super().__init__(
            encoder, decoder, image_shape, potentials.dim, horizon=horizon, observation=observation
        )
        if density not in ("integral", "discrete"):
            raise ValueError(f"density is {density!r}; it is either 'integral' or 'discrete'")
        if density == "discrete":
            check_discrete(method)
        if objective.commutator > 0 and len(potentials) < 2:
            raise ValueError("the weight commutator takes at least two transformations")
        self.potentials = potentials
        self.objective = objective
        self.force = force
        # Without the path term nothing teaches the diffusion, and distributed training would wait
        # for its gradient.
        self.prior = DiffusingPrior(len(potentials), diffusion)
        self.prior.requires_grad_(objective.path_kl > 0)
        self.method = method
        self.gradient = gradient
        self.density = density

    @classmethod
    def build(
        cls,
        names: tuple[str, ...] | list[str],
        image_shape: tuple[int, int, int] | list[int] = (3, 28, 28),
        *,
        horizon: int = 8,
        latent_dim: int = 48,
        potential: Literal["ridge", "mlp"] = "ridge",
        width: int = 256,
        frequencies: int = 4,
        autonomous: bool = False,
        rank: int = 0,
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        observation: str = "bernoulli",
        force: Literal["zero", "learned"] = "zero",
        diffusion: float = 0.05,
        objective: dict[str, float] | None = None,
        method: dict[str, Any] | None = None,
        gradient: dict[str, Any] | None = None,
        density: Literal["integral", "discrete"] = "integral",
    ) -> FlowVAE:
        """Make a model with a bank of potentials and convolutional networks, from plain data.

        Args:
            names: of the K transformations.
            image_shape: ``(C, H, W)``.
            horizon: the last frame T.
            latent_dim: D.
            potential: ``ridge``, a :class:`~flowfactor.potentials.RidgePotential`, or ``mlp``, a
                :class:`~flowfactor.potentials.MLPPotential`.
            width: the ridge functions, or the units of each hidden layer, of a potential: H.
            frequencies: of the potentials' coefficients in time.
            autonomous: potentials without time.
            rank: the squares of the potentials' quadratic term; 0 leaves it out.
            encoder: ``kind``, ``conv`` or ``residual``, and the options of
                :class:`~flowfactor.networks.ConvEncoder` or
                :class:`~flowfactor.networks.ResidualEncoder`.
            decoder: ``kind``, ``mlp``, ``conv`` or ``residual``, and the options of
                :class:`~flowfactor.networks.MLPDecoder`,
                :class:`~flowfactor.networks.ConvDecoder` or
                :class:`~flowfactor.networks.ResidualDecoder`.
            observation: ``bernoulli``, ``gaussian`` or ``gaussian_learned``.
            force: ``zero``, or ``learned`` and non-positive.
            diffusion: the value that the coefficients ``D_k`` of the prior start from.
            objective: the weights, options of :class:`Objective`.
            method: a solver's ``name`` and options, ``{"name": "rk4", "steps": 2}``.
            gradient: ``{"name": "direct"}`` or ``{"name": "adjoint", ...}``.
            density: ``integral``, or ``discrete`` with ``{"name": "euler", ...}``.

        Raises:
            ValueError: a size, name or option that is not allowed.
        """
        channels, height, width_px = image_shape
        shape = (int(channels), int(height), int(width_px))
        if force not in ("zero", "learned"):
            raise ValueError(f"force is {force!r}; it is either 'zero' or 'learned'")
        if potential not in POTENTIALS:
            raise ValueError(f"potential is {potential!r}; it is one of {', '.join(POTENTIALS)}")
        bank = POTENTIALS[potential](
            names,
            latent_dim,
            width,
            horizon=horizon,
            frequencies=frequencies,
            autonomous=autonomous,
            rank=rank,
        )
        model = cls(
            make_encoder(shape, latent_dim, **{"kind": "conv", **(encoder or {})}),
            make_decoder(shape, latent_dim, **{"kind": "mlp", **(decoder or {})}),
            bank,
            shape,
            horizon=horizon,
            objective=Objective(**(objective or {})),
            observation=observation_from_name(observation),
            force=Force(latent_dim, horizon=horizon) if force == "learned" else None,
            diffusion=diffusion,
            method=solvers.method_from_name(**(method or {"name": "rk4", "steps": 2})),
            gradient=solvers.gradient_from_name(**(gradient or {"name": "direct"})),
            density=density,
        )
        model._spec = {
            "names": list(names),
            "image_shape": list(shape),
            "horizon": horizon,
            "latent_dim": latent_dim,
            "potential": potential,
            "width": width,
            "frequencies": frequencies,
            "autonomous": autonomous,
            "rank": rank,
            "encoder": dict(encoder or {}),
            "decoder": dict(decoder or {}),
            "observation": observation,
            "force": force,
            "diffusion": diffusion,
            "objective": dataclasses.asdict(model.objective),
            "method": solvers.to_dict(model.method),
            "gradient": solvers.to_dict(model.gradient),
            "density": density,
        }
        return model

    def loss(self, sequences: SequenceBatch) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted terms of the objective, each a mean over the batch, in nats.

        With some frames of each sequence only, the reconstruction is an unbiased estimate of that
        over all frames. Terms of weight 0 are left out and cost nothing.
        """
        posterior = self.encode(sequences.frames[:, 0])
        z0, entropy = posterior.rsample(), posterior.entropy()
        later = self.codes(sequences)
        costs = self.costs(sequences, sequences.labels, entropy, z0, later)
        terms = {"reconstruction": costs.pop("reconstruction")}
        terms["kl"] = self.objective.beta * kl_to_standard_normal(posterior)
        terms |= self.reversal(sequences, sequences.labels, later)
        return {name: cost.mean() for name, cost in (terms | costs).items()}

    def costs(
        self,
        sequences: SequenceBatch,
        k: Int[Tensor, "b"] | Float[Tensor, "b k"],
        entropy: Float[Tensor, "b"],
        z0: Float[Tensor, "b d"],
        later: Codes | None = None,
    ) -> dict[str, Float[Tensor, "b"]]:
        """Return the weighted terms that depend on the flow, for each sequence, in nats.

        Args:
            sequences: the frames to explain, of which frame 0 may be missing; their factor is not
                looked at.
            k: the transformation of each sequence, or weights ``(B, K)`` of a mixture.
            entropy: of ``q(z_0 | x_0)``.
            z0: a sample of it, where the flow starts.
            later: what :meth:`codes` makes of the frames after frame 0, if it is at hand.
        """
        frames, weights = sequences.frames, self.objective
        potential = self.potentials.select(k)
        path, between = self._path(z0, potential, sequences.horizon)
        place = sequences.times.unsqueeze(-1).expand(-1, -1, z0.shape[-1])
        z = path.z.transpose(0, 1).gather(1, place)
        logits = self.decode_logits(z.flatten(0, 1)).unflatten(0, frames.shape[:2])
        log_likelihood = self.observation.log_prob(logits, frames) * sequences.weights
        costs = {"reconstruction": -log_likelihood.sum(1)}
        if weights.path_kl > 0:
            assert path.log_det is not None
            path_kl = path_kl_estimate(entropy, self.prior, path.z, path.log_det, k, path.times)
            costs["path_kl"] = weights.path_kl * path_kl[1:].sum(0)
        if weights.consistency > 0:
            assert path.log_det is not None
            change = path.log_det.mT.gather(1, sequences.times)
            # Frame 0 does not count. It comes first as a rule, and need not be encoded again.
            rest = slice(1 if bool((sequences.times[:, 0] == 0).all()) else 0, None)
            codes = self._codes(frames[:, rest]) if later is None else later
            divergence = self._divergence(z[:, rest], codes, entropy, change[:, rest])
            counted = sequences.weights * (sequences.times > 0)
            divergence = divergence * counted[:, rest]
            costs["consistency"] = weights.consistency * divergence.sum(1)
        if between is not None:
            residual = along_path(potential, between, self.force).residual
            costs["hamilton_jacobi"] = weights.hamilton_jacobi * residual.square().mean(0)
        if weights.initial > 0:
            with full_precision(z0):
                start = potential.gradient(z0, 0.0).square().sum(-1)
            costs["initial"] = weights.initial * start
        if weights.commutator > 0:
            costs["commutator"] = weights.commutator * self._bracket(path, potential, k)
        return costs

    def codes(self, sequences: SequenceBatch) -> Codes | None:
        """Return mean and log standard deviation of ``q(z | x_t)`` of all frames but frame 0.

        None where no term needs all of them.
        """
        return self._codes(sequences.frames[:, 1:]) if self.objective.consistency > 0 else None

    def _codes(self, frames: Float[Tensor, "b f c h w"]) -> Codes:
        mean, log_scale = self._posterior(frames.flatten(0, 1))
        return mean.unflatten(0, frames.shape[:2]), log_scale.unflatten(0, frames.shape[:2])

    def reversal(
        self,
        sequences: SequenceBatch,
        k: Int[Tensor, "b"] | Float[Tensor, "b k"],
        later: Codes | None = None,
    ) -> dict[str, Float[Tensor, "b"]]:
        """Return the weighted term of flows that run backwards, unless its weight is 0, in nats.

        Args:
            sequences: their frame 0, and others of which one is drawn for each sequence.
            k: the transformation of each sequence, or weights ``(B, K)`` of a mixture.
            later: what :meth:`codes` makes of the others, if it is at hand.
        """
        if self.objective.reversal == 0:
            return {}
        frames = sequences.frames
        rows = torch.arange(len(frames), device=frames.device)
        drawn = torch.randint(1, frames.shape[1], rows.shape, device=rows.device)
        if later is None:
            mean, log_scale = self._posterior(frames[rows, drawn])
        else:
            mean, log_scale = (code[rows, drawn - 1] for code in later)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        elapsed = sequences.times[rows, drawn].to(z.dtype)
        back = flow_to_zero(z, self.potentials.select(k), elapsed, self)
        log_likelihood = self.observation.log_prob(self.decode_logits(back), frames[:, 0])
        return {"reversal": -self.objective.reversal * log_likelihood}

    def _divergence(
        self,
        z: Float[Tensor, "b f d"],
        codes: Codes,
        entropy: Float[Tensor, "b"],
        log_det: Float[Tensor, "b f"],
    ) -> Float[Tensor, "b f"]:
        """Estimate ``KL(q_t(. | x_0, k) || q(. | x_t))`` from one sample of each path, in nats."""
        mean, log_scale = codes
        squares = ((z - mean) * (-log_scale).exp()).square() + math.log(2 * math.pi)
        minus_log_q = (0.5 * squares + log_scale).sum(-1)
        return minus_log_q - entropy.unsqueeze(1) - log_det

    def _bracket(
        self, path: Path, potential: Potential, k: Int[Tensor, "b"] | Float[Tensor, "b k"]
    ) -> Float[Tensor, "b"]:
        """Return the squared Lie bracket with another flow, at a random frame of each sample.

        It teaches the potentials only: shrinking the latents does not make flows commute.
        """
        count, device = len(self.potentials), path.z.device
        if k.is_floating_point():
            k = k.argmax(-1)
        other = (k + torch.randint(1, count, k.shape, device=device)) % count
        at = torch.randint(len(path.times), k.shape, device=device)
        z = path.z.detach()[at, torch.arange(len(k), device=device)]
        with full_precision(z):
            bracket = lie_bracket(potential, self.potentials.select(other), z, path.times[at])
            squared: Tensor = bracket.square().sum(-1)
            return squared

    def _path(
        self, z0: Float[Tensor, "b d"], potential: Potential, horizon: int
    ) -> tuple[Path, Path | None]:
        """Return the path at the frames and, for the residual, between each two of them."""
        density: LogDensity = False
        if self.objective.path_kl > 0 or self.objective.consistency > 0:
            density = "discrete" if self.density == "discrete" else True
        if self.objective.hamilton_jacobi == 0:
            frames = torch.arange(horizon + 1, dtype=z0.dtype, device=z0.device)
            return trace(z0, potential, frames, self, log_density=density), None
        return trace_with_random_times(z0, potential, horizon, self, log_density=density)


def path_kl_estimate(
    entropy: Float[Tensor, "b"],
    prior: DiffusingPrior,
    z: Float[Tensor, "t b d"],
    log_det: Float[Tensor, "t b"],
    k: Tensor,
    times: Float[Tensor, "t"],
) -> Float[Tensor, "t b"]:
    """Estimate ``KL(q_t(. | x_0, k) || p_t(. | k))`` from one sample of each path, in nats.

    ``E[log q_t(z_t)] = -entropy(q_0) - E[log_det_t]``: the ``entropy`` is exact, and only the rest
    is sampled, which keeps the estimate unbiased and lowers its variance. Single values may be
    negative; their mean is not, except by noise.
    """
    log_q = -entropy - log_det
    return log_q - prior.log_prob(z, k, times)
