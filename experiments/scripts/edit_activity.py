"""Infer what happens in held-out sequences, change it, and decode what happens instead."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from einops import rearrange
from torch import Tensor

from experiments.cli import Device, Plugins, RunFolder
from experiments.console import run_script, say
from experiments.runs import FIGURES, open_run
from experiments.samples import different_samples
from flowfactor import activity_edits
from flowfactor.data import ActivityLaw, SequenceBatch, SequenceDataset
from flowfactor.data.activity import ActivityKind
from flowfactor.diagnostics import FilmStrips, Marks, activity_strips, draw_film_strips, save
from flowfactor.diagnostics.animation import draw_animation
from flowfactor.diagnostics.sampling import decode_latents, evaluating, to_numpy
from flowfactor.errors import RunError
from flowfactor.metrics import InfersActivity

Change = Callable[[Tensor], Tensor]

# Pictures of the animation for each frame.
_SUBSTEPS = 4


def parse_edit(text: str, names: Sequence[str], steps: int) -> tuple[str, Change]:
    """Return what an edit is called, and what it does to coefficients.

    Args:
        text: ``stop``, ``back``, ``next``, ``FIELD=OTHER`` or ``speed=FACTOR``, each perhaps with
            ``@STEP``.
        names: of the fields.
        steps: of a sequence.

    Raises:
        typer.BadParameter: it is none of these.
    """
    what, _, at = text.partition("@")
    step = steps // 2 if what in ("stop", "back") else 0
    if at:
        if not re.fullmatch(r"\d+", at) or int(at) > steps:
            raise typer.BadParameter(f"--edit {text}: a step is a number in 0..{steps}, not {at}.")
        step = int(at)
    left, _, right = what.partition("=")
    whence = f" from t = {step}" if step else ""
    if what in ("stop", "back"):
        name, function = {
            "stop": ("stopped", activity_edits.stop),
            "back": ("back", activity_edits.turn_back),
        }[what]
        return f"{name} at t = {step}", functools.partial(function, step=step)
    if what == "next":
        return f"next field{whence}", functools.partial(activity_edits.hand_over, step=step)
    if left == "speed" and re.fullmatch(r"-?\d+(\.\d*)?", right):
        faster = functools.partial(activity_edits.change_speed, factor=float(right), step=step)
        return f"speed × {right}{whence}", faster
    if left in names and right in names:
        field, other = names.index(left), names.index(right)
        exchange = functools.partial(activity_edits.swap, field=field, other=other, step=step)
        return f"{left} ↔ {right}{whence}", exchange
    raise typer.BadParameter(
        f"--edit takes stop, back, next, speed=FACTOR or FIELD=OTHER of {', '.join(names)}, each "
        f"perhaps with @STEP, not {text}."
    )


def edited_frames(
    model: Any, batch: SequenceBatch, kind: str, changes: dict[str, Change]
) -> FilmStrips:
    """Return the frames of sequences in which something else happens, and what does.

    Args:
        model: that infers activity.
        batch: complete sequences.
        kind: what they are called.
        changes: by the name of their row.
    """
    strips = activity_strips(model, {kind: batch})
    assert strips.marks is not None
    rows = {"as inferred": strips.flows["inferred"]}
    speeds = dict(strips.marks.speeds)
    speeds["as inferred"] = speeds.pop("inferred")
    with evaluating(model):
        z0, coefficients = _encode(model, batch)
        active = model.infer_activity(batch.frames.to(model.device)).active > 0.5
        for name, change in changes.items():
            edited = change(coefficients)
            path = model.trace_activity(z0, edited)
            rows[name] = decode_latents(model, rearrange(path, "n b d -> b n d"))
            speeds[name] = to_numpy(change(coefficients * active))
    return dataclasses.replace(strips, flows=rows, marks=Marks(strips.marks.names, speeds))


def _encode(model: Any, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    frames = batch.frames.to(model.device)
    return model.represent(frames[:, 0]), model.infer_activity(frames).coefficients


def choose_sequences(
    data: SequenceDataset, kind: ActivityKind, images: int, seed: int
) -> tuple[str, SequenceBatch]:
    """Return sequences of a kind, or others where it cannot be chosen, and what they are called."""
    indices, law = different_samples(data, images), ActivityLaw(kind)
    if data.can_follow(law):
        return kind, data.draw_sequences(indices, law, seed)
    return "recorded", data.sample(indices)


def main(
    run: RunFolder,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EDIT",
            help="stop, back (the way it came), next (field), FIELD=OTHER (exchange two) or "
            "speed=FACTOR, each perhaps with @STEP; may be repeated; default: one of each.",
        ),
    ] = None,
    kind: Annotated[
        ActivityKind, typer.Option(help="What happens in the sequences, where it can be chosen.")
    ] = "single",
    images: Annotated[int, typer.Option(min=1, help="How many sequences.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of what happens.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A folder; default: in the run.")] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Infer what happens in held-out sequences, change it, and decode what happens instead.

    Writes edited.png and edited.gif, whose columns are the sequences.

    Example: python experiments/scripts/edit_activity.py runs/mnist_sparse --edit hue=rotation
    """
    opened = open_run(run, plugin or (), device)
    if not isinstance(opened.model, InfersActivity):
        raise RunError(f"{run}: its model does not infer activity, as a sparse_flow_vae does.")
    model: Any = opened.model
    data = opened.data()
    texts = edit or ["stop", "back", "next", "speed=0.5"]
    changes = dict(parse_edit(text, model.names, data.horizon) for text in texts)
    called, batch = choose_sequences(data, kind, images, seed)
    folder = out or run / FIGURES
    strips = edited_frames(model, batch, called, changes)
    path = save(draw_film_strips(strips), folder / "edited.png")
    with evaluating(model):
        z0, coefficients = _encode(model, batch)
        paths = torch.stack(
            [
                model.trace_activity(z0, activity_edits.refine(change(coefficients), _SUBSTEPS))
                for change in (lambda x: x, *changes.values())
            ]
        )
        frames = decode_latents(model, rearrange(paths, "k t b d -> t k b d"))
    times = [i / _SUBSTEPS for i in range(len(frames))]
    animation = draw_animation(frames, ["as inferred", *changes], times)
    animation.save(folder / "edited.gif")
    say(f"The edited sequences are in {path} and {folder / 'edited.gif'}")


if __name__ == "__main__":
    run_script(main)
