"""Exact inference of activity, against enumeration of all sequences of states."""

import itertools

import pytest
import torch
from scipy.optimize import least_squares
from torch.distributions import MultivariateNormal

from flowfactor.activity import (
    ActivityPrior,
    Posterior,
    Projections,
    SpikeStates,
    refine_speeds,
    steady_speeds,
)
from flowfactor.errors import ConfigError

K, D, STEPS = 2, 3, 3
PRIOR = ActivityPrior(none=0.2, pairs=0.3, stay=0.6, reverse=0.1, slab=0.4)


@pytest.fixture(scope="module")
def seen() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Displacements (1, 3, D), velocities (1, 3, K, D) and a variance (D,)."""
    generator = torch.Generator().manual_seed(0)
    velocities = torch.randn(1, STEPS, K, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, STEPS, D, generator=generator, dtype=torch.float64)
    displacements = velocities[:, :, 0] * 0.8 + 0.7 * noise
    return displacements, velocities, torch.tensor([0.5, 0.8, 1.1], dtype=torch.float64)


@pytest.fixture(scope="module")
def posterior(seen) -> Posterior:
    displacements, velocities, variance = seen
    return SpikeStates(K, PRIOR).infer(Projections.of(displacements, velocities, variance))


def directions(states: SpikeStates) -> torch.Tensor:
    """The mean of g in each state, (S, K)."""
    means = torch.zeros(len(states), K, dtype=torch.float64)
    for row, fields, signs in zip(means, states.field, states.sign, strict=True):
        for field, sign in zip(fields.tolist(), signs.tolist(), strict=True):
            row[field] += sign
    return means


def changes(means: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """The probabilities of each state after each other one, (S, S)."""
    rows = []
    for before in means:
        reversal = ((before * means) < 0).any(1)
        drawn = torch.where(reversal, PRIOR.reverse * prior, prior)
        rows.append((1 - PRIOR.stay) * drawn / drawn.sum())
    return torch.stack(rows) + PRIOR.stay * torch.eye(len(means), dtype=torch.float64)


@pytest.fixture(scope="module")
def enumerated(seen) -> dict[str, torch.Tensor]:
    """The same posterior from all S^3 sequences of states and the formulas of Gaussians."""
    displacements, velocities, variance = seen
    states = SpikeStates(K, PRIOR)
    means = directions(states)
    S = len(states)
    prior = states.start
    likelihood = torch.zeros(STEPS, S, dtype=torch.float64)
    speed = torch.zeros(STEPS, S, K, dtype=torch.float64)
    square = torch.zeros(STEPS, S, K, K, dtype=torch.float64)
    for t, s in itertools.product(range(STEPS), range(S)):
        field = velocities[0, t].mT  # (D, K)
        slab = torch.diag((means[s] != 0).double() * PRIOR.slab**2)
        total = field @ slab @ field.mT + torch.diag(variance)
        gain = slab @ field.mT @ total.inverse()
        predicted = field @ means[s]
        likelihood[t, s] = MultivariateNormal(predicted, total).log_prob(displacements[0, t])
        speed[t, s] = means[s] + gain @ (displacements[0, t] - predicted)
        square[t, s] = slab - gain @ field @ slab + torch.outer(speed[t, s], speed[t, s])
    change = changes(means, prior)
    paths = torch.tensor(list(itertools.product(range(S), repeat=STEPS)))
    log_joint = prior[paths[:, 0]].log() + likelihood[0, paths[:, 0]]
    for t in range(1, STEPS):
        log_joint += change[paths[:, t - 1], paths[:, t]].log() + likelihood[t, paths[:, t]]
    evidence = log_joint.logsumexp(0)
    weights = (log_joint - evidence).exp()
    marginal = torch.stack(
        [torch.zeros(S).double().index_add(0, paths[:, t], weights) for t in range(STEPS)]
    )
    return {
        "evidence": evidence,
        "marginal": marginal,
        "first": torch.einsum("ts,tsk->tk", marginal, speed),
        "second": torch.einsum("ts,tskl->tkl", marginal, square),
        "across": torch.stack(
            [
                torch.einsum("p,pk,pl->kl", weights, speed[t, paths[:, t]], speed[t + 1, after])
                for t, after in enumerate(paths[:, 1:].unbind(1))
            ]
        ),
        "means": means,
    }


def test_states_are_all_sets_of_at_most_two_signed_fields():
    means = directions(SpikeStates(K, PRIOR))
    expected = set(itertools.product((-1.0, 0.0, 1.0), repeat=K))
    assert {tuple(row) for row in means.tolist()} == expected
    assert len(means) == len(expected)


@pytest.mark.parametrize("pairs", [0.0, 0.3])
def test_the_prior_sums_to_one(pairs):
    states = SpikeStates(4, ActivityPrior(pairs=pairs))
    assert float(states.start.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(states.change.sum(1), torch.ones(len(states)).double(), atol=1e-12)


def test_evidence_is_that_of_all_sequences(posterior, enumerated):
    assert torch.allclose(posterior.evidence[0], enumerated["evidence"], atol=1e-10)


def test_states_have_the_probabilities_of_all_sequences(posterior, enumerated):
    assert torch.allclose(posterior.probabilities[0], enumerated["marginal"], atol=1e-12)


@pytest.mark.parametrize("moment", ["first", "second"])
def test_moments_are_those_of_all_sequences(posterior, enumerated, moment):
    assert torch.allclose(getattr(posterior, moment)[0], enumerated[moment], atol=1e-12)


def test_activity_sums_the_states_of_each_field(posterior, enumerated):
    activity, means = posterior.activity(), enumerated["means"]
    acts, ahead = (means != 0).double(), (means > 0).double()
    active = enumerated["marginal"] @ acts
    assert torch.allclose(activity.active[0], active, atol=1e-12)
    assert torch.allclose(activity.forward[0], enumerated["marginal"] @ ahead / active, atol=1e-12)
    assert torch.equal(activity.coefficients, posterior.first)


@pytest.fixture(scope="module")
def many(seen) -> Posterior:
    """The same posterior of many copies of the sequence."""
    displacements, velocities, variance = seen
    copies = (each.expand(8000, *each.shape[1:]) for each in (displacements, velocities))
    return SpikeStates(K, PRIOR).infer(Projections.of(*copies, variance))


def test_samples_have_the_moments_of_all_sequences(many, enumerated):
    drawn, _ = many.draw(torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), enumerated["first"], atol=0.03)
    second = torch.einsum("bnk,bnl->nkl", drawn, drawn) / len(drawn)
    assert torch.allclose(second, enumerated["second"], atol=0.04)
    across = torch.einsum("bnk,bnl->nkl", drawn[:, :-1], drawn[:, 1:]) / len(drawn)
    assert torch.allclose(across, enumerated["across"], atol=0.04)


def test_kl_is_the_mean_of_the_log_ratio_of_samples(many):
    _, ratio = many.draw(torch.Generator().manual_seed(0))
    assert float(-ratio.mean()) == pytest.approx(float(many.kl[0]), abs=0.05)
    assert float(many.kl[0]) > 0


def test_log_density_is_the_expectation_of_a_certain_coefficient(posterior):
    g = torch.tensor([[0.3, -1.2]] * STEPS, dtype=torch.float64)[None]
    square = g.unsqueeze(-1) * g.unsqueeze(-2)
    projections = posterior.projections
    assert torch.allclose(projections.log_density(g), projections.expected(g, square), atol=1e-12)


def test_sequences_do_not_depend_on_their_neighbours(seen, posterior):
    displacements, velocities, variance = seen
    both = Projections.of(
        torch.cat([displacements, -2 * displacements]), velocities.expand(2, -1, -1, -1), variance
    )
    assert torch.allclose(
        SpikeStates(K, PRIOR).infer(both).probabilities[:1], posterior.probabilities, atol=1e-12
    )


def test_evidence_far_from_all_states_is_finite():
    far = torch.full((1, 4, D), 1e4)
    velocities = torch.randn(1, 4, 3, D, generator=torch.Generator().manual_seed(0))
    inferred = SpikeStates(3, ActivityPrior()).infer(
        Projections.of(far, velocities, torch.full((D,), 1e-3))
    )
    assert bool(inferred.evidence.isfinite().all())
    assert bool(inferred.first.isfinite().all())
    assert torch.allclose(inferred.probabilities.sum(-1), torch.ones(1, 4), atol=1e-4)


def test_evidence_has_the_gradient_of_its_moments(seen):
    # The derivative of log p(D) is the expectation of that of log N(D | g) (Fisher's identity).
    displacements, velocities, variance = seen
    leaf = velocities.clone().requires_grad_()
    projections = Projections.of(displacements, leaf, variance)
    inferred = SpikeStates(K, PRIOR).infer(projections)
    (exact,) = torch.autograd.grad(inferred.evidence.sum(), leaf, retain_graph=True)
    expected = projections.expected(inferred.first.detach(), inferred.second.detach())
    (moments,) = torch.autograd.grad(expected.sum(), leaf)
    assert torch.allclose(exact, moments, atol=1e-10)


@pytest.mark.parametrize(
    "wrong", [{"none": 0.6, "pairs": 0.5}, {"stay": 1.0}, {"slab": 0.0}, {"none": 0.0}]
)
def test_impossible_priors_are_refused(wrong):
    with pytest.raises(ConfigError):
        ActivityPrior(**wrong)


def test_steady_speeds_are_one_regression_for_each_run(seen):
    """Of the displacements of all its steps, on the velocities of the fields that act."""
    displacements, velocities, variance = seen
    directions = torch.tensor([[[1.0, -1.0], [1.0, -1.0], [0.0, 1.0]]], dtype=torch.float64)
    found = steady_speeds(
        Projections.of(displacements, velocities, variance), directions, PRIOR.slab
    )
    F, D = velocities[0] / variance.sqrt(), displacements[0] / variance.sqrt()
    for steps, fields, mean in ([0, 1], [0, 1], [1.0, -1.0]), ([2], [1], [1.0]):
        A = F[steps][:, fields].transpose(1, 2).flatten(0, 1)
        prior = torch.eye(len(fields), dtype=torch.float64) / PRIOR.slab**2
        pull = prior @ torch.tensor(mean, dtype=torch.float64) + A.T @ D[steps].flatten()
        expected = torch.linalg.solve(A.T @ A + prior, pull)
        for step in steps:
            torch.testing.assert_close(found[0, step, fields], expected)
    assert found[0, 2, 0] == 0


@pytest.mark.parametrize("drift", [1e-6, 0.2])
def test_refined_speeds_are_the_least_squares_of_what_is_seen(drift):
    generator = torch.Generator().manual_seed(0)
    directions = torch.zeros(2, 4, 2, dtype=torch.float64)
    directions[0, :3, 0], directions[0, 2, 1], directions[1, 1:, 1] = 1, -1, 1
    runs = torch.zeros(2, 3, 4, 2, dtype=torch.float64)
    runs[0, 0, :2, 0] = runs[0, 1, 2, 0] = runs[0, 2, 2, 1] = runs[1, 0, 1:, 1] = 1
    linear = torch.randn(4, 2, 5, 7, generator=generator, dtype=torch.float64)
    truth = 0.7 * directions

    def predict(speeds):
        return torch.einsum("bnk,nkfp->bfp", speeds, linear)

    seen = predict(truth) + 0.1 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    found = refine_speeds(predict, seen, directions, directions, PRIOR.slab, drift)
    for i in range(2):
        each = torch.stack([run for run in runs[i] if run.any()])
        c = (each * directions[i]).sum((1, 2)) / each.sum((1, 2))
        noise = float((seen[i] - predict(directions)[i]).square().mean().sqrt())

        def speeds(x, each=each, i=i):
            a, b = torch.as_tensor(x).split([len(each), 4])
            return torch.einsum("r,rnk->nk", a, each) + b[:, None] * directions[i]

        def residuals(x, speeds=speeds, c=c, noise=noise, i=i):
            a, b = torch.as_tensor(x).split([len(c), 4])
            fit = (seen[i] - predict(speeds(x)[None])[0]).flatten() / noise
            return torch.cat([fit, (a - c) / PRIOR.slab, b / drift]).numpy()

        best = least_squares(residuals, [0.0] * (len(c) + 4), xtol=1e-14, x_scale="jac").x
        torch.testing.assert_close(found[i], speeds(best), atol=1e-5, rtol=0)
    assert bool(((found - truth).abs() < 0.15).all())


def test_speeds_that_would_be_worse_are_not_taken():
    directions = torch.ones(3, 2, 1)

    def predict(speeds):  # its slope at 1 points the wrong way
        return (12 * (speeds[..., 0] - 1)).sin() - 0.2 * speeds[..., 0]

    seen = predict(directions).add(torch.tensor([[0.0], [-0.1], [35.0]]))
    found = refine_speeds(predict, seen, directions, directions, 1e3)
    before, after = ((seen - predict(g)).square().sum(1) for g in (directions, found))
    assert bool((after <= before).all())
    assert torch.equal(found[0], directions[0])
    assert float(after[1]) < 0.05 * float(before[1])
    assert torch.equal(found[2], directions[2])


def test_where_nothing_acts_no_speed_is_refined():
    still = torch.zeros(2, 3, 2)
    assert torch.equal(refine_speeds(lambda g: g, torch.ones(2, 3, 2), still, still, 0.4), still)
