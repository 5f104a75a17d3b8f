"""Sweeps: tables of several methods and seeds, their cells run by any executor.

A cell is a method with a seed. It fills a run folder of its own and needs neither standard input
nor the process that planned it. Running it again resumes what was begun and leaves what is
finished, so that an interrupted sweep is continued by running it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import Field

from experiments import environment, runs
from experiments.comparison import Method, choose_columns, comparison_table, curve_of
from experiments.config import (
    CONFIG_FILE,
    Config,
    differences,
    read_config,
    to_dict,
    to_yaml,
    validate,
)
from experiments.executors import LocalExecutor, count_processors
from experiments.yaml_files import read_yaml
from flowfactor import plugins
from flowfactor.checkpoints import STATE_FILE
from flowfactor.errors import ConfigError, RunError, explain
from flowfactor.names import file_names
from flowfactor.options import NonNegativeInt, PositiveInt, dump, options, parse
from flowfactor.tables import markdown_text
from flowfactor.training import METRICS_FILE
from solvers.registry import suggest

State = Literal["new", "empty", "begun", "trained", "finished"]

# Changes of these keys leave a training as it is.
_ONLY_EVALUATED = ("description:", "plugins:", "evaluation.")

_LOCK_SECONDS = 60
_POLL_SECONDS = 0.2


# ---- the plan


@options
class MethodOptions:
    """A row of a table: what it has of its own."""

    config: str | None = None
    """A configuration; null is that of the table."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values by ``key.path``, over those of the table."""


@options
class TableOptions:
    """A table of methods and seeds."""

    methods: Annotated[dict[str, MethodOptions | None], Field(min_length=1)]
    """The rows, by what they are called."""
    title: str = ""
    """The heading of the table."""
    description: str = ""
    """What the table shows."""
    plugins: tuple[str, ...] = ()
    """Files, relative to that of the table, or modules whose kinds can be named."""
    config: str | None = None
    """The configuration of every method that names none of its own."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values by ``key.path`` for every method."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """The seeds with which every method is run."""
    processes: PositiveInt | None = None
    """How many cells run at the same time; null is as many as the processors carry."""
    threads: PositiveInt = 1
    """How many threads a cell has."""
    columns: tuple[str, ...] | None = None
    """Keys of columns, in order; null shows those that were measured."""

    def __post_init__(self) -> None:
        """Refuse rows that would be one."""
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them occurs twice")
        for label, method in self.methods.items():
            if self.config is None and (method is None or method.config is None):
                raise ValueError(f"methods: {label!r} has no `config`, and neither has the table")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method with a seed.

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

    def failure(self) -> str | None:
        """Return why it failed when it was run last, or None."""
        with contextlib.suppress(FileNotFoundError):
            return _error_file(self.run).read_text(encoding="utf-8").strip().splitlines()[-1]
        return None

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


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A table that is to be filled.

    Attributes:
        name: of its file.
        options: of its file.
        out: its folder.
        cells: every method with every seed; all methods with the first seed come first.
    """

    name: str
    options: TableOptions
    out: Path
    cells: tuple[Cell, ...]

    def unfinished(self, methods: Sequence[str] | None = None) -> list[Cell]:
        """Return the cells in which something is left to do.

        Args:
            methods: labels of the methods to take; None for all.

        Raises:
            ConfigError: there is no such method.
        """
        labels = list(self.options.methods)
        for method in methods or ():
            if method not in labels:
                raise ConfigError(f"--only {method}: no such method; {suggest(method, labels)}")
        chosen = [cell for cell in self.cells if not methods or cell.label in methods]
        return [cell for cell in chosen if not cell.finished]

    def executor(self, processes: int | None = None) -> LocalExecutor:
        """Return an executor on this machine.

        Args:
            processes: how many cells run at the same time; None is what the table says, or as many
                as the processors carry.
        """
        threads = self.options.threads
        count = processes or self.options.processes or max(1, count_processors() // threads)
        return LocalExecutor(count, threads=threads, log=self.out / "cells.log")


def plan(
    name: str,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    plugin_names: Iterable[str] = (),
) -> Sweep:
    """Read a table, and check everything that can be checked before anything runs.

    Args:
        name: a YAML file, or the name of a table that ships.
        out: the folder; default: ``runs/tables/<name>``.
        overrides: ``key.path=value`` for every cell, over what the table says.
        plugin_names: plug-ins besides those that the table names.

    Raises:
        ConfigError: the table, or the configuration of a method, is wrong.
        RunError: the folder has cells of another configuration.
    """
    file = read_yaml(name, kind="tables")
    try:
        table = parse(TableOptions, file.content)
    except ConfigError as error:
        problems = "\n".join(f"  {line}" for line in str(error).splitlines())
        raise ConfigError(f"{name} is no valid table:\n{problems}") from error
    loaded = [plugins.load(each, file.folder) for each in table.plugins]
    loaded += [plugins.load(each) for each in plugin_names]
    if table.columns is not None:
        try:
            choose_columns([], table.columns)
        except ConfigError as error:
            raise ConfigError(f"{name}: columns: {error}") from error
    out = out or Path("runs") / "tables" / file.title
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; a table needs a folder. Choose another one with --out.")
    configs = {}
    for label in table.methods:
        try:
            configs[label] = _config_of(table, label, overrides, loaded, file.folder)
        except ConfigError as error:
            raise ConfigError(f"{name}, method {label!r}: {error}") from error
    folders = {label: name.lower() for label, name in file_names(configs).items()}
    cells = tuple(
        Cell(label, seed, out / "cells" / folders[label] / f"seed_{seed}", config.with_seed(seed))
        for seed in table.seeds
        for label, config in configs.items()
    )
    _check_unchanged(cells)
    return Sweep(file.title, table, out, cells)


def _config_of(
    table: TableOptions,
    label: str,
    overrides: Sequence[str],
    plugin_names: Sequence[str],
    folder: Path | None,
) -> Config:
    """Return the configuration of a method, its seed aside."""
    method = table.methods[label] or MethodOptions()
    settings = {**table.set, **method.set}
    for key, value in [*settings.items(), *((each.partition("=")[0], None) for each in overrides)]:
        if key.strip() == "seed":
            raise ConfigError("set: seed: the seeds of a table are its own key, `seeds: [0, 1]`.")
        # A model of another kind is another section; of these there is one kind.
        if key in ("training", "evaluation") and isinstance(value, dict):
            example = next(iter(value), "key")
            raise ConfigError(
                f"set: {key}: this would replace the whole section; write the path of each key, as "
                f"in `{key}.{example}: ...`."
            )
    base = method.config or table.config
    assert base is not None
    config = read_config(
        base, overrides, settings=settings, plugin_names=plugin_names, folder=folder
    )[1]
    if config.training.devices != 1 or config.training.num_nodes != 1:
        raise ConfigError(
            "training.devices, training.num_nodes: a cell of a table is one process and needs 1 of "
            "each; `processes` runs cells at the same time."
        )
    return config.replace(data=config.data.resolve())


def _check_unchanged(cells: Sequence[Cell]) -> None:
    changed = [
        "\n    ".join([f"  {cell.name} ({cell.run})", *changes])
        for cell in cells
        if (cell.run / CONFIG_FILE).is_file() and (changes := _changes(cell.run, cell.config))
    ]
    if changed:
        listed = "\n".join(changed)
        raise RunError(
            f"Some cells were run with another configuration, and nothing in them was changed. "
            f"What differs:\n{listed}\nDelete their folders to run them again, or choose another "
            f"folder for the table with --out."
        )


# ---- a cell


def run_cell(run: str, content: dict[str, Any]) -> None:
    """Do what is left of a cell: train or resume, then evaluate.

    Args:
        run: its folder.
        content: its configuration, as plain data.

    Raises:
        FlowFactorError: another process works on the folder, it was made with another
            configuration, or the training failed; the reason is also in the file ``<run>.error``.
    """
    folder = Path(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    error_file = _error_file(folder)
    try:
        with FileLock(f"{folder}.lock", timeout=_LOCK_SECONDS):
            error_file.unlink(missing_ok=True)
            _fill(folder, validate(content, run))
    except Timeout as error:
        raise RunError(
            f"Another process has been working on {run} for {_LOCK_SECONDS} s. Wait until it has "
            f"ended, or end it; then run the table again."
        ) from error
    except Exception as error:
        text = f"{traceback.format_exc()}\n{_one_line(error)}\n"
        with contextlib.suppress(OSError):  # the disk may be full
            error_file.write_text(text, encoding="utf-8", errors="backslashreplace")
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
    if changes := _changes(run, config):
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


def _fill(run: Path, config: Config) -> None:
    state = state_of(run, config)
    if state in ("new", "empty", "begun"):
        runs.train(config, run, resume=state != "new")
    if state != "finished":
        runs.write_text(run / CONFIG_FILE, to_yaml(config))
        runs.evaluate(run, plugin_names=config.general.plugins)


def _changes(run: Path, config: Config) -> list[str]:
    """Return ``key: old -> new`` for what would make the training of a run another one."""
    changes = differences(runs.read_run_config(run, config.general.plugins), config)
    return [change for change in changes if not change.startswith(_ONLY_EVALUATED)]


def _error_file(run: Path) -> Path:
    return run.with_name(f"{run.name}.error")


def _last_line(path: Path) -> dict[str, Any] | None:
    """Return the last whole line of a file of metrics, reading its end only."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            line: dict[str, Any] = json.loads(file.read().rpartition(b"\n")[0].splitlines()[-1])
        return line
    return None


# ---- running them


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens to a cell, for whoever shows it.

    Attributes:
        kind: ``progress``, or how the cell has ended: ``finish`` or ``fail``.
        cell: which one.
        text: what it is doing, or why it failed.
        fraction: how much of its training is done.
    """

    kind: Literal["progress", "finish", "fail"]
    cell: Cell
    text: str = ""
    fraction: float = 0.0


def run_cells(
    sweep: Sweep,
    cells: Sequence[Cell],
    executor: Executor | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
) -> None:
    """Run cells; one that fails does not keep the others from running.

    Args:
        sweep: whose they are.
        cells: nothing is done in those that are finished.
        executor: any of :mod:`concurrent.futures`, or with its interface; None is
            :meth:`Sweep.executor`. It is shut down.
        on_event: called at what happens to them.

    Raises:
        RunError: another process fills the same table.
        KeyboardInterrupt: when interrupted, after the cells have saved their state.
    """
    report = on_event or (lambda _: None)
    sweep.out.mkdir(parents=True, exist_ok=True)
    executor = executor or sweep.executor()
    try:
        with FileLock(sweep.out / "table.lock", timeout=0), executor:
            submitted = {
                executor.submit(run_cell, str(cell.run), to_dict(cell.config)): cell
                for cell in cells
            }
            try:
                _follow(submitted, report)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                if isinstance(executor, LocalExecutor):
                    executor.interrupt()
                raise
    except Timeout as error:
        raise RunError(
            f"Another `flowfactor table` is filling {sweep.out}. Wait until it has ended, or "
            f"choose another folder with --out."
        ) from error


def _follow(submitted: Mapping[Future[Any], Cell], report: Callable[[Event], None]) -> None:
    pending = set(submitted)
    while pending:
        done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            cell, reason = submitted[future], _reason(future)
            if reason is not None and cell.failure() is None:  # it could not say so itself
                with contextlib.suppress(OSError):
                    _error_file(cell.run).write_text(f"{reason}\n", encoding="utf-8")
            report(Event("finish", cell) if reason is None else Event("fail", cell, reason))
        for future in pending:
            if future.running():
                report(Event("progress", submitted[future], *submitted[future].progress()))


def _reason(future: Future[Any]) -> str | None:
    try:
        future.result()
    except BrokenProcessPool:
        return "its process was killed; the memory may not have been enough"
    except CancelledError:
        return "cancelled"
    except KeyboardInterrupt:
        return "interrupted"
    except Exception as error:
        return _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    """Return what went wrong, in one line."""
    return " ".join((explain(error) or f"{type(error).__name__}: {error}").split())


# ---- what comes out


@dataclasses.dataclass(frozen=True)
class Written:
    """The files of a table, and its content in Markdown."""

    markdown: str
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def write(sweep: Sweep) -> Written:
    """Write the table as Markdown, LaTeX, CSV and JSON, and its figures, as far as it is filled.

    Raises:
        RunError: nothing is finished or has failed, a run is damaged, or a file cannot be written.
    """
    from experiments.compare import write_comparison  # brings matplotlib, which cells do not need

    methods = []
    for label in sweep.options.methods:
        cells = [cell for cell in sweep.cells if cell.label == label]
        done = [cell for cell in cells if cell.finished]
        methods.append(
            Method(
                label,
                tuple(runs.read_evaluation(cell.run) for cell in done),
                sum(cell not in done and cell.failure() is not None for cell in cells),
                tuple(curve_of(cell.run) for cell in done),
            )
        )
    records = [_record(cell, sweep.out) for cell in sweep.cells]
    if all(record["status"] == "unfinished" for record in records):
        raise RunError(
            f"There is nothing to show: no cell of {sweep.out} is finished. "
            f"`flowfactor table {sweep.name}` without --render-only runs them."
        )
    out, title = sweep.out, sweep.options.title or sweep.name
    columns = choose_columns(methods, sweep.options.columns)
    table = comparison_table(methods, columns, title=title)
    markdown, notes = table.to_markdown(), tuple(_notes(records))

    runs.write_json(
        out / "table.json",
        {
            "title": title,
            "description": sweep.options.description,
            "command": environment.command().replace(" --render-only", ""),
            "environment": environment.describe(),
            "table": dump(sweep.options),
            "cells": records,
        },
    )
    files = [out / "table.json", *write_comparison(methods, columns, table, sweep.name, out)]
    pictures = [f"![{path.stem}]({path.name})" for path in files if path.suffix == ".png"]
    below = ["\n".join(map(markdown_text, note.split("\n"))) for note in notes]
    heading = f"# {markdown_text(title)}"
    parts = [heading, sweep.options.description, markdown.strip(), *below, *pictures]
    runs.write_text(out / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    return Written(markdown, notes, (out / "table.md", *files))


def _record(cell: Cell, out: Path) -> dict[str, Any]:
    """Return the state of a cell, its evaluation and its curve."""
    record: dict[str, Any] = {"label": cell.label, "seed": cell.seed}
    failure = cell.failure()
    if cell.finished:
        return record | {
            "status": "finished",
            "run": str(cell.run.relative_to(out)),
            "evaluation": runs.read_json(cell.run / runs.EVALUATION_FILE),
            "curve": curve_of(cell.run),
        }
    if failure is not None:
        log = str(_error_file(cell.run).relative_to(out))
        return record | {"status": "failed", "error": failure, "log": log}
    return record | {"status": "unfinished"}


def _notes(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is to be said below a table that is not complete."""
    lines = [
        f"- {each['label']}, seed {each['seed']}: {each['error']} ({each['log']})"
        for each in records
        if each["status"] == "failed"
    ]
    if lines:
        yield "Failed:\n\n" + "\n".join(lines)
    names = [
        f"{each['label']}, seed {each['seed']}"
        for each in records
        if each["status"] == "unfinished"
    ]
    if names:
        yield f"Not finished yet: {'; '.join(names)}."
