"""The diffusing prior solves the heat equation, and log_prob is its density."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from flowfactor.priors import DiffusingPrior


def test_starts_as_a_standard_normal():
    prior = DiffusingPrior(2, diffusion=0.3).double()
    z = torch.randn(1, 5, 3, dtype=torch.float64)
    expected = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()).log_prob(z)
    found = prior.log_prob(z, torch.tensor([0, 1, 0, 1, 1]), torch.zeros(1).double())
    torch.testing.assert_close(found, expected)


def test_is_the_normal_distribution_of_its_variance():
    prior = DiffusingPrior(2, diffusion=0.3).double()
    with torch.no_grad():
        prior.raw_diffusion[1] = 1.0
    k, t = torch.tensor([0, 1]), torch.tensor([0.0, 2.0, 8.0]).double()
    z = torch.randn(3, 2, 4, dtype=torch.float64)
    found = prior.log_prob(z, k, t)
    for i in range(3):
        for j in range(2):
            variance = 1 + 2 * prior.diffusion[k[j]].item() * float(t[i])
            normal = MultivariateNormal(torch.zeros(4).double(), variance * torch.eye(4).double())
            assert found[i, j].item() == pytest.approx(normal.log_prob(z[i, j]).item())


def test_each_sample_may_have_its_own_times():
    prior = DiffusingPrior(2, diffusion=0.3)
    k, t, z = torch.tensor([1, 0]), torch.tensor([[0.0, 2.0], [5.0, 3.0]]), torch.randn(2, 2, 4)
    found = prior.log_prob(z, k, t)
    for j in range(2):
        expected = prior.log_prob(z[:, j : j + 1], k[j : j + 1], t[:, j])
        torch.testing.assert_close(found[:, j : j + 1], expected)


def test_solves_the_heat_equation():
    """dp/dt = D laplacian p, by automatic differentiation of the density."""
    prior = DiffusingPrior(1, diffusion=0.2).double()
    z = torch.randn(3, dtype=torch.float64)
    t = torch.tensor([1.5], dtype=torch.float64)

    def density(z, t):
        return prior.log_prob(z.view(1, 1, 3), torch.tensor([0]), t).exp().squeeze()

    rate = torch.autograd.functional.jacobian(lambda t: density(z, t), t).squeeze()
    laplacian = torch.autograd.functional.hessian(lambda z: density(z, t), z).trace()
    torch.testing.assert_close(rate, prior.diffusion[0].detach() * laplacian)


def test_diffusion_is_learned_and_never_negative():
    prior = DiffusingPrior(1, diffusion=0.1)
    assert prior.diffusion.item() == pytest.approx(0.1)
    with torch.no_grad():
        prior.raw_diffusion.fill_(-50.0)
    assert prior.diffusion.item() >= 0
    assert isinstance(prior.raw_diffusion, torch.nn.Parameter)
    with pytest.raises(ValueError, match="positive"):
        DiffusingPrior(1, diffusion=0.0)
