"""Names that lead out of a run folder, and machines that fail: nothing lost, no traceback."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import sets, write
from typer.testing import CliRunner

from experiments import runs, sweep
from experiments.cli import app
from experiments.plots import plot
from experiments.runs import read_evaluation
from experiments.scripts import plot_landscape

ESCAPE = "x/../../../../../PRECIOUS"

pytestmark = pytest.mark.usefixtures("empty_figures")


def test_names_never_leave_the_run_folder(call, tmp_path):
    for folder in [tmp_path, *(tmp_path / f"{'a/' * depth}a" for depth in range(6))]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "PRECIOUS.png").write_text("mine")
    run = tmp_path / "a/a/a/a/run"
    moves = {
        ESCAPE: {"parameter": "angle", "step": 10.0},
        "[red]\n$x_$": {"parameter": "hue", "step": 20.0},
    }
    short = ("data.horizon=2", "evaluation.metrics={}", f"data.transformations={write(moves)}")
    for words in (("train", "demo", *sets(*short), "--out", run), ("evaluate", run)):
        code, output = call(*words)
        assert code == 0, output
    table = read_evaluation(run).tables()["errors"].to_markdown()
    assert ESCAPE in table
    assert "[red] $x" in table.replace("\\", "")
    figures = run / "figures"
    assert plot(run).is_file()
    assert (figures / "landscape_x_PRECIOUS.png").is_file()
    assert "[red] $x_$" in (run / "report.html").read_text()
    code, output = call("explore-latent", run, "--images", 1, "--times", "0,1")
    assert code == 0, output
    assert (figures / "latent_weights_red_x_x_PRECIOUS.png").is_file()
    (figures / "landscape_x_PRECIOUS.png").unlink()
    plot_landscape.main(run, transformation=ESCAPE, time=[0.0])
    assert (figures / "landscape_x_PRECIOUS.png").is_file()
    for path in tmp_path.rglob("PRECIOUS*"):
        assert path.read_text() == "mine"


def test_cells_of_any_names_have_folders_of_their_own(tmp_path):
    labels = [ESCAPE, "..", "a b", "A-B", "x" * 300, "con"]
    (tmp_path / "t.yaml").write_text(
        write({"config": "demo", "methods": {label: {} for label in labels}})
    )
    cells = sweep.plan(str(tmp_path / "t.yaml"), out=tmp_path / "out").cells
    assert len({cell.run for cell in cells}) == len(labels)
    for cell in cells:
        assert cell.run.resolve().parent.parent == tmp_path.resolve() / "out" / "cells"


# ---- the machine fails


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "runs/x: No space"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "permissions"),
        (MemoryError(), "batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "--images"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"), "ascii"),
    ],
)
def test_one_paragraph_whatever_fails(call, monkeypatch, tmp_path, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(runs, "evaluate", fail)
    code, output = call("evaluate", tmp_path)
    assert code == 2, output
    assert message in output
    assert len(output) < 700


def test_mistakes_of_ours_are_not_hidden(call, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(runs, "evaluate", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        call("evaluate", tmp_path)


def test_paths_that_no_folder_can_have(call, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "run", tmp_path / ("a" * 300), tmp_path / "a\udcff"):
        for words in (("evaluate", path), ("plot", path), ("explore-latent", path)):
            code, output = call(*words)
            assert code == 2, output
            assert "Error:" in output


def test_paths_are_never_broken_over_lines(tmp_path):
    path = tmp_path / " ".join(["[red]a long name"] * 12)
    result = CliRunner().invoke(app, ["evaluate", str(path)], terminal_width=40)
    assert result.exit_code == 2
    assert str(path) in result.output


def test_wrong_words_are_one_paragraph(call):
    for words in (("train", "demo", "--fast"), ("fly",), ("train",), ("evaluate", "a", "b")):
        code, output = call(*words)
        assert code == 2
        assert output.startswith("Error: ")
        assert "--help" in output


def test_closed_and_full_output_and_a_working_folder_that_is_gone(tmp_path):
    """In one process after another, for these are properties of a process."""
    gone = tmp_path / "gone"
    gone.mkdir()
    program = f"{sys.executable} -m experiments.cli"
    script = f"""
        PYTHONIOENCODING=ascii {program} --help | head -c 1 >/dev/null; echo "${{PIPESTATUS[0]}}"
        {program} train --help >/dev/full; echo $?
        cd {gone}; rmdir {gone}; {program} --help; echo $?
    """
    root = Path(runs.__file__).parent.parent
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
    )
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    codes = result.stdout.split()
    assert codes[0] in ("0", "1", "141")
    assert codes[1:] == ["2", "2"]
    assert "No space left" in result.stderr
    assert "working folder" in result.stderr
