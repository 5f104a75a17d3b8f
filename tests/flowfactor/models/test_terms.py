"""The terms that make flows fit together: consistency with the encoder, and the commutator."""

import dataclasses

import torch
from small_models import NAMES, films, small
from torch.distributions import kl_divergence

from flowfactor.commutator import lie_bracket
from flowfactor.data import SequenceBatch
from flowfactor.models import terms
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


def test_some_of_the_frames_estimate_all_of_them():
    model, sequences = build(consistency=1.0), films(2)
    context = model.context(sequences, sequences.labels)
    whole = terms.consistency(context)
    parts = []
    for t in range(1, 4):
        chosen = dataclasses.replace(
            sequences, frames=sequences.frames[:, [0, t]], times=sequences.times[:, [0, t]]
        )
        part = model.context(chosen, chosen.labels)
        part.z0 = context.z0
        parts.append(terms.consistency(part))
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-3)


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
    path = context.path.z
    possible = [
        lie_bracket(model.potentials.select(sequences.labels),
                          model.potentials.select((sequences.labels + step) % 3),
                          path[t], float(t)).square().sum(-1)
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
