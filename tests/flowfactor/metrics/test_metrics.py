"""Metrics against a slow computation by hand, and on models whose score is known."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from toy_models import Toy

from flowfactor.data import SequenceBatch, TransformedImages
from flowfactor.metrics import (
    ErrorSummary,
    equivariance_error,
    log_likelihood,
    mean_error,
    solver_independence,
)
from flowfactor.observation import Gaussian
from solvers import Euler


def test_equivariance_error_by_hand(model, digits):
    errors = equivariance_error(model, digits, [3, 5], frames=4, batch_size=1)
    for k, name in enumerate(digits.names):
        for row, index in enumerate((3, 5)):
            x = digits.sample([index], k).frames[0]
            z0 = model.encode(x[:1]).mean
            still = model.decode(z0)[0]
            for t in range(1, 5):
                moved = model.decode(model.flow(z0, k, float(t)))[0]
                expected = [(x[t] - image).abs().sum().item() for image in (moved, still, x[0])]
                kinds = errors[name].flow, errors[name].identity, errors[name].copy
                found = [kind[row, t - 1].item() for kind in kinds]
                assert found == pytest.approx(expected, rel=1e-4)
            first = (x[0] - still).abs().sum().item()
            assert errors[name].reconstruction[row].item() == pytest.approx(first, rel=1e-4)
    one = errors["hue"]
    summary = ErrorSummary.of(one)
    assert summary.error == pytest.approx(one.flow.sum(1).mean().item())
    assert summary.copy == pytest.approx(one.copy.sum(1).mean().item())
    assert summary.floor == pytest.approx(4 * one.reconstruction.mean().item())
    assert summary.per_frame_and_pixel == pytest.approx(one.error / 4 / (3 * 28 * 28))
    assert summary.per_frame == pytest.approx(one.flow.mean(0).tolist())
    assert mean_error(errors) == pytest.approx(sum(e.error for e in errors.values()) / 3)


def test_a_model_that_moves_nothing_has_the_identity_error(model, digits):
    with torch.no_grad():
        for parameter in model.potentials.parameters():
            parameter.zero_()
    for error in equivariance_error(model, digits, range(3), frames=2).values():
        assert error.error == error.identity_error


def test_the_flow_can_be_chosen_by_the_caller(model, digits):
    """Every sequence follows the first flow, whatever it undergoes."""
    first = equivariance_error(model, digits, [0, 1], flows=lambda batch: 0 * batch.labels)
    given = equivariance_error(model, digits, [0, 1])
    assert first["scaling"].error == pytest.approx(given["scaling"].error)
    assert first["hue"].error != given["hue"].error


class LogitGaussian(Gaussian):
    """A unit normal around the logit itself, so that the whole model is linear and normal."""

    def mean(self, logits):
        return logits


def brightening(rate, noise=0.5):
    """A latent that is the brightness of an image, off by a factor that weights must correct."""
    model = Toy(
        {"brighten": lambda z, t: rate * z.sum(-1)},
        (1, 2, 2),
        1,
        lambda x: x.flatten(1).mean(1, keepdim=True) * 0.5,
        lambda z: z.view(-1, 1, 1, 1).expand(-1, 1, 2, 2),
        horizon=3,
        scale=noise,
    )
    model.observation = LogitGaussian()
    return model


def test_log_likelihood_converges_to_the_exact_one():
    """x_t = z_0 + rate t + noise with z_0 ~ N(0, 1): a normal distribution in 16 dimensions."""
    rate, frames, pixels = 0.3, 4, 4
    model = brightening(rate)
    x = torch.rand(5, frames, 1, 2, 2)
    mean = (rate * torch.arange(frames)).repeat_interleave(pixels)
    covariance = torch.eye(frames * pixels) + torch.ones(frames * pixels, frames * pixels)
    exact = MultivariateNormal(mean, covariance).log_prob(x.flatten(1))

    def bound(repeat, samples):
        """Return bounds of every sequence, a row for each repetition."""
        labels = torch.zeros(5 * repeat, dtype=torch.long)
        times = torch.arange(frames).expand(5 * repeat, -1)
        sequences = SequenceBatch(x.repeat(repeat, 1, 1, 1, 1), times, labels, frames - 1)
        generator = torch.Generator().manual_seed(0)
        return log_likelihood(model, sequences, samples, generator=generator).view(repeat, 5)

    torch.testing.assert_close(bound(1, 5000)[0], exact, rtol=0, atol=0.1)
    # With few samples it is a lower bound in expectation.
    assert (bound(100, 1).mean(0) < exact).all()


def test_unit_gaussian_cannot_exceed_its_maximum(model, digits):
    bound = log_likelihood(model, digits.sample([0, 1]), 4, observation=Gaussian())
    assert (bound < -0.5 * math.log(2 * math.pi) * 3 * 28 * 28 * 9).all()


def test_batches_do_not_change_the_likelihood(model, digits):
    # One sample at the mean of a posterior of no width: nothing is random.
    with torch.no_grad():
        model.encoder.network[-1].weight.zero_()
        model.encoder.network[-1].bias[model.latent_dim :] = -8
    sequences = digits.sample(torch.arange(4))
    torch.testing.assert_close(
        log_likelihood(model, sequences, 1, batch_size=9),
        log_likelihood(model, sequences, 1),
        rtol=1e-3,
        atol=10,
    )


def test_a_coarse_solver_is_found_out(model, digits):
    with torch.no_grad():
        model.potentials.coefficients.mul_(2)
    fine = solver_independence(model, digits, range(4))
    model.method = Euler(steps=1)
    coarse = solver_independence(model, digits, range(4))
    worst = max(abs(change.relative) for change in coarse.values())
    assert worst > 10 * max(abs(change.relative) for change in fine.values())
    for name, change in coarse.items():
        assert change.reference == pytest.approx(fine[name].reference, rel=1e-4)


def test_bad_arguments_are_named(model, digits):
    two = dict(list(digits.transformations.items())[:2])
    with pytest.raises(ValueError, match="transformations"):
        equivariance_error(model, TransformedImages(digits.images, transformations=two))
    with pytest.raises(ValueError, match="image_shape"):
        equivariance_error(model, TransformedImages(digits.images[..., 2:]))
    with pytest.raises(ValueError, match="frames"):
        equivariance_error(model, digits, frames=9)
    with pytest.raises(ValueError, match="samples"):
        log_likelihood(model, digits.sample([0]), 0)
    with pytest.raises(ValueError, match="frames"):
        log_likelihood(model, digits.sample([0], 0, torch.tensor([[0, 3]])))
