"""SlowVAE: its terms against quadrature."""

import dataclasses
import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import laplace, norm
from small_models import films, sharpen, small

from flowfactor.models.slow_vae import laplace_cross_entropy

RATE = 6.0


def cross_entropy(m, s, log_prior):
    """Return ``- E[log prior(x)]`` for ``x ~ N(m, s^2)``."""
    found, _ = quad(
        lambda x: -norm.pdf(x, m, s) * log_prior(x), m - 12 * s, m + 12 * s, points=[0.0]
    )
    return found


def log_laplace(x):
    return laplace.logpdf(x, scale=1 / RATE)


@pytest.mark.parametrize(("m", "s"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 2.0), (4.0, 0.05)])
def test_laplace_cross_entropy(m, s):
    at = torch.tensor([[m, -m]], dtype=torch.double), torch.tensor([[s, s]], dtype=torch.double)
    expected = 2 * cross_entropy(m, s, log_laplace)
    assert laplace_cross_entropy(*at, RATE).item() == pytest.approx(expected, rel=1e-6)


def test_laplace_cross_entropy_by_hand():
    """E|N(0, 1)| = sqrt(2 / pi), and log(2 / 2) = 0."""
    found = laplace_cross_entropy(torch.zeros(1, 1), torch.ones(1, 1), 2.0)
    assert found.item() == pytest.approx(2 * math.sqrt(2 / math.pi))


def test_terms_against_quadrature():
    model, batch = small("slow_vae", latent_dim=2), films(2, horizon=1)
    terms = model.loss(batch)
    posterior = model.encode(batch.frames.flatten(0, 1))
    means = posterior.mean.view(2, 2, 2).double().tolist()
    scales = posterior.stddev.view(2, 2, 2).double().tolist()
    normal = slow = 0.0
    for mean, scale in zip(means, scales, strict=True):
        for m0, m1, s0, s1 in zip(*mean, *scale, strict=True):
            h0, h1 = (cross_entropy(0.0, s, lambda x, s=s: norm.logpdf(x, 0, s)) for s in (s0, s1))
            normal += cross_entropy(m0, s0, norm.logpdf) - h0
            slow += cross_entropy(m0 - m1, s0, log_laplace)
            slow += cross_entropy(m1 - m0, s1, log_laplace) - (h0 + h1) / 2
    assert terms["kl_normal"].item() == pytest.approx(normal / 2, rel=1e-4)
    assert terms["kl_laplace"].item() == pytest.approx(10 * slow / 2, rel=1e-4)


def test_pairs_are_neighbours():
    """The terms of three frames are the means of those of the two pairs."""
    model, batch = small("slow_vae", beta=2.0), films(horizon=2)
    sharpen(model)
    pairs = [
        dataclasses.replace(batch, frames=batch.frames[:, at], times=batch.times[:, :2])
        for at in ([0, 1], [1, 2])
    ]
    whole, each = model.loss(batch), [model.loss(pair) for pair in pairs]
    for name, term in whole.items():
        expected = (each[0][name] + each[1][name]) / 2
        torch.testing.assert_close(term, expected, rtol=1e-4, atol=0)


def test_a_single_frame_is_no_pair():
    batch = films()
    one = dataclasses.replace(batch, frames=batch.frames[:, :1], times=batch.times[:, :1])
    with pytest.raises(ValueError, match="pairs"):
        small("slow_vae").loss(one)
