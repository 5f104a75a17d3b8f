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


def solver_change(result: dict[str, Any], name: str) -> str:
    """Return how E changes when a flow is solved accurately; nothing for a rule, solved exactly."""
    changes = result.get("solver_independence")
    return "" if changes is None else percent(changes[name]["relative"])


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
        lines.append(
            f"| {name} | **{error['error']:.1f}** | {error['standard_error']:.1f} "
            f"| {error['identity']:.1f} | {error['floor']:.1f} | {solver_change(result, name)} |"
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


def composition_table(result: dict[str, Any]) -> str:
    """Return the errors of pairs of flows, at once and in turn, as a Markdown table."""
    composed = result["composition"]
    lines = [
        "| flows | at once | ± s.e. | identity | floor | in turn | identity | either order |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, error in composed["superposition"].items():
        a, b = name.split(" + ")
        turns = [composed["switching"][", ".join(pair)] for pair in ((a, b), (b, a))]
        error_in_turn, identity = (
            sum(turn[key] for turn in turns) / 2 for key in ("error", "identity")
        )
        lines.append(
            f"| {name} | **{error['error']:.1f}** | {error['standard_error']:.1f} "
            f"| {error['identity']:.1f} | {error['floor']:.1f} | **{error_in_turn:.1f}** "
            f"| {identity:.1f} | {composed['commutation'][f'{a}, {b}']['latent']:.2f} |"
        )
    means = composed["means"]
    lines.append(
        f"| mean | **{means['superposition']:.1f}** | | | | **{means['switching']:.1f}** | | |"
    )
    return "\n".join(lines)


def reversal_table(result: dict[str, Any]) -> str:
    """Return the errors of flows run backwards as a Markdown table."""
    lines = ["| backwards | E | ± s.e. | identity | floor |", "|---|---:|---:|---:|---:|"]
    for name, error in result["composition"]["reversal"].items():
        cells = (error["error"], error["standard_error"], error["identity"], error["floor"])
        lines.append(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def extrapolation_table(result: dict[str, Any]) -> str:
    """Return the errors of a frame within the training and beyond as a Markdown table."""
    later = result["extrapolation"]
    horizon, end = later["trained_last"], later["last"]
    lines = [
        f"| a frame | E, t = 1..{horizon} | identity | E, t = {horizon + 1}..{end} | identity |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, error in later["errors"].items():
        parts = [error["within"], error["beyond"]]
        cells = [part[key] for part in parts if part for key in ("error", "identity")]
        lines.append(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def model_table(results: dict[str, dict[str, Any]]) -> str:
    """Return models side by side as a Markdown table: accuracy and errors with k inferred.

    Args:
        results: evaluations by what the table calls them, of one data set.
    """
    names = list(next(iter(results.values()))["errors"])
    known = [name for name in names if not name.startswith("spare")]
    lines = [
        f"| model | accuracy | {' | '.join(known)} | mean E | steps |",
        f"|---|---:|{'---:|' * len(known)}---:|---:|",
    ]
    for label, result in results.items():
        inferred = result.get("inferred")
        accuracy = "given" if inferred is None else _accuracy(inferred)
        errors = (inferred or result)["errors"]
        cells = " | ".join(f"{errors[name]['error']:.1f}" for name in known)
        mean = (inferred or result)["mean_error"]
        steps = result["training"]["steps"]
        lines.append(f"| {label} | {accuracy} | {cells} | **{mean:.1f}** | {steps:,} |")
    return "\n".join(lines)


def _accuracy(inferred: dict[str, Any]) -> str:
    # Where no sequence has a label there is nothing to compare with.
    return f"{inferred['accuracy']:.3f}" if "accuracy" in inferred else "–"


def main(arguments: list[str]) -> int:
    """Print the tables of every file that is named."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m experiments.tables EVALUATION.json ...", file=sys.stderr)  # noqa: T201
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        for argument in arguments:
            result = read_json(Path(argument))
            parts = [error_table(result), likelihood_table(result)]
            if "inferred" in result:
                parts.append(model_table({Path(argument).stem: result}))
            if "composition" in result:
                parts += [composition_table(result), reversal_table(result)]
            if "extrapolation" in result:
                parts.append(extrapolation_table(result))
            print("\n\n".join(parts) + "\n")  # noqa: T201
    except (FlowFactorError, KeyError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
