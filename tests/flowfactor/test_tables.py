"""One table, five renderings: what they escape, mark and leave out."""

import csv
import io
import math

import pytest
import rich.cells
import rich.console

from flowfactor.tables import Column, Row, Spread, Table

LOWER, HIGHER = Column("error", "E", "lower"), Column("score", better="higher", format=".3f")


def cells(table):
    """Return the cells of the rows of a table in Markdown."""
    lines = table.to_markdown().splitlines()[2 : 2 + len(table.rows)]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def column_of(column, *values):
    return [row[1] for row in cells(Table([column], [Row("a", [value]) for value in values]))]


def test_the_best_of_what_is_shown_is_bold():
    assert column_of(LOWER, 10.04, 10.01, 10.06) == ["**10.0**", "**10.0**", "10.1"]
    assert column_of(HIGHER, 0.25, 0.5, None) == ["0.250", "**0.500**", ""]
    assert column_of(Column("x"), 1.0, 2.0) == ["1.0", "2.0"]
    # Nothing is best without a rival, and what is not finite never is.
    assert column_of(LOWER, 10.0, None, 10.0) == ["10.0", "", "10.0"]
    assert column_of(LOWER, math.nan, 9.0, 10.0) == ["not finite", "**9.0**", "10.0"]
    assert column_of(Column("x", bold=True), 1.0, "text") == ["**1.0**", "text"]


def test_several_seeds_have_a_mean_and_a_deviation():
    spread = Spread((10.0, 14.0), (0, 1))  # sqrt(((10 - 12)^2 + (14 - 12)^2) / 1) = 2.83
    assert column_of(Column("x"), spread, Spread((3.0,), (0,))) == ["12.0 ± 2.8", "3.0"]
    assert column_of(Column("x", deviates=False), spread) == ["12.0"]
    assert column_of(Column("x"), Spread((math.inf, 1.0), (0, 1))) == ["not finite"]


def test_formats_write_no_negative_zero():
    assert column_of(Column("x", format="+.2%"), -1e-9, 0.5) == ["+0.00%", "+50.00%"]
    assert column_of(Column("x", format=",.0f"), -0.1, 12345) == ["0", "12,345"]


SPECIAL = r"50% of a_b_ & β{x} #1 $ ~ ^ \cmd <|>" + "\n*next*"
TABLE = Table(
    [LOWER, Column("n", "count", format=",.0f")],
    [
        Row(SPECIAL, [Spread((1.0, 2.0), (0, 3)), 12345]),
        Row("broken", ["failed", "failed"]),
        Row("two", [9.0, None], footnote="1 of 2 seeds"),
        Row("mean", [None, 7.0], footnote="1 of 2 seeds", ruled=True),
    ],
    "100% of it_all",
    "method",
    "Notes [a].",
    missing="–",
)


def test_markdown():
    text = TABLE.to_markdown()
    assert (
        r"| 50% of a_b\_ & β{x} #1 \$ \~ ^ \\cmd \<\|\> \*next\* | **1.5** ± 0.7 | 12,345 |" in text
    )
    assert "| two¹ | 9.0 | – |\n| mean¹ | – | 7 |\n\n¹ 1 of 2 seeds\n\nNotes \\[a\\].\n" in text


def test_latex():
    text = TABLE.to_latex("tab:it")
    for part in (
        r"50\% of a\_b\_ \& $\beta$\{x\} \#1 \$ \textasciitilde{} \textasciicircum{}",
        r"\textbackslash{}cmd \textless{}\textbar{}\textgreater{} *next*",
        r"\caption{100\% of it\_all}",
        r"\label{tab:it}",
        r"$\mathbf{1.5} \pm 0.7$ & $12{,}345$",
        r"E $\downarrow$",
        r"broken & \multicolumn{2}{c}{failed} \\",
        r"two$^{1}$ & $9.0$ & --",
    ):
        assert part in text, part
    assert text.isascii()
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert [line.replace(r"\&", "").count("&") for line in body.splitlines() if "&" in line] == [
        2,
        2,
        1,
        2,
        2,
    ]


def test_csv_reads_back_as_the_numbers():
    wide = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert [line["method"] for line in wide][1:] == ["broken", "two", "mean"]
    assert wide[0]["method"] == SPECIAL
    assert float(wide[0]["error_sd"]) == pytest.approx(0.5**0.5)
    assert [line["error"] for line in wide] == ["1.5", "", "9.0", ""]
    assert [line["error_n"] for line in wide] == ["2", "0", "0", "0"]
    tidy = list(csv.DictReader(io.StringIO(TABLE.to_csv(tidy=True))))
    assert [(line["seed"], line["metric"], float(line["value"])) for line in tidy] == [
        ("0", "error", 1.0),
        ("3", "error", 2.0),
        ("", "n", 12345.0),
        ("", "error", 9.0),
        ("", "n", 7.0),
    ]


def test_html():
    text = TABLE.to_html()
    assert "&lt;|&gt;" in text
    assert '<td class="number"><b>1.5</b> ± 0.7</td>' in text
    assert text.count("<tr>") == 6  # the heading, four rows, the footnote
    assert "¹ 1 of 2 seeds" in text
    assert '<th scope="col">method</th><th scope="col" class="number">E ↓</th>' in text


@pytest.mark.parametrize("transposed", [False, True])
def test_numbers_are_never_cut_on_a_narrow_console(transposed):
    table = Table(
        [Column(f"a very long heading {i}") for i in range(4)], [Row("[x]", [12345.6] * 4)]
    )
    console = rich.console.Console(width=50, record=True, file=io.StringIO())
    console.print(table.to_rich(transposed=transposed))
    text = console.export_text()
    assert text.count("12345.6") == 4
    assert "[x]" in text


def test_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="'a'"):
        Table([LOWER], [Row("a", [1.0, 2.0])])


HOSTILE = [
    "[red]x[/]",
    ":smile:",
    "$x_$",
    "two\nlines",
    "名" * 300,
    "=1+1",
    "[2pt]",
    "*",
    "\x1b[31m",
    "é Ω 😀",
    "&lt;",
]
STRANGE = Table([LOWER, Column("=n")], [Row(name, [2.0, -1.0]) for name in HOSTILE], "[b]", "@m")


def test_spreadsheets_find_no_formula_but_numbers():
    table = Table([Column("-key")], [Row(text, [-1.5]) for text in ("=1", "+1", "-1", "@a", "a=")])
    for text in (table.to_csv(), table.to_csv(tidy=True)):
        rows = list(csv.reader(io.StringIO(text)))
        assert [row[0] for row in rows[1:]] == ["'=1", "'+1", "'-1", "'@a", "a="]
        assert {row[-1] for row in rows[1:]} == {"-1.5"}
        assert not any(cell.startswith("-key") for cell in rows[0])


def test_latex_of_strange_names_is_ascii_and_no_argument_of_the_line_before():
    text = STRANGE.to_latex("tab:é x")
    assert text.isascii()
    assert r"\label{tab:_x}" in text
    assert r"\'{e} $\Omega$ \ifdefined\Umathchar" in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith(("[", "*"))]


@pytest.mark.parametrize("width", [200, 80, 40, 20])
def test_a_console_of_any_width_shows_all(width):
    file = io.StringIO()
    rich.console.Console(width=width, file=file).print(STRANGE.to_rich())
    text = file.getvalue()
    assert max(map(rich.cells.cell_len, text.splitlines())) <= width
    for name in HOSTILE[:3]:
        assert name in text
    assert text.count("名") == 300
    assert text.count("-1.0") == len(HOSTILE)
    assert "\x1b" not in text


def test_markdown_and_html_show_names_as_they_are():
    text = STRANGE.to_markdown()
    assert r"| \$x_\$ |" in text or r"| \$x\_\$ |" in text
    assert r"\&lt;" in text
    assert "&amp;lt;" in STRANGE.to_html()
