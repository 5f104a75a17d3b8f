"""FactorVAE: the permutation, both losses, and who learns from which."""

import math

import pytest
import torch
from small_models import films, small

from flowfactor.models.factor_vae import permute_dimensions
from flowfactor.training import TrainingOptions, fit


class Always:
    def batch(self, step):
        return films()


def test_each_dimension_is_permuted_by_itself():
    z = torch.arange(200.0).view(50, 4)
    permuted = permute_dimensions(z)
    assert torch.equal(permuted.sort(dim=0).values, z)
    assert not torch.equal(permuted, z)
    rows = (permuted / 4).floor()
    assert (rows[:, 1:] != rows[:, :1]).float().mean() > 0.8


def test_total_correlation_and_discriminator_by_hand():
    model, batch = small("factor_vae", gamma=10.0), films()
    torch.manual_seed(1)
    terms = model.loss(batch)
    torch.manual_seed(1)
    z = model.encode(batch.frames.flatten(0, 1)).rsample()
    joint, permuted = z, permute_dimensions(z)
    logits = model.discriminator(joint)
    correlation = 10 * (logits[:, 0] - logits[:, 1]).sum() / len(batch)
    torch.testing.assert_close(terms["total_correlation"], correlation)
    right = logits.softmax(-1)[:, 0].log().mean()
    wrong = model.discriminator(permuted).softmax(-1)[:, 1].log().mean()
    torch.testing.assert_close(terms["discriminator"], -0.5 * (right + wrong))


def test_losses_reach_only_those_who_learn_from_them():
    model = small("factor_vae")
    terms = model.loss(films())
    adversary = list(model.discriminator.parameters())
    others = [p for p in model.parameters() if not any(p is a for a in adversary)]
    for names, reached, spared in (
        (("discriminator",), adversary, others),
        (("reconstruction", "kl", "total_correlation"), others, adversary),
    ):
        total = sum(terms[name] for name in names)
        gradients = torch.autograd.grad(
            total, [*reached, *spared], allow_unused=True, retain_graph=True
        )
        assert all(g is not None for g in gradients[: len(reached)])
        assert all(g is None for g in gradients[len(reached) :])
    through = torch.autograd.grad(terms["total_correlation"], list(model.encoder.parameters()))
    assert any(g.abs().sum() > 0 for g in through)


def test_the_objective_is_that_of_the_autoencoder():
    """In evaluation mode, in which the best model is chosen, the adversary does not count."""
    terms = small("factor_vae").eval().loss(films())
    assert sorted(terms) == ["kl", "reconstruction", "total_correlation"]


def test_the_discriminator_learns_the_total_correlation():
    """Of two normal latents with correlation rho it is - log(1 - rho^2) / 2."""
    model = small("factor_vae", latent_dim=2)
    rho = 0.8
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=1e-2)
    mix = torch.tensor([[1.0, rho], [0.0, math.sqrt(1 - rho**2)]])
    for _ in range(300):
        optimizer.zero_grad()
        model.adversary_loss(torch.randn(256, 2) @ mix).backward()
        optimizer.step()
    found = model.log_ratio(torch.randn(4000, 2) @ mix).mean()
    assert found.item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.1)


def test_training_gives_the_discriminator_a_rate_of_its_own(tmp_path):
    model = small("factor_vae", discriminator_rate=1e-2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    options = TrainingOptions(steps=2, warmup=1, learning_rate=1e-30)
    fit(model, Always(), [films()], options, tmp_path)
    for name, p in model.named_parameters():
        stayed = torch.allclose(p, before[name], rtol=0, atol=1e-20)
        assert stayed != name.startswith("discriminator"), name
    # Both groups are in the saved state.
    again = small("factor_vae", discriminator_rate=1e-2)
    result = fit(again, Always(), [films()], options, tmp_path, resume=True)
    assert result.steps == 2
