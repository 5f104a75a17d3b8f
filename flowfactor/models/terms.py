"""The terms of the flow model's objective; a new one is a function like these."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowfactor.commutator import lie_bracket
from flowfactor.flow import flow_to_zero, full_precision
from flowfactor.models.autoencoder import kl_to_standard_normal
from flowfactor.models.objective import Context, term
from flowfactor.registries import TERMS
from flowfactor.transport import along_path


@TERMS.register("beta")
@term(weight=1.0, enumeration="once", label="kl")
def kl(context: Context) -> Float[Tensor, "b"]:
    """``KL(q(z_0|x_0) || N(0, I))``; its weight 1 gives the evidence bound."""
    return kl_to_standard_normal(context.posterior)


@TERMS.register("path_kl")
@term(density=True, evidence=True)
def path_kl(context: Context) -> Float[Tensor, "b"]:
    """``sum_{t>=1} KL(q_t || p_t)`` against the diffusing prior; its weight is 1 in the paper.

    Estimated from one sample of each path: ``E[log q_t(z_t)] = -entropy(q_0) - E[log_det_t]``. The
    entropy is exact and only the rest is sampled, which keeps the estimate unbiased and lowers its
    variance. Single values may be negative; their mean is not, except by noise.
    """
    path, prior = context.path, context.prior
    assert prior is not None
    assert path.log_det is not None
    log_q = -context.entropy - path.log_det
    return (log_q - prior.log_prob(path.z, context.k, path.times))[1:].sum(0)


@TERMS.register("consistency")
@term(density=True, evidence=True)
def consistency(context: Context) -> Float[Tensor, "b"]:
    """``sum_{t>=1} KL(q_t(. | x_0, k) || q(. | x_t))``: flows end where their frame is encoded.

    What has flowed to frame t is then what that frame is encoded as, so that any flow can go on
    from there. Estimated from one sample of each path.
    """
    later, batch = context.later, context.batch
    mean, log_scale = context.codes
    squares = ((context.z[:, later] - mean) * (-log_scale).exp()).square() + math.log(2 * math.pi)
    minus_log_q = (0.5 * squares + log_scale).sum(-1)
    divergence = minus_log_q - context.entropy.unsqueeze(1) - context.log_det[:, later]
    counted = batch.weights * (batch.times > 0)
    return (divergence * counted[:, later]).sum(1)


@TERMS.register("hamilton_jacobi")
@term(weight=0.01, random_times=True)
def hamilton_jacobi(context: Context) -> Float[Tensor, "b"]:
    """``mean_t (du/dt + 1/2 ||grad u||^2 - f)^2`` at random times: 0 in optimal transport."""
    residual = along_path(context.potential, context.between, context.force).residual
    return residual.square().mean(0)


@TERMS.register("initial")
def initial(context: Context) -> Float[Tensor, "b"]:
    """``||grad u(z_0, 0)||^2``, which lets every flow start from rest."""
    with full_precision(context.z0):
        return context.potential.gradient(context.z0, 0.0).square().sum(-1)


@TERMS.register("commutator")
def commutator(context: Context) -> Float[Tensor, "b"]:
    """``||[grad u^k, grad u^j](z_t, t)||^2``, j another flow, at a random frame: do flows commute?

    It teaches the potentials only: shrinking the latents does not make flows commute.
    """
    path, k, bank = context.path, context.k, context.model.potentials
    device = path.z.device
    if k.is_floating_point():
        k = k.argmax(-1)
    other = (k + torch.randint(1, len(bank), k.shape, device=device)) % len(bank)
    at = torch.randint(len(path.times), k.shape, device=device)
    z = path.z.detach()[at, torch.arange(len(k), device=device)]
    with full_precision(z):
        bracket = lie_bracket(context.potential, bank.select(other), z, path.times[at])
        return bracket.square().sum(-1)


@TERMS.register("reversal")
@term(enumeration="never")
def reversal(context: Context) -> Float[Tensor, "b"]:
    """``-log p(x_0 | z_{t->0})``: ``z_t ~ q(. | x_t)`` of a random frame flows back to time 0.

    It makes flows also run backwards.
    """
    batch, model = context.batch, context.model
    rows = torch.arange(len(batch.frames), device=batch.frames.device)
    drawn = torch.randint(1, batch.frames.shape[1], rows.shape, device=rows.device)
    mean, log_scale = context.encode_frames(drawn)
    z = mean + log_scale.exp() * torch.randn_like(mean)
    elapsed = batch.times[rows, drawn].to(z.dtype)
    back = flow_to_zero(
        z,
        model.potentials.select(context.k),
        elapsed,
        model.horizon,
        method=model.method,
        gradient=model.gradient,
    )
    return -model.observation.log_prob(model.decode_logits(back), batch.frames[:, 0])
