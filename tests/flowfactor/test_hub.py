"""Sharing models: folders with a card, the Hub's cache, models that ship."""

import dataclasses
import sys
import types

import pytest
import torch

import flowfactor
from flowfactor.errors import RunError
from flowfactor.metrics import Equivariance
from flowfactor.records import Evaluation


@pytest.fixture
def evaluation(model):
    error = {
        "error": 12.5,
        "standard_error": 0.25,
        "identity": 80.0,
        "floor": 9.0,
        "per_frame_and_pixel": 0.1,
        "per_frame": (1.0,),
        "identity_per_frame": (2.0,),
        "copy": 81.0,
    }
    content = {"mean_error": 12.5, "errors": dict.fromkeys(model.names, error)}
    record = Evaluation("test", "sprites", 10, 7, model.names, {"equivariance": content})
    record = dataclasses.replace(
        record,
        command="flowfactor evaluate runs/a",
        training={"command": "flowfactor train a", "seed": 3, "steps": 70},
    )
    return Evaluation.from_dict(record.to_dict())


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_folder_with_a_card(model, evaluation, tmp_path):
    folder = flowfactor.save_pretrained(model, tmp_path / "digits", evaluation=evaluation)
    assert same(flowfactor.from_pretrained(folder), model)
    card = (folder / "README.md").read_text()
    front, text = card.split("---\n", 2)[1:]
    assert "library_name: flowfactor" in front
    for fact in ("12.5", "± s.e.", "sprites", "test split", "train a", "evaluate runs/a", "| 3 |"):
        assert fact in text
    for name in model.names:
        assert name in text


def test_a_card_without_an_evaluation_says_so(model, tmp_path):
    folder = flowfactor.save_pretrained(model, tmp_path, title="unmeasured")
    assert "not measured" in (folder / "README.md").read_text()


def test_networks_of_ones_own_cannot_be_shared(model, tmp_path):
    own = type(model).build(model.names, model.image_shape, latent_dim=model.latent_dim,
                            decoder=model.decoder)  # fmt: skip
    with pytest.raises(RunError, match="extending"):
        flowfactor.save_pretrained(own, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_repository_in_the_cache_of_the_hub(model, tmp_path):
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--somebody--digits"
    flowfactor.save_pretrained(model, repository / "snapshots" / "a1b2")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a1b2")
    cached = {"cache_dir": tmp_path, "local_files_only": True}
    assert same(flowfactor.from_pretrained("somebody/digits", **cached), model)
    with pytest.raises(RunError, match="nobody/digits"):
        flowfactor.from_pretrained("nobody/digits", **cached)


def test_what_is_uploaded(model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []
    monkeypatch.setattr(
        hub.HfApi, "create_repo", lambda self, name, **options: calls.append((name, options))
    )
    monkeypatch.setattr(hub.HfApi, "upload_folder", lambda self, **options: calls.append(options))
    with pytest.raises(RunError, match="no model"):
        flowfactor.push_to_hub(tmp_path, "me/digits")
    folder = flowfactor.save_pretrained(model, tmp_path)
    flowfactor.push_to_hub(folder, "me/digits", private=True, revision="dev")
    assert calls == [
        ("me/digits", {"private": True, "exist_ok": True}),
        {"repo_id": "me/digits", "folder_path": folder, "revision": "dev"},
    ]


def test_every_model_that_ships_opens(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = flowfactor.pretrained.names()
    assert {"mnist", "mnist_weak", "sprites"} <= set(names)
    size = 0
    for name in names:
        model = flowfactor.load(name)
        assert len(model.names) > 1
        folder = flowfactor.pretrained.folder(name)
        size += (folder / "model.safetensors").stat().st_size
        measured = Evaluation.read(folder / "evaluation.json")
        assert measured.weights == flowfactor.checkpoints.digest(name)
        assert measured.result(Equivariance).mean_error > 0
    assert size < 16e6
    with pytest.raises(RunError, match="mnist_weak"):
        flowfactor.load("mnits")


def test_a_folder_comes_before_a_model_that_ships(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flowfactor.save_model(model, "sprites")
    assert same(flowfactor.load("sprites"), model)
    assert not same(flowfactor.load(flowfactor.pretrained.folder("sprites")), model)


def test_what_the_hub_refuses_and_what_is_no_name(model, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("401: log in first")

    hub = types.ModuleType("huggingface_hub")
    hub.HfApi = lambda: types.SimpleNamespace(create_repo=refuse)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    folder = flowfactor.save_pretrained(model, tmp_path / "model")
    with pytest.raises(RunError, match="log in"):
        flowfactor.push_to_hub(folder, "me/model")
    with pytest.raises(RunError, match="no_such_model"):
        flowfactor.from_pretrained("no_such_model")
