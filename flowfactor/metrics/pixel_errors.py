"""Errors of decoded frames against true ones, and the equivariance error of every flow."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.checks import (
    brief,
    check_indices,
    check_integer,
    check_tensor,
    check_type,
    kind_of,
)
from flowfactor.data import SequenceBatch, SequenceDataset
from flowfactor.models import SequenceModel
from flowfactor.tables import Column, Row, Table
from solvers import Method

_PIXELS = 2**25
"""Pixels of all frames of a batch, at most: 128 MiB, of which a few copies are made."""


@dataclasses.dataclass(frozen=True, eq=False)
class EquivarianceError:
    """Errors of one transformation, or of several; sums of absolute pixel errors, pixels in [0, 1].

    Attributes:
        flow: ``(images, T)``: ``sum_{channels, pixels} |x_t - decode(z_t)|`` for t = 1..T, where
            ``z_t = flow(z_0, k, t)``.
        identity: ``(images, T)``: the same with ``z_t = z_0``, a model that moves nothing.
        copy: ``(images, T)``: the same with frame 0 itself in place of what is decoded.
        reconstruction: ``(images,)``: the error of decoding frame 0 from its own latent.
        pixels: channels times pixels of a frame.
        encoded: ``(images, T)``: that of decoding each frame from its own encoding, where that was
            asked for.
    """

    flow: Float[Tensor, "n t"]
    identity: Float[Tensor, "n t"]
    copy: Float[Tensor, "n t"]
    reconstruction: Float[Tensor, "n"]
    pixels: int
    encoded: Float[Tensor, "n t"] | None = None

    @property
    def error(self) -> float:
        """``E_k``: the mean over images of the sum over t."""
        return float(self.flow.sum(1).mean())

    @property
    def standard_error(self) -> float:
        """Of ``E_k``, from its spread over images; 0 for a single image."""
        totals = self.flow.sum(1)
        return float(totals.std() / len(totals) ** 0.5) if len(totals) > 1 else 0.0

    @property
    def identity_error(self) -> float:
        """``E_k`` of a model whose latent stays where it is."""
        return float(self.identity.sum(1).mean())

    @property
    def copy_error(self) -> float:
        """The error of frame 0 as it is, without any model."""
        return float(self.copy.sum(1).mean())

    @property
    def floor(self) -> float:
        """T times the error of decoding ``x_0`` from ``z_0``: what the autoencoder alone costs."""
        return float(self.reconstruction.mean()) * self.flow.shape[1]

    @property
    def encoded_error(self) -> float | None:
        """What the autoencoder costs on the same frames, each decoded from its own encoding."""
        return None if self.encoded is None else float(self.encoded.sum(1).mean())

    @property
    def per_frame_and_pixel(self) -> float:
        """``E_k`` per frame, channel and pixel: the mean absolute error of a pixel."""
        return self.error / (self.flow.shape[1] * self.pixels)


@dataclasses.dataclass(frozen=True)
class ErrorSummary:
    """The numbers of an :class:`EquivarianceError`; ``per_frame`` are means over images."""

    error: float
    standard_error: float
    identity: float
    floor: float
    per_frame_and_pixel: float
    per_frame: list[float]
    identity_per_frame: list[float]
    copy: float | None = None  # evaluations of earlier versions lack it
    encoded: float | None = None

    @property
    def beats_standing_still(self) -> bool:
        """Whether the error is below those of identity and of the pixel copy, if it is known."""
        still = self.identity if self.copy is None else min(self.identity, self.copy)
        return self.error < still

    @classmethod
    def of(cls, error: EquivarianceError) -> ErrorSummary:
        """Return the numbers of an error."""
        return cls(
            error.error,
            error.standard_error,
            error.identity_error,
            error.floor,
            error.per_frame_and_pixel,
            error.flow.mean(0).tolist(),
            error.identity.mean(0).tolist(),
            error.copy_error,
            error.encoded_error,
        )


@dataclasses.dataclass(frozen=True)
class ErrorSummaries:
    """Errors by the name of the transformation, or of several.

    Attributes:
        mean_error: the mean of ``E``.
        errors: by name.
    """

    mean_error: float
    errors: dict[str, ErrorSummary]

    @classmethod
    def of(cls, errors: Mapping[str, EquivarianceError]) -> ErrorSummaries:
        """Return the numbers of errors."""
        return cls(mean_error(errors), summarize(errors))


def summarize(errors: Mapping[str, EquivarianceError]) -> dict[str, ErrorSummary]:
    """Return the numbers of each error."""
    return {name: ErrorSummary.of(error) for name, error in errors.items()}


def mean_errors(errors: Iterable[ErrorSummary]) -> list[float | None]:
    """Return means of the error and of what stands beside it: identity, pixel copy, floor."""
    kinds = zip(*((e.error, e.identity, e.copy, e.floor) for e in errors), strict=True)
    return [mean_of(number for number in kind if number is not None) for kind in kinds]


def error_table(
    summaries: ErrorSummaries,
    title: str,
    label: str = "transformation",
    extra: Mapping[Column, Mapping[str, float]] | None = None,
) -> Table:
    """Return a table of errors with their mean in the last row.

    A footnote marks those that are no better than an image that stands still.

    Args:
        summaries: of the errors.
        title: of the table.
        label: what the names of the errors are.
        extra: further columns, with a number by name.
    """
    errors, extra = summaries.errors, extra or {}
    columns = [
        Column("E", bold=True),
        Column("± s.e."),
        Column("identity"),
        Column("pixel copy"),
        Column("floor"),
        Column("own encodings"),
        *extra,
    ]
    rows = [
        Row(
            name,
            [
                *(error.error, error.standard_error, error.identity, error.copy, error.floor),
                error.encoded,
                *(numbers.get(name) for numbers in extra.values()),
            ],
            "" if error.beats_standing_still else "no better than an image that stands still",
        )
        for name, error in errors.items()
    ]
    if len(rows) > 1:
        error, identity, copy, _ = mean_errors(errors.values())
        own = mean_of(each.encoded for each in errors.values() if each.encoded is not None)
        means = [error, None, identity, copy, None, own, *[None] * len(extra)]
        rows.append(Row("mean", means, ruled=True))
    return Table(columns, rows, title, label).without_empty_columns()


@torch.no_grad()
def equivariance_error(
    model: SequenceModel,
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None = None,
    *,
    frames: int = 7,
    method: Method | None = None,
    flows: Callable[[SequenceBatch], Int[Tensor, "b"]] | None = None,
    batch_size: int = 250,
) -> dict[str, EquivarianceError]:
    r"""Return the equivariance error of every transformation.

    .. math::

        E_k = \mathrm{mean}_{\text{images}} \sum_{t=1}^T \sum_{\text{channels, pixels}}
          |x_t - \mathrm{decode}(\mathrm{flow}(z_0, k, t))|

    with ``z_0`` the mean of ``q(z_0 | x_0)``; recordings may have their frames at other times than
    1..T, to which the flow then leads. ``T = 7`` and a training to ``t = 8`` is the protocol
    of Song et al., arXiv:2309.13167.

    Args:
        model: in evaluation mode.
        data: held-out images; its transformations are the model's first ones.
        indices: which images; None is all of them.
        frames: T.
        method: another solver than the model's.
        flows: returns the flow that each sequence of a batch follows, for instance
            ``model.choose``; by default that of its transformation.
        batch_size: images at a time; it does not change the result.

    Returns:
        The error by the name of the transformation; one that none of the recordings undergoes is
        left out.

    Raises:
        ValueError: the data has other transformations than the model, or too few frames.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import TransformedImages
        >>> data = TransformedImages(torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8))
        >>> model = flowfactor.FlowVAE.build(data.names, latent_dim=4, width=8).eval()
        >>> errors = equivariance_error(model, data)
        >>> errors["rotation"].flow.shape
        torch.Size([4, 7])
    """
    check_comparable(model, data, frames)
    parts = defaultdict(list)
    # To choose a flow takes the whole sequence.
    last = frames if flows is None else data.horizon
    for k, batch in batches(data, indices, batch_size, last):
        numbers = torch.arange(last + 1).expand(len(batch), -1)
        sequences = data.sample(batch, k, numbers).to(model.device)
        x = sequences.frames[:, : frames + 1]
        z0 = model.represent(x[:, 0])
        followed = k if flows is None else flows(sequences)
        times = sequences.shared_times[..., : frames + 1].to(z0)
        path = model.flow(z0, followed, times, method=method)
        parts[data.names[k]].append(frame_errors(model, x, path))
    return {name: concatenate_errors(errors) for name, errors in parts.items()}


def selected_indices(
    data: SequenceDataset, indices: Tensor | Sequence[int] | None
) -> Int[Tensor, "n"]:
    """Return numbers of samples as a tensor on the CPU; None is all of them.

    Raises:
        TypeError, ValueError: no integers ``(n,)``, none at all, or one that is no sample's.
    """
    if indices is None:
        return torch.arange(len(data))
    try:
        selected = torch.as_tensor(indices).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"indices must be integers (n,); it is {kind_of(indices)}") from None
    check_indices("indices", selected, len(data))
    return selected.long()


def batches(
    data: SequenceDataset,
    indices: Tensor | Sequence[int] | None,
    size: int,
    frames: int | None = None,
) -> Iterator[tuple[int, Int[Tensor, "_"]]]:
    """Yield every transformation with batches of the samples that can undergo it.

    All samples can, unless they were recorded. Transformations that none undergoes are left out.

    Args:
        data: of the samples.
        indices: which samples; None is all of them.
        size: of a batch, at most.
        frames: the last frame that is needed, see :func:`limit_batch`.

    Raises:
        ValueError: no sample undergoes any transformation.
    """
    size = limit_batch(data, size, frames)
    selected = selected_indices(data, indices)
    undergone = 0
    for k in range(len(data.names)):
        rows = torch.isin(selected, data.samples_undergoing(k).cpu())
        undergone += int(rows.sum())
        for batch in selected[rows].split(size) if rows.any() else ():
            yield k, batch
    if not undergone:
        raise ValueError(f"indices: none of the samples undergoes any of {brief(data.names)}")


def limit_batch(data: SequenceDataset, size: int, frames: int | None = None) -> int:
    """Return how many sequences to take at a time, so that their pixels fit into memory.

    Args:
        data: of the sequences.
        size: at most.
        frames: the last frame that is needed; None is the last one of the data.
    """
    check_integer("batch_size", size)
    count = 1 + (data.horizon if frames is None else frames)
    return max(1, min(size, _PIXELS // (count * math.prod(data.image_shape))))


def check_comparable(model: SequenceModel, data: SequenceDataset, frames: int) -> None:
    """Refuse data that a model cannot be measured on.

    Raises:
        ValueError: other transformations than the model's, another image shape, too few frames.
    """
    check_type("model", model, SequenceModel)
    model.check_data(data)
    check_integer("frames", frames, 1, data.horizon)


def frame_times(horizon: int, like: Tensor) -> Float[Tensor, "t"]:
    """Return the times 0..T of frames, of the type and on the device of a latent."""
    return torch.arange(horizon + 1, dtype=like.dtype, device=like.device)


def frame_errors(
    model: SequenceModel,
    x: Float[Tensor, "b f c h w"],
    z: Float[Tensor, "f b d"],
    *,
    encoded: bool = False,
) -> EquivarianceError:
    """Return the errors of frames decoded from a path against the true ones.

    Args:
        model: decodes.
        x: the true frames.
        z: the path; it starts at the latent of the first frame, which is what an unmoved latent
            decodes to.
        encoded: also decode every frame from its own encoding.
    """
    check_type("model", model, SequenceModel)
    check_tensor("x", x, ("B", "F", *model.image_shape), pixels=True)
    check_tensor("z", z, (x.shape[1], x.shape[0], model.latent_dim))
    moved = model.decode(rearrange(z, "f b d -> (f b) d"))
    moved = rearrange(moved, "(f b) c h w -> b f c h w", f=len(z))
    kinds = [moved, moved[:, :1], x[:, :1]]
    if encoded:
        own = model.decode(model.represent(rearrange(x[:, 1:], "b f c h w -> (b f) c h w")))
        own = rearrange(own, "(b f) c h w -> b f c h w", b=len(x))
        kinds.append(torch.cat([moved[:, :1], own], dim=1))
    flow, identity, copy, *rest = (
        rearrange((x - decoded).abs(), "b f c h w -> b f (c h w)").sum(-1).cpu().double()
        for decoded in kinds
    )
    return EquivarianceError(
        flow[:, 1:],
        identity[:, 1:],
        copy[:, 1:],
        flow[:, 0],
        x[0, 0].numel(),
        rest[0][:, 1:] if rest else None,
    )


def concatenate_errors(parts: Sequence[EquivarianceError]) -> EquivarianceError:
    """Return the errors of all images of some batches."""
    known = [part.encoded for part in parts if part.encoded is not None]
    return EquivarianceError(
        torch.cat([part.flow for part in parts]),
        torch.cat([part.identity for part in parts]),
        torch.cat([part.copy for part in parts]),
        torch.cat([part.reconstruction for part in parts]),
        parts[0].pixels,
        torch.cat(known) if len(known) == len(parts) else None,
    )


def mean_error(errors: Mapping[Any, EquivarianceError]) -> float:
    """Return the mean of ``E_k`` over the transformations, or over pairs of them."""
    check_type("errors", errors, Mapping)
    if not errors:
        raise ValueError("errors must hold at least one error; it is empty")
    return sum(error.error for error in errors.values()) / len(errors)


def mean_of(values: Iterable[float]) -> float | None:
    """Return the mean of some numbers, None if there are none."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
