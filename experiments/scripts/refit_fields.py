"""Fit other fields to the latent in which a run finds the activity: which, and how many."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from experiments import environment
from experiments.cli import Device, RunFolder
from experiments.console import out_console, run_script, say
from experiments.runs import open_run, write_json
from flowfactor.data import ActivityLaw, SequenceDataset
from flowfactor.errors import RunError
from flowfactor.metrics.activity_scores import match_fields, score_activity
from flowfactor.models import ActivityAutoencoder, SparseFlowVAE
from flowfactor.options import dump, parse
from flowfactor.tables import Column, Row, Spread, Table

FIELD_COUNTS = (2, 4, 5, 6)
OWN = {"own fields": "exact", "own fields, amortised": "amortised"}
"""Rows whose fields stay those of the run, and their inference."""
VARIANTS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "gradient only": {"parts": "gradient"},
    "solenoidal only": {"parts": "solenoidal"},
    "no temporal prior": {"prior.stay": 0.0},
    "no annealing": {"stages.anneal": 0},
    "amortised inference": {"inference": "amortised"},
    **{f"{count} fields": {"flows": count} for count in FIELD_COUNTS},
}
"""Rows with new fields: the options that differ from the run's, by their path."""
COLUMNS = (
    Column("evidence", "nats a step", "higher", ".2f"),
    Column("right", "active set right", "higher", ".3f"),
    Column("direction", "direction right", "higher", ".3f"),
    Column("both", "both of two right", "higher", ".3f"),
)

Encoded = tuple[Tensor, Tensor]
"""Means and standard deviations of encoded sequences, ``(N, F, D)`` each."""


def main(
    run: RunFolder,
    sequences: Annotated[int, typer.Option(min=1, help="Training sequences to encode.")] = 3000,
    held_out: Annotated[int, typer.Option(min=1, help="Validation sequences of each kind.")] = 500,
    steps: Annotated[int, typer.Option(min=1, help="Steps for each row.")] = 900,
    seed: Annotated[int, typer.Option(help="Of the fields and the batches.")] = 0,
    starts: Annotated[int, typer.Option(min=1, help="How many seeds, from this one on.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="A row; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file; default: in the run.")] = None,
    device: Device = None,
) -> None:
    """Fit other fields to the latent in which a run without supervision finds the activity.

    The encoder stays as it is; each row fits new fields to the same encoded training sequences,
    and differs in one thing, but for those that keep the run's own fields. Evidence is in nats a
    step, of encoded validation sequences of the kind that was trained on, and chooses the number of
    fields: the least whose best start is not worse than the best of all by more than two standard
    errors, of sequences and starts. The other columns need the truth.

    Examples:
        python -m experiments.scripts.refit_fields mnist_sparse

        python -m experiments.scripts.refit_fields runs/mnist_sparse --only "2 fields" --starts 3
    """
    opened = open_run(run, device=device)
    law = opened.config.data.law
    if not isinstance(opened.model, SparseFlowVAE) or law is None:
        raise RunError(f"{run} holds no sparse_flow_vae that was trained on drawn activity.")
    model = opened.model.teacher
    known_rows = [*OWN, *VARIANTS]
    chosen = [name for name in known_rows if name in (only or known_rows)]
    if only and len(chosen) < len(set(only)):
        raise typer.BadParameter(f"--only is one of {', '.join(known_rows)}")
    seen = _encode(model, opened.data("train"), sequences, law)[:-1]
    validation = opened.data("validation")
    known = {
        kind: _encode(model, validation, held_out, each)
        for kind, each in {
            "trained": law,
            "pairs": dataclasses.replace(law, kind="pairs"),
        }.items()
    }
    facts: dict[str, list[dict[str, Any]]] = {}
    explained: dict[int, list[Tensor]] = {}
    for name in chosen:
        seeds = range(seed, seed + (1 if OWN.get(name) == "exact" else starts))
        facts[name] = []
        for each in seeds:
            if name in OWN:
                other = infer_otherwise(model, seen, OWN[name], steps, each)
            else:
                other = fit(model, seen, VARIANTS[name], steps, each)
            measured, evidence = measure(other, known)
            facts[name].append({"seed": each, **measured})
            if name == "as trained" or "flows" in VARIANTS.get(name, {}):
                explained.setdefault(len(other.speed), []).append(evidence)
        say(f"{name}: {facts[name]}")
    title = f"Fields fitted to the latent of {run.name} in {steps} steps"
    out_console.print(Table(COLUMNS, [_row(*each) for each in facts.items()], title).to_rich())
    content = {
        "run": run.name,
        "steps": steps,
        "sequences": len(seen[0]),
        "held_out": len(known["trained"][0]),
        "rows": facts,
        "number_of_fields": choose_count(explained) if len(explained) > 1 else None,
        **environment.origin(opened.model.device),
    }
    if len(explained) > 1:
        say(f"Evidence chooses {content['number_of_fields']} fields of {sorted(explained)}")
    path = out or run / "refit_fields.json"
    write_json(path, content)
    say(f"The numbers are in {path}")


def choose_count(evidence: dict[int, list[Tensor]]) -> int:
    """Return the least number of fields that is not clearly worse than the best one.

    Clearly worse is what loses, by its best start, more than two standard errors: those of the
    mean over sequences and of the starts, which differ by their luck.

    Args:
        evidence: of the same held-out sequences, of each start, for each number of fields.
    """
    means = [torch.tensor([_mean(each) for each in starts]) for starts in evidence.values()]
    luck = [float(each.var()) for each in means if len(each) > 1]
    spread = 2 * sum(luck) / len(luck) if luck else 0.0
    best = max(itertools.chain(*evidence.values()), key=_mean)
    for count in sorted(evidence):
        lost = (best - max(evidence[count], key=_mean)).double()
        if float(lost.mean()) <= 2 * (float(lost.var()) / len(lost) + spread) ** 0.5:
            return count
    raise AssertionError("the best is not worse than itself")


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _row(name: str, starts: Sequence[dict[str, Any]]) -> Row:
    """Return the row of a table: means and deviations over starts."""
    values = []
    for column in COLUMNS:
        found = [(each[column.key], each["seed"]) for each in starts]
        known = [pair for pair in found if pair[0] is not None]
        values.append(Spread(*zip(*known, strict=True)) if known else None)
    return Row(name, values)


@torch.no_grad()
def _encode(
    model: ActivityAutoencoder, data: SequenceDataset, count: int, law: ActivityLaw
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the encoded means of sequences, their deviations, and what happens in them."""
    parts = []
    for part in torch.arange(min(count, len(data))).split(250):
        batch = data.draw_sequences(part, law)
        assert batch.activity is not None
        parts.append((*model.encode_all(batch.frames.to(model.speed.device)), batch.activity))
    means, scales, truth = (torch.cat(each) for each in zip(*parts, strict=True))
    return means, scales, truth


def fit(
    model: ActivityAutoencoder,
    encoded: Encoded,
    change: dict[str, Any],
    steps: int,
    seed: int,
) -> ActivityAutoencoder:
    """Return a model with new fields for encoded sequences.

    Args:
        model: whose options the new ones have but for what changes.
        encoded: the sequences.
        change: options by their path.
        steps: of 128 sequences each; the learning rate follows half a cosine.
        seed: of the fields and the batches.
    """
    other = _like(model, change, seed)
    other.start_fields(encoded[0])
    _learn(other, encoded, steps)
    return other.eval()


def infer_otherwise(
    model: ActivityAutoencoder, encoded: Encoded, inference: str, steps: int, seed: int
) -> ActivityAutoencoder:
    """Return a model with the same fields and its own, or newly learned, inference.

    Args:
        model: whose fields these are.
        encoded: sequences from which a network learns.
        inference: ``exact`` or ``amortised``.
        steps, seed: see :func:`fit`.
    """
    change = {"inference": inference, "stages.anneal": 0}
    other = _like(model, change, seed)
    other.potentials.load_state_dict(model.potentials.state_dict())
    if other.network is not None:
        other.potentials.requires_grad_(False)
        _learn(other, encoded, steps)
    return other.eval()


def _learn(model: ActivityAutoencoder, encoded: Encoded, steps: int) -> None:
    """Let fields and network learn from encoded sequences, as far as they may."""
    modules = [model.potentials] if model.network is None else [model.potentials, model.network]
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, model.options.field_rate, (0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    means, scales = encoded
    for step in range(steps):
        rows = torch.randint(len(means), (128,)).to(model.speed.device)
        temperature = model.options.stages.temperature_after(step)
        terms = model.explain(means[rows], scales[rows], temperature)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        schedule.step()


def _like(model: ActivityAutoencoder, change: dict[str, Any], seed: int) -> ActivityAutoencoder:
    """Return an untrained one that differs in some options, by their path."""
    options = dump(model.options)
    for path, value in change.items():
        section, _, key = path.rpartition(".")
        (options[section] if section else options)[key] = value
    torch.manual_seed(seed)
    other = ActivityAutoencoder(
        parse(type(model.options), options),
        change.get("flows", len(model.speed)),
        model.image_shape,
        model.horizon,
        decoder=False,
    )
    return other.to(model.speed.device)


@torch.no_grad()
def measure(
    model: ActivityAutoencoder, known: dict[str, tuple[Tensor, Tensor, Tensor]]
) -> tuple[dict[str, float | None], Tensor]:
    """Return how right the activity of encoded sequences is, and the evidence of each."""
    *encoded, truth = known["trained"]
    activity = model.posterior(*encoded).activity()
    matching = match_fields(activity, truth)
    scores = score_activity(activity, truth, matching)
    *pairs, both = known["pairs"]
    evidence = activity.evidence / truth.shape[1]
    return {
        "evidence": float(evidence.mean()),
        "right": scores.accuracy,
        "direction": scores.direction,
        "both": score_activity(model.posterior(*pairs).activity(), both, matching).accuracy,
    }, evidence


if __name__ == "__main__":
    run_script(main)
