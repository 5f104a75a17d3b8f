"""Everything is computed on the device of the model, and without float64 where there is none."""

import dataclasses

import numpy as np
import pytest
import torch
from elsewhere import accelerator
from small_models import small
from torch import Tensor

from experiments.benchmarks.gpu_check import numbers
from flowfactor import diagnostics, machine
from flowfactor.checkpoints import load
from flowfactor.data import IMAGE_TRANSFORMATIONS, TransformedImages
from flowfactor.diagnostics.explorer import Explorer
from flowfactor.errors import ConfigError
from flowfactor.evaluation import EvaluationOptions, evaluate
from flowfactor.models import TraversalModel, fit_traversals
from flowfactor.registries import METRICS, MODELS
from flowfactor.training import TrainingOptions, decide, make_fabric

OPTIONS = {
    "poflow": {"wave": 0.0, "jacobian": 0.0},  # derivatives in forward mode cannot be played
}
# What each model can be measured by, as far as it is quick where every operation is watched.
MEASURED = {
    "flow_vae": {
        "equivariance": {},
        "extrapolation": {},
        "log_likelihood": {"sequences": 2, "samples": 2},
        "paths": {},
    },
    "slow_vae": {"traversals": {}},
    "sparse_flow_vae": {"activity": {}},
}


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 1, 8, 8), generator=generator, dtype=torch.uint8)
    few = {name: IMAGE_TRANSFORMATIONS[name] for name in ("rotation", "hue")}
    return TransformedImages(images, horizon=2, transformations=few)


def make(kind, data):
    return small(kind, data.names, data.image_shape, data.horizon, **OPTIONS.get(kind, {}))


def same_numbers(found, expected):
    for ours, theirs in zip(numbers(found), numbers(expected), strict=True):
        assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-6, equal_nan=True)


def everything(model, data):
    """Return what a model makes of data: losses with their gradients, flows, films, facts."""
    batch, found = data.sample([0, 1, 2, 3]), {}
    given = batch if model.supervised else dataclasses.replace(batch, labels=None)
    for step in {0, model.schedule_steps}:
        torch.manual_seed(step)
        model.train().on_step(step)
        terms = model.loss(given)
        torch.stack(list(terms.values())).sum().backward()
        found |= {f"{name} {step}": value.detach() for name, value in terms.items()}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found["finished"] = model.finish([batch], [batch])
    with torch.no_grad():
        z = model.eval().represent(batch.frames[:, 0])
        found["film"] = model.decode(model.flow(z, batch.labels, -1.0))
    found["measured"] = model.measure(batch, [batch])
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_every_model(kind, data):
    expected = everything(make(kind, data), data)
    with accelerator() as device:
        found = everything(make(kind, data).to(device), data.to(device))
        assert {x.device for x in found.values() if isinstance(x, Tensor)} == {device}
        same_numbers(found, expected)


@pytest.mark.parametrize("kind", MEASURED)
def test_metrics(kind, data):
    options = EvaluationOptions(images=2, metrics=dict.fromkeys(METRICS, False) | MEASURED[kind])
    model = make(kind, data).eval()
    if isinstance(model, TraversalModel):
        fit_traversals(model, [data.sample(range(12))])
    expected = evaluate(model, data, options)
    assert expected.metrics.keys() == MEASURED[kind].keys()
    with accelerator() as device:
        # The data may still be where it was read.
        found = evaluate(model.to(device), data, options)
    same_numbers(found.metrics, expected.metrics)


def pictures(model, data):
    """Return the numbers behind figures, and what a page of the explorer shows."""
    batch = data.sample([0, 1])
    images = batch.frames[:, 0]
    yield diagnostics.film_strip_data(model, batch, identity=True)
    yield diagnostics.landscape_data(model, images[:1], "hue", resolution=5)
    explorer, both = Explorer(model), {"hue": 1.0, "rotation": -0.5}
    z = explorer.encode(images[0])
    yield explorer.view(z, both, 1.0, explorer.window(z, "hue", "rotation"))


def test_figures(data):
    expected = list(pictures(make("flow_vae", data).eval(), data))
    with accelerator() as device:
        found = list(pictures(make("flow_vae", data).eval().to(device), data))
        same_numbers(found, expected)


# ---- names of devices


def test_devices_by_name(monkeypatch):
    assert machine.devices() == ("cpu",)
    assert machine.find_device() == machine.find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.devices() == ("cuda:0", "cuda:1", "cpu")
    assert machine.find_device("auto") == torch.device("cuda")
    assert machine.find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"cuda:2 .* cuda:0, cuda:1, cpu"):
        machine.find_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "toaster"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ConfigError, match="cpu"):
        machine.find_device(name)
    with pytest.raises(ConfigError, match="cpu"):
        load("sprites", device=name)
    with pytest.raises(ConfigError, match="accelerator"):
        make_fabric(TrainingOptions(accelerator=name))


def test_one_device_is_for_one_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    options = TrainingOptions(accelerator="cuda:1", devices=2, precision="32-true", threads=1)
    with pytest.raises(ConfigError, match="cuda:1"):
        make_fabric(options)
    with pytest.raises(ConfigError, match="accelerator"):  # it is only announced here
        make_fabric(dataclasses.replace(options, devices=1))


@pytest.mark.parametrize("torchrun", [False, True])
def test_several_processes_do_not_measure_their_precision(monkeypatch, torchrun):
    options = TrainingOptions(accelerator="cpu", devices=1 if torchrun else 2)
    if torchrun:
        numbers = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for key, value in {"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0", **numbers}.items():
            monkeypatch.setenv(key, value)
    decided, reasons = decide(options)
    assert decided.precision == "32-true"
    assert "several processes" in reasons["precision"]


def test_processes_that_cannot_be_started(monkeypatch):
    def fail(_):
        raise RuntimeError("no free port")

    monkeypatch.setattr("lightning_fabric.Fabric.launch", fail)
    with pytest.raises(ConfigError, match="no free port"):
        make_fabric(TrainingOptions(accelerator="cpu", precision="32-true", threads=1))
