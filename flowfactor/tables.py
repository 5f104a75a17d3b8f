"""Tables of numbers: one description, rendered as Markdown, LaTeX, CSV, HTML or for the console."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import math
import re
import statistics
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from flowfactor.names import one_line

if TYPE_CHECKING:
    import rich.console
    import rich.table
    import rich.text

# LaTeX sets tables with more columns than this in smaller type.
_WIDE = 6

_ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
_LETTERS = ("ss", "ae", "AE", "o", "O", "oe", "OE", "l", "L", "i")
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
# On a console: columns that a name has before it is broken, and that a heading has.
_NAME, _HEADING = 16, 8

# An underscore within a word is an ordinary character, and so is & unless it begins an entity.
_MARKDOWN = re.compile(r"[\\`*|<>\[\]$~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_REFERENCE = re.compile(r"[^A-Za-z0-9:._-]+")
# Text that begins with one of these is a formula for a spreadsheet; an apostrophe prevents it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# Of LaTeX: accents by their combining characters, letters, and letters of mathematics by the
# names that Unicode gives them.
_ACCENTS = {
    **dict(zip("\u0300\u0301\u0302\u0303\u0304\u0307\u0308", "`'^~=.\"", strict=True)),
    **dict(zip("\u0306\u030a\u030b\u030c\u0323\u0327\u0331", "urHvdcb", strict=True)),
}
_CAPITALS = frozenset(
    ("gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "upsilon", "phi", "psi", "omega")
)
_SMALL = _CAPITALS.union(
    ("alpha", "beta", "epsilon", "zeta", "eta", "iota", "kappa", "mu", "nu", "rho", "tau", "chi")
)
_LATEX = str.maketrans(
    {
        **{special: f"\\{special}" for special in "{}&%$#_"},
        **{letter: f"\\{name}{{}}" for letter, name in zip("ßæÆøØœŒłŁı", _LETTERS, strict=True)},
        **{digit: f"$^{{{i}}}$" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\symbol{34}",
        "`": r"\textasciigrave{}",
        "…": r"\dots{}",
        "°": r"$^\circ$",
        "→": r"$\to$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "\xa0": "~",
        "–": "--",
        "—": "---",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
    }
)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number measured for several seeds.

    Attributes:
        values: one for each seed, at least one.
        seeds: of the values.

    Example:
        >>> spread = Spread((1.0, 3.0), (0, 1))
        >>> spread.mean, round(spread.deviation, 2), len(spread.values)
        (2.0, 1.41, 2)
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The mean, NaN if a value is not finite."""
        finite = all(map(math.isfinite, self.values))
        return statistics.fmean(self.values) if finite else math.nan

    @property
    def deviation(self) -> float | None:
        """The standard deviation of the sample; None for a single value or one not finite."""
        if len(self.values) < 2 or math.isnan(self.mean):
            return None
        return statistics.stdev(self.values)


Value = str | float | Spread | None
"""What a cell holds: text, a number, a number for several seeds, or nothing."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A number that tables show, and how.

    Attributes:
        key: a short name: the heading in CSV, and what configurations call the column.
        heading: the heading elsewhere; the key if it is empty.
        better: which values are better, if any; the best of a column is set in bold.
        format: a format specification of Python, such as ``".1f"`` or ``".2%"``.
        value: returns the number of a result, None if it has none.
        shown: whether tables show it by default.
        deviates: whether seeds can differ in it, so that a deviation is informative.
        bold: whether all of its numbers are set in bold.
        summary: what the summary of an evaluation calls the number; empty to leave it out.
    """

    key: str
    heading: str = ""
    better: Literal["lower", "higher"] | None = None
    format: str = ".1f"
    value: Callable[[Any], float | None] | None = None
    shown: bool = True
    deviates: bool = True
    bold: bool = False
    summary: str = ""

    @property
    def title(self) -> str:
        """The heading, with an arrow that points where values get better."""
        return (self.heading or self.key) + _ARROWS[self.better]

    def write(self, number: float) -> str:
        """Return a number as text; zeros have no minus sign."""
        if not math.isfinite(number):
            return "not finite"
        sign = "+" if self.format.startswith("+") else ""
        return f"{number:{sign}z{self.format.removeprefix('+')}}"

    def text_of(self, result: Any) -> str | None:
        """Return the number of a result as text, None if it has none."""
        number = None if self.value is None else self.value(result)
        return None if number is None else self.write(number)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: its first cell.
        values: one for each column.
        footnote: shown below the table, with a mark behind the label.
        ruled: whether a rule separates it from the row above.
    """

    label: str
    values: Sequence[Value]
    footnote: str = ""
    ruled: bool = False


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A cell as text, before it is escaped."""

    text: str
    deviation: str = ""
    bold: bool = False
    number: bool = False

    def render(self, bold: str, escape: Callable[[str], str]) -> str:
        text = bold.format(escape(self.text)) if self.bold else escape(self.text)
        return f"{text} ± {self.deviation}" if self.deviation else text

    def to_rich(self) -> rich.text.Text:
        import rich.text

        text = rich.text.Text(one_line(self.text), "bold" if self.bold else "")
        return text.append(f" ± {self.deviation}", "") if self.deviation else text


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of numbers below headings.

    Attributes:
        columns: of the numbers.
        rows: each has a label and a value for every column.
        title: what the table shows.
        label: the heading of the rows' labels.
        notes: sentences below the table.
        missing: what stands for a value that is None, except in CSV.

    Raises:
        ValueError: a row has another number of values than there are columns.

    Example:
        >>> columns = [Column("error", "E", "lower"), Column("steps", format=",.0f")]
        >>> table = Table(columns, [Row("a", (3.21, 4000)), Row("b", (2.5, None))], label="model")
        >>> print(table.to_markdown(), end="")
        | model | E ↓ | steps |
        |---|---:|---:|
        | a | 3.2 | 4,000 |
        | b | **2.5** | |
        >>> print(table.to_csv(), end="")
        model,error,steps
        a,3.21,4000
        b,2.5,
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    label: str = ""
    notes: str = ""
    missing: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"the row {row.label!r} has {len(row.values)} values for "
                    f"{len(self.columns)} columns"
                )

    def without_empty_columns(self) -> Table:
        """Return the table without columns in which no row has a value."""
        kept = [
            i
            for i in range(len(self.columns))
            if any(row.values[i] is not None for row in self.rows)
        ]
        rows = [dataclasses.replace(row, values=[row.values[i] for i in kept]) for row in self.rows]
        return dataclasses.replace(self, columns=[self.columns[i] for i in kept], rows=rows)

    def to_markdown(self) -> str:
        """Return the table and its notes, without the title, ended by a line feed."""
        head, *lines = self._grid("**{}**", markdown_text)
        rows = [head, *lines]
        texts = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
        texts.insert(1, f"|---|{'---:|' * len(self.columns)}")
        parts = ["\n".join(texts)]
        parts += [
            f"{mark.translate(_SUPERSCRIPTS)} {markdown_text(text)}"
            for mark, text in self._footnotes().items()
        ]
        parts += [markdown_text(self.notes)] if self.notes else []
        return "\n\n".join(parts) + "\n"

    def to_latex(self, label: str = "") -> str:
        r"""Return a floating table with the rules of ``booktabs``, and its notes below.

        Args:
            label: for ``\ref``; what is not ASCII or a mark of LaTeX becomes ``_`` in it.
        """
        count = len(self.columns)
        lines = [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            *([r"  \small", r"  \setlength{\tabcolsep}{4pt}"] if count > _WIDE else []),
            *([rf"  \caption{{{_latex(self.title)}}}"] if self.title else []),
            *([rf"  \label{{{_REFERENCE.sub('_', label)}}}"] if label else []),
            rf"  \begin{{tabular}}{{l{'r' * count}}}",
            r"    \toprule",
            f"    {_first(' & '.join(map(_latex, self._head())))} \\\\",
            r"    \midrule",
        ]
        for row, mark, cells in zip(self.rows, self._marks(), self._cells(), strict=True):
            name = _first(_latex(row.label)) + (f"$^{{{mark}}}$" if mark else "")
            content = " & ".join(map(_latex_cell, cells))
            texts = set(row.values)
            if count > 1 and len(texts) == 1 and isinstance(row.values[0], str):
                content = rf"\multicolumn{{{count}}}{{c}}{{{_latex(cells[0].text)}}}"
            lines += [r"    \midrule"] if row.ruled else []
            lines.append(f"    {name} & {content} \\\\")
        lines += [r"    \bottomrule", r"  \end{tabular}"]
        below = [f"$^{{{mark}}}$ {_latex(text)}" for mark, text in self._footnotes().items()]
        below += [_latex(self.notes)] if self.notes else []
        if below:
            paragraphs = r" \par ".join(below)
            lines += [r"  \par\smallskip", rf"  {{\footnotesize {paragraphs}\par}}"]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def to_csv(self, *, tidy: bool = False) -> str:
        """Return the numbers, not rounded, separated by commas; what is missing is empty.

        Text that a spreadsheet would take for a formula begins with an apostrophe.

        Args:
            tidy: write one number per line: label, seed, metric, value. Otherwise a line holds a
                row. Columns of several seeds are then three: the mean, the standard deviation
                ``KEY_sd`` and the number of seeds ``KEY_n``.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")

        def write(*cells: Value) -> None:
            writer.writerow([_neutral(cell) if isinstance(cell, str) else cell for cell in cells])

        if tidy:
            write(self.label, "seed", "metric", "value")
            for row in self.rows:
                for column, value in zip(self.columns, row.values, strict=True):
                    if isinstance(value, Spread):
                        for seed, number in zip(value.seeds, value.values, strict=True):
                            write(row.label, seed, column.key, number)
                    elif isinstance(value, float | int):
                        write(row.label, "", column.key, value)
            return text.getvalue()
        spread = any(isinstance(value, Spread) for row in self.rows for value in row.values)
        ends = ("", "_sd", "_n") if spread else ("",)
        write(self.label, *(c.key + end for c in self.columns for end in ends))
        for row in self.rows:
            numbers: list[str | float | None] = []
            for value in row.values:
                if isinstance(value, Spread):
                    numbers += [value.mean, value.deviation, len(value.values)]
                elif spread:
                    numbers += [None if isinstance(value, str) else value, None, 0]
                else:
                    numbers.append(value)
            write(row.label, *numbers)
        return text.getvalue()

    def to_html(self) -> str:
        """Return a ``<table>`` with its footnotes; numbers have the class ``number``."""
        head, *lines = self._grid("<b>{}</b>", _html)
        numeric = [False] * (1 + len(self.columns))
        for row in self.rows:
            for i, value in enumerate(row.values, start=1):
                numeric[i] |= isinstance(value, float | int | Spread)
        kinds = [' class="number"' if number else "" for number in numeric]

        def line(cells: Sequence[str], tag: str, scope: str = "") -> str:
            pairs = zip(cells, kinds, strict=True)
            return f"<tr>{''.join(f'<{tag}{scope}{kind}>{c}</{tag}>' for c, kind in pairs)}</tr>"

        header = line(head, "th", ' scope="col"')
        caption = f"<caption>{_html(self.title)}</caption>" if self.title else ""
        body = "".join(line(cells, "td") for cells in lines)
        notes = "<br>".join(
            f"{mark.translate(_SUPERSCRIPTS)} {_html(text)}"
            for mark, text in self._footnotes().items()
        )
        cell = f'<td colspan="{len(kinds)}">{notes}</td>'
        foot = f"<tfoot><tr>{cell}</tr></tfoot>" if notes else ""
        return f"<table>{caption}<thead>{header}</thead><tbody>{body}</tbody>{foot}</table>"

    def to_rich(self, *, transposed: bool = False) -> rich.console.RenderableType:
        """Return the table for a console of ``rich``, for which it is never too wide.

        Neither names nor numbers are cut. On a narrow console headings and long names break, then
        columns continue in another table, then each row is a block of lines.

        Args:
            transposed: show rows side by side, a line for each column.
        """
        footnotes = [
            f"{mark.translate(_SUPERSCRIPTS)} {one_line(text)}"
            for mark, text in self._footnotes().items()
        ]
        grid = [
            [_Cell(text).to_rich() for text in self._head()],
            *(
                [_Cell(row.label + mark.translate(_SUPERSCRIPTS)).to_rich()]
                + [cell.to_rich() for cell in cells]
                for row, mark, cells in zip(self.rows, self._marks(), self._cells(), strict=True)
            ),
        ]
        ruled = [row.ruled for row in self.rows]
        if transposed:
            grid, ruled = [list(line) for line in zip(*grid, strict=True)], [False] * len(grid[0])
        return _ConsoleTable(one_line(self.title), grid, ruled, footnotes)

    def _head(self) -> list[str]:
        return [self.label, *(column.title for column in self.columns)]

    def _grid(self, bold: str, escape: Callable[[str], str]) -> list[list[str]]:
        """Return the heading and every row as text."""
        return [
            [escape(text) for text in self._head()],
            *(
                [escape(row.label + mark.translate(_SUPERSCRIPTS))]
                + [cell.render(bold, escape) for cell in cells]
                for row, mark, cells in zip(self.rows, self._marks(), self._cells(), strict=True)
            ),
        ]

    def _cells(self) -> list[list[_Cell]]:
        """Return the cells of each row as text."""
        columns = [
            _column_cells(column, [row.values[i] for row in self.rows], self.missing)
            for i, column in enumerate(self.columns)
        ]
        return [[cells[i] for cells in columns] for i in range(len(self.rows))]

    def _footnotes(self) -> dict[str, str]:
        texts = dict.fromkeys(row.footnote for row in self.rows if row.footnote)
        return {str(number): text for number, text in enumerate(texts, start=1)}

    def _marks(self) -> list[str]:
        marks = {text: mark for mark, text in self._footnotes().items()}
        return [marks.get(row.footnote, "") for row in self.rows]


@dataclasses.dataclass(frozen=True)
class _ConsoleTable:
    """A table that takes the form that the width of the console allows."""

    title: str
    grid: list[list[rich.text.Text]]
    ruled: list[bool]
    footnotes: list[str]

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> Iterator[rich.console.RenderableType]:
        import rich.text

        def widest(place: int, start: int = 0) -> int:
            return max((line[place].cell_len for line in self.grid[start:]), default=0)

        # A border and a space on each side of a column; neighbours share the border.
        numbers = {
            place: max(widest(place, 1), min(_HEADING, heading.cell_len)) + 3
            for place, heading in enumerate(self.grid[0][1:], start=1)
        }
        rest = options.max_width - 1
        name = min(widest(0) + 3, max(_NAME + 3, rest - sum(numbers.values())))
        if name + max(numbers.values(), default=0) > rest:
            yield from self._blocks()
        else:
            parts: list[dict[int, int]] = [{}]
            for place, width in numbers.items():
                if parts[-1] and name + sum(parts[-1].values()) + width > rest:
                    parts.append({})
                parts[-1][place] = width
            for part in parts:
                room = rest - name - sum(part.values())
                for place, width in part.items():
                    part[place] += (more := min(room, max(0, widest(place) + 3 - width)))
                    room -= more
                yield self._table({0: name} | part)
        yield from (rich.text.Text(footnote) for footnote in self.footnotes)

    def _table(self, widths: dict[int, int]) -> rich.table.Table:
        """Return the table of some columns, of which each has a width with its border."""
        import rich.table
        import rich.text

        table = rich.table.Table(title=rich.text.Text(self.title) or None, title_justify="left")
        heading, *lines = self.grid
        for place, width in widths.items():
            justify: Literal["left", "right"] = "right" if place else "left"
            table.add_column(heading[place], justify=justify, width=width - 3, overflow="fold")
        for line, rule in zip(lines, self.ruled, strict=False):
            if rule:
                table.add_section()
            table.add_row(*(line[place] for place in widths))
        return table

    def _blocks(self) -> Iterator[rich.console.RenderableType]:
        """Yield the rows as blocks of lines."""
        import rich.text

        heading, *lines = self.grid
        yield from [rich.text.Text(self.title, "italic")] if self.title else []
        for name, *values in lines:
            yield rich.text.Text.assemble(name, style="bold", overflow="fold")
            for title, value in zip(heading[1:], values, strict=True):
                yield rich.text.Text.assemble("  ", title, ": ", value, overflow="fold")


def _column_cells(column: Column, values: Sequence[Value], missing: str) -> list[_Cell]:
    """Return the cells of a column.

    The best number and all that look the same are bold, unless the column shows no other.
    """
    means = [value.mean if isinstance(value, Spread) else value for value in values]
    finite = [mean for mean in means if isinstance(mean, float | int) and math.isfinite(mean)]
    best = None
    if column.better and len({column.write(mean) for mean in finite}) > 1:
        best = column.write(min(finite) if column.better == "lower" else max(finite))
    cells = []
    for value, mean in zip(values, means, strict=True):
        if mean is None or isinstance(mean, str):
            cells.append(_Cell(missing if mean is None else mean))
            continue
        text, deviation = column.write(mean), ""
        if column.deviates and isinstance(value, Spread) and value.deviation is not None:
            deviation = column.write(value.deviation)
        cells.append(_Cell(text, deviation, column.bold or text == best, math.isfinite(mean)))
    return cells


def markdown_text(text: str) -> str:
    """Return plain text as Markdown, in one line."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def _html(text: str) -> str:
    """Return plain text as HTML, in one line."""
    return html.escape(one_line(text))


def _neutral(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _latex(text: str) -> str:
    """Return plain text as LaTeX, in one line and in ASCII, for any engine.

    What the fonts of pdfTeX lack is its code point there, and itself for other engines.
    """
    line = one_line(unicodedata.normalize("NFC", text))
    return "".join(
        run.translate(_LATEX) if run.isascii() else "".join(map(_latex_letter, run))
        for run in re.findall(r"[\x00-\x7f]+|[^\x00-\x7f]+", line)
    )


def _first(text: str) -> str:
    """Return the beginning of a line of LaTeX, which the line before takes for no argument."""
    return f"{{}}{text}" if text.startswith(("[", "*")) else text


def _latex_letter(letter: str) -> str:
    if ord(letter) in _LATEX:
        return letter.translate(_LATEX)
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if base.isascii() and len(marks) == 1 and marks[0] in _ACCENTS:
        accent = _ACCENTS[marks[0]]
        # The accents of other engines need a letter, which i and j are without their dots.
        return f"\\{accent}{{{base}}}"
    code = f"U+{ord(letter):04X}"
    words = unicodedata.name(letter, "").split()
    if words[:1] == ["GREEK"] and words[2:3] == ["LETTER"] and len(words) == 4:
        greek = words[3].lower().replace("lamda", "lambda")
        if greek in (_SMALL if words[1] == "SMALL" else _CAPITALS):
            return f"$\\{greek.capitalize() if words[1] == 'CAPITAL' else greek}$"
    return rf"\ifdefined\Umathchar\char\"{ord(letter):04X}\else {code}\fi{{}}"


def _latex_cell(cell: _Cell) -> str:
    if not cell.number:
        return _latex(cell.text)
    number, deviation = (
        text.replace(",", "{,}").replace("%", r"\%") for text in (cell.text, cell.deviation)
    )
    bold = rf"\mathbf{{{number}}}" if cell.bold else number
    return f"${bold} \\pm {deviation}$" if deviation else f"${bold}$"
