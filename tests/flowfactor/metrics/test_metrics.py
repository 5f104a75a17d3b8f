"""Metrics against a slow computation by hand, and on models whose score is known."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import flowfactor
from flowfactor.data import SequenceBatch, TransformedImages
from flowfactor.metrics import (
    equivariance_error,
    log_likelihood,
    mean_error,
    solver_independence,
)
from flowfactor.models import SequenceModel
from flowfactor.observation import Gaussian
from flowfactor.potentials import IndependentPotentials
from solvers import RK4, Direct, Euler


def test_equivariance_error_by_hand(model, digits):
    errors = equivariance_error(model, digits, [3, 5], frames=4, batch_size=1)
    for k, name in enumerate(digits.names):
        for row, index in enumerate((3, 5)):
            x = digits.sample([index], k).frames[0]
            z0 = model.encode(x[:1]).mean
            for t in range(1, 5):
                moved = model.decode(model.flow(z0, k, float(t)))[0]
                expected = (x[t] - moved).abs().sum().item()
                assert errors[name].flow[row, t - 1].item() == pytest.approx(expected, rel=1e-4)
                unmoved = (x[t] - model.decode(z0)[0]).abs().sum().item()
                assert errors[name].identity[row, t - 1].item() == pytest.approx(unmoved, rel=1e-4)
            first = (x[0] - model.decode(z0)[0]).abs().sum().item()
            assert errors[name].reconstruction[row].item() == pytest.approx(first, rel=1e-4)
    one = errors["hue"]
    assert one.error == pytest.approx(one.flow.sum(1).mean().item())
    assert one.floor == pytest.approx(4 * one.reconstruction.mean().item())
    assert one.per_frame_and_pixel == pytest.approx(one.error / 4 / (3 * 28 * 28))
    assert mean_error(errors) == pytest.approx(sum(e.error for e in errors.values()) / 3)
    assert one.summary()["per_frame"] == pytest.approx(one.flow.mean(0).tolist())


def test_a_model_that_moves_nothing_has_the_identity_error(model, digits):
    with torch.no_grad():
        for parameter in model.potentials.parameters():
            parameter.zero_()
    for error in equivariance_error(model, digits).values():
        assert error.error == error.identity_error


class Exact(SequenceModel):
    """Latent = brightness of a flat image; the flow brightens it exactly as the data does."""

    def __init__(self, rate: float, noise: float = 0.5) -> None:
        super().__init__()
        ramp = flowfactor.AutogradPotential(lambda z, t: rate * z.sum(-1), 1)
        self.potentials = IndependentPotentials({"brighten": ramp})
        self.image_shape, self.latent_dim, self.horizon = (1, 2, 2), 1, 3
        self.method, self.gradient = RK4(), Direct()
        self.observation = LogitGaussian()
        self.noise = noise
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def spec(self):
        return {}

    def loss(self, sequences):
        return {}

    def encode(self, x):
        # The true posterior up to a factor that importance weights must correct.
        mean = x.flatten(1).mean(1, keepdim=True) * 0.5
        scale = torch.full_like(mean, self.noise)
        return torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1)

    def decode_logits(self, z):
        return z.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


class LogitGaussian(Gaussian):
    """A unit normal around the logit itself, so that the whole model is linear and normal."""

    def mean(self, logits):
        return logits


def test_log_likelihood_converges_to_the_exact_one():
    """x_t = z_0 + rate t + noise with z_0 ~ N(0, 1): a normal distribution in 16 dimensions."""
    rate, frames, pixels = 0.3, 4, 4
    model = Exact(rate)
    x = torch.randn(5, frames, 1, 2, 2) * 0.5 + 0.2
    sequences = SequenceBatch(
        x, torch.arange(frames).expand(5, -1), torch.zeros(5, dtype=torch.long), frames - 1
    )
    mean = (rate * torch.arange(frames)).repeat_interleave(pixels)
    covariance = torch.eye(frames * pixels) + torch.ones(frames * pixels, frames * pixels)
    exact = MultivariateNormal(mean, covariance).log_prob(x.flatten(1))
    generator = torch.Generator().manual_seed(0)
    bound = log_likelihood(model, sequences, 20_000, generator=generator)
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.05)
    # With few samples it is a lower bound in expectation, here of 200 repetitions.
    few = torch.stack(
        [log_likelihood(model, sequences, 1, generator=generator) for _ in range(200)]
    )
    assert (few.mean(0) < exact).all()


def test_unit_gaussian_cannot_exceed_its_maximum(model, digits):
    sequences = digits.sample(torch.arange(3), torch.arange(3))
    bound = log_likelihood(model, sequences, 4, observation=Gaussian())
    assert (bound < -0.5 * math.log(2 * math.pi) * 3 * 28 * 28 * 9).all()


def test_batches_do_not_change_the_likelihood(model, digits):
    sequences = digits.sample(torch.arange(4), torch.tensor([0, 1, 2, 0]))
    # One sample at the mean of a posterior of no width: nothing is random.
    with torch.no_grad():
        model.encoder.network[-1].weight.zero_()
        model.encoder.network[-1].bias[model.latent_dim :] = -8
    a = log_likelihood(model, sequences, 1, batch_size=9)
    b = log_likelihood(model, sequences, 1)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=10)


def test_a_coarse_solver_is_found_out(model, digits):
    with torch.no_grad():
        model.potentials.coefficients.mul_(2)
    fine = solver_independence(model, digits)
    model.method = Euler(steps=1)
    coarse = solver_independence(model, digits)
    worst = max(abs(change.relative) for change in coarse.values())
    assert worst > 10 * max(abs(change.relative) for change in fine.values())
    for name, change in coarse.items():
        assert change.reference == pytest.approx(fine[name].reference, rel=1e-4)


def test_bad_arguments(model, digits):
    other = TransformedImages(digits.images, transformations=digits.transformations[:2])
    with pytest.raises(ValueError, match="must be the same"):
        equivariance_error(model, other)
    with pytest.raises(ValueError, match=r"1\.\.8"):
        equivariance_error(model, digits, frames=9)
    whole = digits.sample(torch.arange(2), 0)
    with pytest.raises(ValueError, match="at least 1"):
        log_likelihood(model, whole, 0)
    part = digits.sample(torch.arange(2), 0, torch.tensor([[0, 3], [0, 4]]))
    with pytest.raises(ValueError, match="all of its 9 frames"):
        log_likelihood(model, part)
