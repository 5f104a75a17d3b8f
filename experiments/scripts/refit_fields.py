"""Fit other fields to the latent of a run that learned without supervision: which, and how many."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from experiments.cli import RunFolder
from experiments.console import out_console, run_script, say
from experiments.runs import open_run
from flowfactor.data import ActivityLaw, SequenceDataset
from flowfactor.errors import RunError
from flowfactor.metrics.activity_scores import match_fields, score_activity
from flowfactor.models import SparseFlowVAE
from flowfactor.tables import Column, Row, Table

FIELD_COUNTS = (2, 3, 4, 6)
VARIANTS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "gradient only": {"parts": "gradient"},
    "solenoidal only": {"parts": "solenoidal"},
    "no temporal prior": {"prior.stay": 0.0},
    "no annealing": {"stages.anneal": 0},
    "three times the learning rate": {"field_rate": 3.0},
    "amortised inference": {"inference": "amortised"},
    **{f"{count} fields": {"flows": count} for count in FIELD_COUNTS},
}


def main(
    run: RunFolder,
    sequences: Annotated[int, typer.Option(min=1, help="Training sequences to encode.")] = 3000,
    held_out: Annotated[int, typer.Option(min=1, help="Validation sequences of each kind.")] = 500,
    steps: Annotated[int, typer.Option(min=1, help="Steps for each row.")] = 900,
    seed: Annotated[int, typer.Option(help="Of the fields and the batches.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="A row; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file; default: in the run.")] = None,
) -> None:
    """Fit other fields to the latent of a run that learned without supervision.

    The autoencoder stays as it is; each row fits new fields to the same encoded training sequences,
    and differs in one thing. Evidence is in nats a step, of encoded validation sequences of the
    kind that was trained on, and chooses the number of fields; the other columns need the truth.

    Examples:
        python -m experiments.scripts.refit_fields runs/mnist_sparse

        python -m experiments.scripts.refit_fields runs/mnist_sparse --only "2 fields"
    """
    opened = open_run(run)
    model, law = opened.model, opened.config.data.law
    if not isinstance(model, SparseFlowVAE) or law is None:
        raise RunError(f"{run} holds no sparse_flow_vae that was trained on drawn activity.")
    chosen = {name: change for name, change in VARIANTS.items() if name in (only or VARIANTS)}
    if only and len(chosen) < len(set(only)):
        raise typer.BadParameter(f"--only is one of {', '.join(VARIANTS)}")
    seen = _encode(model, opened.data("train"), sequences, law)[0]
    validation = opened.data("validation")
    known = {
        kind: _encode(model, validation, held_out, each)
        for kind, each in {
            "trained": law,
            "pairs": dataclasses.replace(law, kind="pairs"),
        }.items()
    }
    facts, rows = {}, []
    for name, change in chosen.items():
        other = fit(model, seen, change, steps, seed)
        facts[name] = measured = measure(other, known)
        rows.append(
            Row(name, [measured[key] for key in ("evidence", "right", "direction", "both")])
        )
        say(f"{name}: {measured}")
    columns = [
        Column("evidence", "nats a step", "higher", ".2f"),
        Column("right", "active set right", "higher", ".3f"),
        Column("direction", "direction right", "higher", ".3f"),
        Column("both", "both of two right", "higher", ".3f"),
    ]
    title = f"Fields fitted to the latent of {run.name} in {steps} steps"
    out_console.print(Table(columns, rows, title, "fields").to_rich())
    path = out or run / "refit_fields.json"
    content = {"run": run.name, "steps": steps, "seed": seed, "sequences": len(seen), "rows": facts}
    path.write_text(json.dumps(content, indent=2) + "\n")
    say(f"The numbers are in {path}")


@torch.no_grad()
def _encode(
    model: SparseFlowVAE, data: SequenceDataset, count: int, law: ActivityLaw
) -> tuple[Tensor, Tensor]:
    """Return the encoded means of sequences, and what happens in them."""
    means, truth = [], []
    for part in torch.arange(min(count, len(data))).split(250):
        batch = data.draw_sequences(part, law)
        images = batch.frames.flatten(0, 1)
        means.append(model.represent(images).unflatten(0, batch.times.shape))
        assert batch.activity is not None
        truth.append(batch.activity)
    return torch.cat(means), torch.cat(truth)


def fit(
    model: SparseFlowVAE, means: Tensor, change: dict[str, Any], steps: int, seed: int
) -> SparseFlowVAE:
    """Return a model with new fields for encoded sequences.

    Args:
        model: whose options the new ones have but for what changes.
        means: of encoded sequences, ``(N, F, D)``.
        change: options by their path; ``field_rate`` is a factor.
        steps: of 64 sequences.
        seed: of the fields and the batches.
    """
    spec = model.spec()
    assert spec is not None
    options = spec["options"]
    options["field_rate"] *= change.get("field_rate", 1.0)
    for path, value in change.items():
        section, _, key = path.rpartition(".")
        if path != "field_rate":
            (options[section] if section else options)[key] = value
    options["flows"] = change.get("flows", len(model.names))
    names = [f"flow {i + 1}" for i in range(options["flows"])]
    torch.manual_seed(seed)
    other = SparseFlowVAE.from_spec(spec | {"flows": names})
    anneal = min(other.options.stages.anneal, steps // 2)
    optimizer = torch.optim.AdamW(other.parameter_groups(), 6e-3, (0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        batch = means[torch.randint(len(means), (64,))]
        terms, _ = other.explain(batch, max(0.0, 1 - step / anneal) if anneal else 0.0)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    return other.eval()


@torch.no_grad()
def measure(
    model: SparseFlowVAE, known: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, float | None]:
    """Return the evidence of encoded sequences, and how right their activity is."""
    means, truth = known["trained"]
    activity = model.posterior(means).activity()
    matching = match_fields(activity, truth)
    scores = score_activity(activity, truth, matching)
    pairs, both = known["pairs"]
    return {
        "evidence": float(activity.evidence.mean()) / truth.shape[1],
        "right": scores.accuracy,
        "direction": scores.direction,
        "both": score_activity(model.posterior(pairs).activity(), both, matching).accuracy,
    }


if __name__ == "__main__":
    run_script(main)
