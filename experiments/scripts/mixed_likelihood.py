"""Likelihoods of sequences in which anything may happen, of models with and without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from jaxtyping import Float
from torch import Tensor

from experiments import environment
from experiments.cli import Device
from experiments.console import out_console, run_script, say
from experiments.publish import find_run
from experiments.runs import open_run, write_json
from flowfactor.data import ActivityLaw, SequenceBatch
from flowfactor.data.activity import ActivityKind
from flowfactor.metrics.likelihood import Follow, bound_along, count_at_once, log_likelihood
from flowfactor.models import SequenceModel, SparseFlowVAE
from flowfactor.models.base import PotentialModel
from flowfactor.tables import Column, Row, Table

COLUMNS = (
    Column("apart", "every frame for itself", "higher"),
    Column("still", "nothing moves", "higher"),
    Column("one_flow", "one flow, any", "higher"),
    Column("inferred", "inferred activity", "higher"),
    Column("told", "told what happens", "higher"),
)


def main(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, or names of models that ship."),
    ],
    kind: Annotated[ActivityKind, typer.Option(help="What may happen.")] = "mixed",
    split: Annotated[
        Literal["validation", "test"], typer.Option(help="Which held-out samples.")
    ] = "validation",
    sequences: Annotated[int, typer.Option(min=2, help="How many.")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Importance samples of each.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the sequences and samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file.")] = None,
    device: Device = None,
) -> None:
    """Likelihoods of sequences in which anything may happen, of models with and without labels.

    Each column is the importance-weighted bound of log p(x_0..x_T) under another supposition, in
    nats a frame: frames that have nothing to do with one another; a latent that does not move; one
    flow at speed 1 all the time, any of K with the same probability, as models with labels suppose;
    activity that the model infers; and the true activity, of which log p(x_0..x_T | activity) is
    shown. All runs see the sequences of the first one's data, from random starts, at speeds of 0.5
    to 1.5 in both directions.

    Example: python -m experiments.scripts.mixed_likelihood mnist_sparse mnist mnist_weak
    """
    opened = [open_run(find_run(run), device=device) for run in runs]
    data = opened[0].data(split)
    law = ActivityLaw(kind, (0.5, 1.5), "both")
    batch = data.draw_sequences(torch.arange(min(sequences, len(data))), law, seed)
    facts: dict[str, Any] = {}
    rows = []
    for each in opened:
        model = each.model
        model.check_data(data)
        found = measure(model, batch.to(model.device), samples, seed)
        name = each.path.name
        facts[name] = {key: _summary(nats, batch.horizon + 1) for key, nats in found.items()}
        values = [facts[name].get(column.key, {}).get("per_frame") for column in COLUMNS]
        rows.append(Row(name, values))
        say(f"{name}: {facts[name]}")
    title = f"Bound of log p of {len(batch)} {kind} sequences, {samples} samples, nats a frame"
    out_console.print(Table(COLUMNS, rows, title, "model").to_rich())
    if out is not None:
        content = {
            "split": split,
            "kind": kind,
            "sequences": len(batch),
            "samples": samples,
            "seed": seed,
            "models": facts,
            **environment.origin(),
        }
        write_json(out, content)
        say(f"The numbers are in {out}")


@torch.no_grad()
def measure(
    model: SequenceModel, sequences: SequenceBatch, samples: int, seed: int = 0
) -> dict[str, Float[Tensor, "b"]]:
    """Return bounds of the log-likelihood of sequences by what is supposed, as far as it can be.

    Args:
        model: in evaluation mode.
        sequences: complete ones with their true activity.
        samples: of each sequence.
        seed: of the samples.
    """
    parts: dict[str, list[Tensor]] = {}
    size = count_at_once(samples, sequences.frames.shape[1])
    for part, rows in enumerate(torch.arange(len(sequences)).split(size)):
        frames = sequences.frames[rows]
        assert sequences.activity is not None
        for name, nats in _bounds(model, frames, sequences.activity[rows], samples, seed + part):
            parts.setdefault(name, []).append(nats.cpu())
    return {name: torch.cat(each) for name, each in parts.items()}


def _bounds(
    model: SequenceModel,
    frames: Float[Tensor, "b f c h w"],
    activity: Float[Tensor, "b n k"],
    samples: int,
    seed: int,
) -> Iterator[tuple[str, Float[Tensor, "b"]]]:
    """Yield each supposition that a model can make, and the bounds under it."""
    observe, (b, f) = model.observation, frames.shape[:2]

    def generator() -> torch.Generator:
        """Of the same samples of the first latent under every supposition."""
        return torch.Generator().manual_seed(seed)

    def bound(x: Tensor, follow: Follow) -> Tensor:
        return bound_along(model, x, follow, samples, observe, generator())

    images = frames.flatten(0, 1).unsqueeze(1)
    yield "apart", bound(images, lambda z: [z]).view(b, f).sum(1)
    yield "still", bound(frames, lambda z: [z] * f)
    flows = [
        log_likelihood(
            model,
            SequenceBatch.full(frames, torch.full((b,), k)),
            samples,
            generator=generator(),
        )
        for k in range(len(model.names))
    ]
    yield "one_flow", torch.stack(flows).logsumexp(0) - math.log(len(flows))
    if isinstance(model, SparseFlowVAE):
        weights = model.log_weights(frames, samples, generator=generator())
        yield "inferred", weights.logsumexp(0) - math.log(samples)
    if isinstance(model, PotentialModel):
        yield "told", bound(frames, lambda z: _follow(model, z, activity.repeat(samples, 1, 1)))


def _follow(
    model: PotentialModel, z: Float[Tensor, "n d"], activity: Float[Tensor, "n t k"]
) -> Iterator[Float[Tensor, "n d"]]:
    """Yield latents that flow along a given activity, one step at a time."""
    yield z
    spare = len(model.names) - activity.shape[-1]
    for step, weights in enumerate(torch.nn.functional.pad(activity, (0, spare)).unbind(1)):
        z = model.flow(z, weights, [float(step), step + 1.0])[-1]
        yield z


def _summary(nats: Float[Tensor, "b"], frames: int) -> dict[str, float]:
    per_frame = nats.double() / frames
    return {
        "per_frame": float(per_frame.mean()),
        "standard_error": float(per_frame.std() / len(nats) ** 0.5),
    }


if __name__ == "__main__":
    run_script(main)
