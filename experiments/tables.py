"""Markdown tables from the JSON of an evaluation, for the README.

python -m experiments.tables experiments/results/mnist.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from experiments.runs import read_json
from flowfactor.errors import FlowFactorError


def percent(change: float) -> str:
    """Return a relative change with its sign, and no minus before a zero."""
    return f"{round(change, 4) + 0.0:+.2%}"


def mean_identity(result: dict[str, Any]) -> float:
    """Return the identity error, mean over the transformations."""
    errors = result["errors"].values()
    total: float = sum(error["identity"] for error in errors)
    return total / len(errors)


def observation_label(name: str, bound: dict[str, Any]) -> str:
    """Return how a table calls the observation model of a bound."""
    return "unit Gaussian" if name == "unit_gaussian" else f"{bound['observation']} (trained)"


def error_table(result: dict[str, Any]) -> str:
    """Return the equivariance errors as a Markdown table."""
    lines = [
        "| transformation | E | ± s.e. | identity | floor | with dopri5 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, error in result["errors"].items():
        change = result["solver_independence"][name]["relative"]
        lines.append(
            f"| {name} | **{error['error']:.1f}** | {error['standard_error']:.1f} "
            f"| {error['identity']:.1f} | {error['floor']:.1f} | {percent(change)} |"
        )
    lines.append(f"| mean | **{result['mean_error']:.1f}** | | {mean_identity(result):.1f} | | |")
    return "\n".join(lines)


def likelihood_table(result: dict[str, Any]) -> str:
    """Return the importance-weighted bounds as a Markdown table."""
    lines = [
        "| observation model | nats per sequence | ± s.e. | nats per frame |",
        "|---|---:|---:|---:|",
    ]
    for name in ("trained", "unit_gaussian"):
        bound = result["log_likelihood"][name]
        lines.append(
            f"| {observation_label(name, bound)} | {bound['per_sequence']:.1f} "
            f"| {bound['standard_error']:.1f} | {bound['per_frame']:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print both tables of every file that is named."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m experiments.tables EVALUATION.json ...", file=sys.stderr)  # noqa: T201
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        for argument in arguments:
            result = read_json(Path(argument))
            print(f"{error_table(result)}\n\n{likelihood_table(result)}\n")  # noqa: T201
    except (FlowFactorError, KeyError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
