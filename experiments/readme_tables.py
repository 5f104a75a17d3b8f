"""Generated parts of the README and the documentation: tables of results, files of examples.

A page marks them by comments, ``<!-- table NAME -->``, ``<!-- benchmark FILE:TABLE -->`` or
``<!-- file PATH -->`` in a line above and ``<!-- end -->`` in a line below. ``python -m
experiments.write_docs`` fills in what is between. A benchmark's table is one of the ``tables``,
lists of rows, of a JSON file in ``experiments/benchmarks/results``. The name of another table is

- ``RESULT:TABLE``, a table of an evaluation in ``experiments/results/RESULT.json``;
- ``tables/NAME`` or ``compared/NAME``, methods below each other;
- one of those that :data:`_COMPARISONS` composes of several results.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.comparison import Method, choose_columns, comparison_table, read_methods
from flowfactor.records import Evaluation
from flowfactor.tables import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"

_BLOCK = re.compile(r"<!-- (table|benchmark|file) (\S+) -->\n.*?<!-- end -->", re.DOTALL)

_COMPOSED = ("mean_error", "superposition", "switching", "reversal", "order_gap", "steps")

# Methods, or the file that has them, and the names of the columns.
_COMPARISONS: dict[str, tuple[str | dict[str, str], tuple[str, ...]]] = {
    "README": ("tables/mnist/table", ("errors", "mean_error")),
    "weak": (
        {
            **{f"weak, seed {seed}": f"mnist_weak_canonical_seed{seed}" for seed in range(3)},
            "supervised, seed 0": "mnist_canonical_12000",
        },
        ("accuracy", "errors", "mean_error", "steps"),
    ),
    "zebrafish": (
        {
            "Gaussian": "zebrafish",
            "Laplace from the start": "zebrafish_laplace",
            "Laplace after the Gaussian": "zebrafish_sharp",
        },
        ("inferred_error", "accuracy", "steps"),
    ),
    "zebrafish_seeds": (
        {
            "seed 0": "zebrafish_sharp",
            "seed 1": "zebrafish_sharp_seed1",
            "seed 2": "zebrafish_sharp_seed2",
        },
        ("inferred_error", "accuracy"),
    ),
    "unsupervised": (
        {
            "seed 0": "mnist_sparse",
            "seed 1": "mnist_sparse_seed1",
            "seed 2": "mnist_sparse_seed2",
        },
        (
            *(f"right_{kind}" for kind in ("single", "speed", "switch", "pairs")),
            *("direction", "speed_r", "switch_error", "inferred_activity", "field_alone"),
        ),
    ),
    "labels": (
        {
            "none (mnist_sparse)": "mnist_sparse",
            "none, one at a time (mnist_weak)": "mnist_weak_11000",
            "all (mnist)": "mnist_11000",
        },
        ("mean_error", "inferred_error", "inferred_activity", "accuracy", "steps", "minutes"),
    ),
    "fields": (
        {"gradient (mnist)": "mnist", "both parts": "mnist_both"},
        (
            *_COMPOSED,
            *("beyond_over_identity", "closure", "sharpness", "log_likelihood_trained"),
            "minutes",
        ),
    ),
    "recipes": (
        {
            "mnist": "mnist",
            "composition": "mnist_composition",
            "mnist_canonical": "mnist_canonical",
        },
        (*_COMPOSED, "beyond_over_identity", "log_likelihood", "minutes"),
    ),
    "compared/mnist_composition": ("compared/mnist_composition", _COMPOSED),
    "compared/sprites": ("compared/sprites", _COMPOSED),
}


def pages() -> list[Path]:
    """Return the pages that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def write() -> None:
    """Write the generated parts of all pages."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            page.write_text(filled, encoding="utf-8")


def fill(text: str) -> str:
    """Return a page with its generated parts as they are to be."""
    return _BLOCK.sub(_fill_block, text)


def read_table(name: str) -> Table:
    """Return a table of the documentation by its name.

    Raises:
        RunError: there is no such result, or it is damaged.
        KeyError: the result has no such table.
    """
    if name in _COMPARISONS:
        source, columns = _COMPARISONS[name]
        if isinstance(source, str):
            return _compare(read_methods(RESULTS / f"{source}.json"), columns)
        # Rows of one seed each need no footnote that says so.
        results = {
            label: dataclasses.replace(_read(name), seed=0) for label, name in source.items()
        }
        methods = [Method(label, (result,)) for label, result in results.items()]
        return _compare(methods, columns)
    if name.startswith("tables/"):
        path = RESULTS / name / "table.json"
        chosen = json.loads(path.read_text(encoding="utf-8"))["table"].get("columns")
        return _compare(read_methods(path), chosen)
    result, _, table = name.partition(":")
    return _read(result).tables()[table]


def _fill_block(match: re.Match[str]) -> str:
    kind, name = match.groups()
    if kind == "file":
        content = (ROOT / name).read_text(encoding="utf-8")
        body = f"```python\n{content}```\n"
    elif kind == "benchmark":
        head, *rows = _read_benchmark(name)
        table = [head, [":---", *["---:"] * (len(head) - 1)], *rows]
        body = "".join(f"| {' | '.join(row)} |\n" for row in table)
    else:
        lines = read_table(name).to_markdown().splitlines()
        # The notes of a table are in its file; the page says what a reader needs.
        body = "\n".join(line for line in lines if line.startswith("|")) + "\n"
    return f"<!-- {kind} {name} -->\n\n{body}\n<!-- end -->"


def _read_benchmark(name: str) -> list[list[str]]:
    result, _, table = name.partition(":")
    path = ROOT / "experiments" / "benchmarks" / "results" / f"{result}.json"
    rows: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))["tables"][table]
    return rows


def _compare(methods: Sequence[Method], columns: Sequence[str] | None) -> Table:
    return comparison_table(methods, choose_columns(methods, columns))


@functools.cache
def _read(result: str) -> Evaluation:
    return Evaluation.read(RESULTS / f"{result}.json")
