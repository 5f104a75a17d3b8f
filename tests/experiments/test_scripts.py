"""Every script on a model that ships: it draws, and says what is wrong with its flags."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from experiments.console import Command
from experiments.runs import open_run
from experiments.samples import different_samples
from flowfactor import pretrained
from flowfactor.metrics import Composition, Extrapolation
from flowfactor.records import Evaluation

SHIPPED = pretrained.folder("sprites")
RUN_SCRIPTS = ["plot_landscape", "plot_trajectories", "composition", "extrapolation"]


def script(name: str, *words: object):
    """Run a script as a program; return exit code and what was printed, on one line."""
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(importlib.import_module(f"experiments.scripts.{name}").main)
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


def drawn(path: Path) -> int:
    with Image.open(path) as picture:
        return min(picture.size)


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    """Return a folder with configurations of other sprites."""
    folder = tmp_path_factory.mktemp("data")
    changes = {
        "small": {"size": 16},
        "turn": {"transformations": {"turn": {"parameter": "angle", "step": 5.0}}},
        "hearts": {"shapes": ["heart"]},
    }
    for name, change in changes.items():
        config = yaml.safe_load((SHIPPED / "config.yaml").read_text())
        config["data"] |= change
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_the_model_that_ships_is_complete():
    run = open_run(SHIPPED)
    assert run.model.names == ("scaling", "rotation", "x", "y", "hue")
    assert json.loads((SHIPPED / "training.json").read_text())["steps"] > 0
    with torch.no_grad():
        batch = run.data("test").sample(range(10), "x")
        z = run.model.encode(batch.frames[:, 0]).mean
        moved = run.model.decode(run.model.flow(z, "x", 8.0))
    # It has learned something: the sprite is where it should be.
    assert (moved - batch.frames[:, 8]).abs().mean() < (
        0.3 * (batch.frames[:, 0] - batch.frames[:, 8]).abs().mean()
    )


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("plot_landscape", ["--transformation", "x", "--time", 0]),
        (
            "plot_trajectories",
            ["--images", 3, "--transformation", "x", "--transformation", "y", "--horizon", 4],
        ),
    ],
)
def test_one_figure(tmp_path, name, flags):
    figure = tmp_path / "figure.png"
    code, output = script(name, SHIPPED, *flags, "--out", figure)
    assert code == 0, output
    assert str(figure) in output
    assert drawn(figure) > 300


def test_composition(tmp_path):
    flags = ["--images", 2, "--frames", 3, "--pair", "x+hue", "--horizon", 10, "--random-starts"]
    code, output = script("composition", SHIPPED, *flags, "--out", tmp_path)
    assert code == 0, output
    assert "hue" in output
    assert drawn(tmp_path / "composition.png") > 300
    result = Evaluation.read(tmp_path / "composition.json").result(Composition)
    assert (result.random_starts, len(result.superposition)) == (True, 10)


def test_extrapolation(tmp_path, other_data):
    flags = ["--data", other_data / "hearts.yaml", "--images", 2]
    code, output = script("extrapolation", SHIPPED, *flags, "--out", tmp_path)
    assert code == 0, output
    assert "rotation" in output
    for name in ("extrapolation_errors.png", "extrapolation_strips.png"):
        assert drawn(tmp_path / name) > 300
    result = Evaluation.read(tmp_path / "extrapolation.json").result(Extrapolation)
    assert len(result.errors["hue"].per_frame) == 16


def test_extrapolation_to_classes_that_training_left_out(own_run):
    config = yaml.safe_load((own_run / "config.yaml").read_text())
    config["data"]["exclude_digits"] = [3, 8]
    (own_run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, output = script("extrapolation", own_run, "--held-out", "--images", 2)
    assert code == 0, output
    assert (own_run / "figures" / "extrapolation_strips.png").is_file()


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("plot_landscape", ["--images", 0], "--images"),
        ("plot_landscape", ["--transformation", "colour"], "colour"),
        ("plot_trajectories", ["--transformation", "colour"], "scaling"),
        ("composition", ["--images", 100000], "1..1000"),
        ("composition", ["--frames", 1], "--frames"),
        ("composition", ["--frames", 9, "--images", 2], "frames"),
        ("composition", ["--pair", "x+colour"], "--pair"),
        ("composition", ["--pair", "x"], "--pair"),
        ("extrapolation", ["--first", 100000], "--first"),
        ("extrapolation", ["--held-out"], "held out"),
        ("extrapolation", ["--data", "nothing"], "nothing"),
        ("extrapolation", ["--data", "small.yaml"], "(3, 16, 16)"),
        ("extrapolation", ["--data", "turn.yaml"], "turn"),
        ("extrapolation", ["--set", "data.size=28"], "--data"),
        ("extrapolation", ["--data", "sprites", "--set", "data.size=x"], "data.size"),
    ],
)
def test_wrong_flags(tmp_path, other_data, name, flags, message):
    words = [other_data / word if str(word).endswith(".yaml") else word for word in flags]
    code, output = script(name, SHIPPED, *words, "--out", tmp_path / "out.png")
    assert code == 2, output
    assert message in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RUN_SCRIPTS)
def test_no_run_folder_and_help(tmp_path, name):
    code, output = script(name, tmp_path / "nothing")
    assert code == 2
    assert "nothing" in output
    code, output = script(name, "--help")
    assert code == 0
    assert "Example" in output


def test_explore_latent(call, tmp_path):
    grid = tmp_path / "grid.png"
    flags = ["--images", 2, "--weights", "x", "hue", "--times=-1,0,8", "--out", grid]
    code, output = call("explore-latent", SHIPPED, *flags)
    assert code == 0, output
    assert drawn(grid) > 200
    assert drawn(tmp_path / "latent_weights_x_hue.png") > 200
    code, output = call("explore-latent", SHIPPED, "--sample", 3, "--out", tmp_path / "flows.gif")
    assert code == 0, output
    with Image.open(tmp_path / "flows.gif") as picture:
        assert picture.is_animated


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--times", "0,now"], "--times"),
        (["--times", "4,2"], "increas"),
        (["--weights", "x", "colour"], "scaling"),
        (["--weights", "x", "x"], "--weights"),
        (["--images", 100000], "1..1000"),
        (["--sample", 100000], "1000"),
        (["--out", "grid.txt"], ".png"),
    ],
)
def test_explore_latent_refuses_what_does_not_exist(call, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    if "--out" not in flags:
        flags = [*flags, "--out", "grid.png"]
    code, output = call("explore-latent", SHIPPED, *flags)
    assert code == 2
    assert message in output
    assert not list(tmp_path.iterdir())


def test_different_samples_come_from_different_classes():
    data = open_run(SHIPPED).data("test")
    samples = different_samples(data, 5)
    assert sorted(data.classes[samples[:3]].tolist()) == [0, 1, 2]
    assert len(samples.unique()) == 5


def test_the_oracle_of_photographs(tmp_path):
    pytest.importorskip("skimage")
    code, output = script(
        "photos_oracle", "--images", 2, "--frames", 2, "--out", tmp_path / "o.json"
    )
    assert code == 0, output
    found = json.loads((tmp_path / "o.json").read_text())
    for name, each in found["errors"].items():
        assert each["error"] < 0.3 * each["copy"], name
        coloured = name in ("hue", "brightness")
        assert (each["error"] < 2) == coloured  # 0 up to rounding where nothing moves
        assert (each["not_in_frame_0"] > 0) == (name in ("x", "y", "rotation"))
