"""What every figure asks of a model: latents, their paths at given times, decoded images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowfactor.models.base import SequenceModel
from flowfactor.potentials import Potential, Selector


@contextmanager
def evaluating(model: SequenceModel) -> Iterator[None]:
    """Put a model in evaluation mode without gradients, and back in its mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def encode_means(model: SequenceModel, images: Tensor) -> Float[Tensor, "b d"]:
    """Return the posterior means of images ``(B, C, H, W)`` with pixels in [0, 1].

    Raises:
        ValueError: no image, or images of another shape than the model's.
    """
    expected = tuple(model.image_shape)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or not len(images):
        raise ValueError(
            f"the images have the shape {tuple(images.shape)}; this model takes (B, "
            f"{', '.join(map(str, expected))}) with B at least 1"
        )
    parameter = next(model.parameters())
    mean: Tensor = model.represent(images.to(parameter.device, parameter.dtype))
    return mean


def positions(
    model: SequenceModel,
    z: Float[Tensor, "b d"],
    k: Potential | Selector,
    times: Float[Tensor, "t"],
) -> Float[Tensor, "t b d"]:
    """Return where latents that are at ``z`` at time 0 are at each time.

    Args:
        model: gives the potentials and the solver.
        z: the latents at time 0.
        k: the transformation.
        times: increasing; those below 0 are reached by running backwards from 0.
    """
    zero = times.new_zeros(1)
    parts = []
    before, after = times[times < 0], times[times >= 0]
    if len(before):
        parts.append(model.flow(z, k, torch.cat([zero, before.flip(0)]))[1:].flip(0))
    if len(after):
        if after[0] == 0:
            parts.append(model.flow(z, k, after))
        else:
            parts.append(model.flow(z, k, torch.cat([zero, after]))[1:])
    return torch.cat(parts)


def decode_all(model: SequenceModel, z: Float[Tensor, "t b d"]) -> Float[Tensor, "t b c h w"]:
    """Return the decoded image of every latent, pixels in [0, 1]."""
    images: Tensor = model.decode(z.flatten(0, 1))
    return torch.unflatten(images, 0, z.shape[:2])


def time_grid(first: float, last: float, substeps: int) -> Float[Tensor, "t"]:
    """Return the times from ``first`` to ``last``, ``substeps`` to a frame.

    Raises:
        ValueError: no time lies between, or ``substeps`` is not positive.
    """
    if not (last > first and math.isfinite(last - first)):
        raise ValueError(
            f"the last time must be finite and after the first; they are {horizon} and {first}"
        )
    if substeps < 1:
        raise ValueError(f"substeps, the points per frame, must be at least 1; it is {substeps}")
    return torch.linspace(first, last, round((last - first) * substeps) + 1)


def chosen_names(model: SequenceModel, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the transformations to show: those given, or all of the model.

    Raises:
        ValueError: a name that the model does not know, or none at all.
    """
    if names is None:
        return model.names
    unknown = [name for name in names if name not in model.names]
    if unknown or not names:
        raise ValueError(
            f"there is no transformation {', '.join(map(repr, unknown)) or 'to show'}; the model "
            f"has {', '.join(model.names)}"
        )
    return tuple(names)


def as_pixels(image: Float[Tensor, "c h w"]) -> Float[np.ndarray, "h w *c"]:
    """Return an image as matplotlib shows it: ``(H, W, 3)``, or ``(H, W)`` of one channel.

    Raises:
        ValueError: neither one channel nor three.
    """
    if image.shape[0] not in (1, 3):
        raise ValueError(f"an image with {image.shape[0]} channels cannot be shown; 1 or 3 can")
    pixels = image.detach().float().clamp(0, 1).cpu()
    return np.asarray(pixels[0] if len(pixels) == 1 else pixels.movedim(0, -1))
