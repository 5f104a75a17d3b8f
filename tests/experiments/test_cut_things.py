"""The script that cuts sequences around things that move in a film."""

import importlib

import numpy as np
import typer
from typer.testing import CliRunner

from experiments.console import Command
from flowfactor.data import Recordings


def script(*words):
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(importlib.import_module("experiments.scripts.cut_things").main)
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


def test_a_film_becomes_recordings_with_labels_and_groups(tmp_path):
    film = np.zeros((40, 60, 80), np.uint8)
    for t in range(40):
        film[t, 10:15, 2 * t : 2 * t + 9] = 200  # one thing glides
        film[t, 5 + t : 14 + t, 40 + 30 * (t < 20) : 45 + 30 * (t < 20)] = 200
    np.save(tmp_path / "film.npy", film)
    out = tmp_path / "new" / "things.h5"
    small = ("--side", 30, "--size", 12, "--horizon", 4, "--stride", 4, "--move", 3)
    code, output = script(tmp_path / "film.npy", out, *small)
    assert code == 0, output
    assert "glide" in output
    data = Recordings(out)
    assert "glide" in data.names
    assert data.image_shape == (1, 12, 12)
    assert len(data.split(1, 1)["test"]) < len(data)
    code, output = script(tmp_path / "film.npy", out, *small)
    assert code != 0
    assert "exists" in output


def test_one_thing_is_enough_to_hold_a_part_out(tmp_path):
    film = np.zeros((60, 30, 160), np.uint8)
    for t in range(60):
        film[t, 10:15, 2 * t : 2 * t + 9] = 200
    np.save(tmp_path / "film.npy", film)
    small = ("--side", 20, "--size", 8, "--horizon", 2, "--stride", 1, "--move", 3)
    code, output = script(tmp_path / "film.npy", tmp_path / "things.h5", *small)
    assert code == 0, output
    parts = Recordings(tmp_path / "things.h5").split(0.1, 0.1)
    assert {name: len(part) > 0 for name, part in parts.items()} == dict.fromkeys(parts, True)


def test_what_is_not_worth_beginning(tmp_path):
    """A film in which nothing moves, and a file that nobody would find again."""
    np.save(tmp_path / "film.npy", np.full((9, 20, 20), 80, np.uint8))
    for out, hint in (("things.h5", "moves"), ("things.mp4", ".h5")):
        code, output = script(tmp_path / "film.npy", tmp_path / out)
        assert code != 0
        assert hint in output


def test_a_film_of_fish_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, output = script("zebrafish_A", tmp_path / "a.h5")
    assert code != 0
    assert "idtrackerai" in output
