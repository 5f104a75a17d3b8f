"""Observation models against torch's own distributions."""

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from flowfactor.observation import Bernoulli, Gaussian
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


def test_names():
    assert [type(OBSERVATIONS[name]()) for name in OBSERVATIONS] == [Bernoulli, Gaussian, Gaussian]
    with pytest.raises(ValueError, match="scale"):
        Gaussian(scale=0.0)


def test_the_mean_is_a_pixel():
    mean = Bernoulli().mean(LOGITS * 100)
    assert mean.min() >= 0
    assert mean.max() <= 1
