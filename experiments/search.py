"""Searches for a good configuration: Optuna proposes trials, which are cells of a sweep.

Optuna is asked for values and told what the validation split says of them. The test split is never
read. A trial whose validation errors are worse than those of others is stopped early. The folder
keeps the whole study, so that an interrupted search goes on.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from experiments import runs, sweep
from experiments.cells import Cell
from experiments.comparison import Method, choose_columns, curve_of
from experiments.config import Config, flatten, list_changes, to_dict, to_yaml
from experiments.executors import ExecutorOptions, LocalOptions
from experiments.sweep import (
    Dispatcher,
    Event,
    MethodOptions,
    OneExecutor,
    Sweep,
    TableFiles,
    TableOptions,
    lock_folder,
)
from flowfactor.checkpoints import write_file
from flowfactor.errors import ConfigError, RunError
from flowfactor.extras import import_extra
from flowfactor.options import (
    FiniteFloat,
    Int,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    adapter,
    dump,
    nest,
    options,
)

STUDY_FILE = "study.journal"
BEST_FILE = "best.yaml"

# Sequences of the validation errors that trials are stopped by, where the configuration has none.
_SEQUENCES = 100
_PARALLEL = 8


@options
class RangeOptions:
    """Numbers between two bounds; whole numbers if both bounds are."""

    low: Int | FiniteFloat
    """Smallest value."""
    high: Int | FiniteFloat
    """Largest value."""
    log: bool = False
    """Draw the logarithm uniformly."""
    step: PositiveInt | PositiveFloat | None = None
    """Distance between numbers; null: 1 for whole numbers, any for others."""

    def __post_init__(self) -> None:
        """Refuse a range without numbers."""
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low: must be below high, and above 0 if log is true")
        if self.log and self.step is not None:
            raise ValueError("step: goes with log: false only")


def _check_values(value: Any) -> Any:
    """Say what is wrong by the keys of a range or for a list, whichever is meant."""
    if isinstance(value, dict):
        try:
            return adapter(RangeOptions).validate_python(value)
        except ValidationError as error:
            raise nest(error, RangeOptions) from None
    if not value or not isinstance(value, list | tuple | RangeOptions):
        raise ValueError("expected a list of values, or {low: ..., high: ...}")
    return value


Values = Annotated[RangeOptions | list[Any], BeforeValidator(_check_values)]


@options
class SearchOptions:
    """A space of configurations and how it is searched."""

    config: str
    """The configuration that is changed."""
    space: Annotated[dict[str, Values], Field(min_length=1)]
    """What may change, by ``key.path``: a list of values, or ``{low, high, log, step}``."""
    title: str = ""
    """The heading of the table of trials."""
    description: str = ""
    """What is searched for."""
    plugins: tuple[str, ...] = ()
    """Files, relative to that of the search, or modules whose kinds can be named."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values by ``key.path`` for every trial."""
    seed: NonNegativeInt = 0
    """Seed of all trainings, and of the first proposals."""
    trials: PositiveInt = 30
    """Number of trials, including those that are stopped early."""
    parallel: PositiveInt | None = None
    """Trials at the same time; null: as many as a local executor runs, 8 of others."""
    objective: str = "mean_error"
    """The column of a table whose best value, on the validation split, is looked for."""
    prune: bool = True
    """Stop trials early whose validation error is above the median of others at that time."""
    startup: NonNegativeInt = 10
    """Trials that are drawn at random before the sampler (TPE) goes by those before."""
    executor: OneExecutor = LocalOptions()
    """What runs the trials."""
    columns: tuple[str, ...] | None = None
    """Keys of columns of the table, in order; null shows those that were measured."""


@dataclasses.dataclass(frozen=True)
class Search:
    """A search that is to be done.

    Attributes:
        name: of its file.
        options: of its file.
        out: its folder.
        configure: returns the configuration of values by ``key.path``.
    """

    name: str
    options: SearchOptions
    out: Path
    configure: Callable[[Mapping[str, Any]], Config]

    def label(self, number: int, settings: Mapping[str, Any]) -> str:
        """Return what tables call a trial."""
        ends = [key.rpartition(".")[2] for key in settings]
        names = ends if len(set(ends)) == len(ends) else list(settings)
        texts = (f"{x:.4g}" if isinstance(x, float) else _text(x) for x in settings.values())
        pairs = zip(names, texts, strict=True)
        return f"{number}: {', '.join(f'{name} {text}' for name, text in pairs)}"

    def cell(self, number: int, settings: Mapping[str, Any]) -> Cell:
        """Return the cell of a trial, which is evaluated on the validation split."""
        config = self.configure(settings)
        training, evaluation = config.training, config.evaluation
        if self.options.prune and not training.validation_errors:
            training = dataclasses.replace(training, validation_errors=_SEQUENCES)
        evaluation = dataclasses.replace(evaluation, split="validation")
        run = self.out / "cells" / f"trial_{number:04d}"
        config = config.replace(training=training, evaluation=evaluation)
        return Cell(self.label(number, settings), config.seed, run, config)


def plan(
    name: str,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    plugin_names: Iterable[str] = (),
) -> Search:
    """Read a search, and check everything that can be checked before anything runs.

    Args:
        name: a YAML file, or the name of a search that ships.
        out: the folder; default: ``runs/searches/<name>``.
        overrides: ``key.path=value`` for every trial, over what the search says.
        plugin_names: plug-ins besides those that the search names.

    Raises:
        ConfigError: the search, or a configuration of it, is wrong.
    """
    file, own = sweep.read_options(SearchOptions, name, "searches", "search")
    loaded = sweep.load_plugins(own.plugins, file.folder, plugin_names)
    sweep.check_columns(name, own.columns)
    for key in (*own.space, *own.set, *(each.partition("=")[0].strip() for each in overrides)):
        if key in ("evaluation.split", "evaluation"):
            raise ConfigError(f"{name}: {key}: trials are measured on the validation split only")

    def configure(settings: Mapping[str, Any]) -> Config:
        both = {**own.set, **settings}
        try:
            config = sweep.config_of(own.config, both, overrides, loaded, file.folder)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        return config.with_seed(own.seed)

    for settings in _corners(own.space):
        configure(settings)
    _column(own.objective, [])
    return Search(file.title, own, sweep.folder_of(out, "searches", file.title), configure)


def run(
    search: Search,
    executor: Executor | ExecutorOptions | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
) -> Any:
    """Do the trials that are left, and return Optuna's study.

    Args:
        search: what is searched.
        executor: see :func:`experiments.sweep.run_cells`.
        on_event: called at what happens to the trials.

    Raises:
        ConfigError: the objective is no such column.
        MissingExtraError: Optuna is not installed.
        RunError: another process does the search, or the folder has another one.
        KeyboardInterrupt: when interrupted, after the trials have saved their state.
    """
    executor = executor or search.options.executor
    with lock_folder(search.out):
        study = open_study(search)
        optuna = importlib.import_module("optuna")
        begun = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        trials: dict[Cell, Any] = {}

        def count_left() -> int:
            return search.options.trials - len(study.get_trials(deepcopy=False))

        def send(trial: Any) -> None:
            cell = search.cell(trial.number, _suggest(trial, search.options.space))
            trials[cell] = trial
            dispatcher.send(cell)

        if not begun and count_left() <= 0:
            return study
        with (
            executor.open(search.out)
            if isinstance(executor, ExecutorOptions)
            else executor as opened,
            Dispatcher(opened) as dispatcher,
        ):
            for frozen in begun:
                send(optuna.trial.Trial(study, frozen._trial_id))
            for _ in range(min(_parallel(search.options, executor) - len(begun), count_left())):
                send(study.ask())
            for event in dispatcher.events():
                trial = trials[event.cell]
                if search.options.prune:
                    _compare(trial, event.cell, study)
                if event.kind != "progress":
                    _tell(study, trial.number, event, search.options.objective)
                    if count_left() > 0:
                        send(study.ask())
                if on_event is not None:
                    on_event(event)
    return study


def open_study(search: Search) -> Any:
    """Return Optuna's study of a search, a new one if there is none.

    Raises:
        MissingExtraError: Optuna is not installed.
        RunError: the folder has a search of another space.
    """
    optuna: Any = import_extra("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search.out.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(search.out / STUDY_FILE))
    own = search.options
    study = optuna.create_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(backend),
        load_if_exists=True,
        direction="minimize" if _column(own.objective, []).better == "lower" else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=max(own.startup, 1) // 2),
    )
    # Another seed when it goes on, or the first proposals would come again.
    study.sampler = optuna.samplers.TPESampler(
        seed=own.seed + len(study.trials), n_startup_trials=own.startup
    )
    now = _identity(search)
    before = study.user_attrs.get("search", now) if study.trials else now
    if changes := list_changes(before, now):
        listed = "\n".join(f"  {change}" for change in changes)
        raise RunError(
            f"{search.out} has another search, whose trials cannot be compared with those of this "
            f"one. What differs:\n{listed}\nChoose another folder with --out."
        )
    study.set_user_attr("search", now)
    return study


def _identity(search: Search) -> Any:
    """Return what trials that are compared have in common, as JSON has it."""
    own = search.options
    keys = ("space", "objective", "prune")
    config = flatten(to_dict(search.configure(_corners(own.space)[0])))
    apart = ("description", "plugins", *own.space)
    fixed = {
        key: value
        for key, value in config.items()
        if not any(key == each or key.startswith(f"{each}.") for each in apart)
    }
    return json.loads(json.dumps({key: dump(own)[key] for key in keys} | fixed))


def write(search: Search, study: Any) -> TableFiles:
    """Write the trials as a table, the best ones first, and ``best.yaml``.

    Raises:
        RunError: no trial is finished, or a file cannot be written.
    """
    states = [trial.state.name for trial in study.trials]
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not done:
        raise RunError(f"There is nothing to show: no trial of {search.out} is finished.")
    done.sort(key=lambda trial: trial.value, reverse=study.direction.name == "MAXIMIZE")
    own = search.options
    chosen = {trial.number: _values(trial.params, own.space) for trial in done}
    cells = [search.cell(number, settings) for number, settings in chosen.items()]
    counts = (f"{states.count(state)} {word}" for state, word in _WORDS.items() if state in states)
    table = TableOptions(
        methods={
            cell.label: MethodOptions(set=settings)
            for cell, settings in zip(cells, chosen.values(), strict=True)
        },
        title=own.title or search.name,
        description=f"{own.description} Trials: {', '.join(counts)}.".strip(),
        plugins=own.plugins,
        config=own.config,
        set=own.set,
        seeds=(own.seed,),
        executor=own.executor,
        columns=own.columns,
    )
    best = search.configure(chosen[done[0].number])
    described = dataclasses.replace(
        best.general,
        description=f"The best of {len(states)} trials of the search {search.name}: "
        f"{own.objective} {done[0].value:g} on the validation split.",
    )
    write_file(search.out / BEST_FILE, to_yaml(best.replace(general=described)))
    written = sweep.write(Sweep(search.name, table, search.out, tuple(cells)))
    return dataclasses.replace(written, files=(search.out / BEST_FILE, *written.files))


_WORDS = {
    "COMPLETE": "finished",
    "PRUNED": "stopped early",
    "FAIL": "failed",
    "RUNNING": "not finished",
}


def _suggest(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a trial by key; of one that goes on, those that it has."""
    params = {}
    for key, values in space.items():
        if not isinstance(values, RangeOptions):
            params[key] = trial.suggest_categorical(key, list(map(_text, values)))
            continue
        whole = all(isinstance(bound, int) for bound in (values.low, values.high))
        suggest = trial.suggest_int if whole else trial.suggest_float
        step = values.step or (1 if whole else None)
        params[key] = suggest(key, values.low, values.high, log=values.log, step=step)
    return _values(params, space)


def _values(params: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the parameters of Optuna stand for; of choices it has texts."""
    return {
        key: params[key]
        if isinstance(values, RangeOptions)
        else dict(zip(map(_text, values), values, strict=True))[params[key]]
        for key, values in space.items()
    }


def _corners(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return settings in which every bound and every choice occurs, for checks."""
    values = {
        key: [each.low, each.high] if isinstance(each, RangeOptions) else each
        for key, each in space.items()
    }
    count = max(map(len, values.values()))
    return [{key: each[i % len(each)] for key, each in values.items()} for i in range(count)]


def _compare(trial: Any, cell: Cell, study: Any) -> None:
    """Report the validation errors of a trial, and stop it if they are no good."""
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    known = len(study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    errors = [error for _, error in curve_of(cell.run)]
    for step in range(known, len(errors)):
        trial.report(sign * errors[step], step)
    if len(errors) > known and trial.should_prune():
        cell.stop()


def _tell(study: Any, number: int, event: Event, objective: str) -> None:
    states = importlib.import_module("optuna").trial.TrialState
    if event.kind == "stop":
        study.tell(number, state=states.PRUNED)
        return
    value = None
    if event.kind == "finish":
        evaluation = runs.read_evaluation(event.cell.run)
        column = _column(objective, [Method(event.cell.label, (evaluation,))])
        value = column.value(evaluation)
    if value is None or not math.isfinite(value):
        study.tell(number, state=states.FAIL)
    else:
        study.tell(number, float(value))


def _column(objective: str, methods: Sequence[Method]) -> Any:
    try:
        (column,) = choose_columns(methods, [objective])
    except ConfigError as error:
        raise ConfigError(f"objective: {error}") from error
    if column.better is None:
        raise ConfigError(f"objective: more or less of {objective} is neither better nor worse")
    return column


def _parallel(own: SearchOptions, executor: Any) -> int:
    if own.parallel is not None:
        return own.parallel
    return executor.count if isinstance(executor, LocalOptions) else _PARALLEL


def _text(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()
