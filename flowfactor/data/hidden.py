"""Sequences of which nobody says what they undergo: the data of weak supervision."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data.sequences import GivenFactor, SequenceBatch, SequenceSource
from flowfactor.errors import DataError


class Unlabelled:
    """A data set whose sequences hide their transformation: their ``labels`` is -1.

    What the source offers it offers too: if it is a :class:`~flowfactor.data.sequences.GivenFactor`
    this is one, so that a loader still draws only what was recorded.

    Args:
        source: the data set.
        labelled_fraction: the part of the samples that keep their label, drawn once by the seed.
        seed: of that draw.

    Raises:
        DataError: a fraction outside of [0, 1].

    Example:
        >>> import torch
        >>> from flowfactor.data import TransformedImages
        >>> images = torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8)
        >>> hidden = Unlabelled(TransformedImages(images))
        >>> hidden.sample([3, 5], "hue").labels.tolist()
        [-1, -1]
    """

    def __init__(
        self, source: SequenceSource, labelled_fraction: float = 0.0, seed: int = 0
    ) -> None:
        if not 0 <= labelled_fraction <= 1:
            raise DataError(f"labelled_fraction must be in [0, 1], but it is {labelled_fraction}.")
        self.source = source
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(len(source), generator=generator) < labelled_fraction
        self.labelled = drawn.to(source.device)
        if isinstance(source, GivenFactor):
            self.labels = source.labels

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""
        return self.source.names

    @property
    def horizon(self) -> int:
        """`T`, number of the last frame of a sequence."""
        return self.source.horizon

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        return self.source.image_shape

    @property
    def device(self) -> torch.device:
        """Where the frames are made."""
        return self.source.device

    @property
    def start_size(self) -> int:
        """How many random numbers a random start takes."""
        return self.source.start_size

    def __len__(self) -> int:
        return len(self.source)

    def select(
        self,
        indices: Int[Tensor, " b"],
        labels: Int[Tensor, " b"],
        times: Int[Tensor, "b f"],
        start: Float[Tensor, "b s"] | None = None,
    ) -> SequenceBatch:
        """The frames `times` of samples `indices` under transformations `labels`, unchecked."""
        return self._hide(self.source.select(indices, labels, times, start), indices)

    def sample(self, indices: Any, labels: Any, *options: Any, **more: Any) -> SequenceBatch:
        """The sequences of some samples, as the data set gives them, but hidden."""
        if isinstance(self.source, GivenFactor) and isinstance(labels, Tensor):
            own = self.source.labels[torch.as_tensor(indices, device=self.device)]
            if torch.equal(labels, own):  # also where it is not known
                labels = None
        sequences = self.source.sample(indices, labels, *options, **more)  # type: ignore[attr-defined]
        return self._hide(sequences, torch.as_tensor(indices, device=self.device))

    def _hide(self, sequences: SequenceBatch, indices: Tensor) -> SequenceBatch:
        labels = torch.where(self.labelled[indices], sequences.labels, -1)
        return dataclasses.replace(sequences, labels=labels)
