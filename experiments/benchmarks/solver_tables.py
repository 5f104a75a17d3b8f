"""The tables of docs/solvers.md, from the results of ``solver_speed`` and its relatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

SETTINGS = ("with log-density", "without log-density")
PEER = "diffrax (jit)"
ERRORS = (1e-4, 1e-6, 1e-8)

Rows = list[list[str]]


def tabulate_speed(result: dict[str, Any]) -> dict[str, Rows]:
    """Return the times relative to ours, with the errors, and those of graphs over diffrax's."""
    columns = [
        (f"`{method}`, {setting.split()[0]}", result[setting][method])
        for method in ("rk4", "dopri5", "tsit5")
        for setting in SETTINGS
        if method in result[setting]
    ]
    names = list(dict.fromkeys(name for _, cases in columns for name in cases))
    head = [title for title, _ in columns]

    def table(names: list[str], cell: Callable[[dict[str, Any], dict[str, Any]], str]) -> Rows:
        rows = []
        for name in names:
            found = [(cases.get(name, {}), cases.get(PEER, {})) for _, cases in columns]
            known = ["milliseconds" in case and "milliseconds" in peer for case, peer in found]
            rows.append(
                [name, *(cell(*pair) if k else "" for pair, k in zip(found, known, strict=True))]
            )
        return rows

    def to_ours(case: dict[str, Any], _: dict[str, Any]) -> str:
        return f"{case['relative to ours']:.2f} ({_error_of(case)})"

    def to_peer(case: dict[str, Any], peer: dict[str, Any]) -> str:
        return f"{case['milliseconds'] / peer['milliseconds']:.2f}"

    graphs = [name for name in names if name.startswith("ours") and "compile" in name]
    return {
        "times": [["", *head], *table(names, to_ours)],
        "graphs": [[f"over {PEER}", *head], *table(["ours", *graphs], to_peer)],
    }


def _error_of(case: dict[str, Any]) -> str:
    """Return the relative error of the states of a case, as 2e-7."""
    return _write(case["from the reference"]["states"])


def _write(error: float) -> str:
    mantissa, exponent = f"{error:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def tabulate_precision(result: dict[str, Any]) -> dict[str, Rows]:
    """Return the milliseconds for some errors, between those that were measured."""
    head = ["milliseconds for an error of at most", *(_write(error) for error in ERRORS)]
    rows = [
        [name, *(_between(case, error) for error in ERRORS)]
        for name, case in result["cases"].items()
        if "skipped" not in case
    ]
    return {"precision": [head, *rows]}


def tabulate_fuzz(result: dict[str, Any]) -> dict[str, Rows]:
    """Return how many problems there were, and how bad the worst."""
    statuses, worst = result["status"], max(result["worst_error_in_tolerances"].values())
    head = [
        "problems",
        "solved",
        "given up, and said so",
        "wrong",
        "worst error, in tolerances",
        "above 100 of them, with the growth",
    ]
    solved = statuses.get("success", 0)
    counts = (result["problems"], solved, sum(statuses.values()) - solved, len(result["wrong"]))
    grown = result["above_allowed_without_growth"]
    return {"summary": [head, [*(f"{count:,}" for count in counts), f"{worst:.1f}", f"{grown:,}"]]}


def _between(case: dict[str, Any], error: float) -> str:
    """Return the time for an error, on lines through logarithms; empty if it is not reached."""
    pairs = sorted(zip(case["states"], case["milliseconds"], strict=True))
    if error >= pairs[-1][0]:
        return f"{min(case['milliseconds']):.0f}"
    for (a, first), (b, second) in pairwise(pairs):
        if a <= error <= b and a < b:
            part = math.log(error / a) / math.log(b / a)
            return f"{first * (second / first) ** part:.0f}"
    return ""
