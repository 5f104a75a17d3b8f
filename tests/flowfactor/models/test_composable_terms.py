"""The terms that make flows fit together: consistency with the encoder, and the commutator."""

import dataclasses

import pytest
import torch
from torch.distributions import kl_divergence

import flowfactor
from flowfactor.commutator import lie_bracket
from flowfactor.data import SequenceBatch
from solvers import RK4

NAMES = ("a", "b", "c")


def build(**weights):
    torch.manual_seed(0)
    return flowfactor.FlowVAE.build(
        NAMES,
        (1, 8, 8),
        horizon=4,
        latent_dim=4,
        width=8,
        encoder={"channels": [4], "hidden": 16},
        decoder={"kind": "mlp", "hidden": [16]},
        objective={"hamilton_jacobi": 0.0, **weights},
    )


def films(count=6, still=False):
    frames = torch.rand(count, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    if still:
        frames = frames[:, :1].expand(-1, 5, -1, -1, -1)
    return SequenceBatch.full(frames, torch.arange(count) % 3)


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
    posterior = model.encode(many.frames[:, 0])
    costs = model.costs(many, many.labels, posterior.entropy(), posterior.sample())
    return costs["consistency"].view(repeats, -1).mean(0)


def test_a_model_at_rest_on_still_films_is_consistent():
    model = build(consistency=1.0)
    stand_still(model)
    assert estimate(model, films(still=True), 1000).abs().max() < 0.7


def test_consistency_is_the_divergence_from_the_posterior_of_the_later_frames():
    """At rest q_t = q(. | x_0), so that the divergence is one of two normals."""
    model, sequences = build(consistency=0.5), films()
    stand_still(model)
    first = model.encode(sequences.frames[:, 0])
    expected = sum(
        kl_divergence(first.base_dist, model.encode(sequences.frames[:, t]).base_dist).sum(-1)
        for t in range(1, 5)
    )
    found = estimate(model, sequences, 1000)
    torch.testing.assert_close(found, 0.5 * expected.detach(), rtol=0.1, atol=0.4)


def test_consistency_knows_the_volume_of_the_flow():
    """A flow that spreads the latent has a density to match: log|det| must be in it."""
    model, sequences = build(consistency=1.0), films(still=True)
    torch.manual_seed(3)
    posterior = model.encode(sequences.frames[:, 0])
    z0, times = posterior.sample(), torch.arange(5.0)
    found = model.costs(sequences, sequences.labels, posterior.entropy(), z0)["consistency"]
    path, log_det = model.flow(z0, sequences.labels, times, log_density=True)
    expected = sum(
        -posterior.entropy() - log_det[t] - posterior.log_prob(path[t]) for t in range(1, 5)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_some_of_the_frames_estimate_all_of_them():
    model, sequences = build(consistency=1.0), films(2)
    posterior = model.encode(sequences.frames[:, 0])
    z0, entropy = posterior.sample(), posterior.entropy()
    whole = model.costs(sequences, sequences.labels, entropy, z0)["consistency"]
    parts = []
    for t in range(1, 5):
        chosen = dataclasses.replace(
            sequences, frames=sequences.frames[:, [0, t]], times=sequences.times[:, [0, t]]
        )
        parts.append(model.costs(chosen, chosen.labels, entropy, z0)["consistency"])
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-3)


def test_reversal_is_the_likelihood_of_frame_0_after_the_way_back():
    model, sequences = build(reversal=2.0), films()
    # A posterior without spread.
    model._posterior = lambda x: (model.encoder(x)[:, :4], torch.full((len(x), 4), -30.0))
    possible = []
    for t in range(1, 5):
        z = model.encode(sequences.frames[:, t]).mean
        back = model.flow(z, sequences.labels, [float(t), 0.0], method=RK4(steps=20))[-1]
        logits = model.decode_logits(back)
        possible.append(-2.0 * model.observation.log_prob(logits, sequences.frames[:, 0]))
    possible = torch.stack(possible)
    seen = set()
    for _ in range(30):
        found = model.reversal(sequences, sequences.labels)["reversal"]
        distance, at = (possible - found).abs().min(0)
        assert (distance < 1e-4 * found).all()
        seen |= set(at.tolist())
    assert seen == {0, 1, 2, 3}


def test_reversal_reaches_encoder_decoder_and_potentials():
    model = build(reversal=1.0)
    model.loss(films())["reversal"].backward()
    for part in (model.encoder, model.decoder, model.potentials):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


def test_commutator_is_a_squared_bracket_with_another_flow():
    model, sequences = build(commutator=2.0), films()
    posterior = model.encode(sequences.frames[:, 0])
    z0 = posterior.sample()
    path = model.flow(z0, sequences.labels, torch.arange(5.0))
    possible = [
        2.0 * lie_bracket(model.potentials.select(sequences.labels),
                          model.potentials.select((sequences.labels + step) % 3),
                          path[t], float(t)).square().sum(-1)
        for t in range(5)
        for step in (1, 2)
    ]  # fmt: skip
    for _ in range(20):
        found = model.costs(sequences, sequences.labels, posterior.entropy(), z0)["commutator"]
        distance = (torch.stack(possible) - found).abs().min(0).values
        assert (distance < 1e-6 + 1e-4 * found).all()


def test_the_commutator_teaches_the_potentials_alone():
    model, sequences = build(commutator=1.0), films()
    model.loss(sequences)["commutator"].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.encoder.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.potentials.parameters())


def test_a_single_transformation_has_nothing_to_commute_with():
    with pytest.raises(ValueError, match="at least two"):
        flowfactor.FlowVAE.build(("a",), latent_dim=2, width=4, objective={"commutator": 1.0})
