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


def test_laplace_draws_the_median_and_learns_its_scale():
    """A pixel that is mostly dark, and its mean absolute distance from it."""
    x = torch.tensor([0.1, 0.1, 0.9]).reshape(3, 1, 1, 1)
    logit, observation = torch.zeros((), requires_grad=True), Laplace()
    optimizer = torch.optim.Adam([logit, *observation.parameters()], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-observation.log_prob(logit.expand_as(x), x).sum()).backward()
        optimizer.step()
    assert float(logit.sigmoid()) == pytest.approx(0.1, abs=0.01)
    assert float(observation.log_scale.exp()) == pytest.approx(0.8 / 3, abs=0.01)


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
