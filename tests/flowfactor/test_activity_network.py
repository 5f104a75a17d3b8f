"""Amortised inference of activity: its bound, against exact inference and enumeration."""

import itertools

import pytest
import torch
from torch.distributions import MultivariateNormal

from flowfactor.activity import ActivityPrior, Projections, SpikeStates
from flowfactor.activity_network import ActivityNetwork, FactorisedPosterior

PRIOR = ActivityPrior(none=0.3, pairs=0.2, stay=0.7, reverse=0.5, slab=0.4)


def seen(fields, steps, dim=3, count=1, dtype=torch.float64):
    """Displacements along the first field, the projections, and what they are made from."""
    generator = torch.Generator().manual_seed(0)
    velocities = torch.randn(count, steps, fields, dim, generator=generator, dtype=dtype)
    noise = torch.randn(count, steps, dim, generator=generator, dtype=dtype)
    displacements = velocities[:, :, 0] + 0.5 * noise
    variance = torch.full((dim,), 0.4, dtype=dtype)
    return Projections.of(displacements, velocities, variance), displacements, velocities, variance


def test_of_one_field_and_step_the_bound_can_be_exact():
    projections = seen(1, 1)[0]
    prior = ActivityPrior(none=0.3, pairs=0.0, slab=0.4)
    exact = SpikeStates(1, prior).infer(projections)
    factorised = FactorisedPosterior(projections, exact.probabilities.log().unsqueeze(2), prior)
    assert torch.allclose(factorised.evidence, exact.evidence, atol=1e-10)
    assert torch.allclose(factorised.kl, exact.kl, atol=1e-10)
    assert torch.allclose(factorised.first, exact.first, atol=1e-10)
    assert torch.allclose(factorised.second, exact.second, atol=1e-10)
    for key in ("active", "forward"):
        assert torch.allclose(
            getattr(factorised.activity(), key), getattr(exact.activity(), key), atol=1e-10
        )


def test_marginals_of_enumeration_have_the_least_cross_entropy_with_it():
    projections = seen(2, 3)[0]
    exact = SpikeStates(2, PRIOR).infer(projections)
    known = exact.activity()
    forward = known.active * known.forward
    marginals = torch.stack([1 - known.active, forward, known.active - forward], -1)
    least = FactorisedPosterior(projections, marginals.log(), PRIOR).cross_entropy(exact)
    entropy = torch.special.entr(marginals).sum((-1, -2, -3))
    torch.testing.assert_close(least, entropy)
    logits = marginals.log() + 0.1 * torch.randn(marginals.shape, dtype=torch.float64)
    other = FactorisedPosterior(projections, logits.log_softmax(-1), PRIOR)
    assert bool((other.cross_entropy(exact) > least).all())


def test_no_probabilities_exceed_the_evidence():
    """Of two fields and two steps: log p(D) by enumeration of the 81 sequences of states."""
    projections, displacements, velocities, variance = seen(2, 2)
    acting = (1 - PRIOR.none + PRIOR.pairs) / 2
    one = SpikeStates(1, ActivityPrior(none=1 - acting, pairs=0.0, stay=0.7, reverse=0.5))
    sign, total = torch.tensor([0.0, 1.0, -1.0]).double(), []
    for states in itertools.product(range(3), repeat=4):
        first, then = states[:2], states[2:]
        logs = [
            one.start[k].log() + one.change[k, j].log() for k, j in zip(first, then, strict=True)
        ]
        for t, now in enumerate((first, then)):
            centre, field = sign[list(now)], velocities[0, t].mT
            spread = field @ torch.diag(centre.abs() * PRIOR.slab**2) @ field.mT
            normal = MultivariateNormal(field @ centre, spread + torch.diag(variance))
            logs.append(normal.log_prob(displacements[0, t]))
        total.append(torch.stack(logs).sum())
    evidence = torch.stack(total).logsumexp(0)
    logits = torch.randn(1, 2, 2, 3, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.1)
    for step in range(40):
        bound = FactorisedPosterior(projections, logits.log_softmax(-1), PRIOR).evidence.sum()
        assert float(bound) <= float(evidence), step
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
    assert float(bound) > float(evidence) - 2


def test_samples_estimate_the_bound():
    projections = seen(3, 4)[0]
    log_q = torch.randn(1, 4, 3, 3, dtype=torch.float64).log_softmax(-1)
    many = Projections(
        *(
            getattr(projections, key).expand(4000, *[-1] * (getattr(projections, key).ndim - 1))
            for key in ("linear", "gram", "base")
        )
    )
    posterior = FactorisedPosterior(many, log_q.expand(4000, -1, -1, -1), PRIOR)
    drawn, ratio = posterior.draw(torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), posterior.first[0], atol=0.05)
    weights = many.log_density(drawn).sum(-1) + ratio
    error = 4 * float(weights.std()) / 4000**0.5
    assert float(weights.mean()) == pytest.approx(float(posterior.evidence[0]), abs=error)


def test_the_network_learns_what_enumeration_finds():
    torch.manual_seed(0)
    fields, dim = 3, 6
    prior = ActivityPrior(slab=0.3)
    network = ActivityNetwork(prior, width=16)
    velocities = torch.linalg.qr(torch.randn(dim, dim)).Q[:fields]
    which = torch.randint(fields, (64,)).unsqueeze(1).expand(-1, 4)
    speed = (0.7 + 0.6 * torch.rand(64, 1)) * torch.where(torch.rand(64, 1) < 0.5, -1.0, 1.0)
    displacements = velocities[which] * speed.unsqueeze(-1) + 0.1 * torch.randn(64, 4, dim)
    projections = Projections.of(
        displacements, velocities.expand(64, 4, -1, -1), torch.full((dim,), 0.01)
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        (-network(projections).evidence.mean()).backward()
        optimizer.step()
    found = network(projections).activity()
    exact = SpikeStates(fields, prior).infer(projections).activity()
    assert float(((found.active > 0.5) == (exact.active > 0.5)).float().mean()) > 0.98
    assert float((found.coefficients - exact.coefficients).abs().mean()) < 0.1
