"""A batch of image sequences, each the frames of one transformation."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Frames `x_t` of `b` sequences and the transformation that each of them undergoes.

    A sequence has frames at `t = 0..horizon`; a batch may hold all of them or frame 0 and some
    others, the same number for each sequence. `times` says which.

    Attributes:
        frames: pixels in [0, 1], `(b, f, c, h, w)`.
        times: frame numbers `(b, f)`; the first column is 0.
        labels: index of the transformation of each sequence, `(b,)`.
        horizon: `T`, number of the last frame of the whole sequence.

    The constructor trusts its arguments, because it runs at every training step; `full` checks
    them, and is the way in for data of one's own.

    Example:
        >>> import torch
        >>> batch = SequenceBatch.full(torch.rand(4, 9, 3, 28, 28), torch.tensor([0, 0, 1, 2]))
        >>> len(batch), batch.horizon, batch.times[0].tolist()
        (4, 8, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    """

    frames: Float[Tensor, "b f c h w"]
    times: Int[Tensor, "b f"]
    labels: Int[Tensor, " b"]
    horizon: int

    @classmethod
    def full(cls, frames: Tensor, labels: Tensor) -> SequenceBatch:
        """Complete sequences, every frame of `t = 0..T` given, after checking them.

        Args:
            frames: floating point `(b, T+1, c, h, w)`, finite, in [0, 1].
            labels: whole numbers `(b,)`, index of each sequence's transformation, from 0.

        Raises:
            DataError: a wrong type, shape or value; the message names the first bad sample.
        """
        if frames.ndim != 5 or 0 in frames.shape:
            raise DataError(
                "frames must have five dimensions (samples, frames, channels, height, width), none "
                f"of them empty, but their shape is {tuple(frames.shape)}. Add the missing "
                "dimension with unsqueeze: one grey film of 9 frames is (1, 9, 1, height, width)."
            )
        if not frames.is_floating_point():
            raise DataError(
                f"frames must be floating point numbers in [0, 1], but their type is "
                f"{frames.dtype}. Pixels of 0..255 become frames by `frames.float() / 255`."
            )
        # NaN compares false with everything, so that "not inside" finds it too.
        bad = ~((frames >= 0) & (frames <= 1))
        if bool(bad.any()):
            sample, time, channel, row, column = (int(i) for i in bad.nonzero()[0])
            value = float(frames[sample, time, channel, row, column])
            raise DataError(
                f"frames must be finite and in [0, 1], but {int(bad.sum())} of {bad.numel()} "
                f"values are not: the first is {value:g} in sample {sample}, frame {time}, "
                f"channel {channel}, row {row}, column {column}. Scale pixels of 0..255 by 1/255 "
                "and repair or remove samples with NaN."
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(
                f"factor must hold whole numbers, the index of each sequence's transformation, "
                f"but its type is {labels.dtype}. Convert it with `factor.long()`."
            )
        if labels.shape != frames.shape[:1]:
            raise DataError(
                f"factor must hold one number for each of the {len(frames)} sequences, but its "
                f"shape is {tuple(factor.shape)}. Use `torch.full(({len(frames)},), k)` if all "
                "of them undergo transformation k."
            )
        if int(labels.min()) < 0:
            sample = int((labels < 0).nonzero()[0])
            raise DataError(
                f"factor must not be negative, but that of sample {sample} is "
                f"{int(factor[sample])}. Number the transformations from 0."
            )
        count = frames.shape[1]
        times = torch.arange(count, device=frames.device).expand(len(frames), count)
        return cls(frames, times, labels.to(frames.device).long(), count - 1)

    @property
    def weights(self) -> Float[Tensor, "b f"]:
        """Weights `w` for which `sum_f w_f cost_f` estimates the sum over all frames, unbiased.

        Frame 0 is always there and weighs 1. The other frames are a uniformly random subset of
        `n` of `1..T`, each present with probability `n / T`, and weigh `T / n`. With all frames
        present every weight is 1.

        Example:
            >>> import torch
            >>> batch = SequenceBatch.full(torch.rand(1, 3, 1, 4, 4), torch.tensor([0]))
            >>> batch.weights.tolist()
            [[1.0, 1.0, 1.0]]
        """
        later = self.times > 0
        drawn = later.sum(dim=1, keepdim=True, dtype=self.frames.dtype)
        return torch.where(later, self.horizon / drawn, 1.0)

    def to(self, device: torch.device | str) -> SequenceBatch:
        """The same sequences on another device."""
        return SequenceBatch(
            self.frames.to(device, non_blocking=True),
            self.times.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.horizon,
        )

    def __len__(self) -> int:
        return len(self.frames)


@runtime_checkable
class SequenceSource(Protocol):
    """What a data set offers: any object with these members can be trained on.

    A new data set is a class that, given numbers of samples, transformations and frames, returns
    the frames; `SequenceLoader` needs nothing else of it. `SequenceDataset` is the base class
    of those that ship.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""

    @property
    def horizon(self) -> int:
        """`T`, number of the last frame of a sequence."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""

    @property
    def device(self) -> torch.device:
        """Where the frames are made."""

    @property
    def start_size(self) -> int:
        """How many random numbers in [0, 1] a random start takes; 0 if there are none."""

    def __len__(self) -> int: ...

    def select(
        self,
        indices: Int[Tensor, " b"],
        labels: Int[Tensor, " b"],
        times: Int[Tensor, "b f"],
        start: Float[Tensor, "b s"] | None = None,
    ) -> SequenceBatch:
        """The frames `times` of samples `indices` under transformations `labels`, unchecked."""


@runtime_checkable
class GivenFactor(Protocol):
    """A data set whose samples each come with their own transformation, that cannot be chosen.

    What a `SequenceSource` also is if it was recorded. It can only be asked for sample `i` under
    transformation `labels[i]`, and `SequenceLoader` balances the samples and not a choice.
    """

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The transformation of each sample, -1 where it is not known."""


def samples_undergoing(source: SequenceSource, labels: int) -> Int[Tensor, " m"]:
    """Numbers of the samples that can be had under transformation `labels`.

    All of them, but of recorded ones those that underwent it. On the device of `source`.
    """
    if isinstance(source, GivenFactor):
        return (source.labels == labels).nonzero()[:, 0]
    return torch.arange(len(source), device=source.device)


def round_robin(source: SequenceSource, indices: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """A transformation for each of some samples: sample `i` gets `i mod K`, or its own.

    For validation and figures, which need all transformations but no chance.
    """
    if isinstance(source, GivenFactor):
        return source.labels[indices]
    return indices % len(source.names)
