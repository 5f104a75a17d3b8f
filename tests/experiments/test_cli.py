"""The command line from end to end: every shipped configuration, and every file of a run."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from tiny import sets, sets_of

import flowfactor
from experiments.config import read_config, shipped


@pytest.mark.parametrize("config", shipped())
def test_every_configuration_trains_and_evaluates(call, tmp_path, config):
    run, options = tmp_path / "run", sets_of(config, tmp_path)
    code, output = call("train", config, *options, "--out", run)
    assert code == 0, output
    for name in ("config.yaml", "train.log", "metrics.jsonl", "model.pt", "checkpoint.pt"):
        assert (run / name).is_file(), name
    code, output = call("evaluate", run)
    assert code == 0, output
    result = json.loads((run / "evaluation.json").read_text())
    assert set(result["errors"]) == set(flowfactor.load(run).names)
    assert result["mean_error"] > 0
    assert result["training"]["seed"] == 0
    assert result["training"]["steps"] == 4
    for name in result["errors"]:
        assert name in output
    for measured in ("composition", "extrapolation"):
        asked_for = getattr(read_config(config)[1].evaluation, measured)
        assert (measured in result) == asked_for


@pytest.mark.parametrize("config", ["demo", "factor_grid", "recordings"])
def test_run_does_it_all(call, tmp_path, config):
    """One configuration for each way in which samples come: rendered, on a grid, recorded."""
    run, options = tmp_path / "run", sets_of(config, tmp_path)
    code, output = call("run", config, *options, "--out", run)
    assert code == 0, output
    report = (run / "report.html").read_text()
    assert report.count("data:image/") >= 8
    assert (run / "figures" / "film_strips.png").is_file()
    # A second call reuses the training.
    before = (run / "model.pt").read_bytes()
    (run / "evaluation.json").unlink()
    code, output = call("run", config, *options, "--out", run)
    assert code == 0
    assert "trained already" in output
    assert (run / "evaluation.json").is_file()
    assert (run / "model.pt").read_bytes() == before


def test_every_potential_and_density_trains_and_evaluates(call, tmp_path):
    run = tmp_path / "run"
    options = sets(
        "model.potential=mlp",
        "model.rank=2",
        "model.solver={name: euler, steps: 2}",
        "model.density=discrete",
        "objective.path_kl=0.1",
    )
    for command in (("train", "demo", *options, "--out", run), ("evaluate", run)):
        code, output = call(*command)
        assert code == 0, output
    model = flowfactor.load(run)
    assert isinstance(model.potentials, flowfactor.MLPPotential)
    assert model.potentials.rank == 2
    assert model.density == "discrete"


@pytest.mark.parametrize("config", ["mnist_factor_vae", "mnist_topographic_vae", "mnist_weak"])
def test_every_measure_of_a_code_and_its_paths(call, tmp_path, config):
    """All that is off by default, of a model with flows and of models that move by a rule."""
    run = tmp_path / "run"
    measures = [
        "evaluation.disentanglement=true",
        "evaluation.predictability=true",
        "evaluation.paths=true",
        "evaluation.codes=200",
        "evaluation.trees=2",
        "evaluation.images=18",
        "training.validation_errors=6",
    ]
    options = [word for change in measures for word in ("--set", change)]
    code, output = call("train", config, *sets_of(config, tmp_path), *options, "--out", run)
    assert code == 0, output
    code, output = call("evaluate", run)
    assert code == 0, output
    result = json.loads((run / "evaluation.json").read_text())
    scores = result["disentanglement"]
    assert scores.pop("factors") == ["class", "scaling", "rotation", "hue"]
    assert all(0 <= scores[name] <= 1 for name in scores if name not in ("codes", "trees"))
    assert result["predictability"]["chance"] == pytest.approx(1 / 3)
    assert set(result["paths"]) == set(result["errors"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    errors = [line["error"] for line in lines if line["split"] == "validation"]
    assert len(errors) == 2
    assert min(errors) > 0
    if config == "mnist_weak":
        assert "rules" not in result
        return
    model = flowfactor.load(run)
    assert result["rule"] == model.rule == result["training"]["rules"]["chosen"]
    assert result["rules"][model.rule]["errors"] == result["errors"]
    trained = result["training"]["rules"]["training_errors"]
    assert min(trained, key=trained.get) == model.rule
    assert "solver_independence" not in result
    assert "mean" in output
    code, output = call("plot", run)
    assert code == 0, output
    assert "moves by a rule" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.kind=vea", "model: no kind of model has this name; known are flow_vae, vae"),
        ("model.gamma=1", "model.gamma: unknown key"),
        ("model.beta=-1", "model.beta: input should be greater than or equal to 0"),
        ("objective.path_kl=1", "those of vae are keys of model"),
        ("evaluation.composition=true", "a vae has none"),
        ("model={kind: topographic_vae}", "training.frames_per_sequence must be null"),
        ("model={kind: topographic_vae, latent_dim: 10}", "frames_per_sequence"),
    ],
)
def test_bad_keys_of_a_baseline_are_named(call, tmp_path, change, message):
    code, output = call("train", "mnist_vae", "--set", change, "--out", tmp_path / "run")
    assert code == 2
    assert message in output
    assert not (tmp_path / "run").exists()


def test_evaluation_is_reproducible(call, tiny_run, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(tiny_run, run)
    results = []
    for _ in range(2):
        assert call("evaluate", run, "--images", 5)[0] == 0
        result = json.loads((run / "evaluation.json").read_text())
        results.append((result["errors"], result["log_likelihood"], result["images"]))
    assert results[0] == results[1]
    assert results[0][2] == 5


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


def test_resume_continues_with_more_steps(call, tiny_run, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(tiny_run, run)
    code, output = call("train", "demo", *sets("training.steps=6"), "--out", run, "--resume")
    assert code == 0, output
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert max(steps) == 6
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["steps"] == 6


def test_held_out_classes_are_evaluated_apart(call, tmp_path):
    run = tmp_path / "run"
    code, output = call(
        "train", "demo", *sets("data.exclude_digits=[8, 9]", "data.train=null"), "--out", run
    )
    assert code == 0, output
    code, output = call("evaluate", run)
    assert code == 0, output
    assert "8, 9" in output
    result = json.loads((run / "evaluation.json").read_text())
    assert result["held_out"]["what"] == "digits 8, 9"
    assert result["held_out"]["images"] == 4  # 2 of each of the 20 test digits' classes


def test_configs_lists_what_ships(call):
    code, output = call("configs")
    assert code == 0
    assert "demo" in output
    assert "mnist_ablation" in output


def test_show_writes_every_key(call):
    code, output = call("show", "demo", "--set", "training.steps=7")
    assert code == 0
    assert "steps: 7" in output
    assert "path_kl" in output


def test_ones_own_images_from_an_array_and_a_folder(call, tmp_path):
    """Other sizes than MNIST's, no labels: train, evaluate and plot by the command line alone."""
    import numpy as np
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 255, (30, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number:03}.png")
    own = ("data.source=images", "data.train=null", "data.validation=null", "data.test=null")
    weights = []
    for name in ("images.npy", "pictures"):
        run = tmp_path / f"run of {name}"
        code, output = call(
            "train", "demo", *sets(*own, f"data.root={tmp_path / name}"), "--out", run
        )
        assert code == 0, output
        model = flowfactor.load(run)
        assert model.image_shape == (3, 32, 32)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert json.loads((run / "training.json").read_text())["training_samples"] == 24
    assert torch.equal(*weights)
    code, output = call("evaluate", run)
    assert code == 0, output
    code, output = call("plot", run)
    assert code == 0, output


def test_two_processes_train_together(tmp_path):
    """Distributed data parallel on the CPU, by the ordinary command; one of them evaluates."""
    run = tmp_path / "run"
    together = ("training.devices=2", "training.strategy=ddp", "training.precision=bf16-mixed")
    words = sets(*together, "data.train=null")
    command = [sys.executable, "-m", "experiments.cli", "run", "demo", *words, "--out", run]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Equivariance error on") == 1
    assert (run / "report.html").is_file()
    assert json.loads((run / "training.json").read_text())["steps"] == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    assert all(torch.isfinite(p).all() for p in flowfactor.load(run).parameters())


def test_recordings_of_ones_own_without_labels_of_most(call, tmp_path):
    """Weak supervision of recorded sequences: what they undergo can be neither chosen nor seen."""
    run, options = tmp_path / "run", sets_of("recordings", tmp_path)
    weak = ("model.supervision=weak", "model.flows=3", "data.labelled_fraction=0.2")
    words = [word for change in weak for word in ("--set", change)]
    code, output = call("train", "recordings", *options, *words, "--out", run)
    assert code == 0, output
    code, output = call("evaluate", run)
    assert code == 0, output
    result = json.loads((run / "evaluation.json").read_text())
    assert set(result["errors"]) == {"down", "right"}
    assert result["frames"] == 4
    assert flowfactor.load(run).names[2:] == ("spare 1",)


def test_recordings_of_ones_own_without_any_label(call, tmp_path):
    """The flows are all there is: everything after the training calls them by number."""
    run, options = tmp_path / "run", sets_of("recordings", tmp_path)
    hidden = ("model.supervision=weak", "data.labels=null", "training.validation_errors=2")
    words = [*options, *(word for change in hidden for word in ("--set", change))]
    code, output = call("train", "recordings", *words, "--out", run)
    assert code == 2
    assert "model.flows" in output
    assert not run.exists()
    code, output = call("run", "recordings", *words, "--set", "model.flows=3", "--out", run)
    assert code == 0, output
    assert "no sequence has a label" in output
    assert flowfactor.load(run).names == ("flow 1", "flow 2", "flow 3")
    matching = json.loads((run / "training.json").read_text())["matching"]
    assert set(matching) == {"counts", "flows"}
    assert matching["counts"][0] == sorted(matching["counts"][0], reverse=True)
    result = json.loads((run / "evaluation.json").read_text())
    counts = result["inferred"]["counts"][0]
    assert sum(counts) == result["images"]
    assert list(result["errors"]) == [f"flow {k + 1}" for k, count in enumerate(counts) if count]
    assert "accuracy" not in result["inferred"]
    assert result["inferred"]["mean_error"] == pytest.approx(result["mean_error"])
    code, output = call("explore-latent", run, "--images", 1)
    assert code == 0, output
    command = [sys.executable, "-m", "experiments.scripts.extrapolation", run, "--images", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    shutil.copytree(run, tmp_path / "other")
    code, output = call("compare", run, tmp_path / "other", "--out", tmp_path / "compared")
    assert code == 2
    assert "without labels" in output


def test_recordings_some_of_which_have_no_label(call, tmp_path):
    """Validation and evaluation compare with the labels that there are."""
    run, options = tmp_path / "run", sets_of("recordings", tmp_path)
    labels = tmp_path / "labels.csv"
    known = labels.read_text().split()
    half = [line if i % 4 < 2 else line.split(",")[0] + "," for i, line in enumerate(known)]
    labels.write_text("\n".join(half))
    words = [*options, "--set", "model.supervision=weak", "--set", "model.flows=3"]
    words += ["--set", "data.validation=0.25", "--set", "data.test=0.25"]
    code, output = call("run", "recordings", *words, "--out", run)
    assert code == 0, output
    result = json.loads((run / "evaluation.json").read_text())
    assert 0 <= result["inferred"]["accuracy"] <= 1
    assert 0 < sum(map(sum, result["inferred"]["counts"])) < result["images"]
    assert flowfactor.load(run).names == ("down", "right", "spare 1")


def test_videos_of_ones_own(call, tmp_path):
    """A folder of mp4 files, by the command line alone."""
    import av
    import numpy as np

    (tmp_path / "films").mkdir()
    for number in range(10):
        with av.open(str(tmp_path / "films" / f"{number}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=10)
            stream.width = stream.height = 16
            stream.pix_fmt = "yuv420p"
            for t in range(5):
                frame = np.full((16, 16, 3), 20 * number, dtype=np.uint8)
                frame[:, t : t + 4] = 255
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                file.mux(stream.encode(picture))
            file.mux(stream.encode())
    run = tmp_path / "run"
    options = sets_of("recordings", tmp_path)
    films = (f"data.path={tmp_path / 'films'}", "data.labels=null", "data.names=[slide]")
    words = [word for change in films for word in ("--set", change)]
    code, output = call("train", "recordings", *options, *words, "--out", run)
    assert code == 0, output
    assert flowfactor.load(run).names == ("slide",)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("sprites", "data.motions={spin: {parameter: angel}}", "data.motions.spin.parameter"),
        ("shapes3d", "data.moves={shape: {stride: 2}}", "unknown key"),
        ("falcor3d", "data.path=nowhere", "nowhere"),
        ("isaac3d", "data.pth=x", "did you mean `path`"),
        ("factor_grid", "data.factors={hue: 0}", "data.factors.hue"),
        ("recordings", "data.start=random", "start: canonical"),
        ("recordings", "evaluation.composition=true", "two transformations"),
        ("sprites", "data.active_start=anywhere", "'random' or 'canonical'"),
        ("mnist_composition", "objective.commutator=-1", "objective.commutator"),
    ],
)
def test_bad_keys_of_every_data_set_are_named(call, tmp_path, config, change, message):
    code, output = call("train", config, "--set", change, "--out", tmp_path / "run")
    assert code == 2
    assert message in output
    assert not (tmp_path / "run").exists()
