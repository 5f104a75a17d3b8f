"""What every data set of transformed images has in common: samples, compositions, their checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowfactor.data.sequences import SequenceBatch
from flowfactor.errors import DataError


def check_active_start(active_start: str) -> None:
    """Refuse a way to start what moves that does not exist.

    Raises:
        DataError: neither `random` nor `canonical`.
    """
    if active_start not in ("random", "canonical"):
        raise DataError(
            f"active_start must be 'random' or 'canonical', but it is {active_start!r}."
        )


class SequenceDataset(ABC):
    """Images that undergo transformations, rendered or looked up on demand.

    A data set says what its transformations are called and what its frames look like while any
    of them act; sequences of one transformation, of several at a time, from canonical or
    random starts, with all or some of the frames follow.

    At a *canonical* start frame 0 is the image itself. At a *random* one it has already undergone
    every transformation at random, by numbers in [0, 1] that the caller draws: ``start_size`` of
    them for each sequence.
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""

    @property
    @abstractmethod
    def horizon(self) -> int:
        """`T`, number of the last frame of a sequence."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the frames are made."""

    @property
    def start_size(self) -> int:
        """How many random numbers a random start takes; 0 for a data set of canonical starts."""
        return 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def with_last(self, horizon: int) -> SequenceDataset:
        """The same images in shorter or longer sequences, for instance to extrapolate."""

    @abstractmethod
    def to(self, device: torch.device | str) -> SequenceDataset:
        """The same data set on another device."""

    @abstractmethod
    def _frames(
        self,
        indices: Int[Tensor, " b"],
        elapsed: Sequence[Int[Tensor, "b f"]],
        active: Sequence[Bool[Tensor, " b"]],
        start: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Frames in which transformation `k` acts on the samples where `active[k]` is true.

        It has then acted for `elapsed[k]` frames.
        """

    def sample(
        self,
        indices: Tensor | Sequence[int],
        labels: Tensor | int | str,
        times: Tensor | None = None,
        start: Tensor | None = None,
    ) -> SequenceBatch:
        """The sequences of some images, after checking what is asked for.

        Args:
            indices: numbers of the images, `(B,)`.
            labels: the transformation, an index or a name for all or one index each `(B,)`.
            times: frames to render, whole numbers in `0..T` of shape `(B, F)`, the first of each
                row 0; all of `0..T` if not given.
            start: where they start, numbers in [0, 1] of shape `(B, start_size)`; canonical if
                not given.

        Raises:
            DataError: an image, a transformation or a frame that does not exist; a start of
                another shape or out of range.
        """
        indices = self._indices(indices)
        if times is None:
            times = torch.arange(self.horizon + 1, device=self.device).expand(len(indices), -1)
        else:
            times = self._times(times, len(indices))
        factors, start = self._factors(labels, len(indices)), self._starts(start, len(indices))
        return self.select(indices, factors, times, start)

    def select(
        self,
        indices: Int[Tensor, " b"],
        labels: Int[Tensor, " b"],
        times: Int[Tensor, "b f"],
        start: Float[Tensor, "b s"] | None = None,
    ) -> SequenceBatch:
        """The frames `times` of images `indices` under transformations `labels`, unchecked.

        What `sample` does, for callers that make their own valid numbers on the data set's
        device at every training step.
        """
        active = [labels == k for k in range(len(self.names))]
        frames = self._frames(indices, [times] * len(active), active, start)
        return SequenceBatch(frames, times, labels, self.horizon)

    def compose(
        self,
        indices: Tensor | Sequence[int],
        factors: Sequence[int | str],
        times: Tensor | None = None,
        start: Tensor | None = None,
        *,
        elapsed: Sequence[Tensor] | None = None,
    ) -> SequenceBatch:
        """Sequences that truly undergo several transformations, at the same time or in turn.

        The truth against which a superposition of learned flows is measured. Two transformations
        of one parameter add up (scales multiply).

        Args:
            indices: numbers of the images, `(B,)`.
            factors: indices or names of the transformations, at least one.
            times: as for `sample`.
            start: as for `sample`.
            elapsed: for each of `factors` how many frames it has acted for at each frame, whole
                numbers in `0..T` of shape `(B, F)`; `times` for all of them if not given. One that
                stands still while another one moves makes a sequence that switches.

        Returns:
            Sequences whose `labels` is -1, for no single transformation describes them.

        Raises:
            DataError: an image, a transformation or a frame that does not exist; `elapsed` that
                is not for the factors, or a factor named twice.

        Example:
            >>> import torch
            >>> images = torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8)
            >>> from flowfactor.data import TransformedImages
            >>> data = TransformedImages(images)
            >>> both = data.compose([0, 1], ("rotation", "hue"))
            >>> tuple(both.frames.shape)
            (2, 9, 3, 28, 28)
            >>> clock = torch.arange(9).expand(2, -1)
            >>> first, then = clock.clamp(max=5), (clock - 5).clamp(min=0)
            >>> turned = data.compose([0, 1], ("rotation", "hue"), elapsed=[first, then])
            >>> bool((turned.frames[:, 5] == data.sample([0, 1], "rotation").frames[:, 5]).all())
            True
        """
        if not factors:
            raise DataError(f"Name at least one transformation to compose, of {self.names}.")
        indices = self._indices(indices)
        if times is None:
            times = torch.arange(self.horizon + 1, device=self.device).expand(len(indices), -1)
        else:
            times = self._times(times, len(indices))
        chosen = [self._factor(labels) for labels in factors]
        clocks = [times] * len(self.names)
        if elapsed is not None:
            if len(elapsed) != len(factors) or len(set(chosen)) < len(chosen):
                raise DataError(
                    f"elapsed must hold one tensor for each of the factors, which must differ; "
                    f"there are {len(elapsed)} for {list(factors)}."
                )
            for k, clock in zip(chosen, elapsed, strict=True):
                if clock.shape != times.shape:
                    raise DataError(
                        f"elapsed must have the shape {tuple(times.shape)} of the frames, but "
                        f"that of {self.names[k]} has {tuple(clock.shape)}."
                    )
                clocks[k] = self._times(clock, len(indices))
        everywhere = torch.ones(len(indices), dtype=torch.bool, device=self.device)
        active = [everywhere if k in chosen else ~everywhere for k in range(len(self.names))]
        frames = self._frames(indices, clocks, active, self._starts(start, len(indices)))
        return SequenceBatch(frames, times, torch.full_like(indices, -1), self.horizon)

    def _indices(self, indices: Tensor | Sequence[int]) -> Tensor:
        chosen = torch.as_tensor(indices, device=self.device)
        if chosen.ndim != 1 or len(chosen) == 0 or chosen.is_floating_point():
            raise DataError(
                f"indices must be a list of whole numbers, at least one, but they are "
                f"{chosen.dtype} of shape {tuple(chosen.shape)}."
            )
        low, high = int(chosen.min()), int(chosen.max())
        if low < 0 or high >= len(self):
            raise DataError(
                f"indices must be in 0..{len(self) - 1}, for there are {len(self)} images, but "
                f"they run from {low} to {high}."
            )
        return chosen.long()

    def _factor(self, labels: int | str) -> int:
        if isinstance(labels, str) and labels in self.names:
            return self.names.index(labels)
        if isinstance(labels, int) and 0 <= labels < len(self.names):
            return labels
        known = ", ".join(f"{k} ({name})" for k, name in enumerate(self.names))
        raise DataError(f"There is no transformation {labels!r}. There are: {known}.")

    def _factors(self, labels: Tensor | int | str, count: int) -> Tensor:
        if not isinstance(labels, Tensor):
            return torch.full((count,), self._factor(labels), device=self.device)
        if labels.shape != (count,) or labels.is_floating_point():
            raise DataError(
                f"factor must be one whole number for each of the {count} images, but it is "
                f"{labels.dtype} of shape {tuple(factor.shape)}."
            )
        for k in (int(labels.min()), int(labels.max())):
            self._factor(k)
        return labels.to(self.device).long()

    def _times(self, times: Tensor, count: int) -> Tensor:
        if times.ndim != 2 or len(times) != count or times.is_floating_point() or not times.numel():
            raise DataError(
                f"times must be whole numbers of shape ({count}, frames), but they are "
                f"{times.dtype} of shape {tuple(times.shape)}."
            )
        if (
            int(times.min()) < 0
            or int(times.max()) > self.horizon
            or bool((times[:, 0] != 0).any())
        ):
            raise DataError(
                f"times must be in 0..{self.horizon}, each row beginning with 0, but they run from "
                f"{int(times.min())} to {int(times.max())} and begin with "
                f"{sorted(set(times[:, 0].tolist()))}. For later frames use `with_last`."
            )
        return times.to(self.device).long()

    def _starts(self, start: Tensor | None, count: int) -> Tensor | None:
        if start is None:
            return None
        if start.shape != (count, self.start_size) or not start.is_floating_point():
            raise DataError(
                f"start must be floating-point numbers of shape ({count}, {self.start_size}), but "
                f"they are {start.dtype} of shape {tuple(start.shape)}."
            )
        if not bool(((start >= 0) & (start <= 1)).all()):
            raise DataError("start must hold numbers in [0, 1]; some are outside or NaN.")
        return start.to(self.device)
