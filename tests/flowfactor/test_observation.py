"""Observation models against torch's own distributions."""

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import Normal

from flowfactor.observation import Bernoulli, Gaussian, Laplace
from flowfactor.registries import OBSERVATIONS

LOGITS = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()


def test_bernoulli():
    x = (torch.rand(LOGITS.shape) > 0.5).double()
    expected = TorchBernoulli(logits=LOGITS).log_prob(x).sum((-3, -2, -1))
    torch.testing.assert_close(Bernoulli().log_prob(LOGITS, x), expected)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("learned", [False, True])
def test_gaussian(scale, learned):
    x = torch.rand(LOGITS.shape).double()
    expected = Normal(LOGITS.sigmoid(), scale).log_prob(x).sum((-3, -2, -1))
    observation = Gaussian(learned=learned, scale=scale).double()
    # The scale was made in float32.
    torch.testing.assert_close(observation.log_prob(LOGITS, x), expected, rtol=1e-6, atol=1e-5)
    assert bool(list(observation.parameters())) == learned


def test_laplace():
    x = torch.rand(LOGITS.shape).double()
    expected = TorchLaplace(LOGITS.sigmoid(), 0.3).log_prob(x).sum((-3, -2, -1))
    observation = Laplace(0.3).double()
    torch.testing.assert_close(observation.log_prob(LOGITS, x), expected, rtol=1e-6, atol=1e-5)


def test_laplace_is_likeliest_at_the_median_and_learns_its_scale():
    """Of a pixel that is mostly dark, and of its mean absolute distance from that."""
    x = torch.tensor([0.1, 0.1, 0.9]).reshape(3, 1, 1, 1, 1).expand(-1, 401, -1, -1, -1)
    logits = torch.linspace(-4, 4, 401).reshape(1, -1, 1, 1, 1).expand_as(x)
    observation = Laplace(0.8 / 3)
    total = observation.log_prob(logits, x).sum(0)
    best = logits[0, total.argmax()].squeeze()
    assert best.sigmoid().item() == pytest.approx(0.1, abs=0.01)
    total.max().backward()
    assert observation.log_scale.grad.item() == pytest.approx(0, abs=0.1)


def test_names():
    kinds = [type(OBSERVATIONS[name]()) for name in OBSERVATIONS]
    assert kinds == [Bernoulli, Gaussian, Gaussian, Laplace]
    for kind in (Gaussian, Laplace):
        with pytest.raises(ValueError, match="scale"):
            kind(scale=0.0)


def test_the_mean_is_a_pixel():
    mean = Bernoulli().mean(LOGITS * 100)
    assert mean.min() >= 0
    assert mean.max() <= 1
