"""Every model trains, saves, loads, moves and is measured through one interface."""

import pytest
import torch
from small_models import small

import flowfactor
from flowfactor.checkpoints import save_model
from flowfactor.data import SequenceLoader
from flowfactor.metrics import equivariance_error, log_likelihood, superposition_error
from flowfactor.models import MODELS, TraversalModel, fit_traversals
from flowfactor.training import TrainingOptions, fit, validation_batches


@pytest.mark.parametrize("kind", MODELS)
def test_from_training_to_metrics(kind, digits, tmp_path):
    model = small(kind, digits.names, digits.image_shape, digits.horizon)
    validation = list(validation_batches(digits, 3))
    options = TrainingOptions(steps=3, warmup=1, validate_every=3, average=0.5)
    result = fit(model, SequenceLoader(digits, 6), validation, options, tmp_path)
    assert result.steps == 3
    trained = flowfactor.load(tmp_path)
    if isinstance(trained, TraversalModel):
        learned = fit_traversals(trained, validation, images=1, ranges=[1.0])
        assert sorted(learned.mean) == sorted(digits.names)
        save_model(trained, tmp_path)
    again = flowfactor.load(tmp_path)
    assert type(again) is MODELS[kind]
    assert again.names == digits.names
    x = validation[0].frames[:, 0]
    z = trained.encode(x).mean
    assert torch.equal(again.encode(x).mean, z)
    for k, t in (("hue", 2.5), (1, [0.0, 1.0, 3.0]), (torch.tensor([2, 0, 1]), -1.0)):
        with torch.no_grad():
            moved = trained.flow(z, k, t)
            assert torch.equal(again.flow(z, k, t), moved)
            assert moved.shape == ((3, *z.shape) if isinstance(t, list) else z.shape)
            assert torch.isfinite(again.decode(moved.reshape(-1, z.shape[1]))).all()
    errors = equivariance_error(again, digits, range(2), frames=2)
    assert list(errors) == list(digits.names)
    assert all(torch.isfinite(error.flow).all() for error in errors.values())
    assert torch.isfinite(log_likelihood(again, validation[0], samples=2)).all()
    if isinstance(again, TraversalModel):
        with pytest.raises(ValueError, match="no potentials"):
            superposition_error(again, digits, indices=range(2), frames=2)
    else:
        assert superposition_error(again, digits, indices=range(2), frames=2)
