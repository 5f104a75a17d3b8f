"""The command line from end to end: every shipped configuration, and every file of a run."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import sets, sets_of

import flowfactor
from experiments.runs import read_evaluation, read_run_config
from experiments.yaml_files import descriptions
from flowfactor.metrics import Equivariance
from flowfactor.registries import DATA, MODELS

SHORT = "training.steps=2"
WEAK = "model.kind=weak_flow_vae", "model.inference={warmup: 1, anneal: 0}"

pytestmark = pytest.mark.usefixtures("empty_figures")


def words_of(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.parametrize("config", [name for name in descriptions() if name != "demo"])
def test_every_configuration_trains_and_evaluates(call, tmp_path, config):
    run = tmp_path / "run"
    code, output = call("train", config, *sets_of(config, tmp_path, SHORT), "--out", run)
    assert code == 0, output
    code, output = call("evaluate", run)
    assert code == 0, output
    evaluation = read_evaluation(run)
    names = {name for name in flowfactor.load(run).names if not name.startswith("spare")}
    assert set(evaluation.result(Equivariance).errors) == names
    assert set(read_run_config(run).evaluation.metrics) >= set(evaluation.metrics)
    assert evaluation.training["steps"] == 2
    for name in evaluation.result(Equivariance).errors:
        assert name in output


@pytest.mark.parametrize("config", ["demo", "mnist_sparse"])
def test_run_does_it_all(call, tiny_run, tmp_path, config):
    """What is trained already, and what nobody says anything of."""
    run, options = tmp_path / "run", sets_of(config, tmp_path)
    if config == "demo":
        shutil.copytree(tiny_run, run)
    code, output = call("run", config, *options, "--out", run)
    assert code == 0, output
    assert ("trained already" in output) == (config == "demo")
    report = (run / "report.html").read_text()
    assert report.count("data:image/") >= 8
    assert (run / "figures" / "film_strips.png").is_file()
    for name in ("config.yaml", "train.log", "metrics.jsonl", "model.safetensors", "checkpoint.pt"):
        assert (run / name).is_file(), name


def test_fewer_flows_than_transformations_are_none_of_them(call, tmp_path):
    run, options = tmp_path / "run", sets_of("mnist_sparse", tmp_path, "model.flows=2")
    code, output = call("run", "mnist_sparse", *options, "--out", run)
    assert code == 0, output
    assert set(read_evaluation(run).metrics) == {"activity"}
    assert (run / "figures" / "flows.gif").is_file()
    sharpness = ("--set", "evaluation.metrics.sharpness={}")
    code, output = call("train", "mnist_sparse", *options, *sharpness, "--out", tmp_path / "none")
    assert code == 2
    assert "sharpness: needs a flow for each transformation" in output


@pytest.mark.parametrize("config", ["mnist_factor_vae", "mnist_weak"])
def test_every_metric(call, tmp_path, config):
    """All that is off by default, of a model with flows and of one without."""
    run = tmp_path / "run"
    changes = [
        "training.validation_errors=6",
        "evaluation.images=18",
        "evaluation.metrics.disentanglement={codes: 200, trees: 2}",
        "evaluation.metrics.predictability={width: 2, epochs: 1}",
        "evaluation.metrics.paths={}",
    ]
    words = ("train", config, *sets_of(config, tmp_path, *changes), "--out", run)
    code, output = call(*words, "--check-data")
    assert code == 0, output
    model = (run / "model.safetensors").read_bytes()
    facts = json.loads((run / "training.json").read_text())
    (run / "training.json").unlink()  # as if it had ended just before
    code, output = call(*words, "--resume")
    assert code == 0, output
    again = json.loads((run / "training.json").read_text())
    assert (run / "model.safetensors").read_bytes() == model
    name = "matching" if config == "mnist_weak" else "traversals"
    assert again[name] == facts[name]
    code, output = call("evaluate", run)
    assert code == 0, output
    evaluation = read_evaluation(run)
    assert {"disentanglement", "predictability", "paths"} <= set(evaluation.metrics)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    errors = [line["error"] for line in lines if line["split"] == "validation"]
    assert len(errors) == 2
    assert min(errors) > 0
    if config == "mnist_factor_vae":
        traversals = evaluation.training["traversals"]
        errors = traversals["training_errors"]
        assert flowfactor.load(run).traversal == traversals["chosen"] == min(errors, key=errors.get)
        code, output = call("plot", run)
        assert code == 0, output


def test_evaluation_is_reproducible(call, own_run):
    results = []
    for _ in range(2):
        assert call("evaluate", own_run, "--images", 5)[0] == 0
        results.append(read_evaluation(own_run).metrics)
    assert results[0] == results[1]
    assert read_evaluation(own_run).images == 5


def test_a_run_is_described_by_its_config(call, tiny_run, tmp_path):
    """Training from config.yaml of a run gives the same weights."""
    code, output = call("train", tiny_run / "config.yaml", "--out", tmp_path / "again")
    assert code == 0, output
    for a, b in zip(
        flowfactor.load(tiny_run).parameters(),
        flowfactor.load(tmp_path / "again").parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_resume_continues_with_more_steps(call, own_run):
    code, output = call("train", "demo", *sets("training.steps=6"), "--out", own_run, "--resume")
    assert code == 0, output
    steps = [json.loads(line)["step"] for line in (own_run / "metrics.jsonl").open()]
    assert max(steps) == 6
    assert yaml.safe_load((own_run / "config.yaml").read_text())["training"]["steps"] == 6


def test_held_out_classes_are_evaluated_apart(call, own_run):
    config = yaml.safe_load((own_run / "config.yaml").read_text())
    config["data"]["exclude_digits"] = [8, 9]
    (own_run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, output = call("evaluate", own_run)
    assert code == 0, output
    assert "8, 9" in output
    # 2 of each of the 20 test digits' classes
    assert read_evaluation(own_run).metrics["held_out"].images == 4


def test_configurations_and_options_are_listed(call):
    code, output = call("configs")
    assert code == 0
    assert "demo" in output
    assert "mnist_ablation" in output
    code, output = call("show", "demo", "--set", "training.steps=7")
    assert code == 0
    assert "steps: 7" in output
    assert "path_kl" in output
    code, output = call("options")
    assert code == 0
    assert all(name in output for name in (*DATA, *MODELS))
    for name in ("training", "flow_vae", "sprites", "disentanglement", "table"):
        code, output = call("options", name)
        assert code == 0, output
    assert call("options", "flow_vea")[0] == 2


def test_ones_own_images_from_an_array_and_a_folder(call, tmp_path):
    """Other sizes than MNIST's, no classes: both give the same model."""
    images = np.random.default_rng(0).integers(0, 255, (30, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number:03}.png")
    weights = []
    for name in ("images.npy", "pictures"):
        run = tmp_path / f"run of {name}"
        own = f"data={{source: images, path: '{tmp_path / name}'}}"
        code, output = call("train", "demo", *sets(own, SHORT), "--out", run)
        assert code == 0, output
        model = flowfactor.load(run)
        assert model.image_shape == (3, 32, 32)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert json.loads((run / "training.json").read_text())["training_samples"] == 24
    assert torch.equal(*weights)


@pytest.mark.cluster
def test_two_processes_train_together(tmp_path):
    """Distributed data parallel on the CPU, by the ordinary command; one of them evaluates."""
    run = tmp_path / "run"
    together = ("training.devices=2", "training.strategy=ddp", "training.precision=bf16-mixed")
    words = sets(*together, "data.transformations={turn: {parameter: angle}}")
    plugin = tmp_path / "no_figures.py"  # they would take half of the time
    plugin.write_text(
        "import sys, types\n"
        "plots = types.SimpleNamespace(plot=lambda run, **_: run / 'report.html')\n"
        "sys.modules['experiments.plots'] = plots\n"
    )
    words += ["--plugin", str(plugin)]
    command = [sys.executable, "-m", "experiments.cli", "run", "demo", *words, "--out", run]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Report:") == 1
    assert json.loads((run / "training.json").read_text())["steps"] == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    assert all(torch.isfinite(p).all() for p in flowfactor.load(run).parameters())


def test_recordings_without_any_label(call, tmp_path):
    """The flows are all there is: everything after the training calls them by number."""
    run, options = tmp_path / "run", sets_of("recordings", tmp_path, SHORT)
    hidden = (*WEAK, "data.labels=null", "training.validation_errors=2")
    words = [*options, *words_of(*hidden)]
    code, output = call("train", "recordings", *words, "--out", run)
    assert code == 2
    assert "flows" in output
    assert not run.exists()
    code, output = call("run", "recordings", *words, "--set", "model.flows=3", "--out", run)
    assert code == 0, output
    assert flowfactor.load(run).names == ("flow 1", "flow 2", "flow 3")
    evaluation = read_evaluation(run)
    assert set(evaluation.training["matching"]) == {"counts", "flows"}
    flows = list(csv.DictReader((run / "assignments.csv").read_text().splitlines()))
    assert len(flows) == evaluation.images
    assert {row["flow"] for row in flows} <= {"flow 1", "flow 2", "flow 3"}
    assert set(evaluation.result(Equivariance).errors) <= {"flow 1", "flow 2", "flow 3"}
    assert call("explore-latent", run, "--images", 1)[0] == 0
    shutil.copytree(run, tmp_path / "other")
    code, output = call("compare", run, tmp_path / "other", "--out", tmp_path / "compared")
    assert code == 2
    assert "without labels" in output


def test_recordings_some_of_which_have_no_label(call, tmp_path):
    """Validation and evaluation compare with the labels that exist."""
    run, options = tmp_path / "run", sets_of("recordings", tmp_path, SHORT)
    labels = tmp_path / "labels.csv"
    known = labels.read_text().split()
    half = [line if i % 4 < 2 else line.split(",")[0] + "," for i, line in enumerate(known)]
    labels.write_text("\n".join(half))
    words = words_of(*WEAK, "model.flows=3", "data.labelled_fraction=0.2")
    words += words_of("data.validation=0.25", "data.test=0.25")
    code, output = call("train", "recordings", *options, *words, "--out", run)
    assert code == 0, output
    code, output = call("evaluate", run)
    assert code == 0, output
    assert 0 <= read_evaluation(run).training["matching"]["accuracy"] <= 1
    assert flowfactor.load(run).names == ("down", "right", "spare 1")
