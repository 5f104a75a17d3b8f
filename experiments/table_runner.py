"""Tables of several methods and seeds: how they are filled, and what comes out.

Every cell is a run folder that a process of its own fills (:mod:`experiments.cell`). What is
finished stays: a table that was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from filelock import FileLock, Timeout

import experiments
from experiments import cell as cells_of
from experiments import comparison, environment, runs
from experiments.config import Config, dump, read_config
from experiments.datasets import DigitsConfig
from experiments.table_config import TableConfig, hint, read_table, slug
from flowfactor.checkpoints import atomic_file
from flowfactor.diagnostics.saving import save
from flowfactor.errors import ConfigError, RunError
from flowfactor.training import METRICS_FILE

_POLL_SECONDS = 0.2


# ---- the cells


@dataclass(frozen=True)
class Cell:
    """A method with a seed: what is run, and where.

    Attributes:
        label: of the method.
        seed: of the run.
        config: of the run, complete.
        out: the folder of the table.
    """

    label: str
    seed: int
    config: Config = field(repr=False, hash=False)
    out: Path

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.label}, seed {self.seed}"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out / "cells" / slug(self.label) / f"seed_{self.seed}"

    @property
    def config_file(self) -> Path:
        """The configuration that its process reads."""
        return self.out / "configs" / f"{slug(self.label)}_seed{self.seed}.yaml"

    @property
    def log(self) -> Path:
        """What its process writes."""
        return self.out / "logs" / f"{slug(self.label)}_seed{self.seed}.log"

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return cells_of.state_of(self.run, self.config) == "finished"

    def progress(self) -> tuple[str, float]:
        """Return what its process is doing, and how much of the training is done."""
        if (self.run / runs.TRAINING_FILE).is_file():
            return "evaluates", 1.0
        training, fraction = self.config.training, 0.0
        line = _last_metrics(self.run / METRICS_FILE)
        if line is None:
            return "starts", 0.0
        fraction = line["step"] / training.steps
        if training.max_minutes is not None:
            fraction = max(fraction, line["seconds"] / (60 * training.max_minutes))
        return f"step {line['step']}", min(fraction, 1.0)


@dataclass
class Table:
    """A table that is to be filled.

    Attributes:
        name: of its file.
        content: of its file.
        out: its folder.
        cells: every method with every seed; all methods with the first seed come first.
        failures: of cells that are not finished, what went wrong when they were tried last.
    """

    name: str
    content: TableConfig
    out: Path
    cells: tuple[Cell, ...]
    failures: dict[Cell, str] = field(default_factory=dict)

    def chosen(self, methods: Sequence[str] | None = None) -> list[Cell]:
        """Return the cells that are not finished.

        Args:
            methods: labels of the methods to take; None for all.

        Raises:
            ConfigError: there is no such method.
        """
        labels = list(self.content.methods)
        for method in methods or []:
            if method not in labels:
                raise ConfigError(
                    f"--only {method}: the table {self.name} has no such method"
                    f"{hint(method, labels)}."
                )
        return [
            cell
            for cell in self.cells
            if (not methods or cell.label in methods) and not cell.finished()
        ]

    def check_renderable(self) -> None:
        """Refuse to show a table of which nothing is there.

        Raises:
            RunError: no cell is finished.
        """
        if not any(cell.finished() for cell in self.cells):
            raise RunError(
                f"There is nothing to show: no cell of {self.out} is finished. "
                f"`flowfactor table {self.name}` without --render-only runs them."
            )

    def processes(self, asked: int | None = None) -> int:
        """Return how many cells run at once: what is asked for, or as many as the CPUs carry."""
        return asked or self.content.processes or max(1, _cpus() // self.content.threads)


def plan(name: str, *, out: Path | None = None, overrides: Sequence[str] = ()) -> Table:
    """Read a table, and check everything that can be checked before anything runs.

    Args:
        name: a YAML file, or the name of a table that ships.
        out: the folder; default: ``runs/tables/<name>``.
        overrides: ``key.path=value`` for every cell, over what the table says.

    Raises:
        ConfigError: the table, or the configuration of a method, is wrong.
        RunError: the folder has cells of another configuration.
    """
    title, content = read_table(name)
    if content.columns is not None:
        try:
            comparison.chosen_columns([], content.columns)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    out = out or Path("runs") / "tables" / title
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; a table needs a folder. Choose another one with --out.")
    configs = {label: _config_of(name, content, label, overrides) for label in content.methods}
    cells = tuple(
        Cell(label, seed, config.model_copy(update={"seed": seed}), out)
        for seed in content.seeds
        for label, config in configs.items()
    )
    _check_unchanged(cells)
    return Table(title, content, out, cells, _recorded_failures(out, cells))


def _config_of(name: str, table: TableConfig, label: str, overrides: Sequence[str]) -> Config:
    """Return the configuration of a method, its seed aside."""
    method = table.methods[label]
    base = method.config or table.config
    assert base is not None
    try:
        settings = [*_settings(table.set), *_settings(method.set)]
        for each in overrides:
            _check_key(each.partition("=")[0], None)
        config = read_config(base, [*settings, *overrides])[1]
        if config.training.devices != 1 or config.training.num_nodes != 1:
            raise ConfigError(
                "training.devices, training.num_nodes: a cell of a table is one process and needs "
                "1 of each; `processes` runs cells at the same time."
            )
    except ConfigError as error:
        raise ConfigError(f"{name}, method {label!r}: {error}") from error
    if isinstance(config.data, DigitsConfig):
        config = config.model_copy(update={"data": config.data.resolved()})
    return config


def _settings(content: dict[str, Any]) -> Iterator[str]:
    """Yield ``key.path=value`` for each entry of a `set`."""
    for key, value in content.items():
        _check_key(key, value)
        text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
        text = text.removesuffix("...\n").strip()  # it is behind a value that is no list or mapping
        yield f"{key}={text}"


def _check_key(key: str, value: Any) -> None:
    key = key.strip()
    if key == "seed":
        raise ConfigError("set: seed: the seeds of a table are its own key, `seeds: [0, 1]`.")
    # A model of another kind is another section; of these there is one kind.
    if key in ("training", "evaluation") and isinstance(value, dict):
        example = next(iter(value), "key")
        raise ConfigError(
            f"set: {key}: this would replace the whole section; write the path of each key, as in "
            f"`{key}.{example}: ...`."
        )


def _check_unchanged(cells: Sequence[Cell]) -> None:
    changed = []
    for cell in cells:
        if (cell.run / runs.CONFIG_FILE).is_file():
            changes = cells_of.changes(cell.run, cell.config)
            if changes:
                changed.append("\n    ".join([f"  {cell.name} ({cell.run})", *changes]))
    if changed:
        listed = "\n".join(changed)
        raise RunError(
            f"Some cells were run with another configuration, and nothing in them was changed. "
            f"What differs:\n{listed}\nDelete their folders to run them again, or choose another "
            f"folder for the table with --out."
        )


def _recorded_failures(out: Path, cells: Sequence[Cell]) -> dict[Cell, str]:
    if not (out / "table.json").is_file():
        return {}
    recorded = runs.read_json(out / "table.json").get("cells", [])
    errors = {
        (each.get("label"), each.get("seed")): each["error"] for each in recorded if "error" in each
    }
    return {cell: errors[key] for cell in cells if (key := (cell.label, cell.seed)) in errors}


# ---- running them


@dataclass(frozen=True)
class Event:
    """Something that happens to a cell, for whoever shows it.

    Attributes:
        kind: ``start``, ``progress``, or how the cell has ended: ``finish`` or ``fail``.
        cell: which one.
        text: what it is doing, or why it failed.
        fraction: how much of its training is done.
        seconds: since its process was started.
    """

    kind: Literal["start", "progress", "finish", "fail"]
    cell: Cell
    text: str = ""
    fraction: float = 0.0
    seconds: float = 0.0


def run_cells(
    table: Table,
    cells: Sequence[Cell],
    *,
    processes: int,
    on_event: Callable[[Event], None] | None = None,
) -> None:
    """Run cells, some at a time, each in a process of its own.

    A cell that fails does not keep the others from running: see ``failures`` of the table. If this
    process ends, in whatever way, those of the cells save their state and end too.

    Args:
        table: it keeps what fails.
        cells: of the table; those that are finished end at once.
        processes: how many run at the same time.
        on_event: called as they go on.

    Raises:
        RunError: another process fills the same table.
        KeyboardInterrupt: when interrupted, after the cells have saved their state.
    """
    report = on_event or (lambda _: None)
    waiting = list(cells)
    running: list[_Process] = []
    table.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(table.out / "table.lock", timeout=0):
            try:
                while waiting or running:
                    while waiting and len(running) < processes:
                        process = _Process(waiting.pop(0), table.content.threads)
                        running.append(process)
                        report(Event("start", process.cell))
                    time.sleep(_POLL_SECONDS)
                    for process in list(running):
                        event = process.event()
                        if event.kind != "progress":
                            running.remove(process)
                            table.failures.pop(event.cell, None)
                            if event.kind == "fail":
                                table.failures[event.cell] = event.text
                            write_state(table)
                        report(event)
            finally:
                for process in running:
                    process.end()
                for process in running:
                    process.popen.wait()
    except Timeout as error:
        raise RunError(
            f"Another `flowfactor table` is filling {table.out}. Wait until it has ended, or "
            f"choose another folder with --out."
        ) from error


class _Process:
    """A cell that runs. It ends when its standard input does, which is a pipe from this process."""

    def __init__(self, cell: Cell, threads: int) -> None:
        self.cell = cell
        for path in (cell.config_file, cell.log):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(cell.config_file) as file:
            file.write(dump(cell.config).encode())
        root = str(Path(experiments.__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        command = [sys.executable, "-P", "-m", "experiments.cell"]
        with cell.log.open("ab") as log:
            self.log_begins = log.tell()
            self.began = time.monotonic()
            self.popen = subprocess.Popen(
                [*command, str(cell.config_file), str(cell.run)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | settings,
                # Ctrl-C reaches this process only, which then ends the cells in order.
                start_new_session=True,
            )

    def event(self) -> Event:
        """Return how it is, or how it has ended."""
        code = self.popen.poll()
        seconds = time.monotonic() - self.began
        if code is None:
            return Event("progress", self.cell, *self.cell.progress(), seconds)
        self.end()
        if code == 0:
            return Event("finish", self.cell, "", 1.0, seconds)
        return Event("fail", self.cell, self._reason(code), seconds=seconds)

    def end(self) -> None:
        """Let the cell save its state and end."""
        stdin: IO[bytes] | None = self.popen.stdin
        if stdin is not None:
            with contextlib.suppress(OSError):
                stdin.close()

    def _reason(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            killed = "; the memory may not have been enough" if name == "SIGKILL" else ""
            return f"ended by {name}{killed}"
        if code == cells_of.INTERRUPTED:
            return "interrupted"
        with self.cell.log.open("rb") as log:
            log.seek(self.log_begins)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line]
        errors = [line for line in lines if line.startswith(cells_of.ERROR)]
        last = [*lines[-1:], *errors[-1:]]
        return last[-1].removeprefix(cells_of.ERROR) if last else f"ended with exit code {code}"


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_metrics(path: Path) -> dict[str, Any] | None:
    """Return the last whole line of a file of metrics, reading its end only."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            line = file.read().rpartition(b"\n")[0].splitlines()[-1]
        content = yaml.safe_load(line.decode())
        if isinstance(content, dict) and {"step", "seconds"} <= set(content):
            return content
    return None


# ---- what comes out


@dataclass(frozen=True)
class Written:
    """The files of a table, and its content in Markdown."""

    markdown: str
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def rows_of(table: Table) -> list[comparison.Row]:
    """Return one row for each method, from the cells that are finished."""
    rows = []
    for label in table.content.methods:
        mine = [cell for cell in table.cells if cell.label == label]
        done = [cell for cell in mine if cell.finished()]
        rows.append(
            comparison.Row(
                label,
                tuple(runs.read_json(cell.run / runs.EVALUATION_FILE) for cell in done),
                sum(cell in table.failures and cell not in done for cell in mine),
                tuple(comparison.curve_of(cell.run) for cell in done),
            )
        )
    return rows


def write(table: Table) -> Written:
    """Write the table as Markdown, LaTeX, CSV and JSON, and its figures, as far as it is filled.

    Raises:
        ConfigError: the table names a column that is not known.
        RunError: a run is damaged, or a file cannot be written.
    """
    rows, out = rows_of(table), table.out
    title = table.content.title or table.name
    columns = comparison.chosen_columns(rows, table.content.columns)
    body = comparison.markdown(rows, columns)
    notes = tuple(_notes(table))

    files = [write_state(table)]
    figures = {}
    if any(row.results for row in rows):
        figures["errors"] = comparison.error_figure(rows)
        if (time_figure := comparison.quality_against_time(rows)) is not None:
            figures["time"] = time_figure
    for name in ("errors", "time"):
        for suffix in (".png", ".pdf"):
            path = out / f"{name}{suffix}"
            if name in figures:
                files.append(save(figures[name], path))
            else:  # one of an older table would be taken for this one's
                path.unlink(missing_ok=True)

    parts = [f"# {title}", table.content.description.strip(), body.strip(), *notes]
    parts += [f"![{name}]({name}.png)" for name in figures]
    texts = {
        "table.md": "\n\n".join(filter(None, parts)) + "\n",
        "table.tex": comparison.latex(rows, columns, title, f"tab:{slug(table.name)}"),
        "table.csv": comparison.csv_text(rows, columns),
    }
    for name, text in texts.items():
        with atomic_file(out / name) as file:
            file.write(text.encode())
    return Written(body, notes, tuple(out / name for name in texts) + tuple(files))


def write_state(table: Table) -> Path:
    """Write ``table.json``: of every cell its state, its evaluation and its curve."""
    cells = []
    for cell in table.cells:
        about: dict[str, Any] = {"label": cell.label, "seed": cell.seed}
        if cell.finished():
            about |= {
                "status": "finished",
                "run": str(cell.run.relative_to(table.out)),
                "evaluation": runs.read_json(cell.run / runs.EVALUATION_FILE),
                "curve": comparison.curve_of(cell.run),
            }
        elif cell in table.failures:
            about |= {"status": "failed", "error": table.failures[cell]}
        else:
            about["status"] = "unfinished"
        cells.append(about)
    path = table.out / "table.json"
    runs.write_json(
        path,
        {
            "title": table.content.title or table.name,
            "description": table.content.description,
            "command": environment.command().replace(" --render-only", ""),
            "environment": environment.describe(),
            "table": table.content.model_dump(mode="json"),
            "cells": cells,
        },
    )
    return path


def _notes(table: Table) -> Iterator[str]:
    """Yield what is to be said below a table that is not complete."""
    missing = [cell for cell in table.cells if not cell.finished()]
    failed = [cell for cell in missing if cell in table.failures]
    if failed:
        lines = (
            f"- {cell.name}: {table.failures[cell]} ({cell.log.relative_to(table.out)})"
            for cell in failed
        )
        yield "Failed:\n\n" + "\n".join(lines)
    if others := [cell.name for cell in missing if cell not in failed]:
        yield f"Not finished yet: {'; '.join(others)}."
