"""Cells of sweeps: a configuration and the run folder that it fills.

A cell is run by a plain call, :func:`run_cell`, in any process on any machine that sees the folder.
It needs neither standard input nor the process that planned it. Running it again resumes what was
begun and leaves what is finished. Beside the folder ``seed_0`` stand ``seed_0.running`` while it
runs, ``seed_0.error`` once it has failed, and ``seed_0.stop`` where it is to stop early.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from experiments import runs
from experiments.config import CONFIG_FILE, Config, differences, to_yaml, validate
from flowfactor.checkpoints import STATE_FILE, lock_run, write_file
from flowfactor.errors import BusyError, FlowFactorError, RunError, explain
from flowfactor.interrupts import raise_signals
from flowfactor.options import dump
from flowfactor.training import METRICS_FILE, Progress

State = Literal["new", "empty", "begun", "trained", "finished"]

# Changes of these keys leave a training as it is.
_ONLY_EVALUATED = ("description:", "plugins:", "evaluation.")
_ERROR, _RUNNING, _STOP = ".error", ".running", ".stop"


class StoppedError(FlowFactorError):
    """A cell that was asked to stop before its training had ended."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A configuration and its run folder.

    Attributes:
        label: of the method.
        seed: of the run.
        run: its folder.
        config: of the run, complete.
    """

    label: str
    seed: int
    run: Path
    config: Config = dataclasses.field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.label}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return state_of(self.run, self.config) == "finished"

    @property
    def error_file(self) -> Path:
        """The file that says why it failed, if it has."""
        return _beside(self.run, _ERROR)

    def failure(self) -> str | None:
        """Return why it failed when it was run last, or None."""
        with contextlib.suppress(FileNotFoundError):
            return self.error_file.read_text(encoding="utf-8").strip().splitlines()[-1]
        return None

    def fail(self, reason: str) -> None:
        """Write down why it failed, where its own process could not."""
        _write_error(self.run, reason)

    def progress(self) -> tuple[str, float]:
        """Return what it is doing, and how much of the training is done."""
        if (self.run / runs.TRAINING_FILE).is_file():
            return "evaluates", 1.0
        line = _last_line(self.run / METRICS_FILE)
        if line is None:
            return "starts", 0.0
        training = self.config.training
        fraction = line["step"] / training.steps
        if training.max_minutes is not None:
            fraction = max(fraction, line["seconds"] / (60 * training.max_minutes))
        return f"step {line['step']}", min(fraction, 1.0)

    def stop(self) -> None:
        """Let it raise :class:`StoppedError` at its next validation, wherever it runs."""
        _beside(self.run, _STOP).touch()


# ---- what runs where


def running(cells: Iterable[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yield the cells that run, and where: ``host``, ``pid``, ``job``, ``began``.

    It reads one folder for each method and one file for each cell that runs. A cell whose process
    was killed counts as running until it is sent again; :func:`is_busy` knows better.
    """
    folders: dict[Path, set[str]] = {}
    for cell in cells:
        folder = cell.run.parent
        if folder not in folders:
            names = os.listdir(folder) if folder.is_dir() else []
            folders[folder] = {name for name in names if name.endswith(_RUNNING)}
        if cell.run.name + _RUNNING in folders[folder]:
            with contextlib.suppress(OSError, ValueError):
                yield cell, json.loads(_beside(cell.run, _RUNNING).read_text(encoding="utf-8"))


def is_busy(cell: Cell) -> bool:
    """Return whether a process works on a cell now."""
    try:
        if cell.run.is_dir():
            with lock_run(cell.run):
                pass
    except BusyError:
        return True
    return False


@contextlib.contextmanager
def _noted(run: Path) -> Iterator[None]:
    """Keep a note of where a cell runs."""
    place: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "began": round(time.time()),
    }
    path = _beside(run, _RUNNING)
    path.write_text(json.dumps(place), encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


# ---- running one


def run_cell(run: str, content: Mapping[str, Any]) -> None:
    """Do what is left of a cell: train or resume, then evaluate.

    Ctrl-C, SIGTERM and SIGHUP end it after its state is saved, as far as it runs in the main thread
    of its process.

    Args:
        run: its folder.
        content: its configuration, as plain data.

    Raises:
        BusyError: another process works on it.
        StoppedError: it was asked to stop.
        FlowFactorError: it was made with another configuration, or the training failed; the reason
            is also in the file ``<run>.error``.
        Interrupted: by a signal.
    """
    folder = Path(run)
    try:
        with raise_signals():
            config = validate(content, run)
            with lock_run(folder), _noted(folder):
                _beside(folder, _ERROR).unlink(missing_ok=True)
                _fill(folder, config)
    except (BusyError, StoppedError):
        raise
    except Exception as error:
        _write_error(folder, f"{traceback.format_exc()}\n{describe_error(error)}")
        raise


def state_of(run: Path, config: Config) -> State:
    """Return how far a cell is.

    Args:
        run: its folder.
        config: what it is to be.

    Returns:
        ``new`` if there is nothing; ``empty`` if the training was ended before its first
        checkpoint; ``begun`` if it can be resumed; ``trained`` if it is to be evaluated, for the
        first time or with other options; ``finished`` if nothing is left to do.

    Raises:
        RunError: the folder was made with another configuration.
        ConfigError: its configuration is damaged.
    """
    if not (run / CONFIG_FILE).is_file():
        return "new"
    if changes := changes_of(run, config):
        listed = "\n".join(f"  {change}" for change in changes)
        raise RunError(f"{run} was made with another configuration. What differs:\n{listed}")
    if not (run / runs.TRAINING_FILE).is_file():
        return "begun" if (run / STATE_FILE).is_file() else "empty"
    try:
        evaluation = runs.read_evaluation(run)
    except RunError:
        return "trained"
    same = evaluation.options == dump(config.evaluation)
    same &= evaluation.training == runs.read_json(run / runs.TRAINING_FILE)
    return "finished" if same else "trained"


def changes_of(run: Path, config: Config) -> list[str]:
    """Return ``key: old -> new`` for what would make the training of a run another one."""
    with contextlib.suppress(OSError):  # reading YAML takes a hundred times as long as writing it
        if (run / CONFIG_FILE).read_bytes() == to_yaml(config).encode(errors="backslashreplace"):
            return []
    changes = differences(runs.read_run_config(run, config.general.plugins), config)
    return [change for change in changes if not change.startswith(_ONLY_EVALUATED)]


def describe_error(error: BaseException) -> str:
    """Return what went wrong, in one line."""
    return " ".join((explain(error) or f"{type(error).__name__}: {error}").split())


def _fill(run: Path, config: Config) -> None:
    stop = _beside(run, _STOP)

    def look(progress: Progress) -> None:
        if progress.split == "validation" and stop.exists():
            raise StoppedError(f"{run} was stopped at step {progress.step}.")

    state = state_of(run, config)
    if state in ("new", "empty", "begun"):
        runs.train(config, run, resume=state != "new", on_progress=look)
    if state != "finished":
        write_file(run / CONFIG_FILE, to_yaml(config))
        runs.evaluate(run, plugin_names=config.general.plugins)


def _write_error(run: Path, text: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full
        run.parent.mkdir(parents=True, exist_ok=True)
        data = f"{text}\n".encode(errors="backslashreplace")
        _beside(run, _ERROR).write_bytes(data)


def _beside(run: Path, suffix: str) -> Path:
    return run.with_name(run.name + suffix)


def _last_line(path: Path) -> dict[str, Any] | None:
    """Return the last whole line of a file of metrics, reading its end only."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            line: dict[str, Any] = json.loads(file.read().rpartition(b"\n")[0].splitlines()[-1])
        return line
    return None
