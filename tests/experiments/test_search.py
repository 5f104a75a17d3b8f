"""Searches: what is proposed and kept, trials that are stopped, and that nothing is tested on."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from tiny import settings

from experiments import runs, sweep
from experiments import search as searching
from experiments.cells import StoppedError
from experiments.config import read_config
from experiments.executors import RayOptions
from experiments.search import BEST_FILE
from experiments.yaml_files import descriptions
from flowfactor.data import MNISTOptions
from flowfactor.errors import ConfigError, RunError
from flowfactor.metrics import Equivariance
from flowfactor.records import Evaluation
from flowfactor.registries import METRICS

pytestmark = pytest.mark.usefixtures("empty_figures")

SPACE = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.latent_dim": {"low": 2, "high": 6, "step": 2},
    "model.solver": [{"name": "euler", "steps": 1}, {"name": "rk4", "steps": 1}],
}


def write_yaml(folder: Path, **content) -> str:
    tiny = settings("demo") | {
        "evaluation.metrics": {name: {} if name == "equivariance" else False for name in METRICS},
        "training.validation_errors": 2,
    }
    search = {"config": "demo", "set": tiny, "space": SPACE, "trials": 2, "startup": 1}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(search | content))
    return str(path)


@pytest.mark.cluster
def test_the_best_by_validation_data_only(call, tmp_path, monkeypatch):
    """The whole of a search, in two parts, with data that have no test split."""
    pytest.importorskip("optuna")
    load, splits = MNISTOptions.load, set()

    def spy(self, split, seed):
        splits.add(split)
        return load(self, split, seed)

    monkeypatch.setattr(MNISTOptions, "load", spy)
    out = tmp_path / "out"
    first = searching.plan(write_yaml(tmp_path, trials=1), out=out)
    searching.run(first, ThreadPoolExecutor(1))
    ran, real = [], sweep.run_cell
    monkeypatch.setattr(sweep, "run_cell", lambda *call: ran.append(call[0]) or real(*call))
    plan = searching.plan(write_yaml(tmp_path, parallel=2), out=out)
    study = searching.run(plan, ThreadPoolExecutor(1))
    assert [Path(run).name for run in ran] == ["trial_0001"]
    assert splits == {"train", "validation"}
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert all(trial.intermediate_values for trial in study.trials)
    written = searching.write(plan, study)
    best = study.best_trial
    name = f"| {best.number}: latent_dim {best.params['model.latent_dim']}, solver {{name: "
    assert written.markdown.splitlines()[2].startswith(name)
    assert written.files[0] == out / BEST_FILE
    config = read_config(str(out / BEST_FILE))[1]
    assert config.model.latent_dim == best.params["model.latent_dim"]
    assert config.evaluation.split == read_config("demo")[1].evaluation.split
    for changes, overrides, message in (
        ({"seed": 1}, [], "seed: 0 -> 1"),
        ({}, ["training.clip=3"], r"training.clip: \S+ -> 3"),
        ({"space": SPACE | {"model.latent_dim": [2]}}, [], r"space.model.latent_dim\S*: "),
    ):
        other = searching.plan(write_yaml(tmp_path, **changes), out=out, overrides=overrides)
        with pytest.raises(RunError, match=message):
            searching.run(other, RayOptions(address="none"))  # which is not opened
    assert searching.run(plan, RayOptions(address="none")).best_trial == best
    code, output = call("search", write_yaml(tmp_path, parallel=2), "--out", out)
    assert code == 0, output
    assert str(out / BEST_FILE) in output

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "run", interrupt)
    code, output = call("search", write_yaml(tmp_path), "--out", out)
    assert code == 130
    assert "the same command" in output


@pytest.mark.cluster
def test_trials_that_are_worse_are_stopped_and_interrupted_ones_go_on(tmp_path, monkeypatch):
    """What the cells do is played: they write errors, and the third one looks for its end."""
    pytest.importorskip("optuna")
    begun, interrupted = [], threading.Event()

    def play(run, content):
        folder, number = Path(run), int(run[-4:])
        begun.append(number)
        folder.mkdir(parents=True, exist_ok=True)
        folder.with_name(f"{folder.name}.running").write_text("{}")
        line = {"split": "validation", "step": 1, "seconds": 1.0, "error": number + 1.0}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        end = time.monotonic() + 60
        while number == 2 and time.monotonic() < end:
            if folder.with_name(f"{folder.name}.stop").exists():
                raise StoppedError(run)
            if interrupted.is_set():
                raise KeyboardInterrupt
            time.sleep(0.02)

    monkeypatch.setattr(sweep, "run_cell", play)
    results = {"equivariance": Equivariance.Result(1.0, {})}
    measured = Evaluation("validation", "mnist", 1, 1, (), results)
    monkeypatch.setattr(runs, "read_evaluation", lambda _: measured)

    def interrupt(event):
        if event.kind == "finish" and event.cell.label.startswith("1:"):
            interrupted.set()
            raise KeyboardInterrupt

    plan = searching.plan(write_yaml(tmp_path, trials=3, startup=2, parallel=1), out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        searching.run(plan, ThreadPoolExecutor(1), on_event=interrupt)
    interrupted.clear()
    study = searching.run(plan, ThreadPoolExecutor(1))
    assert begun in ([0, 1, 2, 2], [0, 1, 2])  # it may have been cancelled before it began
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"space": {}}, "space"),
        ({"space": {"training.stepz": [3]}}, "stepz"),
        ({"space": {"model.latent_dim": [0]}}, "latent_dim"),
        ({"space": {"model.latent_dim": []}}, "space.model.latent_dim"),
        ({"space": {"model.latent_dim": 3}}, r"space.model.latent_dim: .* \(it is 3\)"),
        ({"space": {"model.latent_dim": {"low": 3, "high": 2}}}, "latent_dim: low"),
        ({"space": {"model.latent_dim": {"low": 3, "hi": 4}}}, "latent_dim.hi: .* 'high'"),
        ({"space": {"evaluation.split": ["test"]}}, "validation split only"),
        ({"set": {"evaluation.split": "test"}}, "validation split only"),
        ({"objective": "mean_eror"}, "mean_error"),
        ({"objective": "parameters"}, "objective"),
        ({"executor": {"kind": "dask"}}, "executor"),
        (
            {"space": {"training.learning_rate": {"low": 1, "high": 2, "log": True, "step": 1}}},
            "step",
        ),
    ],
)
def test_mistakes_are_named_before_anything_starts(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        searching.plan(write_yaml(tmp_path, **content), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", descriptions("searches"))
def test_searches_that_ship_are_right(name, tmp_path):
    assert searching.plan(name, out=tmp_path).options.title
