"""How far frame 0 of a photograph's window explains later frames, if the true motion is known.

The first frame is resampled by the true transformation, bilinearly; beyond its edge its outermost
pixels go on. No model sees more than this frame, so what enters at the edge can only be guessed.
The errors are those that a perfect autoencoder with perfect flows would have, up to better guesses
and finer resampling: they are for judging a model's errors, not for a comparison with other models.
"""

import math
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from jaxtyping import Float
from torch import Tensor

from experiments import environment
from experiments.console import run_script, say
from experiments.runs import write_json
from flowfactor.data import Photos
from flowfactor.data.photos import PHOTO_TRANSFORMATIONS, follow, recolour


def predict(
    first: Float[Tensor, "b c h w"], name: str, frames: int
) -> tuple[Float[Tensor, "b t c h w"], float]:
    """Return frames 1..T made from frame 0, and which part of their pixels was not in it."""
    step = PHOTO_TRANSFORMATIONS[name].step or 0.0
    values = dict.fromkeys(("x", "y", "zoom", "angle", "hue", "brightness"), torch.zeros(1, 1))
    moved = step * torch.arange(frames + 1.0)[None]
    values = {key: each.expand_as(moved) for key, each in values.items()} | {name_of(name): moved}
    growth = torch.complex(values["zoom"] * math.log(2), torch.deg2rad(values["angle"]))
    factor, shift = follow(growth, torch.complex(values["x"], values["y"]))
    predicted, unseen = [], 0.0
    for f, s in zip(factor[0, 1:].tolist(), shift[0, 1:].tolist(), strict=True):
        # In halves of a side, rows downwards: p is seen at (p - shift) / factor of frame 0.
        inverse, away = 1 / f, -s / f * 2
        theta = torch.tensor(
            [
                [inverse.real, inverse.imag, away.real],
                [-inverse.imag, inverse.real, -away.imag],
            ]
        )
        grid = F.affine_grid(theta.expand(len(first), 2, 3), list(first.shape), align_corners=False)
        unseen += float((grid[0].abs() > 1).any(-1).float().mean()) / frames
        sampled = F.grid_sample(first, grid, padding_mode="border", align_corners=False)
        predicted.append(sampled)
    hue, brightness = (values[key][:, 1:].expand(len(first), -1) for key in ("hue", "brightness"))
    return recolour(torch.stack(predicted, 1), hue, brightness), unseen


def name_of(transformation: str) -> str:
    """Return the parameter that a transformation moves."""
    return str(PHOTO_TRANSFORMATIONS[transformation].parameter)


def main(
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
    split: Annotated[str, typer.Option(help="Of which photographs.")] = "test",
    images: Annotated[int, typer.Option(min=1, help="Windows.")] = 500,
    frames: Annotated[int, typer.Option(min=1, max=8, help="T.")] = 7,
    seed: Annotated[int, typer.Option(min=0, help="Of the windows.")] = 0,
) -> None:
    """Resample frame 0 by the true transformations, and compare with the true frames."""
    photos = Photos(count=images, split=split, seed=seed)
    errors = {}
    for name in photos.names:
        total = torch.zeros(2, dtype=torch.double)
        for part in torch.arange(images).split(100):
            x = photos.sample(part, name).frames[:, : frames + 1]
            predicted, unseen = predict(x[:, 0], name, frames)
            for place, each in enumerate((predicted, x[:, :1])):
                total[place] += (x[:, 1:] - each).abs().double().sum()
        error, copy = (total / images).tolist()
        errors[name] = {"error": error, "copy": copy, "not_in_frame_0": unseen}
        say(f"{name}: {error:.1f}; pixel copy {copy:.1f}; {unseen:.1%} of the pixels are new")
    mean = {key: sum(e[key] for e in errors.values()) / len(errors) for key in ("error", "copy")}
    say(f"mean: {mean['error']:.1f}; pixel copy {mean['copy']:.1f}")
    if out is not None:
        facts = {"split": split, "images": images, "frames": frames, "seed": seed}
        content = {**facts, "errors": errors, "mean": mean, **environment.origin()}
        write_json(out, content)


if __name__ == "__main__":
    run_script(main)
