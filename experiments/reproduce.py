"""A result once more: the same command, and how far the numbers are from each other."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments import environment, runs
from experiments.cells import state_of
from experiments.config import CONFIG_FILE, Config, on_device, read_config, to_yaml
from flowfactor.checkpoints import write_file
from flowfactor.errors import RunError
from flowfactor.evaluation import EvaluationOptions
from flowfactor.options import parse
from flowfactor.records import Evaluation, evaluation_columns
from flowfactor.tables import Column, Row, Table
from flowfactor.training import Progress

SPREADS = 3.0
"""How many standard deviations over seeds a number may be away."""


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """Numbers of a result beside those of the same command now.

    Attributes:
        table: each number, stated and now, with the distance that is allowed.
        outside: the names of those that are further away, or were not measured.
        reason: what is another now than when the result was made, if anything is known to be.
    """

    table: Table
    outside: tuple[str, ...]
    reason: str = ""


def reproduce(
    result: Path,
    out: Path,
    *,
    tolerance: float = 0.05,
    seeds: Sequence[Path] = (),
    device: str | None = None,
    plugin_names: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Reproduction:
    """Train and evaluate as a result says that it was made, and compare.

    Args:
        result: an ``evaluation.json``.
        out: the run folder; a training that was begun there goes on.
        tolerance: the allowed difference as a fraction of each number, where its spread over seeds
            is not known.
        seeds: evaluations of the same method with other seeds, for the spread: a number may be
            three standard deviations away.
        device: what computes; None is what the command says.
        plugin_names: plug-ins besides those of the command.
        on_progress: called at every log and validation of the training.
        on_stage: called with what is being measured.

    Raises:
        RunError: the file says no command that can be run again, or the folder has another run.
        ConfigError, DataError: as a training and an evaluation.
    """
    stated, *others = map(Evaluation.read, (result, *seeds))
    config = config_of(stated, result, plugin_names)
    config = _train(config, stated.training, result, out, device, plugin_names, on_progress)
    write_file(out / CONFIG_FILE, to_yaml(config))
    now = runs.evaluate(
        out,
        split=stated.split,
        images=stated.images,
        device=device,
        plugin_names=plugin_names,
        on_stage=on_stage,
    )
    return compare(stated, now, others, tolerance)


def _train(
    config: Config,
    stated: Mapping[str, Any],
    source: Path,
    out: Path,
    device: str | None,
    plugin_names: Sequence[str],
    on_progress: Callable[[Progress], None] | None,
) -> Config:
    """Train as a configuration says, after the run whose weights it begins with, if there is one.

    Args:
        config: of the training.
        stated: the facts of the training that it repeats.
        source: the file that says them.
        out: the run folder; the other run gets one beside it.
        device, plugin_names, on_progress: as of :func:`reproduce`.

    Returns:
        The configuration of the run folder.
    """
    changes: dict[str, Any] = {} if device is None else {"accelerator": device}
    first = stated.get("initial_weights", {}).get("training")
    if first:  # else a model that ships
        before = out.with_name(f"{out.name}_initial")
        earlier = _config_of(first, source, plugin_names)
        _train(earlier, first, source, before, device, plugin_names, on_progress)
        changes["initial_weights"] = str(before)
    training = dataclasses.replace(config.training, **changes)
    config = config.replace(training=training, data=config.data.resolve())
    state = state_of(out, config)
    if state in ("new", "empty", "begun"):
        runs.train(config, out, resume=state != "new", on_progress=on_progress)
    return config


def config_of(evaluation: Evaluation, source: Path, plugin_names: Sequence[str] = ()) -> Config:
    """Return the configuration that the command of an evaluation's training says.

    Raises:
        RunError: it is no command of a training.
        ConfigError: the configuration is not there any more, or has changed.
    """
    config = _config_of(evaluation.training, source, plugin_names)
    return config.replace(evaluation=parse(EvaluationOptions, dict(evaluation.options)))


def _config_of(training: Mapping[str, Any], source: Path, plugin_names: Sequence[str]) -> Config:
    command = str(training.get("command", ""))
    words = _words(command.replace("python -m experiments.cli ", "flowfactor ", 1))
    if len(words) < 3 or words[0] not in ("flowfactor", "cli.py") or words[1] not in _COMMANDS:
        raise RunError(
            f"{source} does not say by which command it was trained, `flowfactor train ...`, but "
            f"{command[:200]!r}. Only a training of its own can be reproduced, not a table's cell."
        )
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--device")
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("--out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--check-data", action="store_true")
    known = parser.parse_args(words[2:])
    changes = known.changes + ([] if known.device is None else [on_device(known.device)])
    return read_config(known.config, changes, plugin_names=(*known.plugin, *plugin_names))[1]


_COMMANDS = ("train", "run")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RunError(f"The command of the training cannot be read: {message}.")


def _words(command: str) -> list[str]:
    """Return the words of a command; those of older files are not quoted."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    joined: list[str] = []
    for word in words:
        inside = len(joined) > 1 and joined[-2] == "--set" and not word.startswith("--")
        if inside:
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def compare(
    stated: Evaluation, now: Evaluation, seeds: Sequence[Evaluation] = (), tolerance: float = 0.05
) -> Reproduction:
    """Return every number of two evaluations side by side.

    Args:
        stated: the result.
        now: what was measured now.
        seeds: evaluations of the same method with other seeds.
        tolerance: the allowed difference as a fraction, where the spread is not known. Unless it is
            0, numbers that are written alike are near enough.
    """
    rows, outside = [], []
    for column in evaluation_columns([stated, now, *seeds]):
        assert column.value is not None
        before, after = column.value(stated), column.value(now)
        if before is None and after is None:
            continue
        others = [value for each in seeds if (value := column.value(each)) is not None]
        allowed = None if before is None else _allowed(before, others, tolerance)
        if before is None or after is None or allowed is None:
            verdict = "missing" if after is None else "new"
        else:
            near = abs(after - before) <= allowed or (math.isnan(after) and math.isnan(before))
            # Of what is nearly 0, a part says nothing.
            near = near or (allowed > 0 and column.write(before) == column.write(after))
            verdict = "equal" if after == before else "within" if near else "outside"
        if verdict in ("missing", "outside"):
            outside.append(column.key)
        numbers = (before, after, allowed)
        cells = [None if number is None else column.write(number) for number in numbers]
        rows.append(Row(column.key, [*cells, verdict]))
    columns = [Column(name) for name in ("stated", "now", "may differ by", "verdict")]
    spread = (
        f"{SPREADS:g} standard deviations over {1 + len(seeds)} seeds"
        if seeds
        else f"{tolerance:.1%} of each number"
    )
    title = f"{stated.source}, {stated.images} {stated.split} samples; allowed: {spread}"
    return Reproduction(
        Table(columns, rows, title, "number"), tuple(outside), _changes(stated, now)
    )


def _changes(stated: Evaluation, now: Evaluation) -> str:
    """Return what two evaluations rest on, as far as it differs and both know it."""
    old, new = map(_facts, (stated, now))
    return ", ".join(
        f"{name} {old[name]} -> {new[name]}"
        for name in old
        if name in new and old[name] != new[name]
    )


def _facts(result: Evaluation) -> dict[str, str]:
    """Return the length, code, data, machine and versions of the training of a result."""
    training = result.training
    origin = {**result.environment, **training}  # older results say less of the training
    hardware, versions = origin.get("hardware", {}), origin.get("versions", {})
    chosen = training.get("chosen", {})
    data = training.get("data_fingerprint", {})
    facts = {
        "steps": training.get("steps"),
        "commit": _commit(origin),
        **{f"data.{key}": checksum[:10] for key, checksum in data.items()},
        **{key: hardware.get(key) for key in ("processor", "accelerator", "threads")},
        **{key: chosen[key].partition(" ")[0] for key in ("precision", "compile") if key in chosen},
        **{name: versions.get(name) for name in environment.MAIN},
    }
    return {name: str(fact) for name, fact in facts.items() if fact is not None}


def _commit(described: Mapping[str, Any]) -> str:
    source = described.get("source") or {}
    changed = "" if source.get("clean", True) else " with changes"
    return f"{str(source.get('commit', 'unknown'))[:10]}{changed}"


def _allowed(stated: float, others: Sequence[float], tolerance: float) -> float:
    if others:
        return SPREADS * statistics.stdev([stated, *others])
    return tolerance * abs(stated)


def summary(found: Reproduction) -> str:
    """Return what was found, in a sentence or two."""
    count = len(found.table.rows)
    reason = f" What has changed since: {found.reason}." if found.reason else ""
    if found.outside:
        return f"Not reproduced: {', '.join(found.outside)} of {count} numbers.{reason}"
    return f"Reproduced: all {count} numbers are within what is allowed.{reason}"
