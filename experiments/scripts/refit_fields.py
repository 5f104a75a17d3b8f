"""Fit other fields to the latent of a run that learned without supervision: which, and how many."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from experiments.cli import Device, RunFolder
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
    device: Device = None,
) -> None:
    """Fit other fields to the latent of a run that learned without supervision.

    The autoencoder stays as it is; each row fits new fields to the same encoded training sequences,
    and differs in one thing. Evidence is in nats a step, of encoded validation sequences of the
    kind that was trained on, and chooses the number of fields; the other columns need the truth.

    Examples:
        python -m experiments.scripts.refit_fields runs/mnist_sparse

        python -m experiments.scripts.refit_fields runs/mnist_sparse --only "2 fields"
    """
    opened = open_run(run, device=device)
    model, law = opened.model, opened.config.data.law
    if not isinstance(model, SparseFlowVAE) or law is None:
        raise RunError(f"{run} holds no sparse_flow_vae that was trained on drawn activity.")
    chosen = {name: change for name, change in VARIANTS.items() if name in (only or VARIANTS)}
    if only and len(chosen) < len(set(only)):
        raise typer.BadParameter(f"--only is one of {', '.join(VARIANTS)}")
    seen = _encode(model, opened.data("train"), sequences, law)[:-1]
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
    content = {
        "run": run.name,
        "steps": steps,
        "seed": seed,
        "sequences": len(seen[0]),
        "rows": facts,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    say(f"The numbers are in {path}")


Encoded = tuple[Tensor, Tensor]
"""Means and standard deviations of encoded sequences, ``(N, F, D)`` each."""


@torch.no_grad()
def _encode(
    model: SparseFlowVAE, data: SequenceDataset, count: int, law: ActivityLaw
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the encoded means of sequences, their deviations, and what happens in them."""
    parts = []
    for part in torch.arange(min(count, len(data))).split(250):
        batch = data.draw_sequences(part, law)
        assert batch.activity is not None
        parts.append((*model.encode_all(batch.frames.to(model.device)), batch.activity))
    means, scales, truth = (torch.cat(each) for each in zip(*parts, strict=True))
    return means, scales, truth


def fit(
    model: SparseFlowVAE, encoded: Encoded, change: dict[str, Any], steps: int, seed: int
) -> SparseFlowVAE:
    """Return a model with new fields for encoded sequences.

    Args:
        model: whose options the new ones have but for what changes.
        encoded: the sequences.
        change: options by their path.
        steps: of 128 sequences; the learning rate follows half a cosine.
        seed: of the fields and the batches.
    """
    spec = model.spec()
    assert spec is not None
    options = spec["options"]
    options["stages"] |= {"autoencoder": 0, "fields": None}
    for path, value in change.items():
        section, _, key = path.rpartition(".")
        (options[section] if section else options)[key] = value
    options["flows"] = change.get("flows", len(model.names))
    names = [f"flow {i + 1}" for i in range(options["flows"])]
    torch.manual_seed(seed)
    other = SparseFlowVAE.from_spec(spec | {"flows": names}).to(model.device)
    learning = [*other.potentials.parameters()]
    learning += [] if other.network is None else [*other.network.parameters()]
    optimizer = torch.optim.Adam(learning, other.options.field_rate, (0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        other.on_step(step)
        rows = torch.randint(len(encoded[0]), (128,)).to(model.device)
        terms, _ = other.explain(*(each[rows] for each in encoded))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        schedule.step()
    return other.eval()


@torch.no_grad()
def measure(
    model: SparseFlowVAE, known: dict[str, tuple[Tensor, Tensor, Tensor]]
) -> dict[str, float | None]:
    """Return the evidence of encoded sequences, and how right their activity is."""
    *encoded, truth = known["trained"]
    activity = model.posterior(*encoded).activity()
    matching = match_fields(activity, truth)
    scores = score_activity(activity, truth, matching)
    *pairs, both = known["pairs"]
    return {
        "evidence": float(activity.evidence.mean()) / truth.shape[1],
        "right": scores.accuracy,
        "direction": scores.direction,
        "both": score_activity(model.posterior(*pairs).activity(), both, matching).accuracy,
    }


if __name__ == "__main__":
    run_script(main)
