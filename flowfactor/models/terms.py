"""The terms of the flow model's objective; a new one is a function like these."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.commutator import lie_bracket
from flowfactor.flow import full_precision
from flowfactor.models.autoencoder import kl_to_standard_normal
from flowfactor.models.objective import Context, term
from flowfactor.potentials import Potential
from flowfactor.registries import TERMS
from flowfactor.transport import along_path


@TERMS.register("beta")
@term(weight=1.0, enumeration="once", label="kl")
def kl(context: Context) -> Float[Tensor, "b"]:
    """``KL(q(z_s | x_s) || N(0, I))``; its weight 1 gives the evidence bound."""
    return kl_to_standard_normal(context.posterior)


@TERMS.register("path_kl")
@term(density=True, evidence=True)
def path_kl(context: Context) -> Float[Tensor, "b"]:
    """``sum_{t != s} KL(q_t || p_{|t - s|})`` against the diffusing prior; 1 is the paper's weight.

    Estimated from one sample of each path: ``E[log q_t(z_t)] = -entropy(q_s) - E[log_det_t]``. The
    entropy is exact and only the rest is sampled, which keeps the estimate unbiased and lowers its
    variance. Single values may be negative; their mean is not, except by noise.
    """
    prior = context.prior
    assert prior is not None
    log_q = -context.entropy.unsqueeze(1) - context.log_det[:, 1:]
    z = rearrange(context.z[:, 1:], "b n d -> n b d")
    log_p = prior.log_prob(z, context.k, context.elapsed.abs().mT).mT
    return ((log_q - log_p) * context.later_weights).sum(1)


@TERMS.register("consistency")
@term(density=True, evidence=True)
def consistency(context: Context) -> Float[Tensor, "b"]:
    """``sum_{t != s} KL(q_t(. | x_s, k) || q(. | x_t))``: flows end where their frame is encoded.

    What has flowed to frame t is then what that frame is encoded as, so that any flow can go on
    from there. Estimated from one sample of each path.
    """
    mean, log_scale = context.codes
    squares = ((context.z[:, 1:] - mean) * (-log_scale).exp()).square() + math.log(2 * math.pi)
    minus_log_q = (0.5 * squares + log_scale).sum(-1)
    divergence = minus_log_q - context.entropy.unsqueeze(1) - context.log_det[:, 1:]
    return (divergence * context.later_weights).sum(1)


@TERMS.register("hamilton_jacobi")
@term(weight=0.01, random_times=True, potential=True)
def hamilton_jacobi(context: Context) -> Float[Tensor, "b"]:
    """``mean_t (du/dt + 1/2 ||grad u||^2 - f)^2`` at random times: 0 in optimal transport."""
    field = context.field
    if not isinstance(field, Potential):
        raise ValueError("objective.hamilton_jacobi needs potentials; set its weight to 0")
    residual = along_path(field, context.between, context.force).residual
    return residual.square().mean(0)


@TERMS.register("initial")
def initial(context: Context) -> Float[Tensor, "b"]:
    """``||v(z_s, s)||^2``, which lets every flow start from rest."""
    with full_precision(context.z0):
        return context.field.velocity(context.z0, context.times[:, 0]).square().sum(-1)


@TERMS.register("commutator")
def commutator(context: Context) -> Float[Tensor, "b"]:
    """``||[v^k, v^j](z_t, t)||^2``, j another flow, at a random frame: do flows commute?

    It teaches the fields only: shrinking the latents does not make flows commute.
    """
    k, bank = context.k, context.model.potentials
    if k.is_floating_point():
        k = k.argmax(-1)
    other = (k + torch.randint(1, len(bank), k.shape, device=k.device)) % len(bank)
    z, t = context.z.detach(), context.times
    rows, at = _random_places(t, first=0)
    with full_precision(z):
        bracket = lie_bracket(context.field, bank.select(other), z[rows, at], t[rows, at])
        return bracket.square().sum(-1)


@TERMS.register("reversal")
@term(enumeration="never")
def reversal(context: Context) -> Float[Tensor, "b"]:
    """``-log p(x_s | z_{t->s})``: ``z_t ~ q(. | x_t)`` of a random later frame flows back to s.

    It makes flows also run backwards.
    """
    batch, model = context.batch, context.model
    rows, at = _random_places(context.times, first=1)
    mean, log_scale = context.encode_frames(at)
    z = mean + log_scale.exp() * torch.randn_like(mean)
    back = context.reach(z, context.field, context.times[rows, at], context.times[:, 0]).z[-1]
    return -model.observation.log_prob(model.decode_logits(back), batch.frames[:, 0])


def _random_places(
    times: Float[Tensor, "b f"], first: int
) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"]]:
    """Return the rows of a batch, and the place of a random frame of each, from ``first`` on."""
    rows = torch.arange(len(times), device=times.device)
    return rows, torch.randint(first, times.shape[1], rows.shape, device=times.device)
