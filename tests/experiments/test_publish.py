"""Runs to share, models that ship as runs, and results that are made again."""

import dataclasses
import json
import shlex
import shutil

import pytest
from tiny import sets

from experiments import environment, runs
from experiments.publish import find_run
from experiments.reproduce import compare, summary
from flowfactor import checkpoints, pretrained
from flowfactor.metrics import Equivariance
from flowfactor.records import Evaluation


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """Return a copy of the tiny run that is evaluated; do not change the folder."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "evaluated")
    runs.evaluate(folder)
    return folder


def error(folder):
    return runs.read_evaluation(folder).result(Equivariance).mean_error


@pytest.mark.parametrize("flags", [[], ["--half"]])
def test_a_run_to_share(call, evaluated, tmp_path, flags):
    out = tmp_path / "shared"
    code, output = call("publish", evaluated, "--out", out, *flags)
    assert code == 0, output
    assert error(out) == pytest.approx(error(evaluated), rel=5e-3)
    assert (error(out) == error(evaluated)) == (not flags)
    sizes = [checkpoints.model_file(folder).stat().st_size for folder in (evaluated, out)]
    assert (sizes[1] < 0.8 * sizes[0]) == bool(flags)
    assert runs.read_run_config(out).model == runs.read_run_config(evaluated).model
    assert f"{error(out):.1f}" in (out / "README.md").read_text()
    code, output = call("publish", evaluated, "--out", out)
    assert code == 2
    assert "not empty" in output


def test_a_model_that_ships_becomes_a_run(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = find_run("sprites")
    assert error(run) == error(pretrained.folder("sprites"))
    assert find_run("sprites") == run
    code, output = call("models")
    assert code == 0
    assert all(name in output for name in pretrained.names())
    shutil.copy(pretrained.folder("mnist") / "model.safetensors", run)
    code, output = call("evaluate", "sprites")
    assert code == 2
    assert "another model" in output
    assert str(find_run("of nobody")) == "of nobody"


def test_versions_of_all_that_numbers_rest_on():
    versions = environment.versions()
    assert list(versions)[: len(environment.MAIN)] == list(environment.MAIN)
    for name in ("scipy", "pydantic-core", "jaxtyping"):
        assert versions[name][0].isdigit()
    import sklearn  # whoever measures by it, rests on it

    assert environment.versions()["scikit-learn"] == sklearn.__version__
    assert "threadpoolctl" in environment.versions()
    assert "mypy" not in environment.versions()


def test_the_commit_of_the_code():
    source = environment.source()
    if source:
        assert len(source["commit"]) == 40
        assert isinstance(source["clean"], bool)


def test_a_result_is_made_again(call, monkeypatch, evaluated, tmp_path):
    monkeypatch.chdir(tmp_path)
    stated = json.loads((evaluated / "evaluation.json").read_text())
    stated["training"]["command"] = shlex.join(["flowfactor", "train", "demo", *sets()])
    (tmp_path / "result.json").write_text(json.dumps(stated))
    code, output = call("reproduce", "result.json", "--tolerance", 0)
    assert code == 0, output
    assert "Reproduced" in output
    stated["metrics"]["equivariance"]["mean_error"] *= 1.04
    stated["training"]["command"] = f"python -m experiments.cli train demo {shlex.join(sets())}"
    (tmp_path / "result.json").write_text(json.dumps(stated))
    code, output = call("reproduce", "result.json", "--tolerance", 0.03)
    assert code == 1, output
    stated["training"]["command"] += " --set training.steps=5"
    (tmp_path / "result.json").write_text(json.dumps(stated))
    code, output = call("reproduce", "result.json")  # in the same folder
    assert code == 2
    assert "training.steps: 4 -> 5" in output
    stated["training"]["command"] = "flowfactor table mnist"
    (tmp_path / "result.json").write_text(json.dumps(stated))
    code, output = call("reproduce", "result.json")
    assert code == 2
    assert "flowfactor table mnist" in output


def test_what_a_number_may_differ_by(evaluated):
    """Three standard deviations over seeds, or a fraction where these are not known."""
    stated = Evaluation.read(evaluated / "evaluation.json")

    def changed(factor):
        result = stated.result(Equivariance)
        result = dataclasses.replace(result, mean_error=factor * result.mean_error)
        return dataclasses.replace(stated, metrics=stated.metrics | {"equivariance": result})

    assert not compare(stated, stated, tolerance=0).outside
    assert not compare(stated, changed(1.04)).outside
    unseen = changed(1 + 1e-12)
    assert not compare(stated, unseen, tolerance=1e-15).outside
    assert compare(stated, unseen, tolerance=0).outside == ("mean_error",)
    assert compare(stated, changed(1.04), tolerance=0.03).outside == ("mean_error",)
    assert not compare(stated, changed(1.04), [changed(1.02)]).outside
    assert compare(stated, changed(1.04), [changed(1.01)]).outside == ("mean_error",)
    missing = dataclasses.replace(stated, metrics={})
    assert "mean_error" in compare(stated, missing).outside
    assert not compare(missing, stated).outside
    old = {"source": {"commit": 40 * "a", "clean": True}, "versions": {"torch": "1.0"}}
    old |= {"steps": 10**6, "chosen": {"precision": "bf16-mixed (fast)"}}
    slow = {"chosen": {"precision": "32-true (no bfloat16)"}}
    found = compare(
        dataclasses.replace(stated, training=stated.training | old),
        dataclasses.replace(changed(1.1), training=stated.training | slow),
    )
    for reason in ("commit aaaaaaaaaa -> ", "torch 1.0 -> ", "steps 1000000 -> "):
        assert reason in found.reason
    assert "precision bf16-mixed -> 32-true" in found.reason
    assert found.reason in summary(found)
    assert not compare(stated, stated).reason


def test_where_an_evaluation_comes_from(evaluated):
    record = Evaluation.read(evaluated / "evaluation.json")
    assert set(record.environment) >= {"python", "versions", "source", "hardware", "data"}
