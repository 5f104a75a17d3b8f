"""Models in float64, by torch's default or by ``model.double()``: nothing falls back to float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from operations import tensors_in
from small_models import small
from torch.utils._python_dispatch import TorchDispatchMode

from flowfactor import FlowVAE, flow
from flowfactor.data import TransformedImages
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.models import SequenceModel, TraversalModel
from flowfactor.models.traversal import fit_traversals
from flowfactor.registries import MODELS
from flowfactor.training import TrainingOptions, fit, validation_batches


class NothingLost(TorchDispatchMode):
    """Refuses operations that lose digits of float64, or mix it with float32."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given, returned = (
            {x.dtype for x in tensors_in(values)} for values in ((args, kwargs), out)
        )
        if torch.float64 in given:
            assert torch.float32 not in given | returned, function
        return out


@pytest.fixture(params=["default dtype", "double()"])
def make(request) -> Iterator:
    """Return a function that makes a model in float64, in one of the two ways."""
    by_default = request.param == "default dtype"

    def build(kind: str, data: TransformedImages) -> SequenceModel:
        model = small(kind, data.names, data.image_shape, data.horizon)
        return model if by_default else model.double()

    torch.set_default_dtype(torch.float64 if by_default else torch.float32)
    yield build
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", MODELS)
def test_every_model(make, kind: str, digits) -> None:
    model = make(kind, digits)
    if isinstance(model, TraversalModel):
        fit_traversals(model, [digits.in_dtype(torch.float64).sample(range(12))])
    batch = digits.in_dtype(torch.float64).sample([0, 1, 2, 3])
    if not model.supervised:
        batch = dataclasses.replace(batch, labels=None)
    with NothingLost():
        z = model.represent(batch.frames[:, 0])
        moved = model.flow(z, 1, 2.5)
        film = model.decode(moved)
        terms = model.loss(batch)
        sum(terms.values()).backward()
    results = [z, moved, film, *terms.values()]
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert {x.dtype for x in results + grads} == {torch.float64}


@pytest.mark.parametrize(("kind", "images"), [("flow_vae", 2), ("slow_vae", 10)])
def test_from_training_to_evaluation(make, kind: str, images: int, digits, tmp_path) -> None:
    model = make(kind, digits)
    options = TrainingOptions(
        steps=1, validate_every=1, warmup=1, batch_size=6, loggers=(), accelerator="cpu"
    )
    metrics = {"log_likelihood": {"sequences": 2, "samples": 2}, "paths": {}}
    if images == 10:
        metrics["predictability"] = {"epochs": 1, "width": 2}
    fit(model, digits, digits, options, tmp_path)
    fit(model, digits, digits, options, tmp_path, resume=True)  # its state can be read again
    trained = list(validation_batches(model.match_precision(digits), 6))
    with NothingLost():
        model.finish(trained, trained)
        evaluation = evaluate(
            model.eval(), digits, EvaluationOptions(images=images, metrics=metrics)
        )
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert metrics.keys() <= evaluation.metrics.keys()


def test_both_ways_agree(digits) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = small("flow_vae", digits.names, digits.image_shape, digits.horizon)
        x = torch.rand(4, *digits.image_shape)
        expected = readme(model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    other = small("flow_vae", digits.names, digits.image_shape, digits.horizon).double()
    other.load_state_dict(model.state_dict())
    for ours, theirs in zip(readme(other, x), expected, strict=True):
        assert ours.dtype == theirs.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def readme(model: FlowVAE, x: torch.Tensor) -> list[torch.Tensor]:
    """What the example in README does."""
    z, u = model.represent(x), model.potentials
    both = u["rotation"] + 0.5 * u["hue"]
    moved = flow(z, both, 5.0)
    path = model.trace(z, "hue", torch.arange(9.0), log_density=True)
    back = flow(moved, both, [5.0, 0.0])[-1]
    return [z, moved, back, path.z, path.log_det, model.decode(path.z[:, 0])]
