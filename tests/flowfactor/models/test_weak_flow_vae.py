"""Training without labels: schedule, responsibilities, names afterwards."""

import pytest
import torch
from small_models import films, small

from flowfactor.inference import TransformationPosterior
from flowfactor.models import FlowVAE, WeakFlowVAE

UNKNOWN = [-1] * 6


def weak(flows=3, **inference):
    return small("weak_flow_vae", flows=flows, inference=inference)


def test_phases_of_enumeration():
    model = weak(warmup=2, anneal=2, refresh=3)
    for step in range(10):
        model.zero_grad()
        model.on_step(step)
        terms = model.loss(films(labels=UNKNOWN))
        assert ("hamilton_jacobi" in terms) == (step >= 2), step
        torch.stack(list(terms.values())).sum().backward()
        # The network is taught while all flows are compared.
        taught = step in (2, 3, 6, 9)
        gradient = model.inference_network.logits.weight.grad
        assert bool((gradient != 0).any()) == taught, step
    assert float(model.first_temperature) >= 2.0


def test_weights_begin_anew_when_the_flows_are_told_apart():
    model = weak(warmup=1, anneal=2, restart=True)
    other = weak(warmup=1, anneal=2, restart=True)
    other.restart_seed += 1
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = {name: each.clone() for name, each in model.named_parameters()}
    for step in (0, 1, 2, 4):
        model.on_step(step)
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
    state = torch.get_rng_state()
    for each in (model, model, other):  # as after an interruption in that step
        each.on_step(3)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        kept = name.startswith("inference_network.")
        assert torch.equal(parameter, before[name]) == kept, name
        assert kept or torch.equal(parameter, other.get_parameter(name)), name


@pytest.mark.parametrize("estimator", ["enumerate", "gumbel"])
def test_every_estimator_reaches_every_parameter(estimator):
    model = weak(estimator=estimator, warmup=0, anneal=5)
    torch.stack(list(model.loss(films(24, labels=[-1] * 24)).values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_a_labelled_batch_costs_what_full_supervision_costs():
    model, labelled = weak(warmup=0, anneal=0, refresh=1).eval(), films()
    losses = []
    for kind in (WeakFlowVAE, FlowVAE):
        torch.manual_seed(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "choose", lambda batch: batch.labels)
            losses.append(kind.loss(model, labelled))
    assert losses[0] == losses[1]


def test_labels_decide_the_responsibilities():
    """The cost of a batch whose labels are all known is that of these flows alone."""
    model = weak(flows=2, warmup=0, anneal=4)
    terms = []
    for labels in ([0] * 6, [1] * 6, [0] * 3 + [1] * 3, UNKNOWN):
        torch.manual_seed(3)
        terms.append(model.loss(films(labels=labels))["reconstruction"].item())
    zeros, ones, some, unknown = terms
    assert zeros != ones
    assert min(zeros, ones) < some < max(zeros, ones)
    assert min(zeros, ones) <= unknown <= max(zeros, ones)


def test_arranging_renames_without_changing_anything():
    model = weak().eval()
    with torch.no_grad():
        model.inference_network.logits.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    z = torch.randn(5, 4)
    before, log_q = [model.flow(z, k, 2.0) for k in range(3)], model.infer(films())
    assert model.names == ("flow 1", "flow 2", "flow 3")
    model.arrange([2, 0, 1], ["a", "b", "c"])
    for new, old in enumerate([2, 0, 1]):
        torch.testing.assert_close(model.flow(z, new, 2.0), before[old])
    torch.testing.assert_close(model.infer(films()), log_q[:, [2, 0, 1]])
    again = WeakFlowVAE.from_spec(model.spec())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval().flow(z, "a", 2.0), before[2])
    for order, names in (([0, 0, 1], ["a", "b", "c"]), ([0, 1, 2], ["a", "a", "c"])):
        with pytest.raises(ValueError, match=r"order|names"):
            model.arrange(order, names)


@pytest.mark.parametrize("labelled", [True, False])
def test_finish_orders_and_names_the_flows(labelled, monkeypatch):
    model = weak().eval()
    answers = torch.tensor([2, 2, 0, 0, 2, 1])
    monkeypatch.setattr(model, "choose", lambda batch: answers[: len(batch)])
    labels = [0, 0, 1, 1, 1, -1] if labelled else UNKNOWN
    z = torch.randn(2, 4)
    moved = model.flow(z, 2, 1.0)
    facts = model.finish([], [films(labels=labels)])["matching"]
    assert torch.equal(model.flow(z, 0, 1.0), moved)
    if labelled:
        assert model.names == ("left", "right", "spare 1")
        assert facts["accuracy"] == pytest.approx(4 / 5)
        assert facts["counts"] == [[2, 0, 0], [1, 2, 0]]
    else:
        assert model.names == ("flow 1", "flow 2", "flow 3")
        assert facts["counts"] == [[3, 2, 1]]


def test_only_the_time_between_frames_tells_the_transformation():
    network = TransformationPosterior((1, 8, 8), 3, 8)
    frames, times = torch.rand(2, 3, 1, 8, 8), torch.tensor([[0, 3, 5], [0, 1, 2]])
    found = network(frames, times)
    torch.testing.assert_close(network(frames, times + 2), found)
    assert not torch.allclose(network(frames, times.flip(1)), found)


def test_a_single_frame_shows_no_transformation():
    network = TransformationPosterior((1, 8, 8), 3, 8)
    with pytest.raises(ValueError, match="at least two"):
        network(torch.rand(2, 1, 1, 8, 8), torch.zeros(2, 1, dtype=torch.long))
