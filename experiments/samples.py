"""Which samples figures show, and of many transformations which ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data import SequenceDataset
from flowfactor.errors import DataError


def different_samples(data: SequenceDataset, count: int) -> Int[Tensor, "b"]:
    """Return numbers of samples, those of different classes first.

    Raises:
        DataError: there are not as many samples.
    """
    if not 1 <= count <= len(data):
        raise DataError(f"--images must be in 1..{len(data)}, the number of samples, not {count}.")
    first = one_of_each_class(data)
    rest = torch.arange(len(data))
    return torch.cat([first, rest[~torch.isin(rest, first)]])[:count]


def samples_of_each(
    data: SequenceDataset, names: Sequence[str], count: int
) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"]]:
    """Return samples for each of some transformations, and the labels of these.

    Args:
        data: the samples, different ones for each transformation where all undergo it.
        names: of the transformations.
        count: samples of each, fewer where there are fewer.
    """
    indices, labels = [], []
    everything = different_samples(data, len(data))
    for k in map(data.names.index, names):
        eligible = data.samples_undergoing(k)
        if len(eligible) == len(data):
            eligible = everything.roll(-k * count)
        indices.append(eligible[:count])
        labels.append(torch.full((len(indices[-1]),), k))
    return torch.cat(indices), torch.cat(labels)


def one_of_each_class(data: SequenceDataset) -> Int[Tensor, "n"]:
    """Return the first sample of each class, or the first ten where there are no classes."""
    if data.classes is None or len(classes := data.classes.unique()) == 1:
        return torch.arange(min(10, len(data)))
    return torch.stack([(data.classes == each).nonzero()[0, 0] for each in classes]).cpu()


def first_frames(
    data: SequenceDataset, indices: Int[Tensor, "b"], starts: Float[Tensor, "b s"] | None = None
) -> Float[Tensor, "b c h w"]:
    """Return frame 0 of samples, whatever they undergo then."""
    times = torch.zeros(len(indices), 1, dtype=torch.long)
    return data.sample(indices, times=times, starts=starts).frames[:, 0]


def choose_few(names: Sequence[str], count: int = 10) -> tuple[str, ...]:
    """Return names for a figure: all, or of many some from everywhere.

    Example:
        >>> choose_few([f"move {i}" for i in range(200)], 3)
        ('move 0', 'move 100', 'move 199')
    """
    if len(names) <= count:
        return tuple(names)
    return tuple(names[round(i * (len(names) - 1) / (count - 1))] for i in range(count))
