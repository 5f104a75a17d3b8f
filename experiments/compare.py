"""Evaluated runs side by side: one table, and their film strips below the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.comparison import Method, choose_columns, comparison_table, curve_of
from experiments.comparison_figures import column_figure, error_figure, time_figure
from experiments.runs import Run, open_run
from experiments.samples import choose_few, samples_of_each
from flowfactor import diagnostics
from flowfactor.checkpoints import write_file
from flowfactor.errors import RunError
from flowfactor.tables import Column, Table


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was compared and written.

    Attributes:
        table: a row for each label.
        files: that were written.
    """

    table: Table
    files: tuple[Path, ...]


def compare(
    folders: Sequence[Path],
    *,
    labels: Sequence[str] | None = None,
    samples: int = 2,
    out: Path = Path("runs/compare"),
    split: str | None = None,
    device: str | None = None,
    plugin_names: Iterable[str] = (),
    on_stage: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare evaluated runs of the same data; write tables and figures.

    Runs that have one label are seeds of one method: the table has their mean and deviation, the
    film strips show one of them.

    Args:
        folders: of the runs, at least two.
        labels: what each is called; None is the folders' names.
        samples: strips of each transformation, or of ten if there are more.
        out: the folder to write into; files of an earlier comparison are replaced.
        split: the one that the runs must have been evaluated on; None is that of the first run.
        device: what computes; None is what the configuration of the first run says.
        plugin_names: plug-ins besides those that the runs name.
        on_stage: called with what is being done.

    Raises:
        RunError: fewer than two runs, one that has not been evaluated, or runs that cannot be
            compared, with what differs.
        DataError: the data cannot be read.
    """
    report = on_stage or (lambda _: None)
    report("evaluations")
    _check_words(folders, labels)
    runs = [open_run(folders[0], plugin_names, device)]
    runs += [open_run(each, plugin_names, str(runs[0].device)) for each in folders[1:]]
    split = split or runs[0].evaluation.split
    for run in runs:
        if run.evaluation.split != split:
            raise RunError(
                f"{run.path} was evaluated on the {run.evaluation.split} split, not on {split}. "
                f"`flowfactor evaluate {run.path} --split {split}` measures it there."
            )
        _check_comparable(runs[0], run)
    groups: dict[str, list[Run]] = {}
    for label, run in zip(labels or _names(folders), runs, strict=True):
        groups.setdefault(label, []).append(run)

    report("film strips")
    strips = _draw_strips(groups, split, samples)
    files = [diagnostics.save(strips, out / f"strips{suffix}") for suffix in (".png", ".pdf")]

    report("tables")
    methods = [
        Method(
            label,
            tuple(run.evaluation for run in group),
            curves=tuple(curve for run in group if (curve := curve_of(run.path))),
        )
        for label, group in groups.items()
    ]
    caption = f"{', '.join(groups)}: {split} split of {runs[0].config.source}."
    columns = choose_columns(methods, None)
    table = comparison_table(methods, columns, title=caption)
    files.append(write_file(out / "table.md", table.to_markdown()))
    files += write_comparison(methods, columns, table, "comparison", out)
    return Comparison(table, tuple(files))


def _draw_strips(groups: Mapping[str, Sequence[Run]], split: str, count: int) -> Figure:
    """Draw the strips of one run of each label, below the truth.

    Raises:
        RunError: the runs cannot be shown together.
        DataError: the data cannot be read.
    """
    shown = _of_one_seed(groups)
    config = shown[0].config
    data = config.data.load(split, config.seed)
    if data.labels is not None and bool((data.labels < 0).any()):
        raise RunError(
            f"{shown[0].path} was measured on recordings without labels: which flow is which "
            f"transformation differs from run to run, so that their strips cannot be compared."
        )
    models = {label: run.model for label, run in zip(groups, shown, strict=True)}
    sequences = data.sample(*samples_of_each(data, choose_few(data.names), count))
    try:
        return diagnostics.plot_comparison(models, sequences, data.names)
    except ValueError as error:  # a model of other images, names or horizon than its configuration
        raise RunError(f"{error}.") from error


def write_comparison(
    methods: Sequence[Method], columns: Sequence[Column], table: Table, label: str, out: Path
) -> list[Path]:
    r"""Write a table as LaTeX and CSV, wide and tidy, and its figures; return the files.

    Args:
        methods: that the table compares.
        columns: of the table.
        table: of the methods.
        label: for ``\ref{tab:...}``.
        out: the folder; figures of an older table that this one lacks are removed.

    Raises:
        RunError: a file cannot be written.
    """
    texts = {
        "table.tex": table.to_latex(f"tab:{label}"),
        "table.csv": table.to_csv(),
        "tidy.csv": table.to_csv(tidy=True),
    }
    files = [write_file(out / name, text) for name, text in texts.items()]
    evaluated = any(method.evaluations for method in methods)
    figures = {
        "errors": error_figure(methods) if evaluated else None,
        "metrics": column_figure(methods, columns) if evaluated else None,
        "time": time_figure(methods) if evaluated else None,
    }
    for name, figure in figures.items():
        for suffix in (".png", ".pdf"):
            path = out / f"{name}{suffix}"
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                files.append(diagnostics.save(figure, path))
    return files


def _check_words(folders: Sequence[Path], labels: Sequence[str] | None) -> None:
    if len(folders) < 2:
        raise RunError("A comparison takes at least two runs.")
    resolved = [folder.resolve() for folder in folders]
    for folder in folders:
        if resolved.count(folder.resolve()) > 1:
            raise RunError(f"{folder} is given more than once.")
    if labels and len(labels) != len(folders):
        raise RunError(
            f"There are {len(folders)} runs and {len(labels)} labels. Give one --labels for each "
            f"run, in their order, or none."
        )


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the ends of the paths, as short as they can be and still all differ."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _check_comparable(first: Run, run: Run) -> None:
    """Refuse runs whose numbers were not measured on the same sequences.

    Raises:
        RunError: with what differs.
    """
    a, b = first.config, run.config
    changed = [f"data.source: {a.source} -> {b.source}"] if a.source != b.source else []
    if not changed:
        changed = a.data.differences(b.data)
    if not changed:
        keys = ("images", "frames", "transformations")
        pairs = [
            (key, getattr(first.evaluation, key), getattr(run.evaluation, key)) for key in keys
        ]
        changed = [f"{key} of the evaluation: {x} -> {y}" for key, x, y in pairs if x != y]
    if changed:
        listed = "\n".join(f"  {change}" for change in changed)
        raise RunError(
            f"{first.path} and {run.path} cannot be compared, because they were not measured on "
            f"the same sequences. What differs:\n{listed}\n`flowfactor evaluate RUN --split SPLIT "
            f"--images N` measures a run in another way; runs of other data cannot be compared."
        )


def _of_one_seed(groups: Mapping[str, Sequence[Run]]) -> list[Run]:
    """Return one run of each label, all of one seed where that decides what is held out.

    Raises:
        RunError: there is no such seed.
    """
    common = set.intersection(*({run.config.seed for run in group} for group in groups.values()))
    if common:
        seed = min(common)
        return [next(run for run in group if run.config.seed == seed) for group in groups.values()]
    first = [group[0] for group in groups.values()]
    if first[0].config.data.split_depends_on_seed:
        listed = "\n".join(
            f"  {label}: {', '.join(str(run.config.seed) for run in group)}"
            for label, group in groups.items()
        )
        raise RunError(
            f"The seed decides which samples of {first[0].config.source} are held out, and no "
            f"seed is common to all:\n{listed}\nCompare runs of one seed."
        )
    return first
