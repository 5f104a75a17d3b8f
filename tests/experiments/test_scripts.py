"""Every script on the checkpoint that ships: it draws, and says what is wrong with its flags."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import experiments
import flowfactor
from experiments.explore import different_samples
from experiments.runs import load_data, read_run_config

ROOT = Path(experiments.__file__).parent
SHIPPED = ROOT / "checkpoints" / "sprites"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script as a program; return exit code, output and errors."""

    def run(name: str, *words: object):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, " ".join(printed.err.split())

    return run


def drawn(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    """Return a configuration of sprites with other transformations, and one of another size."""
    folder = tmp_path_factory.mktemp("data")
    config = yaml.safe_load((SHIPPED / "config.yaml").read_text())
    config["data"]["size"] = 16
    (folder / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    config["data"]["size"] = 32
    config["data"]["motions"] = {"turn": {"parameter": "angle", "step": 5.0}}
    (folder / "turn.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_the_checkpoint_that_ships_is_small_and_complete():
    model = flowfactor.load(SHIPPED)
    assert (SHIPPED / "model.pt").stat().st_size < 1.2e6
    assert model.names == ("scaling", "rotation", "x", "y", "hue")
    assert json.loads((SHIPPED / "training.json").read_text())["steps"] > 0
    data = load_data(read_run_config(SHIPPED), "test")
    with torch.no_grad():
        films = data.sample(range(10), "x")
        moved = model.decode(model.flow(model.encode(films.frames[:, 0]).mean, "x", 8.0))
    # It has learned something: the sprite is where it should be.
    assert (moved - films.frames[:, 8]).abs().mean() < (
        0.3 * (films.frames[:, 0] - films.frames[:, 8]).abs().mean()
    )


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("plot_landscape", ["--transformation", "x", "--times", 0]),
        ("plot_trajectories", ["--images", 3, "--transformation", "x", "y"]),
    ],
)
def test_one_figure(script, tmp_path, name, flags):
    figure = tmp_path / "figure.png"
    code, out, err = script(name, SHIPPED, *flags, "--out", figure)
    assert (code, err) == (0, "")
    assert str(figure) in out
    assert min(drawn(figure)) > 300


def test_composition(script, tmp_path):
    flags = ["--images", 3, "--frames", 3, "--pair", "x", "hue", "--last", 10, "--random-starts"]
    code, out, err = script("composition", SHIPPED, *flags, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "x + hue" in out
    assert min(drawn(tmp_path / "composition.png")) > 300
    result = json.loads((tmp_path / "composition.json").read_text())
    assert (result["images"], result["frames"], result["random_starts"]) == (3, 3, True)
    assert len(result["superposition"]) == 10
    assert len(result["switching"]) == 20
    assert len(result["reversal"]) == 5
    assert set(result["commutation"]["x, hue"]) == {"latent", "pixels", "moved"}


def test_extrapolation(script, tmp_path):
    code, out, err = script("extrapolation", SHIPPED, "--images", 3, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "rotation" in out
    for name in ("extrapolation_errors.png", "extrapolation_strips.png"):
        assert min(drawn(tmp_path / name)) > 300
    result = json.loads((tmp_path / "extrapolation.json").read_text())
    assert (result["images"], result["trained_last"], result["last"]) == (3, 8, 16)
    assert len(result["errors"]["hue"]["per_frame"]) == 16


def test_extrapolation_to_data_of_another_configuration(script, tmp_path, other_data):
    config = yaml.safe_load((SHIPPED / "config.yaml").read_text())
    config["data"]["shapes"] = ["heart"]
    (tmp_path / "hearts.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    flags = ["--data", tmp_path / "hearts.yaml", "--images", 2, "--out", tmp_path]
    assert script("extrapolation", SHIPPED, *flags)[0] == 0
    assert (tmp_path / "extrapolation_strips.png").is_file()


def test_extrapolation_to_sprites_that_move_like_digits(script, tmp_path, tiny_run):
    motions = "{scaling: {parameter: scale}, rotation: {parameter: angle}, hue: {parameter: hue}}"
    flags = ["--data", "sprites", "--set", "data.size=28", "--set", f"data.motions={motions}"]
    code, _, err = script("extrapolation", tiny_run, *flags, "--images", 2, "--out", tmp_path)
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "extrapolation.json").read_text())
    assert list(result["errors"]) == ["scaling", "rotation", "hue"]


def test_extrapolation_to_digits_that_training_left_out(script, tmp_path, tiny_run):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["exclude_digits"] = [3, 8]
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, _, err = script("extrapolation", run, "--held-out", "--images", 2)
    assert (code, err) == (0, "")
    assert (run / "figures" / "extrapolation_strips.png").is_file()


def test_runs_side_by_side(script, tmp_path):
    out = tmp_path / "compared.json"
    code, printed, err = script("compare_composition", SHIPPED, "--images", 4, "--out", out)
    assert (code, err) == (0, "")
    (found,) = json.loads(out.read_text()).values()
    assert (found["split"], found["images"]) == ("validation", 4)
    assert f"| sprites | 7,000 | {found['alone']:.1f} | {found['superposition']:.1f} |" in printed
    assert found["training"]["steps"] == 7000


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("plot_landscape", ["--images", 0], "--images must be at least 1"),
        ("plot_landscape", ["--transformation", "colour"], "colour"),
        ("plot_trajectories", ["--transformation", "colour"], "the model has scaling"),
        ("composition", ["--images", 0], "--images must be at least 1"),
        ("composition", ["--images", 100000], "must be in 1..1000"),
        ("composition", ["--frames", 1], "--frames must be at least 2"),
        ("composition", ["--frames", 9, "--images", 2], "frames must be in 1..8"),
        ("composition", ["--pair", "x", "colour"], "--pair takes two different"),
        ("composition", ["--pair", "x"], "expected 2 arguments"),
        ("extrapolation", ["--images", -1], "--images must be at least 1"),
        ("extrapolation", ["--first", 100000], "--first must be in 0..999"),
        ("extrapolation", ["--held-out"], "Nothing was left out"),
        ("extrapolation", ["--data", "nothing"], "nothing"),
        ("extrapolation", ["--data", "small.yaml"], "(3, 16, 16)"),
        ("extrapolation", ["--data", "turn.yaml"], "the model knows scaling"),
        ("extrapolation", ["--set", "data.size=28"], "name it by --data"),
        ("extrapolation", ["--data", "sprites", "--set", "data.size=x"], "data.size"),
        ("extrapolation", ["--digits", 3], "unrecognized arguments"),
        ("compare_composition", ["--images", 0], "--images must be at least 1"),
        ("compare_composition", ["nowhere"], "no run folder nowhere"),
    ],
)
def test_wrong_flags(script, tmp_path, other_data, name, flags, message):
    words = [other_data / word if str(word).endswith(".yaml") else word for word in flags]
    code, _, err = script(name, SHIPPED, *words, "--out", tmp_path / "out.png")
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["plot_landscape", "plot_trajectories", "composition", "extrapolation", "compare_composition"],
)
def test_no_run_folder_and_help(script, tmp_path, name):
    code, _, err = script(name, tmp_path / "nothing")
    assert code == 2
    assert "nothing" in err
    code, out, _ = script(name, "--help")
    assert code == 0
    assert "Example" in out


def test_explore_latent(call, tmp_path):
    grid = tmp_path / "grid.png"
    flags = ["--images", 2, "--weights", "x", "hue", "--times=-1,0,8", "--out", grid]
    code, output = call("explore-latent", SHIPPED, *flags)
    assert code == 0, output
    assert min(drawn(grid)) > 200
    assert min(drawn(tmp_path / "latent_weights_x_hue.png")) > 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--times", "0,now"], "numbers with commas"),
        (["--times", "4,2"], "increase"),
        (["--weights", "x", "colour"], "which are scaling"),
        (["--weights", "x", "x"], "two different"),
        (["--images", 100000], "1..1000"),
        (["--out", "grid.txt"], "must end in .png"),
    ],
)
def test_explore_latent_refuses_what_is_not_there(call, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    if "--out" not in flags:
        flags = [*flags, "--out", "grid.png"]
    code, output = call("explore-latent", SHIPPED, *flags)
    assert code == 2
    assert message in output
    assert not list(tmp_path.iterdir())


def test_different_samples_come_from_different_classes():
    data = load_data(read_run_config(SHIPPED), "test")
    chosen = different_samples(data, 5)
    assert sorted(data.labels[chosen[:3]].tolist()) == [0, 1, 2]
    assert len(chosen.unique()) == 5
