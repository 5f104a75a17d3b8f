"""VAE and beta-VAE: the objective is the bound of the frames as images."""

import pytest
import torch
from small_models import choose_frames, films, small
from torch.distributions import Independent, Normal, kl_divergence


def standard(model):
    return Independent(Normal(torch.zeros(model.latent_dim), 1.0), 1)


def test_beta_one_is_the_bound():
    """The mean of log p(x, z) - log q(z | x), summed over the frames, within its error."""
    model, batch = small("vae"), films(2)
    x = batch.frames.flatten(0, 1)
    with torch.no_grad():
        posterior = model.encode(x)
        z = posterior.sample((400,))
        logits = model.decode_logits(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        ratio = standard(model).log_prob(z) - posterior.log_prob(z)
        bound = (model.observation.log_prob(logits, x.expand_as(logits)) + ratio).sum(1) / 2
        losses = torch.tensor([sum(model.loss(batch).values()) for _ in range(100)])
    error = (losses.var() / 100 + bound.var() / 400).sqrt()
    assert abs(losses.mean() + bound.mean()) < 4 * error
    assert error < 1e-2 * losses.mean()


def test_terms_by_hand():
    model, batch = small("vae", beta=4.0), films()
    torch.manual_seed(1)
    terms = model.loss(batch)
    torch.manual_seed(1)
    x = batch.frames.flatten(0, 1)
    posterior = model.encode(x)
    mean = model.decode(posterior.rsample())
    entropy = -(x * mean.log() + (1 - x) * (1 - mean).log()).sum() / len(batch)
    torch.testing.assert_close(terms["reconstruction"], entropy, rtol=1e-4, atol=0)
    kl = kl_divergence(posterior, standard(model).expand((len(x),))).sum() / len(batch)
    torch.testing.assert_close(terms["kl"], 4 * kl)


def test_frames_left_out_are_made_up_for():
    """The mean of the KL over every choice of 2 of 3 later frames is that over all."""
    model, batch = small("vae"), films()
    found = []
    for pair in torch.combinations(torch.arange(1, 4), 2):
        at = torch.cat([torch.zeros(1, dtype=torch.long), pair])
        some = choose_frames(batch, at.expand(len(batch), -1), later_weight=3 / 2)
        found.append(model.loss(some)["kl"])
    torch.testing.assert_close(torch.stack(found).mean(), model.loss(batch)["kl"])


@pytest.mark.parametrize("kind", ["vae", "factor_vae"])
def test_a_frame_that_does_not_count_costs_nothing(kind):
    """One frame of each sequence weighs as much as all, whichever frame comes first."""
    model, batch = small(kind), films()
    found = []
    for first in (0, 2):
        every = torch.cat([torch.full((6, 1), first), batch.times.long()], dim=1)
        torch.manual_seed(1)
        found.append(model.loss(choose_frames(batch, every, first_weight=0.0)))
    torch.manual_seed(1)
    for name, term in model.loss(batch).items():
        torch.testing.assert_close(found[0][name], term)
        torch.testing.assert_close(found[1][name], term)
