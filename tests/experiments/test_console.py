"""What the command line says, and how it ends."""

import io
import logging
import os
import signal
import sys

import pytest
from rich.console import Console
from tables import write_table
from tiny import sets

from experiments import cli, console, runs, sweep
from flowfactor import export, hub
from flowfactor.interrupts import Interrupted


@pytest.mark.parametrize("terminal", [True, False])
def test_stages_are_shown_on_a_terminal_only(monkeypatch, terminal):
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "error_console", Console(file=screen, force_terminal=terminal, width=80)
    )
    with console.show_stage("Measuring") as show:
        show("[bold]a metric\n")
    text = screen.getvalue()
    assert ("Measuring [bold]a metric" in text) == terminal
    assert bool(text) == terminal


def test_a_line_of_the_log_is_not_shown_beside_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "error_console", Console(file=screen, force_terminal=True))
    console.log_to_console()
    logger = logging.getLogger("flowfactor.training")
    logger.info("step 50", extra={"split": "train"})
    logger.info("resumed")
    assert "resumed" in screen.getvalue()
    assert "step 50" not in screen.getvalue()


def test_a_working_folder_that_is_gone(monkeypatch, capsys):
    def fail():
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", fail)
    with pytest.raises(SystemExit) as ended:
        console.prepare()
    assert ended.value.code == 2


def test_the_program(monkeypatch, capsys):
    """Without words, and with the traceback of an error."""
    monkeypatch.setattr(sys, "argv", ["flowfactor"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "reproduce" in capsys.readouterr().out


def test_narrow_consoles_get_lines(call, monkeypatch):
    monkeypatch.setattr(console.out_console, "_width", 40)
    for command in ("configs", "models", "options"):
        code, output = call(command)
        assert code == 0
        assert " | " in output


@pytest.mark.parametrize(
    ("saved", "advice"), [(True, "--resume"), (False, "the same command with --resume")]
)
def test_an_interrupted_training_says_how_it_goes_on(call, tmp_path, monkeypatch, saved, advice):
    def train(config, run, **_):
        run.mkdir()
        if saved:
            (run / "checkpoint.pt").touch()
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(runs, "train", train)
    run = tmp_path / "a run"
    code, output = call("train", "demo", *sets(), "--out", run)
    assert code == 128 + signal.SIGTERM
    assert advice in output
    assert (f"--out '{run}' --resume" in output) == saved


def test_an_interrupted_table_goes_on_by_the_same_command(call, tmp_path, monkeypatch):
    def run_cells(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_cells", run_cells)
    code, output = call("table", write_table(tmp_path), "--out", tmp_path / "out")
    assert code == 130
    assert "the same command" in output


def test_a_model_is_uploaded(call, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "push_to_hub", lambda folder, name, private: f"{name} {private}")
    words = ("--out", tmp_path / "shared", "--push", "me/digits", "--private")
    code, output = call("publish", tiny_run, *words)
    assert code == 0, output
    assert "me/digits True" in output


def test_a_model_is_exported_with_the_steps_that_are_asked_for(call, tiny_run, monkeypatch):
    def write(model, folder, format, method):
        return [folder / f"{format} {method.steps}"]

    monkeypatch.setattr(export, "export", write)
    code, output = call("export", tiny_run, "--format", "torch", "--steps", 3)
    assert code == 0, output
    assert "torch 3" in output
