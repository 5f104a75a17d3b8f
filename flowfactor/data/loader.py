"""Training batches without end, each a pure function of its number."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Literal, Protocol, Self, get_args, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from flowfactor.data.base import SequenceBatch, SequenceDataset
from flowfactor.data.checks import check_choice, check_range

EncodedFrame = Literal["first", "random"]
"""Which frame of a sequence is encoded: frame 0, or any."""

# First numbers of the seeds of two kinds of random stream, so that they never coincide.
_EPOCH, _STEP = 0, 1


@runtime_checkable
class Batches(Protocol):
    """Training batches, a pure function of the step: a :class:`SequenceLoader`, or one's own."""

    def batch(self, step: int) -> SequenceBatch:
        """Return the batch of a step."""


class SequenceLoader:
    """Infinite, seeded training batches; batch ``step`` depends on nothing but its number.

    Every epoch visits each sample once, in a new random order; with several processes the batches
    of one step share no sample within an epoch. Transformations are balanced: within a batch their
    counts differ by at most one, and which ones get the remainder is random. The batch is sorted by
    transformation, so that the samples of each are one slice of it.

    If the transformation of each sample was recorded (``dataset.labels``), the samples of each
    transformation are visited in a random order of their own, in turn with the others: batches are
    balanced just the same, and samples of a rare transformation are seen more often. Samples whose
    transformation is unknown count as one more.

    Sequences start as ``dataset.initial_state`` says. An interrupted training continues exactly
    with the next ``step``, and draws the same batches on any device.

    Args:
        dataset: where the sequences come from.
        batch_size: sequences per batch and process.
        frames_per_sequence: how many frames beside the one that is encoded, a uniformly random
            subset drawn anew for each sequence; all by default. :attr:`SequenceBatch.weights` makes
            sums over them unbiased.
        encoded_frame: which frame comes first in the batch, to be encoded. ``first``: frame 0, and
            the others are from ``1..T``. ``random``: any of ``0..T``, uniformly, and the others,
            from all of ``0..T``, are drawn independently of it; it counts only if it is one of
            them.
        seed: of everything random here.
        rank, world_size: number of this process and of all.

    Raises:
        DataError: a number out of range.

    Example:
        >>> import torch
        >>> from flowfactor.data import TransformedImages
        >>> images = torch.randint(256, (100, 1, 28, 28), dtype=torch.uint8)
        >>> loader = SequenceLoader(TransformedImages(images), batch_size=6, frames_per_sequence=2)
        >>> batch = loader.batch(0)
        >>> tuple(batch.frames.shape), batch.labels.tolist()
        ((6, 3, 3, 28, 28), [0, 0, 1, 1, 2, 2])
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        batch_size: int,
        *,
        frames_per_sequence: int | None = None,
        encoded_frame: EncodedFrame = "first",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_range("batch_size", batch_size, 1)
        check_choice("encoded_frame", encoded_frame, get_args(EncodedFrame))
        self._drawn_from = dataset.horizon + (encoded_frame == "random")
        if frames_per_sequence is None:
            frames_per_sequence = self._drawn_from
        check_range("frames_per_sequence", frames_per_sequence, 1, self._drawn_from)
        check_range("seed", seed, 0)
        check_range("rank", rank, 0, world_size - 1)
        self.dataset = dataset
        self.batch_size = batch_size
        self.frames_per_sequence = frames_per_sequence
        self.encoded_frame = encoded_frame
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._labels = None if dataset.labels is None else dataset.labels.cpu()
        # The samples of each transformation, if they were recorded.
        self._groups: list[Tensor] = []
        if self._labels is not None:
            self._groups = [(self._labels == k).nonzero()[:, 0] for k in self._labels.unique()]
        # Pure in the epoch, so that keeping the current order changes nothing but the time.
        kept = 2 * max(1, len(self._groups))
        self._order = functools.lru_cache(maxsize=kept)(self._draw_order)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every sample was visited (the last may reach into the next epoch)."""
        total = len(self.dataset)
        if self._groups:
            total = len(self._groups) * max(map(len, self._groups))
        return -(-total // (self.batch_size * self.world_size))

    def batch(self, step: int) -> SequenceBatch:
        """Return batch number ``step``, from 0, of this process.

        Returns:
            ``batch_size`` sequences on the device of the data set, sorted by transformation.
        """
        indices = self.indices(step)
        generator = _generator(self.seed, _STEP, step, self.rank)
        law, given = self.dataset.activity, self._labels
        if law is not None:
            random = torch.rand(self.batch_size, law.size, generator=generator)
        else:
            labels = self._draw_labels(generator) if given is None else given[indices]
        times = self._draw_times(generator)
        starts = None
        if self.dataset.initial_state == "random":
            starts = self.dataset.random_starts(self.batch_size, generator)
        device = self.dataset.device
        indices, times = indices.to(device), times.to(device)
        if law is not None:
            activity = self.dataset.draw_activity(law, indices, random)
            batch = self.dataset.select_moving(indices, activity, times, starts)
        else:
            batch = self.dataset.select(indices, labels.to(device), times, starts)
        if self.encoded_frame == "first":
            return batch
        weight = self._drawn_from / self.frames_per_sequence
        return dataclasses.replace(batch, first_weight=0.0, later_weight=weight)

    def indices(self, step: int) -> Int[Tensor, "b"]:
        """Return the numbers of the samples in batch number ``step`` of this process."""
        check_range("step", step, 0)
        # All epochs' orders in a row are one endless queue, of which every process and step takes
        # the next batch_size.
        begin = (step * self.world_size + self.rank) * self.batch_size
        end = begin + self.batch_size
        if not self._groups:
            return self._queue(begin, end, len(self.dataset))
        # Each transformation has a queue of its own, and place p belongs to number p mod count.
        count = len(self._groups)
        chosen = []
        for number, group in enumerate(self._groups):
            # How many of the places before this one are its own.
            first, beyond = (-((number - place) // count) for place in (begin, end))
            chosen.append(group[self._queue(first, beyond, len(group), number)])
        return torch.cat(chosen)

    def _queue(self, begin: int, end: int, total: int, *group: int) -> Tensor:
        """Return what is from place ``begin`` until ``end`` of the queue of ``total`` samples."""
        parts = [
            self._order(epoch, *group)[max(begin - epoch * total, 0) : end - epoch * total]
            for epoch in range(begin // total, (end - 1) // total + 1)
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def _draw_order(self, epoch: int, *group: int) -> Tensor:
        generator = _generator(self.seed, _EPOCH, epoch, *group)
        total = len(self._groups[group[0]]) if group else len(self.dataset)
        return torch.randperm(total, generator=generator)

    def _draw_labels(self, generator: torch.Generator) -> Tensor:
        count = len(self.dataset.names)
        share, remainder = divmod(self.batch_size, count)
        counts = torch.full((count,), share)
        counts[torch.randperm(count, generator=generator)[:remainder]] += 1
        return torch.repeat_interleave(torch.arange(count), counts)

    def _draw_times(self, generator: torch.Generator) -> Tensor:
        total, count = self._drawn_from, self.frames_per_sequence
        if count == total:
            drawn = torch.arange(total).repeat(self.batch_size, 1)
        else:
            order = torch.rand(self.batch_size, total, generator=generator).argsort(dim=1)
            drawn = order[:, :count].sort(dim=1).values
        if self.encoded_frame == "first":
            return F.pad(drawn + 1, (1, 0))
        first = torch.randint(total, (self.batch_size, 1), generator=generator)
        return torch.cat([first, drawn], dim=1)


class BackgroundLoader:
    """The same batches as those of another loader; a thread draws each while the last one is used.

    It also moves them to a device, to CUDA without waiting. What goes wrong in the thread is raised
    where the batch of that step is asked for. As a context it ends its thread.

    Args:
        batches: what draws them, from one thread only.
        device: where to put them; None leaves them where they are.

    Example:
        >>> from flowfactor.data import BackgroundLoader, SequenceLoader, Sprites
        >>> loader = SequenceLoader(Sprites(10), batch_size=5)
        >>> with BackgroundLoader(loader) as ahead:
        ...     same = [bool((ahead.batch(i).times == loader.batch(i).times).all()) for i in (3, 4)]
        >>> same
        [True, True]
    """

    def __init__(self, batches: Batches, device: torch.device | str | None = None) -> None:
        self.batches = batches
        self.device = None if device is None else torch.device(device)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[SequenceBatch]] | None = None

    def batch(self, step: int) -> SequenceBatch:
        """Return batch number ``step``, and begin to draw the one after it."""
        expected, self._next = self._next, None
        if expected is None or expected[0] != step:
            expected = step, self._thread.submit(self._draw, step)
        batch = expected[1].result()
        self._next = step + 1, self._thread.submit(self._draw, step + 1)
        return batch

    def wait(self) -> None:
        """Wait until the thread is idle, so that what it reads from can be read from elsewhere."""
        if self._next is not None:
            wait([self._next[1]])

    def _draw(self, step: int) -> SequenceBatch:
        cuda = self.device is not None and self.device.type == "cuda"
        with torch.cuda.device(self.device) if cuda else contextlib.nullcontext():
            batch = self.batches.batch(step)
            if cuda and batch.frames.device.type == "cpu":
                batch = batch.pin_memory()
            return batch if self.device is None else batch.to(self.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


def _generator(*key: int) -> torch.Generator:
    """Return a generator for this key; keys that differ anywhere give unrelated streams."""
    high, low = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator().manual_seed((int(high) << 32 | int(low)) - 2**63)
