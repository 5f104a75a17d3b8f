"""The objective's terms are what they are called, unbiased, and never below their bounds."""

import dataclasses

import pytest
import torch
from checking import unchecked
from torch.distributions import kl_divergence

import flowfactor
from flowfactor.data import SequenceBatch, SequenceLoader
from flowfactor.models import FlowVAE, Objective
from flowfactor.models.flow_vae import kl_to_standard_normal, path_kl_estimate
from flowfactor.potentials import IndependentPotentials


def batch_of(digits, count=6):
    return digits.sample(torch.arange(count), torch.arange(count) % 3)


def set_objective(model, **weights):
    model.objective = dataclasses.replace(
        Objective(beta=0, path_kl=0, hamilton_jacobi=0, initial=0), **weights
    )


def test_encode_and_decode(model, digits):
    x = batch_of(digits).frames[:, 0]
    posterior = model.encode(x)
    assert posterior.mean.shape == (6, model.latent_dim)
    assert posterior.log_prob(posterior.rsample()).shape == (6,)
    decoded = model.decode(posterior.mean)
    assert decoded.shape == x.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_kl_in_closed_form(model, digits):
    posterior = model.encode(batch_of(digits).frames[:, 0])
    standard = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(6, model.latent_dim), 1.0), 1
    )
    torch.testing.assert_close(kl_to_standard_normal(posterior), kl_divergence(posterior, standard))


def test_weights_scale_their_terms(model, digits):
    batch = batch_of(digits)
    found = []
    for scale in (1.0, 2.0):
        set_objective(model, beta=scale, path_kl=scale, hamilton_jacobi=scale, initial=scale)
        torch.manual_seed(0)
        found.append(model.loss(batch))
    assert sorted(found[0]) == ["hamilton_jacobi", "initial", "kl", "path_kl", "reconstruction"]
    torch.testing.assert_close(found[0].pop("reconstruction"), found[1].pop("reconstruction"))
    for name, term in found[0].items():
        torch.testing.assert_close(2 * term, found[1][name])


def test_terms_of_weight_zero_are_left_out(model, digits):
    set_objective(model)
    assert sorted(model.loss(batch_of(digits))) == ["kl", "reconstruction"]


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
        torch.manual_seed(0)
        return model.loss(digits.sample(indices, labels, times))["reconstruction"].item()

    pairs = torch.combinations(torch.arange(1, 9), 2)
    every = [reconstruction(torch.nn.functional.pad(pair, (1, 0)).expand(4, 3)) for pair in pairs]
    whole = reconstruction(torch.arange(9).expand(4, 9))
    assert sum(every) / len(every) == pytest.approx(whole, rel=1e-5)
    assert max(every) > whole * 1.0001


def test_path_kl_is_that_of_the_pushed_normal(model, digits):
    """A linear flow keeps the posterior normal, so that its KL is known exactly."""
    rate = 0.1
    bowl = flowfactor.AutogradPotential(
        lambda z, t: 0.5 * rate * z.square().sum(-1), model.latent_dim
    )
    model.potentials = IndependentPotentials(dict.fromkeys(("scaling", "rotation", "hue"), bowl))
    batch = batch_of(digits, 3)
    one = model.encode(batch.frames[:, 0])
    count = 2000
    posterior = torch.distributions.Independent(
        torch.distributions.Normal(one.mean.repeat(count, 1), one.stddev.repeat(count, 1)), 1
    )
    k, times = batch.labels.repeat(count), torch.arange(9.0)
    with torch.no_grad():
        path = flowfactor.trace(posterior.sample(), bowl, times, log_density=True)
        estimate = path_kl_estimate(
            posterior.entropy(), model.prior, path.z, path.log_det, k, times
        )
    sampled = estimate.unflatten(1, (count, 3))
    mean, error = sampled.mean(1), sampled.std(1) / count**0.5
    for t in (0, 3, 8):
        growth = torch.tensor(rate * t).exp()
        pushed = torch.distributions.Normal(one.mean * growth, one.stddev * growth)
        variance = model.prior.variance(batch.labels, times)[t].unsqueeze(1).detach()
        prior = torch.distributions.Normal(torch.zeros_like(one.mean), variance.sqrt())
        exact = kl_divergence(pushed, prior).sum(-1)
        assert ((mean[t] - exact).abs() < 5 * error[t] + 1e-3).all()


@pytest.mark.parametrize(
    "solver",
    [{}, {"method": {"name": "euler", "steps": 1}, "density": "discrete"}],
    ids=["integral", "discrete"],
)
def test_path_kl_never_averages_below_zero(digits, solver):
    """Not even when training drives it down: a density that is only approximate would give in.

    The discrete determinant is exact with a single Euler step per frame, too.
    """
    torch.manual_seed(0)
    model = FlowVAE.build(
        digits.names,
        latent_dim=4,
        width=16,
        encoder={"channels": [4, 8], "hidden": 16},
        decoder={"hidden": [16]},
        objective={"path_kl": 20.0, "beta": 1.0},
        **solver,
    )
    loader = SequenceLoader(digits, 12, frames_per_sequence=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        sum(model.loss(loader.batch(step)).values()).backward()
        optimizer.step()
    model.objective = Objective(path_kl=1.0)
    with torch.no_grad():
        terms = torch.tensor(
            [model.loss(batch_of(digits, 12))["path_kl"].item() for _ in range(200)]
        )
    error = terms.std() / len(terms) ** 0.5
    assert terms.mean() > -3 * error
    assert terms.mean() < 100  # it was trained down


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"potential": "mlp", "rank": 2},
        {"rank": 2, "method": {"name": "euler", "steps": 2}, "density": "discrete"},
    ],
)
def test_every_parameter_learns_under_the_full_objective(digits, options):
    model = FlowVAE.build(
        digits.names,
        latent_dim=4,
        width=8,
        objective={"path_kl": 1.0, "hamilton_jacobi": 1.0, "initial": 1.0},
        observation="gaussian_learned",
        force="learned",
        **options,
    )
    sum(model.loss(batch_of(digits)).values()).backward()
    still = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not still


@pytest.mark.parametrize("gradient", [{"name": "direct"}, {"name": "adjoint"}])
def test_all_solver_configurations_give_gradients(digits, gradient):
    model = FlowVAE.build(
        digits.names, latent_dim=4, width=8, method={"name": "midpoint"}, gradient=gradient
    )
    sum(model.loss(batch_of(digits)).values()).backward()
    assert all(p.grad is not None for p in model.potentials.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"method": {"name": "dopri5", "rtol": 1e-3}, "gradient": {"name": "adjoint"}},
        {
            "method": {"name": "euler", "steps": 2},
            "density": "discrete",
            "objective": {"path_kl": 1.0},
            "potential": "mlp",
            "rank": 1,
        },
    ],
)
def test_the_spec_builds_the_same_model(digits, options):
    import json

    model = FlowVAE.build(
        digits.names, latent_dim=4, width=8, force="learned", observation="gaussian", **options
    )
    again = FlowVAE.build(**json.loads(json.dumps(model.spec())))
    again.load_state_dict(model.state_dict())
    assert again.method == model.method
    assert again.gradient == model.gradient
    assert again.density == model.density
    assert type(again.potentials) is type(model.potentials)
    batch = batch_of(digits)
    losses = []
    for each in (model, again):
        torch.manual_seed(0)
        losses.append(sum(each.loss(batch).values()).item())
    assert losses[0] == losses[1]


def test_the_discrete_path_term_uses_the_steps_taken(digits):
    """The path term of the loss is that of the trace with the same draws."""
    model = FlowVAE.build(
        digits.names,
        latent_dim=4,
        width=8,
        method={"name": "euler", "steps": 1},
        density="discrete",
        objective={"path_kl": 1.0, "hamilton_jacobi": 0.0},
    )
    batch = batch_of(digits)
    torch.manual_seed(3)
    found = model.loss(batch)["path_kl"]
    torch.manual_seed(3)
    posterior = model.encode(batch.frames[:, 0])
    times = torch.arange(9.0)
    u = model.potentials.select(batch.labels)
    path = flowfactor.trace(
        posterior.rsample(), u, times, method=model.method, log_density="discrete"
    )
    expected = path_kl_estimate(
        posterior.entropy(), model.prior, path.z, path.log_det, batch.labels, times
    )
    torch.testing.assert_close(found, expected[1:].sum(0).mean())


def test_networks_of_ones_own(model, digits):
    mine = FlowVAE(model.encoder, model.decoder, model.potentials, model.image_shape)
    assert set(mine.loss(batch_of(digits))) == {"reconstruction", "kl", "hamilton_jacobi"}
    with pytest.raises(TypeError, match="state_dict"):
        mine.spec()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (3, 30, 28)}, "divisible by 4"),
        ({"observation": "poisson"}, "bernoulli"),
        ({"force": "gravity"}, "zero"),
        ({"objective": {"beta": -1.0}}, "beta"),
        ({"objective": {"path_kl": float("nan")}}, "path_kl"),
        ({"method": {"name": "rk5"}}, "rk4"),
        ({"horizon": 0}, "last|horizon"),
        ({"potential": "gp"}, "ridge, mlp"),
        ({"rank": -1}, "rank"),
        ({"density": "discrete"}, r"method=Euler\(steps=n\)"),
        ({"encoder": {"channels": []}}, "channels"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(FlowVAE.build)(**{"names": ("a",), **options})


def test_bad_density(model):
    networks = (model.encoder, model.decoder, model.potentials)
    with pytest.raises(ValueError, match="'integral' or 'discrete'"):
        unchecked(FlowVAE.__init__)(model, *networks, density="exact")


def test_images_of_another_size(model):
    with pytest.raises(ValueError, match="3, 28, 28"):
        model.encode(torch.rand(2, 1, 28, 28))


def test_sequences_may_be_longer_than_those_trained_on(model):
    films = SequenceBatch.full(torch.rand(3, 13, 3, 28, 28), torch.tensor([0, 1, 2]))
    assert torch.isfinite(sum(model.loss(films).values()))
