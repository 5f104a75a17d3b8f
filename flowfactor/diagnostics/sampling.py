"""What every figure asks of a model: latents, their positions in time, decoded images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from einops import pack, rearrange, unpack
from jaxtyping import Float
from torch import Tensor

from flowfactor.models.base import SequenceModel
from flowfactor.potentials import Selector, VectorField


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


def encode_images(model: SequenceModel, images: Tensor) -> Float[Tensor, "b d"]:
    """Return the latents of images ``(B, C, H, W)`` with pixels in [0, 1].

    Raises:
        ValueError: no image, or images of another shape than the model's.
    """
    shape = tuple(model.image_shape)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or not len(images):
        raise ValueError(
            f"images must have the shape (B, {', '.join(map(str, shape))}) with B at least 1; "
            f"theirs is {tuple(images.shape)}"
        )
    parameter = next(model.parameters())
    return model.represent(images.to(parameter.device, parameter.dtype))


def trace_latents(
    model: SequenceModel,
    z: Float[Tensor, "b d"],
    k: VectorField | Selector,
    times: Float[Tensor, "*b t"],
) -> Float[Tensor, "t b d"]:
    """Return where latents that are at ``z`` at time 0 are at each time.

    Args:
        model: gives the fields and the solver.
        z: the latents at time 0.
        k: the transformation.
        times: increasing, for all or of each latent, with as many below 0; those are reached by
            running backwards from 0.
    """
    first = times.reshape(-1, times.shape[-1])[0]
    before, after = times[..., first < 0], times[..., first >= 0]
    zero = torch.zeros_like(times[..., :1])
    parts = []
    if before.shape[-1]:
        parts.append(model.flow(z, k, torch.cat([zero, before.flip(-1)], -1))[1:].flip(0))
    if after.shape[-1]:
        skip = int(first[first >= 0][0] > 0)
        parts.append(model.flow(z, k, torch.cat([zero[..., :skip], after], -1))[skip:])
    return torch.cat(parts)


def decode_latents(model: SequenceModel, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n c h w"]:
    """Return the decoded image of every latent, pixels in [0, 1], on the CPU."""
    flat, sizes = pack([z], "* d")
    (images,) = unpack(model.decode(flat).float().cpu(), sizes, "* c h w")
    return images


def make_time_grid(start: float, end: float, substeps: int) -> Float[Tensor, "t"]:
    """Return the times from ``start`` to ``end``, ``substeps`` to a frame.

    Raises:
        ValueError: no time lies between, or ``substeps`` is not positive.
    """
    if not (end > start and math.isfinite(end - start)):
        raise ValueError(f"the horizon must be finite and after {start:g}; it is {end}")
    if substeps < 1:
        raise ValueError(f"substeps, the points per frame, must be at least 1; it is {substeps}")
    return torch.linspace(start, end, round((end - start) * substeps) + 1)


def select_names(model: SequenceModel, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the transformations to show: those given, or all of the model.

    Raises:
        ValueError: an unknown name, or none at all.
    """
    if names is None:
        return model.names
    unknown = [name for name in names if name not in model.names]
    if unknown or not names:
        raise ValueError(
            f"names must be transformations of the model, {', '.join(model.names)}; "
            f"they are {list(names)}"
        )
    return tuple(names)


def to_pixels(image: Float[Tensor, "c h w"]) -> Float[np.ndarray, "h w *c"]:
    """Return an image as matplotlib shows it: ``(H, W, 3)``, or ``(H, W)`` of one channel.

    Raises:
        ValueError: neither one channel nor three.
    """
    if image.shape[0] not in (1, 3):
        raise ValueError(f"an image to show must have 1 or 3 channels; it has {image.shape[0]}")
    pixels = rearrange(image.detach().float().clamp(0, 1).cpu(), "c h w -> h w c")
    return np.asarray(pixels[..., 0] if len(image) == 1 else pixels)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor in float64."""
    return np.asarray(tensor.detach().cpu().double())
