"""Sequences of which nobody says what they undergo: the data of weak supervision."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data.sequences import GivenFactor, Sequences, SequenceSource
from flowfactor.errors import DataError


class HiddenFactors:
    """A data set whose sequences hide their transformation: their ``factor`` is -1.

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
        >>> from flowfactor.data import SequenceDataset
        >>> images = torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8)
        >>> hidden = HiddenFactors(SequenceDataset(images))
        >>> hidden.sample([3, 5], "hue").factor.tolist()
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
            self.given_factor = source.given_factor

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""
        return self.source.names

    @property
    def last(self) -> int:
        """`T`, number of the last frame of a sequence."""
        return self.source.last

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
        factor: Int[Tensor, " b"],
        times: Int[Tensor, "b f"],
        start: Float[Tensor, "b s"] | None = None,
    ) -> Sequences:
        """The frames `times` of samples `indices` under transformations `factor`, unchecked."""
        return self._hide(self.source.select(indices, factor, times, start), indices)

    def sample(self, indices: Any, factor: Any, *options: Any, **more: Any) -> Sequences:
        """The sequences of some samples, as the data set gives them, but hidden."""
        if isinstance(self.source, GivenFactor) and isinstance(factor, Tensor):
            own = self.source.given_factor[torch.as_tensor(indices, device=self.device)]
            if torch.equal(factor, own):  # also where it is not known
                factor = None
        sequences = self.source.sample(indices, factor, *options, **more)  # type: ignore[attr-defined]
        return self._hide(sequences, torch.as_tensor(indices, device=self.device))

    def _hide(self, sequences: Sequences, indices: Tensor) -> Sequences:
        factor = torch.where(self.labelled[indices], sequences.factor, -1)
        return dataclasses.replace(sequences, factor=factor)
