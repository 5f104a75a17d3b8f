"""Other fields for a latent, how many of them, and likelihoods of sequences of any activity."""

import dataclasses
import math

import pytest
import torch
from small_models import HORIZON, NAMES, films, small

from experiments.scripts import mixed_likelihood, refit_fields
from flowfactor.models import fit_traversals


@pytest.fixture
def encoded():
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(12, HORIZON + 1, 4, generator=generator)
    return means, torch.full_like(means, 0.3)


@pytest.mark.parametrize(("change", "count"), [({}, 2), ({"flows": 3, "prior.stay": 0.0}, 3)])
def test_new_fields_explain_what_is_encoded(encoded, change, count):
    model = small("sparse_flow_vae").teacher
    truth = torch.ones(12, HORIZON, len(NAMES))
    known = {"trained": (*encoded, truth), "pairs": (*encoded, truth)}
    before = refit_fields.measure(refit_fields.fit(model, encoded, change, 1, 0), known)[0]
    other = refit_fields.fit(model, encoded, change, 25, 0)
    found, evidence = refit_fields.measure(other, known)
    assert len(other.speed) == count
    assert found["evidence"] > before["evidence"]
    assert evidence.shape == (12,)
    assert not (other.potentials.directions[:2] == model.potentials.directions).all()


def test_another_inference_leaves_the_fields_alone(encoded):
    model = small("sparse_flow_vae").teacher
    gaps = []
    for steps in (1, 25):
        other = refit_fields.infer_otherwise(model, encoded, "amortised", steps, 0)
        for name, value in model.potentials.state_dict().items():
            torch.testing.assert_close(other.potentials.state_dict()[name], value)
        exact = refit_fields.infer_otherwise(model, encoded, "exact", 0, 0).posterior(*encoded)
        with torch.no_grad():
            gaps.append((exact.evidence - other.posterior(*encoded).evidence).mean())
    assert gaps[0] > gaps[1]  # the network learns


def test_evidence_chooses_the_fewest_fields_that_are_not_clearly_worse():
    noise = torch.linspace(-1, 1, 100)
    luck = torch.tensor([0.0, 0.05])
    evidence = {2: noise - 1, 3: noise, 4: noise + 0.01 * noise.flip(0) + 0.0005, 5: noise}
    assert refit_fields.choose_count({count: [each] for count, each in evidence.items()}) == 3
    for more, chosen in ((0.05, 3), (0.2, 4)):  # starts differ by 0.05
        starts = [noise - each for each in luck]
        evidence = {3: starts, 4: [each + more for each in starts]}
        assert refit_fields.choose_count(evidence) == chosen


@pytest.mark.parametrize(
    ("kind", "suppositions"),
    [
        ("sparse_flow_vae", {"apart", "still", "one_flow", "inferred", "told"}),
        ("flow_vae", {"apart", "still", "one_flow", "told"}),
        ("vae", {"apart", "still", "one_flow"}),
    ],
)
def test_likelihoods_by_what_is_supposed(kind, suppositions):
    model = small(kind).eval()
    if kind == "vae":
        fit_traversals(model, [films()])
    nothing = dataclasses.replace(films(), activity=torch.zeros(6, HORIZON, len(NAMES)))
    found = mixed_likelihood.measure(model, nothing, 3)
    assert set(found) == suppositions
    assert all(nats.shape == (6,) and bool(nats.isfinite().all()) for nats in found.values())
    if "told" in found:
        torch.testing.assert_close(found["told"], found["still"], rtol=1e-5, atol=1e-3)
        first = nothing.activity.clone()
        first[..., 0] = 1
        told = mixed_likelihood.measure(model, dataclasses.replace(nothing, activity=first), 3)
        assert bool((told["one_flow"] >= told["told"] - math.log(len(NAMES)) - 1e-3).all())
