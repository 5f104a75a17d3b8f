"""What goes wrong for a new user: one paragraph, exit code 2, no traceback, nothing lost."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from tiny import sets
from typer.testing import CliRunner

from experiments import runs
from experiments.cli import app
from experiments.config import read_config
from flowfactor import pretrained
from flowfactor.checkpoints import lock_run
from flowfactor.errors import ConfigError
from flowfactor.training import read_metrics

# Of a configuration: what is changed, and what the message must name.
CHANGES = {
    "demo": [
        ("training.stepz=3", "training.stepz: unknown key; did you mean 'steps'"),
        ("trainin.steps=3", "did you mean 'training'"),
        ("training=[1]", "training: "),
        ("training.steps=many", "training.steps: .*integer"),
        ("training.learning_rate=-1", "training.learning_rate: .*greater"),
        ("model.observation=poisson", "model.observation: .*bernoulli"),
        ("model.solver.name=rk5", "model.solver.*rk4"),
        ("model.solver={name: rk4, rtol: 0.1}", "model.solver.*rtol"),
        ("model.field=gp", "model.field: .*mlp, ridge"),
        ("model.rank=-1", "model.rank: "),
        ("model.density=discrete", "density.*euler"),
        ("model.decoder={kind: mlp, channels: [4]}", "model.decoder.*channels"),
        ("model.objective.path_lk=1", "model.objective.*path_kl"),
        ("model.kind=flow_vea", "model.kind: .*flow_vae"),
        ("data.source=sprits", "data.source: .*'sprites'.*factor_grid.*recordings"),
        ("data.transformations={spin: {kind: twist}}", "data.transformations.spin"),
        ("data.labelled_fraction=0.1", "data.labelled_fraction: "),
        ("evaluation.metrics.travels={}", "evaluation.metrics.*travels"),
        ("evaluation.metrics.disentanglement={cods: 200}", "evaluation.metrics.*codes"),
        ("training.steps", "key.path=value"),
        ("seed.x=1", "seed is a value"),
        ("model={a: [", "not valid YAML"),
        ("data={horizon: 3, horizon: 4}", "'horizon' occurs twice"),
        ("plugins=[nowhere.py]", "nowhere.py"),
    ],
    "mnist_vae": [
        ("model.gamma=1", "model.gamma: unknown key"),
        ("model.beta=-1", "model.beta: "),
        ("model={kind: topographic_vae}", "training.frames_per_sequence: "),
    ],
    "mnist_canonical": [("model.objective.commutator=-1", "model.objective.*commutator")],
    "sprites": [
        ("data.active_start=anywhere", "data.active_start: "),
    ],
    "shapes3d": [("data.transformations={shape: {stride: 2}}", "data.transformations.*stride")],
    "factor_grid": [("data.factors={hue: 0}", "data.factors.hue: ")],
    "recordings": [("data.initial_state=random", "data.*initial_state")],
}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [(config, *case) for config, cases in CHANGES.items() for case in cases],
)
def test_wrong_keys_are_named(config, change, message):
    with pytest.raises(ConfigError, match=message):
        read_config(config, [change])


def test_all_wrong_keys_are_named_together():
    with pytest.raises(ConfigError) as caught:
        read_config("demo", ["training.steps=0", "model.width=a", "sed=1", "data.hrizon=3"])
    for key in ("training.steps", "model.width", "sed", "data.hrizon"):
        assert f"  {key}: " in str(caught.value)


def check_error(code, output, message):
    assert code == 2, output
    assert "Traceback" not in output
    assert message in output
    assert len(output) < 1200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.frames_per_sequence=9", "training.frames_per_sequence"),
        ("data.train=100000", "data.train"),
        ("data.provider=torchvision", "nowhere"),
        ("data={source: images, path: nowhere}", "nowhere"),
        ("data={source: sprites, transformations: {spin: {parameter: angel}}}", "angel"),
        ("training.accelerator=mps", "accelerator"),
    ],
)
def test_what_only_the_data_or_the_machine_can_tell(call, monkeypatch, tmp_path, change, message):
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    words = ("--set", "data.root=nowhere", "--set", change)
    check_error(*call("train", "demo", *sets(), *words, "--out", run), message)
    assert not run.exists()


def test_check_data_finds_a_missing_label_of_the_test_split(call, tmp_path):
    films = np.zeros((12, 9, 8, 8), np.uint8)
    films[:, 1:] = 255
    path, labels = tmp_path / "films.npy", [f"film {number}" for number in range(12)]
    np.save(path, films)

    def change(labels):
        (tmp_path / "labels.json").write_text(json.dumps(labels))
        return f"data={{source: recordings, path: {path}, labels: {tmp_path / 'labels.json'}}}"

    test = read_config("demo", [change(labels)])[1].data.load("test", 0)
    missing = labels.index(test.names[test.labels[0]])
    which = [*["a", "b"] * 6]
    which[missing] = ""
    words = ("train", "demo", *sets(), "--set", change(which), "--out", tmp_path / "run")
    check_error(*call(*words, "--check-data"), "label")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "plot", "explore-latent", "export"])
@pytest.mark.parametrize("device", ["cuda:7", "toaster"])
def test_a_device_that_is_not_there(call, command, device):
    code, output = call(command, pretrained.folder("sprites"), "--device", device)
    check_error(code, output, "cpu")
    assert device in output


def test_the_device_of_a_training_is_that_of_what_follows(call, own_run):
    config = own_run / "config.yaml"
    config.write_text(config.read_text().replace("accelerator: cpu", "accelerator: cuda:7"))
    check_error(*call("evaluate", own_run), "training.accelerator: there is no device cuda:7")
    assert call("evaluate", own_run, "--images", 2, "--device", "cpu")[0] == 0
    words = ("train", "demo", *sets(), "--out", own_run, "--resume", "--device")
    check_error(*call(*words, "toaster"), "training.accelerator")
    assert call(*words, "cpu")[0] == 0
    assert "accelerator: cpu" in config.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("training: [1, 2]", "training"),
        ("- a list", "must hold keys"),
        ("a: b: c", "not valid YAML"),
        ("seed: 1\nseed: 2", "occurs twice"),
        (b"\xff\xfe\x00\x01", "mine.yaml"),
    ],
)
def test_bad_config_files(call, tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check_error(*call("train", path, "--out", tmp_path / "run"), message)


def test_unknown_config(call, tmp_path):
    for command in ("train", "run"):
        check_error(*call(command, "dmeo", "--out", tmp_path / "run"), "did you mean 'demo'")


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_that_exists_is_not_overwritten(call, tiny_run):
    before = files_of(tiny_run)
    check_error(*call("train", "demo", *sets(), "--out", tiny_run), "--resume")
    words = ("train", "demo", *sets("model.width=9"), "--out", tiny_run, "--resume")
    check_error(*call(*words), "model.width: 8 -> 9")
    assert files_of(tiny_run) == before


def test_a_training_without_checkpoint_starts_again(call, own_run):
    """Not by the plain command, which is for new folders."""
    for name in ("checkpoint.pt", "training.json"):
        (own_run / name).unlink()
    torn = (own_run / "metrics.jsonl").read_text()[:-20]
    before = read_metrics(own_run)
    for words, code in ((["train"], 2), (["train", "--resume"], 0)):
        (own_run / "metrics.jsonl").write_text(torn if code else torn[:400])
        (own_run / ".elsewhere-1-0123abcd.part").write_text("half")
        result, output = call(*words, "demo", *sets(), "--out", own_run)
        assert result == code, output
    assert "starts again" in (own_run / "train.log").read_text()
    again = read_metrics(own_run)
    assert [line["loss"] for line in again] == [line["loss"] for line in before]
    assert not list(own_run.glob(".*.part"))
    (own_run / "checkpoint.pt").unlink()  # it has been there
    (own_run / "training.json").unlink()
    check_error(*call("run", "demo", *sets(), "--out", own_run), "checkpoint.pt is missing")


def test_a_training_that_goes_on_has_not_ended(own_run):
    config = runs.read_run_config(own_run)
    more = config.replace(training=dataclasses.replace(config.training, steps=6))

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(more, own_run, resume=True, on_progress=stop)
    assert runs.read_training(own_run) == {}
    runs.train(more, own_run, resume=True)
    assert runs.read_training(own_run)["steps"] == 6


def test_a_training_that_runs_keeps_others_out(call, own_run):
    before = files_of(own_run)
    with ThreadPoolExecutor(1) as other, lock_run(own_run):
        words = ("train", "demo", *sets("training.steps=6"), "--resume", "--out", own_run)
        check_error(*other.submit(call, *words).result(), "Another process")
    assert files_of(own_run) == before


def test_a_run_with_another_configuration_is_refused_however_it_is_given(call, own_run):
    words = ("demo", *sets("model.width=9"), "--out", own_run)
    check_error(*call("run", *words), "model.width: 8 -> 9")
    file = own_run / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["model"]["width"] = 9
    file.write_text(yaml.safe_dump(content))
    check_error(*call("train", *words, "--resume"), "model.width: 8 -> 9")
    seed = ("demo", *sets("data.train=7"), "--out", own_run)
    content["model"]["width"] = 8
    content["data"]["train"] = 7
    file.write_text(yaml.safe_dump(content))
    check_error(*call("train", *seed, "--resume"), "data.train: ")


def test_out_is_a_file(call, tmp_path):
    (tmp_path / "taken").write_text("mine")
    check_error(*call("train", "demo", *sets(), "--out", tmp_path / "taken"), "is a file")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate", "plot", "explore-latent"])
def test_missing_and_foreign_folders(call, tmp_path, command):
    check_error(*call(command, tmp_path / "nothing"), "nothing")
    (tmp_path / "other").mkdir()
    check_error(*call(command, tmp_path / "other"), "config.yaml")


@pytest.mark.parametrize("file", ["model.safetensors", "config.yaml", "training.json"])
def test_damaged_files_of_a_run(call, own_run, file):
    (own_run / file).write_bytes(b"{ damaged")
    before = files_of(own_run)
    check_error(*call("evaluate", own_run), file)
    assert files_of(own_run) == before


def test_damaged_checkpoint_is_not_resumed(call, own_run):
    checkpoint = own_run / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    before = files_of(own_run)
    words = ("train", "demo", *sets("training.steps=6"), "--out", own_run, "--resume")
    check_error(*call(*words), "checkpoint.pt")
    for name in ("checkpoint.pt", "model.safetensors", "metrics.jsonl"):
        assert files_of(own_run)[own_run / name] == before[own_run / name]


def test_plot_needs_an_evaluation(call, tiny_run):
    check_error(*call("plot", tiny_run), "flowfactor evaluate")


def test_wrong_flags(call, tiny_run):
    for words in (
        ("evaluate", tiny_run, "--split", "train"),
        ("evaluate", tiny_run, "--images", "0"),
        ("train",),
        ("train", "demo", "--fast"),
        ("fly",),
    ):
        code, output = call(*words)
        assert code == 2, output


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWFACTOR_DEBUG", "")
    result = CliRunner().invoke(app, ["--debug", "evaluate", str(tmp_path / "nothing")])
    assert type(result.exception).__name__ == "RunError"
