"""The topographic VAE: capsules against a slow loop, and what rolls."""

import dataclasses

import pytest
import torch
from small_models import films, small
from torch.distributions import Independent, Normal, kl_divergence

from flowfactor.models import fit_traversals
from flowfactor.models.topographic_vae import capsule_power, roll


def slow_power(u, window):
    B, F, C, P = u.shape
    v = torch.zeros_like(u)
    offsets = range(-window, window + 1)
    for b in range(B):
        for t in range(F):
            for c in range(C):
                for p in range(P):
                    for dt in offsets:
                        for dp in offsets:
                            frame = min(max(t + dt, 0), F - 1)
                            v[b, t, c, p] += u[b, frame, c, (p + dp + dt) % P] ** 2
    return v


@pytest.mark.parametrize("window", [0, 1, 2])
def test_capsule_power(window):
    u = torch.randn(2, 4, 2, 6)
    torch.testing.assert_close(capsule_power(u, window), slow_power(u, window))


def test_what_rolls_with_time_adds_up():
    """A latent that rolls one position a frame is looked at in the same place three times."""
    u = torch.randn(1, 1, 3, 7)
    film = torch.cat([u.roll(t, dims=-1) for t in range(9)], dim=1)
    near = sum(u.square().roll(4 + dc, dims=-1) for dc in (-1, 0, 1))
    torch.testing.assert_close(capsule_power(film, 1)[:, 4:5], 3 * near)


def test_roll():
    x = torch.randn(3, 5)
    assert torch.equal(roll(x, 7.0), x.roll(2, dims=-1))
    torch.testing.assert_close(roll(x, -0.25), 0.75 * x + 0.25 * x.roll(-1, dims=-1))


def test_terms_by_hand():
    model, batch = small("topographic_vae"), films(2)
    torch.manual_seed(1)
    terms = model.loss(batch)
    torch.manual_seed(1)
    posterior = model.encode(batch.frames.flatten(0, 1))
    z, u = posterior.rsample().view(2, 4, 2, 2, 6).unbind(2)
    s = (z + model.mu) / (slow_power(u.detach(), 1) + 1e-6).sqrt()
    logits = model.decoder(s.view(8, 12))
    expected = -model.observation.log_prob(logits, batch.frames.flatten(0, 1)).sum() / 2
    torch.testing.assert_close(terms["reconstruction"], expected)
    standard = Independent(Normal(torch.zeros(8, 24), 1.0), 1)
    kl = kl_divergence(posterior, standard).sum() / 2
    torch.testing.assert_close(terms["kl_z"] + terms["kl_u"], kl)
    assert model.mu.item() == 30


def test_the_decoder_sees_the_capsules_rolled():
    model = small("topographic_vae")
    z = model.encode(films().frames[:, 0]).mean
    path = model.flow(z, torch.tensor([0, 1] * 3), [1.0, 3.0, 0.5])
    assert torch.equal(path[0], z)
    s = model.topographic(z).view(6, 2, 6)
    torch.testing.assert_close(model.topographic(path[1]).view(6, 2, 6), s.roll(2, dims=-1))
    assert torch.equal(model.flow(z, "left", 6.0), z)
    assert torch.equal(model.flow(model.flow(z, 0, 2.0), 0, [2.0, 0.0])[-1], z)


def test_other_traversals_can_be_learned():
    model = small("topographic_vae")
    model.traversal = "mean"
    with pytest.raises(ValueError, match="fit_traversals"):
        model.flow(torch.zeros(1, 24), 0, 1.0)
    fit_traversals(model, [films()], ranges=[1.0])
    ways = model.flow(torch.zeros(1, 24), 0, [0.0, 3.0])[1, 0]
    torch.testing.assert_close(ways, model.mean_displacement[0, 3])


def test_left_out_frames():
    batch = films()
    some = dataclasses.replace(batch, frames=batch.frames[:, ::2], times=batch.times[:, ::2])
    with pytest.raises(ValueError, match="every frame"):
        small("topographic_vae").loss(some)


def test_what_stands_for_an_image_has_the_mean_power():
    """The decoder sees squares of u, whose mean is not the square of the mean."""
    model, images = small("topographic_vae").eval(), films(2).frames[:, 0]
    with torch.no_grad():
        posterior, latent = model.encode(images), model.represent(images)
        u = posterior.sample((5_000,)).unflatten(-1, (2, 2, model.positions))[:, :, 1]
        at = latent.unflatten(-1, (2, 1, 2, model.positions))[:, 1]
    drawn = capsule_power(u.flatten(0, 1).unsqueeze(1), 1).unflatten(0, (-1, 2)).mean(0)
    torch.testing.assert_close(capsule_power(at, 1), drawn, rtol=0.1, atol=0.1)
    assert torch.equal(latent.chunk(2, -1)[0], posterior.mean.chunk(2, -1)[0])
    assert (latent.chunk(2, -1)[1] >= posterior.mean.chunk(2, -1)[1].abs()).all()
