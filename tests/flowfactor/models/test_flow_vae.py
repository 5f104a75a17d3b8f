"""The objective's terms are what they are called, unbiased, and never below their bounds."""

import pytest
import torch
from small_models import films, small
from torch.distributions import kl_divergence

import flowfactor
from flowfactor.data import SequenceBatch
from flowfactor.models import Objective, terms
from flowfactor.potentials import IndependentPotentials


def batch_of(digits, count=6):
    return digits.sample(torch.arange(count), torch.arange(count) % 3)


def set_objective(model, **weights):
    model.objective = Objective({**dict.fromkeys(Objective(), 0.0), **weights})


def test_encode_and_decode(model, digits):
    x = batch_of(digits).frames[:, 0]
    posterior = model.encode(x)
    assert posterior.mean.shape == (6, model.latent_dim)
    assert posterior.log_prob(posterior.rsample()).shape == (6,)
    decoded = model.decode(posterior.mean)
    assert decoded.shape == x.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_kl_in_closed_form(model, digits):
    batch = batch_of(digits)
    context = model.context(batch, batch.labels)
    standard = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(6, model.latent_dim), 1.0), 1
    )
    torch.testing.assert_close(terms.kl(context), kl_divergence(context.posterior, standard))


def test_weights_scale_their_terms(model, digits):
    batch = batch_of(digits)
    found = []
    for scale in (1.0, 2.0):
        set_objective(model, beta=scale, path_kl=scale, hamilton_jacobi=scale, initial=scale)
        torch.default_generator.manual_seed(0)
        found.append(model.loss(batch))
    assert sorted(found[0]) == ["hamilton_jacobi", "initial", "kl", "path_kl", "reconstruction"]
    torch.testing.assert_close(found[0].pop("reconstruction"), found[1].pop("reconstruction"))
    for name, term in found[0].items():
        torch.testing.assert_close(2 * term, found[1][name])


def test_terms_of_weight_zero_are_left_out(model, digits):
    set_objective(model)
    assert list(model.loss(batch_of(digits))) == ["reconstruction"]


def test_reconstruction_is_the_likelihood_of_the_decoded_flow(model, digits):
    """By hand, with a posterior of no width."""
    batch = batch_of(digits)
    with torch.no_grad():
        last = model.encoder.network[-1]
        last.weight[model.latent_dim :] = 0
        last.bias[model.latent_dim :] = -8
    set_objective(model)
    expected = 0.0
    z0 = model.encode(batch.frames[:, 0]).mean
    for i, k in enumerate(batch.labels):
        for t in range(9):
            zt = model.flow(z0[i : i + 1], int(k), float(t))
            mean = model.decode(zt)[0]
            x = batch.frames[i, t]
            expected -= (x * mean.log() + (1 - x) * (1 - mean).log()).sum().item() / len(batch)
    assert model.loss(batch)["reconstruction"].item() == pytest.approx(expected, rel=1e-3)


def test_subsampled_frames_estimate_the_whole_sum_without_bias(model, digits):
    """The mean over every choice of 2 of 8 frames is the sum over all of them."""
    set_objective(model)
    indices, labels = torch.arange(4), torch.tensor([0, 1, 2, 0])

    def reconstruction(times):
        torch.default_generator.manual_seed(0)
        return model.loss(digits.sample(indices, labels, times))["reconstruction"].item()

    pairs = torch.combinations(torch.arange(1, 9), 2)
    every = [reconstruction(torch.nn.functional.pad(pair, (1, 0)).expand(4, 3)) for pair in pairs]
    whole = reconstruction(torch.arange(9).expand(4, 9))
    assert sum(every) / len(every) == pytest.approx(whole, rel=1e-5)
    assert max(every) > whole * 1.0001


def test_path_kl_is_that_of_the_pushed_normal():
    """A linear flow keeps the posterior normal, so that its KL is known exactly."""
    rate, count = 0.1, 2000
    bowl = flowfactor.AutogradPotential(lambda z, t: 0.5 * rate * z.square().sum(-1), 4)
    bank = IndependentPotentials(dict.fromkeys(("left", "right"), bowl))
    model = small("flow_vae", field=bank, objective={"path_kl": 1.0, "hamilton_jacobi": 0.0})
    batch = films(2)
    one = model.encode(batch.frames[:, 0])
    many = SequenceBatch(*(x.repeat_interleave(count, 0) for x in (batch.frames, batch.times)),
                         batch.labels.repeat_interleave(count), batch.horizon)  # fmt: skip
    with torch.no_grad():
        sampled = terms.path_kl(model.context(many, many.labels)).view(2, count)
    exact = 0.0
    for t in range(1, 4):
        growth = torch.tensor(rate * t).exp()
        pushed = torch.distributions.Normal(one.mean * growth, one.stddev * growth)
        variance = model.prior.variance(batch.labels, torch.tensor([float(t)])).T
        prior = torch.distributions.Normal(torch.zeros_like(one.mean), variance.sqrt())
        exact = exact + kl_divergence(pushed, prior).sum(-1)
    assert ((sampled.mean(1) - exact).abs() < 5 * sampled.std(1) / count**0.5 + 1e-3).all()


@pytest.mark.parametrize(
    "solver",
    [{}, {"solver": {"name": "euler", "steps": 1}, "density": "discrete"}],
    ids=["integral", "discrete"],
)
def test_path_kl_never_averages_below_zero(solver):
    """Not even when training drives it down: a density that is only approximate would give in.

    The discrete determinant is exact with a single Euler step per frame, too.
    """
    model = small("flow_vae", width=16, objective={"path_kl": 20.0}, **solver)
    batch = films(12)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.loss(batch).values()).backward()
        optimizer.step()
    many = SequenceBatch.full(batch.frames.repeat(60, 1, 1, 1, 1), batch.labels.repeat(60))
    with torch.no_grad():
        costs = terms.path_kl(model.context(many, many.labels))
    assert costs.shape == (720,)
    error = costs.std() / len(costs) ** 0.5
    assert costs.mean() > -3 * error
    assert costs.mean() < 100  # it was trained down


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"field": "mlp", "rank": 2, "gradient": {"name": "adjoint"}},
        {"rank": 2, "solver": {"name": "euler", "steps": 2}, "density": "discrete"},
        {"parts": "both", "rank": 2, "gradient": {"name": "adjoint"}},
        {"parts": "solenoidal", "solver": {"name": "euler", "steps": 2}, "density": "discrete"},
    ],
)
def test_every_parameter_learns_under_the_full_objective(options):
    objective = dict.fromkeys(Objective(), 1.0)
    if "parts" in options:
        objective["hamilton_jacobi"] = 0.0
    else:
        options = {**options, "force": "learned"}
    model = small("flow_vae", objective=objective, observation="gaussian_learned", **options)
    sum(model.loss(films()).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_discrete_path_term_uses_the_steps_taken():
    """The path term is that of the steps of Euler's method, not of the flow."""
    options = {"solver": {"name": "euler", "steps": 1}, "density": "discrete"}
    model = small("flow_vae", objective={"path_kl": 1.0, "hamilton_jacobi": 0.0}, **options)
    context = model.context(films(), films().labels)
    found = terms.path_kl(context)
    path = model.trace(context.z0, films().labels, torch.arange(4.0), log_density="discrete")
    log_p = model.prior.log_prob(path.z, films().labels, path.times)
    expected = (-context.entropy - path.log_det - log_p)[1:].sum(0)
    torch.testing.assert_close(found, expected)


def test_a_term_says_what_it_needs():
    model = small("flow_vae", objective={"hamilton_jacobi": 0.0})
    context = model.context(films(), films().labels)
    with pytest.raises(ValueError, match="random_times"):
        terms.hamilton_jacobi(context)
    with pytest.raises(ValueError, match="density"):
        terms.consistency(context)


def test_sequences_may_be_longer_than_those_trained_on():
    losses = small("flow_vae").loss(films(4, horizon=5))
    assert torch.isfinite(sum(losses.values()))
