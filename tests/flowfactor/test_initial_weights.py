"""A training that begins with the weights of another one."""

import dataclasses
import logging
import shutil

import pytest
import torch
from small_models import films, small
from toy_data import Tiny

import flowfactor
from flowfactor import checkpoints
from flowfactor.errors import ConfigError, RunError
from flowfactor.training import TrainingOptions, fit

DATA = Tiny(horizon=2)
OPTIONS = TrainingOptions(
    steps=3,
    warmup=1,
    batch_size=4,
    validate_every=2,
    checkpoint_every=2,
    weight_decay=0.1,
    loggers=(),
    accelerator="cpu",
    precision="32-true",
)
NAMES = ("move", "brighten", "odd")


def weak(estimator="fixed", **options):
    inference = {"estimator": estimator, "warmup": 1, "anneal": 0}
    options = {"flows": 3, "inference": inference, **options}
    return small("weak_flow_vae", DATA.names, horizon=2, **options)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Return a run whose flows have names of their own."""
    folder = tmp_path_factory.mktemp("first")
    model = weak("enumerate")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.potentials.names = NAMES
    model.first_temperature.fill_(7)
    flowfactor.save_model(model, folder)
    return folder


def begin(first, model, folder, options=OPTIONS, **more):
    options = dataclasses.replace(options, initial_weights=str(first))
    fit(model, DATA.without_labels(), DATA.without_labels(), options, folder, **more)
    return checkpoints.load(folder)


def test_another_likelihood_for_flows_that_are_chosen_already(first, tmp_path, caplog):
    before, model = flowfactor.load(first), weak(observation="laplace")
    with caplog.at_level(logging.WARNING):
        after = begin(first, model, tmp_path)
    assert "observation.log_scale" in caplog.text
    assert after.names == NAMES
    batch = DATA.sample(range(12))
    assert torch.equal(after.infer(batch), before.infer(batch))
    for name, parameter in model.named_parameters():
        if name.startswith(("decoder.", "potentials.coefficients")):
            assert not torch.equal(parameter, before.get_parameter(name)), name
    facts = after.finish([], [DATA.without_labels().sample(range(12))])
    assert after.names == NAMES
    assert facts["matching"]["flows"] == list(NAMES)


def test_it_goes_on_without_the_other_run(first, tmp_path):
    gone = shutil.copytree(first, tmp_path / "gone")
    short = dataclasses.replace(OPTIONS, steps=2)
    begin(gone, weak(), tmp_path / "run", short)
    shutil.rmtree(gone)
    found = begin(gone, weak(), tmp_path / "run", resume=True)
    assert found.names == NAMES
    with pytest.raises(RunError, match=r"training\.initial_weights"):
        begin(gone, weak(), tmp_path / "other")


def test_what_is_taken_and_what_is_not(first):
    saved = checkpoints.read(checkpoints.model_file(first))["weights"]
    model = weak("enumerate", flows=4)
    drawn = {name: each.clone() for name, each in model.named_parameters()}
    anew = checkpoints.take_weights(model, first)
    assert {name.split(".")[0] for name in anew} == {"inference_network", "potentials", "prior"}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, drawn[name] if name in anew else saved[name]), name
    assert float(model.first_temperature) == 0
    assert model.names == ("flow 1", "flow 2", "flow 3", "flow 4")


def test_flows_that_have_labels_are_named_anew_if_they_are_compared_again(first, monkeypatch):
    for estimator, names in (("enumerate", DATA.names), ("fixed", DATA.names[::-1])):
        model = weak(estimator, flows=2).eval()
        model.potentials.names = names
        model.transformations = names
        monkeypatch.setattr(model, "choose", lambda batch: 1 - batch.labels)
        facts = model.finish([], [films(horizon=2)])["matching"]
        assert model.names == names
        assert facts["accuracy"] == (1 if estimator == "enumerate" else 0)


def test_what_cannot_begin_so(first, tmp_path):
    supervised = small("flow_vae", ("brighten", "move"), horizon=2)
    flowfactor.save_model(supervised, tmp_path / "supervised")
    other = small("flow_vae", DATA.names, horizon=2)
    with pytest.raises(ConfigError, match=r"brighten.*move"):
        checkpoints.take_weights(other, tmp_path / "supervised")
    for model in (weak(flows=2), weak(flows=5)):
        with pytest.raises(ConfigError, match=r"inference network"):
            checkpoints.take_weights(model, tmp_path / "supervised")
    decoder = torch.nn.Module()
    with pytest.raises(RunError, match="supervised"):
        checkpoints.take_weights(_Bare(decoder), tmp_path / "supervised")


class _Bare(flowfactor.FlowVAE):
    """A model of which nothing has the names of another one."""

    def __init__(self, module):
        torch.nn.Module.__init__(self)
        self.own = module

    names = ("brighten", "move")
