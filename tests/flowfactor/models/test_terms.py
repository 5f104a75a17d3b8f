"""The terms that make flows fit together: consistency with the encoder, and the commutator."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_models import NAMES, choose_frames, films, small
from torch import nn
from torch.distributions import kl_divergence

from flowfactor.commutator import lie_bracket
from flowfactor.data import SequenceBatch
from flowfactor.models import Objective, terms
from flowfactor.transport import transport_terms
from solvers import RK4


def build(names=NAMES, **weights):
    return small("flow_vae", names, objective={"hamilton_jacobi": 0.0, **weights})


def still_films():
    frames = films().frames[:, :1].expand(-1, 4, -1, -1, -1)
    return SequenceBatch.full(frames, torch.arange(6) % 2)


def stand_still(model):
    with torch.no_grad():
        for parameter in model.potentials.parameters():
            parameter.zero_()


@torch.no_grad()
def estimate(model, sequences, repeats):
    """The mean over many draws of the latent, for each sequence."""
    many = dataclasses.replace(
        sequences,
        frames=sequences.frames.repeat(repeats, 1, 1, 1, 1),
        times=sequences.times.repeat(repeats, 1),
        labels=sequences.labels.repeat(repeats),
    )
    cost = terms.consistency(model.context(many, many.labels))
    return cost.view(repeats, -1).mean(0)


def test_a_model_at_rest_on_still_films_is_consistent():
    model = build(consistency=1.0)
    stand_still(model)
    assert estimate(model, still_films(), 1000).abs().max() < 0.7


def test_consistency_is_the_divergence_from_the_posterior_of_the_later_frames():
    """At rest q_t = q(. | x_0), so that the divergence is one of two normals."""
    model, sequences = build(consistency=0.5), films()
    stand_still(model)
    first = model.encode(sequences.frames[:, 0])
    expected = sum(
        kl_divergence(first.base_dist, model.encode(sequences.frames[:, t]).base_dist).sum(-1)
        for t in range(1, 4)
    )
    found = estimate(model, sequences, 1000)
    torch.testing.assert_close(found, expected.detach(), rtol=0.1, atol=0.6)


def test_consistency_knows_the_volume_of_the_flow():
    """A flow that spreads the latent has a density to match: log|det| must be in it."""
    model, sequences = build(consistency=1.0), still_films()
    context = model.context(sequences, sequences.labels)
    posterior, found = context.posterior, terms.consistency(context)
    path = model.trace(context.z0, sequences.labels, torch.arange(4.0), log_density=True)
    expected = sum(
        -posterior.entropy() - path.log_det[t] - posterior.log_prob(path.z[t]) for t in range(1, 4)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["consistency", "path_kl"])
@pytest.mark.parametrize("first", [0, 2])
def test_some_of_the_frames_estimate_all_of_them(first, name):
    """The frame that is encoded is among those that are drawn, and costs nothing then."""
    model, sequences = build(**{name: 1.0}), films(2)
    z0 = model.encode(sequences.frames[:, first]).rsample()

    def cost(times, weight):
        chosen = choose_frames(sequences, [first, *times], later_weight=weight)
        context = model.context(chosen, chosen.labels)
        context.z0 = z0
        return terms.TERMS[name](context)

    whole = cost(range(4), 1.0)
    parts = torch.stack([cost(pair, 2.0) for pair in itertools.combinations(range(4), 2)])
    torch.testing.assert_close(parts.mean(0), whole, rtol=1e-4, atol=1e-3)
    if first == 0:
        context = model.context(sequences, sequences.labels)
        context.z0 = z0
        torch.testing.assert_close(terms.TERMS[name](context), whole, rtol=1e-3, atol=1e-2)


class Read(nn.Module):
    """Latents that are the logits of the first pixels, known almost exactly."""

    def forward(self, x):
        return torch.cat([x[:, 0, 0, :4].logit(), torch.full((len(x), 4), -20.0)], dim=1)


class Write(nn.Module):
    """The opposite of :class:`Read`."""

    def forward(self, z):
        return F.pad(z, (0, 60)).view(-1, 1, 8, 8)


def right_model(kind="flow_vae", **options):
    """Return a model whose flows are right, faster from frame to frame, and their sequences."""
    model = small(kind, encoder=Read(), decoder=Write(), solver={"steps": 3}, **options)
    bank = model.potentials
    directions = 0.15 * torch.tensor([[1.0, -1.0, 0.5, 0.0], [-0.5, 1.0, 1.0, 1.0]])
    with torch.no_grad():  # u = t v . z
        bank.coefficients.zero_()
        bank.coefficients[:, 1, 2 * bank.width : 2 * bank.width + 4] = bank.horizon * directions
    labels = torch.arange(6) % 2
    elapsed = (torch.arange(4) ** 2 / 2)[:, None]
    z = torch.randn(6, 1, 4) + directions[labels][:, None] * elapsed
    frames = model.decode(z.flatten(0, 1)).unflatten(0, (6, 4)).detach()
    return model, SequenceBatch.full(frames, labels)


def test_a_flow_that_is_right_is_so_from_every_frame_to_every_other():
    model, sequences = right_model(objective={"reversal": 1.0, "hamilton_jacobi": 1.0})
    expected = model.loss(sequences)["reconstruction"]
    for first in range(4):
        batch = choose_frames(sequences, [first, *range(4)], first_weight=0.0)
        found = model.loss(batch)
        torch.testing.assert_close(found["reconstruction"], expected, rtol=1e-4, atol=0)
        back = model.decode_logits(model.encode(batch.frames[:, 0]).mean)
        there = -model.observation.log_prob(back, batch.frames[:, 0]).mean()
        torch.testing.assert_close(found["reversal"], there, rtol=1e-4, atol=0)
        context = model.context(batch, batch.labels)
        missed = context.z[:, 1:] - context.codes[0]
        noise = (context.z0 - context.posterior.mean).unsqueeze(1).expand_as(missed)
        torch.testing.assert_close(missed, noise, rtol=0, atol=1e-4)


@pytest.mark.parametrize("first", [0, 2])
def test_points_between_frames_are_on_the_path(first):
    model, sequences = right_model(objective={"hamilton_jacobi": 1.0})
    batch = choose_frames(sequences, [first, 3, 1])
    context = model.context(batch, batch.labels)
    between, z0 = context.between, context.z0
    assert between.z.shape == (2, 6, 4)
    for z, t, end in zip(between.z, between.times.T, (3, 1), strict=True):
        assert ((t - first) / (end - first) > 0).all()
        assert ((t - end) / (first - end) > 0).all()
        times = torch.stack([torch.full_like(t, first), t], dim=1)
        torch.testing.assert_close(z, model.flow(z0, batch.labels, times)[-1])
    residual = transport_terms(context.field, between.z[0], between.times[:, 0]).residual
    other = transport_terms(context.field, between.z[1], between.times[:, 1]).residual
    expected = (residual**2 + other**2) / 2
    torch.testing.assert_close(terms.hamilton_jacobi(context), expected)


def test_without_labels_the_right_flow_is_found_from_every_frame():
    inference = {"warmup": 0, "anneal": 0, "refresh": 1, "temperature": 1e-3}
    model, sequences = right_model("weak_flow_vae", inference=inference)
    expected = model.loss(sequences)
    unknown = dataclasses.replace(sequences, labels=None)
    for first in range(4):
        batch = choose_frames(unknown, [first, *range(4)], first_weight=0.0)
        found = model.loss(batch)["reconstruction"]
        torch.testing.assert_close(found, expected["reconstruction"], rtol=1e-3, atol=0)


def test_an_interval_takes_the_steps_that_are_asked_for():
    for steps, evaluations in ((None, 24), (5, 20)):
        model = small("flow_vae", interval_steps=steps, objective={"hamilton_jacobi": 0.0})
        batch = choose_frames(films(), [3, 1])
        context = model.context(batch, batch.labels)
        path = context.reach(context.z0, context.field, *context.times.unbind(1))
        assert path.stats.evaluations == evaluations
        torch.testing.assert_close(path.z[-1], context.z[:, 1])


def test_reversal_is_the_likelihood_of_frame_0_after_the_way_back():
    model, sequences = build(reversal=1.0), films()
    # A posterior without spread.
    model.posterior_parameters = lambda x: (model.encoder(x)[:, :4], torch.full((len(x), 4), -30.0))
    possible = []
    for t in range(1, 4):
        z = model.encode(sequences.frames[:, t]).mean
        back = model.flow(z, sequences.labels, [float(t), 0.0], method=RK4(steps=20))[-1]
        logits = model.decode_logits(back)
        possible.append(-model.observation.log_prob(logits, sequences.frames[:, 0]))
    possible = torch.stack(possible)
    seen = set()
    for _ in range(15):
        found = terms.reversal(model.context(sequences, sequences.labels))
        distance, at = (possible - found).abs().min(0)
        assert (distance < 1e-4 * found).all()
        seen |= set(at.tolist())
    assert seen == {0, 1, 2}


def test_reversal_reaches_encoder_decoder_and_potentials():
    model = build(reversal=1.0)
    model.loss(films())["reversal"].backward()
    for part in (model.encoder, model.decoder, model.potentials):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def test_commutator_is_a_squared_bracket_with_another_flow():
    model = build(commutator=1.0, names=("a", "b", "c"))
    sequences = films(labels=[0, 1, 2, 0, 1, 2])
    context = model.context(sequences, sequences.labels)
    possible = [
        lie_bracket(model.potentials.select(sequences.labels),
                          model.potentials.select((sequences.labels + step) % 3),
                          context.z[:, t], float(t)).square().sum(-1)
        for t in range(4)
        for step in (1, 2)
    ]  # fmt: skip
    for _ in range(10):
        found = terms.commutator(context)
        distance = (torch.stack(possible) - found).abs().min(0).values
        assert (distance < 1e-6 + 1e-4 * found).all()


def test_the_commutator_teaches_the_potentials_alone():
    model, sequences = build(commutator=1.0), films()
    model.loss(sequences)["commutator"].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.encoder.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.potentials.parameters())


def test_weights_are_a_mapping_of_all_terms():
    objective = Objective(path_kl=0.5)
    assert len(objective) == len(list(objective)) > 5
    assert "path_kl=0.5" in repr(objective)
    assert build().options.objective == Objective(hamilton_jacobi=0.0)
    assert small("flow_vae", objective=objective).options.objective["path_kl"] == 0.5


def test_terms_that_need_what_is_not_there():
    model = small("flow_vae", parts="solenoidal", objective={"hamilton_jacobi": 0.0})
    context = SimpleNamespace(field=model.potentials[0])
    with pytest.raises(ValueError, match="hamilton_jacobi"):
        terms.hamilton_jacobi(context)
    alone = choose_frames(films(2), [1])
    with pytest.raises(ValueError, match="second frame"):
        build().train().loss(alone)
