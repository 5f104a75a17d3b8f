"""Training without being told the transformation: schedule, responsibilities, names afterwards."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flowfactor.data import Recordings, SequenceBatch, Sprites, Unlabelled
from flowfactor.errors import DataError
from flowfactor.inference import Inference, TransformationPosterior
from flowfactor.metrics import equivariance_error, infer_labels, match_flows
from flowfactor.models import WeakFlowVAE

SHAPE = (3, 16, 16)


def make_model(flows: int = 3, **inference) -> WeakFlowVAE:
    torch.manual_seed(0)
    return WeakFlowVAE.build(
        [f"flow {k}" for k in range(flows)],
        SHAPE,
        latent_dim=4,
        width=8,
        encoder={"channels": [4, 8], "hidden": 16},
        decoder={"kind": "mlp", "hidden": [16]},
        inference=inference,
    )


def films(count: int = 6, labels: int = -1) -> SequenceBatch:
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(count, 9, *SHAPE, generator=generator)
    sequences = SequenceBatch.full(frames, torch.zeros(count, dtype=torch.long))
    return dataclasses.replace(sequences, labels=torch.full((count,), labels))


def test_phases_of_enumeration() -> None:
    model = make_model(warmup=2, anneal=2, refresh=3).train()
    for step in range(10):
        model.zero_grad()
        terms = model.loss(films())
        assert ("hamilton_jacobi" in terms) == (step >= 2), step
        torch.stack(list(terms.values())).sum().backward()
        # The network is taught while all flows are compared.
        taught = step in (2, 3, 6, 9)
        gradient = model.inference_network.logits.weight.grad
        assert bool((gradient != 0).any()) == taught, step
    assert int(model.trained_steps) == 10
    assert float(model.first_temperature) >= 2.0


@pytest.mark.parametrize("estimator", ["enumerate", "gumbel"])
def test_every_estimator_reaches_every_parameter(estimator: str) -> None:
    model = make_model(estimator=estimator, warmup=0, anneal=5).train()
    torch.stack(list(model.loss(films(24)).values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_a_labelled_batch_costs_what_full_supervision_costs() -> None:
    model = make_model(warmup=0, anneal=0, refresh=1).eval()
    labelled = films(labels=1)
    torch.manual_seed(3)
    told = model.loss(labelled)
    torch.manual_seed(3)
    supervised = super(WeakFlowVAE, model).loss(labelled)
    for name, value in supervised.items():
        assert torch.equal(told[name], value)


def test_arranging_renames_without_changing_anything() -> None:
    model = make_model().eval()
    with torch.no_grad():
        model.inference_network.logits.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    before = [model.flow(z, k, 2.0) for k in range(3)]
    log_q = model.infer(films())
    model.arrange([2, 0, 1], ["a", "b", "c"])
    assert model.names == ("a", "b", "c")
    for new, old in enumerate([2, 0, 1]):
        torch.testing.assert_close(model.flow(z, new, 2.0), before[old])
    torch.testing.assert_close(model.infer(films()), log_q[:, [2, 0, 1]])
    again = WeakFlowVAE.build(**model.spec())
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval().flow(z, "a", 2.0), before[2])
    with pytest.raises(ValueError, match=r"permutation of 0\.\.2"):
        model.arrange([0, 0, 1], ["a", "b", "c"])
    with pytest.raises(ValueError, match="3 different ones"):
        model.arrange([0, 1, 2], ["a", "a", "c"])


def test_matching_is_the_best_assignment() -> None:
    model = make_model(4).eval()
    answers = torch.tensor([2, 2, 2, 0, 0, 3, 2, 1, 1])

    def infer(sequences: SequenceBatch) -> torch.Tensor:
        return torch.nn.functional.one_hot(answers, 4).float()

    model.infer = infer  # type: ignore[method-assign]
    sequences = dataclasses.replace(films(9), labels=torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    matching = match_flows(model, [sequences], 3)
    assert matching.flow_of == (2, 0, 1)
    assert matching.order == (2, 0, 1, 3)
    assert matching.accuracy == pytest.approx(7 / 9)
    assert matching.purity == pytest.approx(8 / 9)
    with pytest.raises(ValueError, match="5 transformations cannot each have a flow"):
        match_flows(model, [sequences], 5)
    with pytest.raises(ValueError, match="must all have their label"):
        match_flows(model, [films(9)], 3)


def test_what_has_no_label_undergoes_the_likeliest_flow() -> None:
    model = make_model(3).eval()
    frames = torch.rand(6, 9, *SHAPE, generator=torch.Generator().manual_seed(1))
    unknown = Recordings(frames, names=["turn", "grow"])
    most_likely = model.infer(unknown.sample(range(6))).argmax(-1)
    inferred = infer_labels(model, unknown, batch_size=4)
    assert torch.equal(inferred.labels, most_likely)
    assert inferred.names == model.names
    # Flows that no sequence has are left out of the errors.
    errors = equivariance_error(model, inferred)
    assert list(errors) == [model.names[k] for k in most_likely.unique().tolist()]

    labels = torch.tensor([1, -1, 0, -1, 1, 0])
    some = unknown.relabelled(["turn", "grow"], labels)
    with pytest.raises(ValueError, match="the first of them must be the same"):
        infer_labels(model, some)
    model.arrange([0, 1, 2], ["turn", "grow", "spare"])
    expected = torch.where(labels < 0, most_likely, labels)
    assert torch.equal(infer_labels(model, some).labels, expected)


def test_hidden_factors() -> None:
    data = Sprites(500, 16, horizon=8)
    hidden = Unlabelled(data)
    assert hidden.sample([0, 1], 0).labels.tolist() == [-1, -1]
    assert hidden.names == data.names
    some = Unlabelled(data, labelled_fraction=0.5)
    kept = some.sample(range(200), 1).labels
    assert set(kept.tolist()) == {-1, 1}
    assert 60 < int((kept == 1).sum()) < 140
    with pytest.raises(DataError, match="labelled_fraction must be in"):
        Unlabelled(data, 1.5)


def test_inferred_errors_need_a_model_that_infers() -> None:
    data = Sprites(6, 16, horizon=8)
    model = make_model(5).eval()
    model.arrange(range(5), data.names)
    given = equivariance_error(model, data)
    inferred = equivariance_error(model, data, choose="inferred")
    assert set(given) == set(inferred) == set(data.names)


def test_bad_options() -> None:
    for options, message in (
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"refresh": 0}, "refresh must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"weight": -1.0}, "weight must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            Inference(**options)
    network = TransformationPosterior(SHAPE, 3, 8)
    with pytest.raises(ValueError, match="at least two"):
        network(torch.rand(2, 1, *SHAPE), torch.zeros(2, 1, dtype=torch.long))
