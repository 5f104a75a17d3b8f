"""PoFlow: the wave residual, and the terms of the objective."""

import pytest
import torch
from small_models import NAMES, films, sharpen, small

import flowfactor
from flowfactor import AutogradPotential
from flowfactor.models.poflow import wave_residual
from flowfactor.potentials import IndependentPotentials


def plane_wave(speed, direction):
    a = torch.tensor(direction, dtype=torch.double)
    return AutogradPotential(lambda z, t: torch.sin(z @ a - speed * a.norm() * t), len(direction))


def test_the_residual_of_plane_waves_vanishes():
    """Each at its own speed, for times of their own, and not at another speed."""
    waves = {"slow": plane_wave(0.5, [1.0, -2.0]), "fast": plane_wave(3.0, [0.3, 0.4])}
    k = torch.tensor([0, 1, 1, 0])
    u = IndependentPotentials(waves).select(k)
    z, t = torch.randn(4, 2, dtype=torch.double), torch.rand(4, dtype=torch.double)
    speeds = torch.tensor([0.5, 3.0], dtype=torch.double)
    assert wave_residual(u, z, t, speeds[k]).abs().max() < 1e-12
    assert wave_residual(u, z, 0.7, speeds[k]).abs().max() < 1e-12
    assert wave_residual(u, z, t, speeds[1 - k]).abs().min() > 1e-3


@pytest.mark.parametrize("rank", [0, 2])
def test_the_second_derivative_in_time_of_the_bank(rank):
    bank = flowfactor.RidgePotential(NAMES, 3, 8, horizon=3, rank=rank).double()
    u = bank.select(torch.tensor([1, 0, 1]))
    z, h = torch.randn(3, 3, dtype=torch.double), 1e-4
    with torch.no_grad():
        rates = [u.evaluate(z, 1.3 + step, ("time",))[0] for step in (-h, h)]
        expected = (rates[1] - rates[0]) / (2 * h) - 4 * u.laplacian(z, 1.3)
    torch.testing.assert_close(wave_residual(u, z, 1.3, 2.0), expected, rtol=1e-6, atol=1e-9)


def test_terms_and_who_learns():
    model = small("poflow", observation="gaussian_learned")
    terms = model.loss(films())
    assert sorted(terms) == ["initial", "jacobian", "kl", "reconstruction", "wave"]
    assert terms["jacobian"] < 0 < terms["wave"]
    sum(terms.values()).backward()
    still = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not still


def test_terms_of_weight_zero_are_left_out():
    model = small("poflow", wave=0.0, initial=0.0, jacobian=0.0)
    terms = model.loss(films())
    assert sorted(terms) == ["kl", "reconstruction"]
    sum(terms.values()).backward()
    assert not model.speeds.requires_grad


def test_weights_scale_their_terms():
    found = []
    for scale in (1.0, 2.0):
        weights = dict.fromkeys(("beta", "wave", "initial", "jacobian"), scale)
        found.append(small("poflow", **weights).loss(films()))
    torch.testing.assert_close(found[0].pop("reconstruction"), found[1].pop("reconstruction"))
    for name, term in found[0].items():
        torch.testing.assert_close(2 * term, found[1][name])


def test_the_change_of_the_pixels_along_the_flow():
    model = small("poflow", latent_dim=3).double()
    u = model.potentials["left"]
    path = flowfactor.trace(torch.randn(4, 3, dtype=torch.double), u, [0.0, 1.5])
    h = 1e-5

    def decoded(z):
        return model.observation.mean(model.decoder(z))

    # That of the model itself, but in float64.
    model.decode = decoded
    torch.manual_seed(0)
    at = int(torch.randint(2, ()))
    z, velocity = path.z[at], u.gradient(path.z[at], path.times[at])
    change = (decoded(z + h * velocity) - decoded(z - h * velocity)) / (2 * h)
    torch.manual_seed(0)
    found = model.pixel_change(u, path)
    torch.testing.assert_close(found, change.square().flatten(1).sum(1), rtol=1e-4, atol=1e-9)


def test_the_reconstruction_is_that_of_the_decoded_flow():
    """By hand, with a posterior of no width."""
    model, batch = small("poflow"), films(4)
    sharpen(model)
    with torch.no_grad():
        z0 = model.encode(batch.frames[:, 0]).mean
        path = model.flow(z0, batch.labels, torch.arange(4.0))
        logits = model.decode_logits(path.flatten(0, 1)).unflatten(0, (4, 4)).transpose(0, 1)
        expected = -model.observation.log_prob(logits, batch.frames).sum(1).mean()
    found = model.loss(batch)["reconstruction"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
