"""The script that draws the data of a configuration."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments

SCRIPT = Path(experiments.__file__).parent / "scripts" / "plot_data.py"


@pytest.fixture
def script(monkeypatch, capsys):
    """Run the script as a program; return exit code, output and errors."""

    def run(*words: object):
        monkeypatch.setattr(sys, "argv", ["plot_data", *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def drawn(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_sprites_from_both_starts(script, tmp_path):
    small = ["--set", "data.size=16", "--set", "data.horizon=3", "--set", "data.test=20"]
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    code, out, err = script("sprites", *small, "--out", one)
    assert (code, err) == (0, "")
    assert str(one) in out
    assert script("sprites", *small, "--samples", 2, "--out", two)[0] == 0
    assert min(drawn(one)) > 300
    assert drawn(two)[1] > 1.5 * drawn(one)[1]


def test_recordings_are_drawn_as_recorded(script, tmp_path):
    films = np.random.default_rng(0).random((20, 5, 16, 16))
    np.savez(tmp_path / "films.npz", frames=films, labels=[0, 1] * 10)
    figure = tmp_path / "films.png"
    flags = ["--set", f"data.path={tmp_path / 'films.npz'}", "--set", "data.labels=null"]
    code, _, err = script("recordings", *flags, "--split", "train", "--out", figure)
    assert (code, err) == (0, "")
    assert min(drawn(figure)) > 150


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing"),
        (["sprites", "--set", "data.size=4"], "data.size"),
        (["sprites", "--samples", 0], "--samples"),
    ],
)
def test_what_is_wrong(script, tmp_path, words, message):
    code, _, err = script(*words, "--out", tmp_path / "data.png")
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_help(script):
    code, out, _ = script("--help")
    assert code == 0
    assert "Example" in out
