"""Evaluated runs side by side: one table, and their film strips below the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Column as ConsoleColumn
from rich.table import Table
from torch import Tensor

import flowfactor
from experiments.comparison import (
    Column,
    Row,
    cells,
    chosen_columns,
    csv_text,
    curve_of,
    error_figure,
    latex,
    markdown,
    quality_against_time,
)
from experiments.config import Config, differences
from experiments.datasets import DigitsConfig, SpritesConfig
from experiments.plots import one_of_each_class
from experiments.runs import EVALUATION_FILE, load_data, read_json, read_run_config
from flowfactor import diagnostics
from flowfactor.data import GivenFactor, SequenceDataset, samples_undergoing
from flowfactor.diagnostics.saving import write_file
from flowfactor.errors import RunError

# Of the data, what decides nothing about held-out sequences.
_MAY_DIFFER = (
    "data.cache",
    "data.memory_limit",
    "data.train",
    "data.labelled_fraction",
    "data.start",
    "data.active_start",
    "data.random_start_prob",
)

# Data sets of which every copy is the same, wherever it lies; 3D Shapes without a file is not.
_SAME_EVERYWHERE = ("shapes3d", "falcor3d", "isaac3d")

_MEASURED = ("split", "images", "frames")


@dataclass(frozen=True)
class Comparison:
    """What was compared and written.

    Attributes:
        rows: of the table, one for each label.
        columns: of the table.
        files: that were written.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Run:
    path: Path
    label: str
    config: Config
    result: dict[str, Any]


def compare(
    runs: Sequence[Path],
    *,
    labels: Sequence[str] | None = None,
    samples: int = 2,
    out: Path = Path("runs/compare"),
    split: str | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare evaluated runs of the same data; write tables and figures.

    Runs that have one label are seeds of one method: the table has their mean and deviation, the
    film strips show one of them.

    Args:
        runs: the folders, at least two.
        labels: what each is called; None is the folders' names.
        samples: strips of each transformation.
        out: the folder to write into; files of an earlier comparison are replaced.
        split: the one that the runs must have been evaluated on; None is that of the first run.
        on_stage: called with what is being done.

    Raises:
        RunError: fewer than two runs, one that has not been evaluated, or runs that cannot be
            compared, with what differs.
        DataError: the data cannot be read.
    """
    report = on_stage or (lambda _: None)
    report("evaluations")
    found = _read(runs, labels, split)
    for run in found[1:]:
        _check_comparable(found[0], run)
    groups: dict[str, list[_Run]] = {}
    for run in found:
        groups.setdefault(run.label, []).append(run)
    shown = _of_one_seed(groups)
    report("models")
    models = {run.label: flowfactor.load(run.path) for run in shown}
    data = load_data(shown[0].config, shown[0].result["split"])
    if isinstance(data, GivenFactor) and bool((data.labels < 0).any()):
        raise RunError(
            f"{shown[0].path} was measured on recordings without labels: which flow is which "
            f"transformation differs from run to run, so that their strips cannot be compared."
        )
    for run in shown:
        shape = tuple(models[run.label].image_shape)
        if shape != data.image_shape:
            raise RunError(
                f"{run.path} has images of the shape {shape}; those of {shown[0].path} are "
                f"{data.image_shape}."
            )
    report("film strips")
    try:
        sequences = data.sample(*_samples(data, samples))
        strips = diagnostics.plot_comparison(models, sequences, data.names)
    except ValueError as error:  # other names or another last frame than the configuration says
        raise RunError(f"{error}.") from error
    files = [diagnostics.save(strips, out / f"strips{suffix}") for suffix in (".png", ".pdf")]

    report("tables")
    rows = [
        Row(
            label,
            tuple(run.result for run in group),
            curves=tuple(curve for run in group if (curve := curve_of(run.path))),
        )
        for label, group in groups.items()
    ]
    columns = chosen_columns(rows, None)
    caption = (
        f"{', '.join(groups)}: {found[0].result['split']} split of {found[0].config.data.source}."
    )
    for name, text in (
        ("table.md", markdown(rows, columns)),
        ("table.tex", latex(rows, columns, caption, "tab:comparison")),
        ("table.csv", csv_text(rows, columns)),
    ):
        files.append(write_file(out / name, text.encode()))
    figures = {"errors": error_figure(rows), "time": quality_against_time(rows)}
    for name, figure in figures.items():
        if figure is not None:
            files += [diagnostics.save(figure, out / f"{name}{end}") for end in (".png", ".pdf")]
    return Comparison(tuple(rows), tuple(columns), tuple(files))


def console_table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """Return the table for the console: methods side by side, a line for each number."""
    table = Table(ConsoleColumn("", no_wrap=True))
    for row in rows:
        table.add_column(escape(row.label), justify="right")
    by_row = cells(rows, columns)
    for i, column in enumerate(columns):
        texts = []
        for shown in by_row:
            cell = shown[i]
            text = f"[bold]{cell.text}[/]" if cell.best else cell.text
            texts.append(text + (f" ± {cell.deviation}" if cell.deviation else ""))
        table.add_row(escape(column.title), *texts)
    return table


# ---- what can be compared


def _read(runs: Sequence[Path], labels: Sequence[str] | None, split: str | None) -> list[_Run]:
    if len(runs) < 2:
        raise RunError("A comparison takes at least two runs.")
    for run in runs:
        if sum(run.resolve() == other.resolve() for other in runs) > 1:
            raise RunError(f"{run} is given more than once.")
    if labels and len(labels) != len(runs):
        raise RunError(
            f"There are {len(runs)} runs and {len(labels)} labels. Give one --labels for each run, "
            f"in their order, or none."
        )
    found = []
    for run, label in zip(runs, labels or _names(runs), strict=True):
        config = read_run_config(run)
        if not (run / EVALUATION_FILE).is_file():
            raise RunError(
                f"{run} has not been evaluated yet: it has no {EVALUATION_FILE}. "
                f"`flowfactor evaluate {run}` writes it; then compare again."
            )
        result = read_json(run / EVALUATION_FILE)
        missing = [key for key in (*_MEASURED, "errors") if key not in result]
        if missing:
            raise RunError(
                f"{run / EVALUATION_FILE} lacks {', '.join(missing)}. `flowfactor evaluate {run}` "
                f"writes it again."
            )
        if split is not None and result["split"] != split:
            raise RunError(
                f"{run} was evaluated on the {result['split']} split, not on {split}. "
                f"`flowfactor evaluate {run} --split {split}` measures it there."
            )
        found.append(_Run(run, label, config, result))
    return found


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the ends of the paths, as short as they can be and still all differ."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _check_comparable(first: _Run, run: _Run) -> None:
    """Refuse runs whose numbers were not measured on the same sequences.

    Raises:
        RunError: with what differs.
    """
    changed = _data_differences(first.config, run.config)
    if not changed:
        before, after = (
            {
                **{key: each.result[key] for key in _MEASURED},
                "transformations": ", ".join(
                    name for name in each.result["errors"] if not name.startswith("spare ")
                ),
            }
            for each in (first, run)
        )
        changed = [
            f"{key} of the evaluation: {value} -> {after[key]}"
            for key, value in before.items()
            if after[key] != value
        ]
    if changed:
        listed = "\n".join(f"  {change}" for change in changed)
        raise RunError(
            f"{first.path} and {run.path} cannot be compared, because they were not measured on "
            f"the same sequences. What differs:\n{listed}\n`flowfactor evaluate RUN --split SPLIT "
            f"--images N` measures a run in another way; runs of other data cannot be compared."
        )


def _data_differences(first: Config, other: Config) -> list[str]:
    a, b = first.data.source, other.data.source
    same = a == b or {a, b} == {"torchvision", "download"}
    if not same:
        return [f"data.source: {a} -> {b}"]
    found = []
    for change in differences(first, other):
        key = change.partition(":")[0]
        if not key.startswith("data.") or key in _MAY_DIFFER:
            continue
        # The range of random starts, which are not evaluated, and names of one source.
        if key.endswith(".start_range") or key == "data.source":
            continue
        if key == "data.root" and a != "images":
            continue
        paths = [getattr(config.data, "path", None) for config in (first, other)]
        if key == "data.path" and a in _SAME_EVERYWHERE and None not in paths:
            continue
        found.append(change)
    return found


def _of_one_seed(groups: dict[str, list[_Run]]) -> list[_Run]:
    """Return one run of each label, all of one seed where that decides what is held out.

    Raises:
        RunError: there is no such seed.
    """
    common = set.intersection(*({run.config.seed for run in group} for group in groups.values()))
    if common:
        seed = min(common)
        return [next(run for run in group if run.config.seed == seed) for group in groups.values()]
    first = [group[0] for group in groups.values()]
    if not isinstance(first[0].config.data, DigitsConfig | SpritesConfig):
        listed = "\n".join(
            f"  {label}: {', '.join(str(run.config.seed) for run in group)}"
            for label, group in groups.items()
        )
        raise RunError(
            f"The seed decides which samples of {first[0].config.data.source} are held out, and no "
            f"seed is common to all:\n{listed}\nCompare runs of one seed."
        )
    return first


def _samples(data: SequenceDataset, count: int) -> tuple[Tensor, Tensor]:
    """Return samples and transformations of the strips; the samples differ where they can."""
    samples, factors = [], []
    classes = one_of_each_class(data)
    for k in range(len(data.names)):
        able = samples_undergoing(data, k)
        if len(able) == len(data):
            rest = torch.arange(len(data))
            able = torch.cat([classes, rest[~torch.isin(rest, classes)]]).roll(-k * count)
        samples.append(able[:count])
        factors.append(torch.full((len(samples[-1]),), k))
    return torch.cat(samples), torch.cat(factors)
