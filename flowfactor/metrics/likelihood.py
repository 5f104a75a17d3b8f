"""The importance-weighted bound of the log-likelihood of a sequence."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from flowfactor.data import SequenceBatch
from flowfactor.models import SequenceModel
from flowfactor.observation import Observation


@torch.no_grad()
def log_likelihood(
    model: SequenceModel,
    sequences: SequenceBatch,
    samples: int = 64,
    *,
    observation: Observation | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 2000,
) -> Float[Tensor, "b"]:
    r"""Return the IWAE bound of ``log p(x_0..x_T | k)`` for each sequence, in nats.

    .. code-block:: text

        log 1/S sum_s  p(x_0..x_T | z^s, k) p(z^s) / q(z^s | x_0),       z^s ~ q(z_0 | x_0)

    The transitions are deterministic, so that a sample of ``z_0`` fixes the whole path. The bound
    grows with S in expectation and reaches the log-likelihood as S goes to infinity.

    Args:
        model: in evaluation mode.
        sequences: complete ones, frames 0..T.
        samples: S.
        observation: another model of the pixels than the trained one, for instance the unit
            ``Gaussian()``, under which results of different models compare.
        generator: of the samples, on the model's device.
        batch_size: frames decoded at a time; it does not change the result.

    Raises:
        ValueError: the sequences lack frames, or ``samples`` is not positive.

    Source: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import SequenceBatch
        >>> model = flowfactor.FlowVAE.build(("rotation",), latent_dim=4, width=8).eval()
        >>> films = SequenceBatch.full(torch.rand(2, 9, 3, 28, 28), torch.tensor([0, 0]))
        >>> log_likelihood(model, films, samples=3).shape
        torch.Size([2])
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; it is {samples}")
    if sequences.frames.shape[1] != sequences.horizon + 1:
        raise ValueError(
            f"the likelihood of a sequence needs all of its {sequences.horizon + 1} frames; these "
            f"sequences have {sequences.frames.shape[1]}"
        )
    device = next(model.parameters()).device
    sequences = sequences.to(device)
    observe = (observation or model.observation).to(device)
    frames_each = sequences.horizon + 1
    at_once = max(1, batch_size // (samples * frames_each))
    bounds = []
    for rows in torch.arange(len(sequences), device=device).split(at_once):
        x, k = sequences.frames[rows], sequences.labels[rows]
        posterior = model.encode(x[:, 0])
        mean, scale = posterior.mean, posterior.stddev
        noise = torch.randn(
            samples, *mean.shape, generator=generator, dtype=mean.dtype, device=device
        )
        z0 = mean + scale * noise
        log_weight = _normal(torch.zeros_like(mean), torch.ones_like(scale)).log_prob(z0)
        log_weight = log_weight - _normal(mean, scale).log_prob(z0)
        times = torch.arange(frames_each, dtype=mean.dtype, device=device)
        path = model.flow(z0.flatten(0, 1), k.repeat(samples), times)
        for t in range(frames_each):
            logits = model.decode_logits(path[t]).unflatten(0, (samples, len(rows)))
            log_weight = log_weight + observe.log_prob(logits, x[:, t].expand_as(logits))
        bounds.append(torch.logsumexp(log_weight, dim=0) - math.log(samples))
    return torch.cat(bounds)


def _normal(mean: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
