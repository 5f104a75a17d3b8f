"""Several evaluations side by side: as tables in Markdown, LaTeX and CSV, and as figures."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from experiments.comparison_figures import error_figure, quality_against_time
from experiments.comparison_rows import (
    Curve,
    Result,
    Row,
    Spread,
    curve_of,
    error_of,
    lowest,
    spread,
    transformations,
)
from flowfactor.errors import ConfigError

__all__ = [
    "Cell",
    "Column",
    "Curve",
    "Result",
    "Row",
    "cells",
    "chosen_columns",
    "csv_text",
    "curve_of",
    "error_figure",
    "latex",
    "markdown",
    "notes",
    "quality_against_time",
]

# More columns than this are set closer in LaTeX.
_MANY = 6

_NONE = "–"


# ---- columns


@dataclass(frozen=True)
class Column:
    """One number of an evaluation.

    Attributes:
        key: a short name, as in ``columns`` of a table's YAML file.
        heading: what the table calls it.
        better: which values are better; None if neither is.
        format: writes a value.
        value: the number of an evaluation; None where it has none.
        deviates: whether seeds may differ in it, so that a deviation says something.
        usual: whether it is shown if nobody asks for it.
    """

    key: str
    heading: str
    better: Literal["lower", "higher"] | None
    format: Callable[[float], str]
    value: Callable[[Result], float | None]
    deviates: bool = True
    usual: bool = True

    @property
    def title(self) -> str:
        """The heading with an arrow that says what is better."""
        arrows = {"lower": " ↓", "higher": " ↑", None: ""}
        return self.heading + arrows[self.better]

    def of(self, row: Row) -> Spread | None:
        """Return mean and deviation over the seeds of a method; None if no seed has a value."""
        return spread(self.value(result) for result in row.results)


def chosen_columns(rows: Sequence[Row], names: Sequence[str] | None) -> list[Column]:
    """Return the columns of a table.

    Args:
        rows: of the table; with no result at all, ``error.NAME`` of any name is accepted.
        names: keys of columns, in order; ``errors`` stands for one of each transformation. None is
            every usual column that some row has a value for.

    Raises:
        ConfigError: a name is not known.
    """
    errors = [_error_column(name) for name in transformations(rows)]
    known = {column.key: column for column in (*errors, *_fitting(rows))}
    if names is None:
        found = [
            column
            for column in known.values()
            if column.usual and any(column.of(row) for row in rows)
        ]
        return found or [known["mean_error"]]
    chosen: dict[str, Column] = {}
    for name in names:
        if name == "errors":
            chosen |= {column.key: column for column in errors}
        elif name in known:
            chosen[name] = known[name]
        elif name.startswith("error.") and not errors:
            chosen[name] = _error_column(name.removeprefix("error."))
        else:
            raise ConfigError(_unknown(name, known))
    return list(chosen.values()) or [known["mean_error"]]


def _unknown(name: str, known: Mapping[str, Column]) -> str:
    keys = ["errors", *known]
    near = difflib.get_close_matches(name, keys, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"columns: there is no column {name}.{hint} Known are {', '.join(keys)}."


def _at(*path: str) -> Callable[[Result], float | None]:
    """Return a function that goes down the keys of a result."""

    def value(result: Result) -> float | None:
        below: Any = result
        for key in path:
            below = below.get(key) if isinstance(below, dict) else None
        return below if isinstance(below, int | float) else None

    return value


def _error_column(name: str) -> Column:
    return Column(
        f"error.{name}", f"E {name}", "lower", _tenths, lambda result: error_of(result, name)
    )


def _solver_change(result: Result) -> float | None:
    changes = result.get("solver_independence", {}).values()
    return max((abs(change["relative"]) for change in changes), default=None)


def _mean_of_paths(key: str) -> Callable[[Result], float | None]:
    def value(result: Result) -> float | None:
        found = spread(
            path.get(key)
            for name, path in result.get("paths", {}).items()
            if not name.startswith("spare ")
        )
        return None if found is None else found.mean

    return value


def _beyond(key: str) -> Callable[[Result], float | None]:
    """Return the mean over transformations of the error of a frame, where there are such frames."""

    def value(result: Result) -> float | None:
        errors = result.get("extrapolation", {}).get("errors", {}).values()
        found = spread(part[key] for error in errors if (part := error["beyond"]))
        return None if found is None else found.mean

    return value


def _minutes(result: Result) -> float | None:
    seconds = _at("training", "seconds")(result)
    return None if seconds is None else seconds / 60


def _milliseconds(result: Result) -> float | None:
    training = result.get("training", {})
    if not training.get("steps") or "seconds" not in training:
        return None
    return float(1000 * training["seconds"] / training["steps"])


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def _thousandths(value: float) -> str:
    return f"{value:.3f}"


def _whole(value: float) -> str:
    return f"{round(value):,}"


def _percents(value: float) -> str:
    return f"{value:.2%}"


def _significant(value: float) -> str:
    return f"{value:.3g}"


_TRAINED = "log_likelihood_trained"

_COLUMNS = (
    Column("mean_error", "mean E", "lower", _tenths, _at("mean_error")),
    Column("inferred_error", "mean E, k inferred", "lower", _tenths, _at("inferred", "mean_error")),
    Column("accuracy", "matching accuracy", "higher", _thousandths, _at("inferred", "accuracy")),
    Column(
        "log_likelihood",
        "log p, unit Gaussian",
        "higher",
        _tenths,
        _at("log_likelihood", "unit_gaussian", "per_sequence"),
    ),
    Column(
        _TRAINED,
        "log p, as trained",
        "higher",
        _tenths,
        _at("log_likelihood", "trained", "per_sequence"),
    ),
    Column("solver_change", "solver change", "lower", _percents, _solver_change),
    Column("predictability", "VP", "higher", _thousandths, _at("predictability", "accuracy")),
    Column("factor_vae", "FactorVAE", "higher", _thousandths, _at("disentanglement", "factor_vae")),
    Column("mig", "MIG", "higher", _thousandths, _at("disentanglement", "mig")),
    Column("dci", "DCI", "higher", _thousandths, _at("disentanglement", "dci_disentanglement")),
    Column(
        "dci_completeness",
        "DCI completeness",
        "higher",
        _thousandths,
        _at("disentanglement", "dci_completeness"),
        usual=False,
    ),
    Column(
        "dci_informativeness",
        "DCI informativeness",
        "higher",
        _thousandths,
        _at("disentanglement", "dci_informativeness"),
        usual=False,
    ),
    Column("sap", "SAP", "higher", _thousandths, _at("disentanglement", "sap")),
    Column("straightness", "straightness", "higher", _thousandths, _mean_of_paths("straightness")),
    Column(
        "kinetic_energy", "kinetic energy", None, _significant, _mean_of_paths("kinetic_energy")
    ),
    Column(
        "superposition",
        "E, two at once",
        "lower",
        _tenths,
        _at("composition", "means", "superposition"),
    ),
    Column("switching", "E, in turn", "lower", _tenths, _at("composition", "means", "switching")),
    Column(
        "reversal",
        "E, backwards",
        "lower",
        _tenths,
        _at("composition", "means", "reversal"),
        usual=False,
    ),
    Column("held_out", "mean E, held out", "lower", _tenths, _at("held_out", "mean_error")),
    Column("beyond", "E of a later frame", "lower", _tenths, _beyond("error")),
    Column(
        "beyond_identity",
        "the same, identity",
        None,
        _tenths,
        _beyond("identity"),
        usual=False,
    ),
    Column("parameters", "parameters", None, _whole, _at("training", "parameters"), deviates=False),
    Column("steps", "steps", None, _whole, _at("training", "steps"), usual=False),
    Column("minutes", "minutes", None, _tenths, _minutes),
    Column("step_ms", "ms per step", "lower", _tenths, _milliseconds),
)


def _fitting(rows: Sequence[Row]) -> Iterator[Column]:
    """Yield the columns; likelihoods under several models of the pixels are not to be ranked."""
    models = {
        bound["observation"]
        for row in rows
        for result in row.results
        if (bound := result.get("log_likelihood", {}).get("trained"))
    }
    for column in _COLUMNS:
        if column.key == _TRAINED and len(models) == 1:
            words = {"bernoulli": "Bernoulli", "gaussian": "Gaussian"}
            parts = [words.get(word, word) for word in models.pop().split("_")]
            yield replace(column, heading=f"log p, {' '.join(reversed(parts))}")
        elif column.key == _TRAINED and models:
            yield replace(column, better=None)
        else:
            yield column


# ---- tables


@dataclass(frozen=True)
class Cell:
    """What a table says in one place.

    Attributes:
        text: a number, ``failed``, or a dash.
        deviation: the standard deviation over seeds; empty if there is none.
        best: whether no row has a better number in this column.
    """

    text: str
    deviation: str = ""
    best: bool = False


def cells(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[Cell]]:
    """Return the cells of each row.

    The best mean of a column and all that are shown as the same number are marked, unless it is the
    only number that the column shows.
    """
    by_column = [_column_cells(rows, column) for column in columns]
    return [[cell[i] for cell in by_column] for i in range(len(rows))]


def _column_cells(rows: Sequence[Row], column: Column) -> list[Cell]:
    found = [column.of(row) for row in rows]
    finite = [each.mean for each in found if each and math.isfinite(each.mean)]
    best = None
    if column.better and len({column.format(mean) for mean in finite}) > 1:
        best = column.format(min(finite) if column.better == "lower" else max(finite))
    shown = []
    for row, each in zip(rows, found, strict=True):
        if each is None:
            failed = row.failed and not row.results
            shown.append(Cell("failed" if failed else _NONE))
            continue
        text = column.format(each.mean) if math.isfinite(each.mean) else "not finite"
        deviates = column.deviates and each.deviation is not None
        shown.append(
            Cell(text, column.format(each.deviation or 0.0) if deviates else "", text == best)
        )
    return shown


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a table in Markdown with notes below it, ended by a line feed."""
    marks, footnotes = _footnotes(rows)
    lines = [
        f"| method | {' | '.join(_escaped(column.title) for column in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for row, mark, shown in zip(rows, marks, cells(rows, columns), strict=True):
        label = _escaped(row.label) + _raised(mark)
        texts = [
            (f"**{cell.text}**" if cell.best else cell.text)
            + (f" ± {cell.deviation}" if cell.deviation else "")
            for cell in shown
        ]
        lines.append(f"| {label} | {' | '.join(texts)} |")
    paragraphs = ["\n".join(lines)]
    for number, text in footnotes.items():
        paragraphs.append(f"{_raised(number)} {_escaped(text)}")
    if said := notes(rows, columns):
        paragraphs.append(_escaped(" ".join(said)))
    return "\n\n".join(paragraphs) + "\n"


def latex(
    rows: Sequence[Row], columns: Sequence[Column], caption: str = "", label: str = ""
) -> str:
    r"""Return a floating table in LaTeX with the rules of ``booktabs``, and notes below it.

    Args:
        rows: one line each.
        columns: of the table.
        caption: plain text; characters that are special in LaTeX are escaped.
        label: for ``\ref``, as it is.
    """
    marks, footnotes = _footnotes(rows)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        *([r"  \small", r"  \setlength{\tabcolsep}{4pt}"] if len(columns) > _MANY else []),
        *([rf"  \caption{{{_tex(caption)}}}"] if caption else []),
        *([rf"  \label{{{label}}}"] if label else []),
        rf"  \begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        f"    method & {' & '.join(_tex(column.title) for column in columns)} " r"\\",
        r"    \midrule",
    ]
    for row, mark, shown in zip(rows, marks, cells(rows, columns), strict=True):
        name = _tex(row.label) + (f"$^{{{mark}}}$" if mark else "")
        if row.failed and not row.results:
            content = rf"\multicolumn{{{len(columns)}}}{{c}}{{failed}}"
        else:
            content = " & ".join(map(_tex_cell, shown))
        lines.append(f"    {name} & {content} " r"\\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    below = [f"$^{{{mark}}}$ {_tex(text)}" for mark, text in footnotes.items()]
    below += [_tex(" ".join(said))] if (said := notes(rows, columns)) else []
    if below:
        paragraphs = r" \par ".join(below)
        lines += [r"  \par\smallskip", rf"  {{\footnotesize {paragraphs}\par}}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def csv_text(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return comma-separated numbers, not rounded: one line per method, with a line of headings.

    Each column is three: its key is the mean over seeds, ``KEY_sd`` the standard deviation of the
    sample, and ``KEY_n`` how many seeds have a value. What there is not is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [f"{column.key}{end}" for column in columns for end in ("", "_sd", "_n")]
    writer.writerow(["method", "seeds", "failed", *keys])
    for row in rows:
        numbers: list[float | None] = []
        for column in columns:
            found = column.of(row)
            numbers += [found.mean, found.deviation, found.count] if found else [None, None, 0]
        writer.writerow([row.label, len(row.results), row.failed, *numbers])
    return text.getvalue()


# ---- notes


def _footnotes(rows: Sequence[Row]) -> tuple[list[str], dict[str, str]]:
    """Return the footnote mark of each row, empty if it has none, and the footnotes."""
    marks: list[str] = []
    texts: dict[str, str] = {}
    everywhere = {seed for row in rows for seed in row.seeds}
    most = max((len(row.results) for row in rows), default=0)
    for row in rows:
        count, total = len(row.results), len(row.results) + row.failed
        fewer = count < most or bool(everywhere - set(row.seeds))
        text = ""
        if not total:
            text = "Not run."
        elif count and (row.failed or fewer):
            text = f"Mean of {_those(row)}." if count > 1 else f"Only {_those(row)}."
            if row.failed:
                text = f"{row.failed} of {total} seeds failed. {text}"
        mark = str(len(texts) + 1) if text else ""
        marks.append(mark)
        if text:
            texts[mark] = text
    return marks, texts


def _those(row: Row) -> str:
    count = len(row.results)
    noun = "seed" if count == 1 else "seeds"
    if len(row.seeds) == count:
        return f"{noun} {', '.join(map(str, row.seeds))}"
    return f"{count} {noun}"


def notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Return sentences that say how the numbers were measured, for below a table."""
    results = [result for row in rows for result in row.results]
    if not results:
        return []
    said = []
    if any(cell.deviation for line in cells(rows, columns) for cell in line):
        said.append("± is the standard deviation over seeds.")
    images = (f"{result['images']:,}" for result in results if "images" in result)
    measured = [
        f"{_alike(result.get('split') for result in results)} split",
        f"{_alike(images)} images",
        f"frames 1 to {_alike(result.get('frames') for result in results)}",
    ]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    if seeds:
        noun = "seed" if len(seeds) == 1 else "seeds"
        measured.append(f"{noun} {', '.join(map(str, seeds))}")
    bounds = [result["log_likelihood"] for result in results if "log_likelihood" in result]
    if bounds and any(column.key.startswith("log_likelihood") for column in columns):
        measured.append(
            f"log p by {_alike(bound['samples'] for bound in bounds)} IWAE samples of each of "
            f"{_alike(bound['sequences'] for bound in bounds)} sequences, in nats per sequence"
        )
    said.append(f"{_upper_first('; '.join(measured))}.")
    for title, key in (("Lowest identity error", "identity"), ("Lowest floor", "floor")):
        listed = [
            f"{name} {value:.1f}"
            for name in transformations(rows)
            if (value := lowest(rows, name, key)) is not None
        ]
        if listed:
            said.append(f"{title}: {', '.join(listed)}.")
    rules: dict[str, list[str]] = {}
    for row in rows:
        for rule in dict.fromkeys(result["rule"] for result in row.results if "rule" in result):
            rules.setdefault(str(rule), []).append(row.label)
    if len(rules) == 1:
        said.append(f"Methods without flows move by the rule {next(iter(rules))}.")
    else:
        said += [
            f"Moved by the rule {rule} in place of a flow: {'; '.join(labels)}."
            for rule, labels in rules.items()
        ]
    hardware = dict.fromkeys(filter(None, map(_hardware, results)))
    if hardware:
        said.append(f"Trained on: {'; '.join(hardware)}.")
    return said


def _alike(values: Iterable[Any]) -> str:
    """Return the value that all have, or all that there are."""
    return " or ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "?"


def _hardware(result: Result) -> str:
    training = result.get("training") or result.get("environment") or {}
    known = training.get("hardware", {})
    parts = []
    if "processor" in known:
        parts.append(str(known["processor"]))
    if threads := known.get("threads"):
        parts.append(f"{threads} thread" + "s" * (threads > 1))
    if known.get("accelerator") not in (None, "none"):
        parts.append(str(known["accelerator"]))
    return ", ".join(parts)


def _raised(number: str) -> str:
    return "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in number)


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- characters that are special


def _escaped(text: str) -> str:
    """Return plain text as Markdown, in one line."""
    for special in "\\`*_|<>[]":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
}


def _tex(text: str) -> str:
    """Return plain text as LaTeX, in one line."""
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def _tex_cell(cell: Cell) -> str:
    if not any(character.isdigit() for character in cell.text):
        return _tex(cell.text)
    number, deviation = (
        text.replace(",", "{,}").replace("%", r"\%") for text in (cell.text, cell.deviation)
    )
    bold = rf"\mathbf{{{number}}}" if cell.best else number
    return f"${bold}" + (rf" \pm {deviation}$" if deviation else "$")
