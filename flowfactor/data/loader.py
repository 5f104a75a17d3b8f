"""Training batches without end, each a pure function of its number."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from flowfactor.data.sequences import GivenFactor, SequenceBatch, SequenceSource
from flowfactor.errors import DataError

# First numbers of the seeds of two kinds of random stream, so that they never coincide.
_EPOCH, _STEP = 0, 1


class SequenceLoader:
    """Infinite, seeded training batches; batch `step` depends on nothing but its number.

    Epoch after epoch each sample is visited once, in a new random order; with several processes
    the batches of one step share no sample within an epoch. Transformations are balanced: within
    a batch their counts differ by at most one, and which ones get the remainder is random. The
    batch is sorted by transformation, so that the samples of each are one slice of it.

    Where samples have a transformation of their own (`GivenFactor`, such as `Recordings`), those
    of each transformation are visited in their own random order, in turn with the others: batches
    are balanced just the same, and samples of a rare transformation are seen more often. Samples
    whose transformation is not known count as one more, -1.

    A training that was interrupted goes on exactly by asking for the next `step`, and draws the
    same batches on any device.

    Args:
        source: the data set.
        batch_size: sequences per batch and process.
        frames_per_sequence: how many frames beside frame 0, a uniformly random subset of `1..T`
            drawn anew for each sequence; all if not given. `SequenceBatch.weights` makes sums over
            them unbiased.
        random_starts: let sequences start where the data set's transformations have taken their
            image at random, instead of at the image itself.
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
        source: SequenceSource,
        batch_size: int,
        *,
        frames_per_sequence: int | None = None,
        random_starts: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"The batch size must be at least 1, but it is {batch_size}.")
        if frames_per_sequence is not None and not 1 <= frames_per_sequence <= source.horizon:
            raise DataError(
                f"The number of frames beside frame 0 must be in 1..{source.horizon}, for the "
                f"sequences end at frame {source.horizon}, but it is {frames_per_sequence}. Leave it "
                "out for all."
            )
        if seed < 0:
            raise DataError(f"The seed must not be negative, but it is {seed}.")
        if not 0 <= rank < world_size:
            raise DataError(
                f"The rank must be in 0..{world_size - 1}, for the world size is {world_size}, "
                f"but it is {rank}."
            )
        if random_starts and source.start_size == 0:
            raise DataError("This data set has no random starts; its sequences begin as they are.")
        self.source = source
        self.random_starts = random_starts
        self.batch_size = batch_size
        self.frames_per_sequence = frames_per_sequence or source.horizon
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._factors, self._groups = _given_factors(source)
        # Pure in the epoch, so that keeping the current order changes nothing but the time.
        kept = 2 * max(1, len(self._groups))
        self._order = functools.lru_cache(maxsize=kept)(self._draw_order)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every sample was visited (the last may reach into the next epoch)."""
        total = len(self.source)
        if self._groups:
            total = len(self._groups) * max(map(len, self._groups))
        return -(-total // (self.batch_size * self.world_size))

    def batch(self, step: int) -> SequenceBatch:
        """Batch number `step`, from 0, of this process.

        Returns:
            `batch_size` sequences on the device of the data set, sorted by `labels`.
        """
        indices = self.indices(step)
        generator = _generator(self.seed, _STEP, step, self.rank)
        given = self._factors
        labels = self._draw_factors(generator) if given is None else given[indices]
        times = self._draw_times(generator)
        start = None
        if self.random_starts:
            start = torch.rand(self.batch_size, self.source.start_size, generator=generator)
        device = self.source.device
        return self.source.select(
            indices.to(device),
            labels.to(device),
            times.to(device),
            None if start is None else start.to(device),
        )

    def indices(self, step: int) -> Tensor:
        """Numbers of the samples in batch number `step` of this process, `(batch_size,)`."""
        if step < 0:
            raise DataError(f"Steps are counted from 0, but step {step} was asked for.")
        # All epochs' orders in a row are one endless queue, of which every process and step takes
        # the next batch_size.
        begin = (step * self.world_size + self.rank) * self.batch_size
        end = begin + self.batch_size
        if not self._groups:
            return self._queue(begin, end, len(self.source))
        # Each transformation has a queue of its own, and place p belongs to number p mod count.
        count = len(self._groups)
        chosen = []
        for number, group in enumerate(self._groups):
            # How many of the places before this one are its own.
            first, beyond = (-((number - place) // count) for place in (begin, end))
            chosen.append(group[self._queue(first, beyond, len(group), number)])
        return torch.cat(chosen)

    def _queue(self, begin: int, end: int, total: int, *group: int) -> Tensor:
        """What is from place `begin` until `end` of the endless queue of `total` samples."""
        parts = [
            self._order(epoch, *group)[max(begin - epoch * total, 0) : end - epoch * total]
            for epoch in range(begin // total, (end - 1) // total + 1)
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def _draw_order(self, epoch: int, *group: int) -> Tensor:
        generator = _generator(self.seed, _EPOCH, epoch, *group)
        total = len(self._groups[group[0]]) if group else len(self.source)
        return torch.randperm(total, generator=generator)

    def _draw_factors(self, generator: torch.Generator) -> Tensor:
        count = len(self.source.names)
        each, remainder = divmod(self.batch_size, count)
        counts = torch.full((count,), each)
        counts[torch.randperm(count, generator=generator)[:remainder]] += 1
        return torch.repeat_interleave(torch.arange(count), counts)

    def _draw_times(self, generator: torch.Generator) -> Tensor:
        horizon = self.source.horizon
        if self.frames_per_sequence == horizon:
            return torch.arange(horizon + 1).repeat(self.batch_size, 1)
        order = torch.rand(self.batch_size, horizon, generator=generator).argsort(dim=1)
        later = order[:, : self.frames_per_sequence].sort(dim=1).values + 1
        return torch.nn.functional.pad(later, (1, 0))


def _given_factors(source: SequenceSource) -> tuple[Tensor | None, list[Tensor]]:
    """Each sample's own transformation and the samples of each, if they are given at all."""
    if not isinstance(source, GivenFactor):
        return None, []
    factors = source.labels.cpu()
    return factors, [(factors == k).nonzero()[:, 0] for k in factors.unique()]


def _generator(*key: int) -> torch.Generator:
    """A generator for this key; keys that differ anywhere give unrelated streams."""
    high, low = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator().manual_seed((int(high) << 32 | int(low)) - 2**63)
