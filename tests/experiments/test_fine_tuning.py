"""Runs that begin with the weights of other runs, by the command line."""

import json
import shlex
import shutil

from tiny import sets

from experiments import runs
from experiments.reproduce import reproduce
from flowfactor import checkpoints

WEAK = "model.kind=weak_flow_vae", "model.flows=4"


def test_a_run_that_goes_on_from_another(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = sets(*WEAK, "model.inference={warmup: 1, anneal: 0}")
    fixed = ["model.inference={estimator: fixed}", "training.initial_weights=first"]
    second = sets(*WEAK, *fixed, "model.observation=laplace")
    code, output = call("train", "demo", *second, "--out", "second")
    assert code == 2
    assert "training.initial_weights" in output
    assert not (tmp_path / "second").exists()
    code, output = call("train", "demo", *first, "--out", "first")
    assert code == 0, output
    facts = runs.read_training(tmp_path / "first")
    facts["command"] = shlex.join(["flowfactor", "train", "demo", *first])
    runs.write_json(tmp_path / "first" / "training.json", facts)
    weights = checkpoints.digest("first")
    code, output = call("train", "demo", *second, "--out", "second")
    assert code == 0, output
    shutil.rmtree("first")
    code, output = call(
        "train", "demo", *second, "--set", "training.steps=6", "--out", "second", "--resume"
    )
    assert code == 0, output
    training = json.loads((tmp_path / "second" / "training.json").read_text())
    assert training["initial_weights"]["sha256"] == weights
    assert training["initial_weights"]["begun_anew"] == ["observation.log_scale"]
    assert training["matching"]["flows"] == facts["matching"]["flows"]
    code, output = call("evaluate", "second")
    assert code == 0, output

    stated = json.loads((tmp_path / "second" / "evaluation.json").read_text())
    words = ["flowfactor", "train", "demo", *second, "--set", "training.steps=6"]
    stated["training"]["command"] = shlex.join(words)
    (tmp_path / "result.json").write_text(json.dumps(stated))
    found = reproduce(tmp_path / "result.json", tmp_path / "again", tolerance=1)
    assert checkpoints.digest("again_initial") == weights
    assert found.table.rows
    assert not found.outside


def test_nothing_is_trusted_that_was_never_trained(call):
    options = sets(*WEAK, "model.inference={estimator: fixed}")
    code, output = call("train", "demo", *options, "--out", "nowhere")
    assert code == 2
    assert "training.initial_weights" in output
