"""Sweeps: tables of several methods and seeds, their cells run by any executor.

An interrupted sweep is continued by running it again: see :mod:`experiments.cells`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import Field

from experiments import environment, runs
from experiments.cells import (
    Cell,
    StoppedError,
    changes_of,
    describe_error,
    is_busy,
    run_cell,
    running,
)
from experiments.comparison import choose_columns, comparison_table, curve_of, methods_of
from experiments.config import CONFIG_FILE, Config, read_config, to_dict
from experiments.executors import EXECUTORS, LOST, ExecutorOptions, LocalOptions, RefusedError
from experiments.yaml_files import YamlFile, read_yaml
from flowfactor import plugins
from flowfactor.checkpoints import write_file
from flowfactor.errors import BusyError, ConfigError, RunError
from flowfactor.names import file_names
from flowfactor.options import KindIn, NonNegativeInt, dump, options, parse
from flowfactor.tables import markdown_text
from solvers.registry import suggest

T = TypeVar("T")
OneExecutor = Annotated[ExecutorOptions, KindIn(EXECUTORS, "local")]

_POLL_SECONDS = 0.2
# How often in a row the process of a cell may be lost before it gets any further.
_LOSSES = 3


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
    executor: OneExecutor = LocalOptions()
    """What runs the cells."""
    columns: tuple[str, ...] | None = None
    """Keys of columns, in order; null shows those that were measured."""

    def __post_init__(self) -> None:
        """Refuse rows that would be one."""
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them occurs twice")
        for label, method in self.methods.items():
            if self.config is None and (method is None or method.config is None):
                raise ValueError(f"methods: {label!r} has no `config`, and neither has the table")


@options
class _ExecutorFile:
    """A file of one executor."""

    executor: OneExecutor


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

    def only(self, methods: Sequence[str] | None = None) -> Sweep:
        """Return the sweep with the cells of some methods.

        Args:
            methods: their labels; None or none for all.

        Raises:
            ConfigError: there is no such method.
        """
        labels = list(self.options.methods)
        for method in methods or ():
            if method not in labels:
                raise ConfigError(f"--only {method}: no such method; {suggest(method, labels)}")
        cells = tuple(cell for cell in self.cells if not methods or cell.label in methods)
        return dataclasses.replace(self, cells=cells)

    def unfinished(self) -> list[Cell]:
        """Return the cells in which something is left to do."""
        return [cell for cell in self.cells if not cell.finished]


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
    file, table = read_options(TableOptions, name, "tables", "table")
    loaded = load_plugins(table.plugins, file.folder, plugin_names)
    check_columns(name, table.columns)
    out = folder_of(out, "tables", file.title)
    configs = {}
    for label in table.methods:
        try:
            method = table.methods[label] or MethodOptions()
            base = method.config or table.config or ""
            settings = {**table.set, **method.set}
            configs[label] = config_of(base, settings, overrides, loaded, file.folder)
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


def config_of(
    base: str,
    settings: Mapping[str, Any],
    overrides: Sequence[str],
    plugin_names: Sequence[str],
    folder: Path | None,
) -> Config:
    """Return the configuration of a cell, its seed aside; for the arguments see ``read_config``.

    Raises:
        ConfigError: it is wrong, or is for several processes.
    """
    for key, value in [*settings.items(), *((each.partition("=")[0], None) for each in overrides)]:
        if key.strip() == "seed":
            raise ConfigError("set: seed: seeds are a key of their own, such as `seeds: [0, 1]`.")
        # A model of another kind is another section; of these there is one kind.
        if key in ("training", "evaluation") and isinstance(value, dict):
            example = next(iter(value), "key")
            raise ConfigError(
                f"set: {key}: this would replace the whole section; write the path of each key, as "
                f"in `{key}.{example}: ...`."
            )
    config = read_config(
        base, overrides, settings=settings, plugin_names=plugin_names, folder=folder
    )[1]
    if config.training.devices != 1 or config.training.num_nodes != 1:
        raise ConfigError(
            "training.devices, training.num_nodes: a cell is one process and needs 1 of each; the "
            "executor runs cells at the same time."
        )
    return config.replace(data=config.data.resolve())


def read_options(cls: type[T], name: str, kind: str, noun: str) -> tuple[YamlFile, T]:
    """Return a file that ships or is given by its path, and its options.

    Args:
        cls: of the options.
        name: of the file.
        kind: the folder of those that ship.
        noun: what messages call it.

    Raises:
        ConfigError: there is no such file, or it is wrong.
    """
    file = read_yaml(name, kind=kind)
    return file, _parse_file(cls, file.content, name, noun)


def _parse_file(cls: type[T], content: Mapping[str, Any], name: str, noun: str) -> T:
    try:
        return parse(cls, content)
    except ConfigError as error:
        problems = "\n".join(f"  {line}" for line in str(error).splitlines())
        raise ConfigError(f"{name} is no valid {noun}:\n{problems}") from error


def load_plugins(names: Iterable[str], folder: Path | None, more: Iterable[str]) -> list[str]:
    """Load plug-ins, those of a file relative to its folder; return where they are."""
    own = [plugins.load(each, folder) for each in names]
    return [*own, *(plugins.load(each) for each in more)]


def check_columns(name: str, columns: Sequence[str] | None) -> None:
    """Refuse columns that no table has.

    Raises:
        ConfigError: with the name of the file.
    """
    if columns is not None:
        try:
            choose_columns([], columns)
        except ConfigError as error:
            raise ConfigError(f"{name}: columns: {error}") from error


def folder_of(out: Path | None, kind: str, name: str) -> Path:
    """Return the folder of a table or a search.

    Raises:
        RunError: it is a file.
    """
    out = out or Path("runs") / kind / name
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; choose a folder with --out.")
    return out


def choose_executor(name: str | None, own: ExecutorOptions, **changes: Any) -> ExecutorOptions:
    """Return the executor that a command names.

    Args:
        name: ``local``, ``slurm``, ``ray``, another one that is registered, or a YAML file of such
            options, in a section ``executor`` or not; None is the table's own.
        own: that of the table; its options hold for its kind only.
        changes: options to replace, None leaves them.

    Raises:
        ConfigError: there is no such executor, or an option is wrong.
    """
    if name is None or name == EXECUTORS.name_of(type(own)):
        pass
    elif name in EXECUTORS:
        own = EXECUTORS[name](threads=own.threads)
    elif Path(name).is_file():
        content = read_yaml(name).content
        content = content if "executor" in content else {"executor": content}
        own = _parse_file(_ExecutorFile, content, name, "executor").executor
    else:
        raise ConfigError(
            f"--executor {name}: no executor, and no file; {suggest(name, EXECUTORS)}"
        )
    given = {key: value for key, value in changes.items() if value is not None}
    known = [field.name for field in dataclasses.fields(own)]
    for key in given:
        if key not in known:
            kind = EXECUTORS.name_of(type(own))
            raise ConfigError(f"--{key}: the executor {kind} has no such option")
    return dataclasses.replace(own, **given)


def _check_unchanged(cells: Sequence[Cell]) -> None:
    changed = [
        "\n    ".join([f"  {cell.name} ({cell.run})", *changes])
        for cell in cells
        if (cell.run / CONFIG_FILE).is_file() and (changes := changes_of(cell.run, cell.config))
    ]
    if changed:
        listed = "\n".join(changed)
        raise RunError(
            f"Some cells were run with another configuration, and nothing in them was changed. "
            f"What differs:\n{listed}\nDelete their folders to run them again, or choose another "
            f"folder for the table with --out."
        )


# ---- running them


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens to a cell, for whoever shows it.

    Attributes:
        kind: ``progress``, or how the cell has ended: ``finish``, ``fail`` or ``stop``.
        cell: which one.
        text: what it is doing, or why it failed.
        fraction: how much of its training is done.
    """

    kind: Literal["progress", "finish", "fail", "stop"]
    cell: Cell
    text: str = ""
    fraction: float = 0.0


class Dispatcher:
    """Sends cells to an executor, those again whose process is lost, and tells what happens.

    As a context it lets what runs save its state and end when it is left by an exception.

    Args:
        executor: any of :mod:`concurrent.futures`, or with its interface.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sent: dict[Future[Any], Cell] = {}
        self._elsewhere: list[Cell] = []
        self._losses: dict[Cell, tuple[int, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for future in self._sent:
                future.cancel()
            # What of the interface of executors is missing: to end what runs.
            getattr(self._executor, "interrupt", lambda: None)()

    def send(self, cell: Cell) -> None:
        """Let a cell be run."""
        try:
            call = str(cell.run.absolute()), to_dict(cell.config)
            future = self._executor.submit(run_cell, *call)
        except Exception as error:  # an executor that is broken
            future = Future()
            future.set_exception(error)
        self._sent[future] = cell

    def events(self) -> Iterator[Event]:
        """Yield what happens until all cells that were sent have ended.

        Raises:
            RefusedError: the executor takes no cells.
        """
        while self._sent or self._elsewhere:
            cells = [*self._sent.values(), *self._elsewhere]
            # Few looks at the file system for many cells.
            pause = _POLL_SECONDS + len(cells) / 1000
            if not self._sent:
                time.sleep(pause)
            for future in wait(self._sent, pause, FIRST_COMPLETED).done:
                yield from self._settle(self._sent.pop(future), future)
            for cell, _ in running(cells):
                yield Event("progress", cell, *cell.progress())
            for cell in tuple(self._elsewhere):
                if not is_busy(cell):
                    self._elsewhere.remove(cell)
                    self.send(cell)

    def _settle(self, cell: Cell, future: Future[Any]) -> Iterator[Event]:
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None:
            yield Event("finish", cell)
        elif isinstance(error, BusyError):
            self._elsewhere.append(cell)
        elif isinstance(error, RefusedError):
            raise error
        elif isinstance(error, StoppedError):
            yield Event("stop", cell, str(error))
        elif isinstance(error, LOST) and self._may_go_on(cell):
            self.send(cell)
        else:
            reason = describe_error(error)
            if isinstance(error, LOST):
                reason = str(error) or "its process was ended"
            if cell.failure() is None:  # it could not say so itself
                cell.fail(reason)
            yield Event("fail", cell, reason)

    def _may_go_on(self, cell: Cell) -> bool:
        """Return whether a cell whose process was lost is to be sent again."""
        _, fraction = cell.progress()
        count, before = self._losses.get(cell, (0, -1.0))
        count = 1 if fraction > before else count + 1
        self._losses[cell] = count, fraction
        return count < _LOSSES


def run_cells(
    sweep: Sweep,
    cells: Sequence[Cell],
    executor: Executor | ExecutorOptions | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
) -> None:
    """Run cells; one that fails does not keep the others from running.

    Args:
        sweep: whose they are.
        cells: nothing is done in those that are finished.
        executor: any of :mod:`concurrent.futures`, or with its interface, which is shut down; or
            options of one; None is the one that the table names.
        on_event: called at what happens to them.

    Raises:
        ConfigError: the executor cannot be opened, or takes no cells.
        RunError: another process fills the same table.
        KeyboardInterrupt: when interrupted, after the cells have saved their state.
    """
    executor = executor or sweep.options.executor
    with (
        lock_folder(sweep.out),
        executor.open(sweep.out) if isinstance(executor, ExecutorOptions) else executor as opened,
        Dispatcher(opened) as dispatcher,
    ):
        for cell in cells:
            dispatcher.send(cell)
        for event in dispatcher.events():
            if on_event is not None:
                on_event(event)


@contextlib.contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Keep other processes from filling a folder of cells, which is made.

    Raises:
        RunError: another process fills it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "table.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"Another command is filling {out}. Wait until it has ended, or choose another folder "
            f"with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclasses.dataclass(frozen=True)
class Status:
    """How a cell stands.

    Attributes:
        cell: which one.
        state: ``finished``, ``running``, ``failed``, ``stopped`` (it can be resumed), or ``new``.
        text: where it runs and how far it is, or why it failed.
    """

    cell: Cell
    state: Literal["finished", "running", "failed", "stopped", "new"]
    text: str = ""


def status(sweep: Sweep) -> list[Status]:
    """Return how every cell stands, whoever runs it."""
    places = {cell: place for cell, place in running(sweep.cells) if is_busy(cell)}
    found = []
    for cell in sweep.cells:
        doing, fraction = cell.progress()
        text = f"{doing}, {fraction:.0%}"
        if cell in places:
            place = places[cell]
            job = f"job {place['job']}" if place["job"] else f"process {place['pid']}"
            minutes = (time.time() - place["began"]) / 60
            where = f"on {place['host']}, {job}, for {minutes:.0f} min: {text}"
            found.append(Status(cell, "running", where))
        elif cell.finished:
            found.append(Status(cell, "finished"))
        elif (failure := cell.failure()) is not None:
            found.append(Status(cell, "failed", f"{failure} ({cell.error_file})"))
        elif cell.run.is_dir():
            found.append(Status(cell, "stopped", text))
        else:
            found.append(Status(cell, "new"))
    return found


# ---- what comes out


@dataclasses.dataclass(frozen=True)
class TableFiles:
    """The files of a table, and its content in Markdown."""

    markdown: str
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def write(sweep: Sweep) -> TableFiles:
    """Write the table as Markdown, LaTeX, CSV and JSON, and its figures, as far as it is filled.

    Raises:
        RunError: nothing is finished or has failed, a run is damaged, or a file cannot be written.
    """
    from experiments.compare import write_comparison  # brings matplotlib, which cells do not need

    records = [_record(cell, sweep.out) for cell in sweep.cells]
    methods = methods_of(records, sweep.options.methods)
    if all(record["status"] == "unfinished" for record in records):
        raise RunError(
            f"There is nothing to show: no cell of {sweep.out} is finished. "
            "The same command without --render-only runs them."
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
    write_file(out / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    return TableFiles(markdown, notes, (out / "table.md", *files))


def _record(cell: Cell, out: Path) -> dict[str, Any]:
    """Return the state of a cell, its evaluation and its curve."""
    record: dict[str, Any] = {"label": cell.label, "seed": cell.seed}
    if cell.finished:
        return record | {
            "status": "finished",
            "run": str(cell.run.relative_to(out)),
            "evaluation": runs.read_json(cell.run / runs.EVALUATION_FILE),
            "curve": curve_of(cell.run),
        }
    if (failure := cell.failure()) is not None:
        log = str(cell.error_file.relative_to(out))
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
