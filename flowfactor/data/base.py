"""Batches of image sequences, and the base class of the data sets that give them."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from flowfactor.checks import check_tensor
from flowfactor.data.activity import ActivityLaw, PathRange, accumulate
from flowfactor.data.checks import (
    check_choice,
    check_distinct,
    check_frame_times,
    check_range,
)
from flowfactor.data.coverage import Coverage
from flowfactor.data.known_factors import KnownFactors
from flowfactor.errors import DataError
from solvers.registry import suggest

InitialState = Literal["canonical", "random"]

UNLABELLED = -1
"""The label of a sequence that has none, among others that have one."""

MAX_NAME = 500
"""How many characters the name of a transformation may have."""
MAX_TRANSFORMATIONS = 1000
"""How many transformations a data set may have."""

# Of the length of a path, in frames: values are sums and quotients.
_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Frames ``x_t`` of ``b`` sequences and the transformation that each of them undergoes.

    A sequence has frames number 0 to T, at times that increase from 0. On the *grid*, where most
    data are, frame n is at time n; recordings may bring any others. A batch holds all of them, or
    some, as many for each sequence; ``times`` says when. The first of a row is the frame that a
    model encodes, the others are those that it explains from there, in any order.

    The constructor trusts its arguments, because it runs at every training step. :meth:`full`
    checks them.

    Attributes:
        frames: pixels in [0, 1], ``(b, f, c, h, w)``.
        times: of the frames, ``(b, f)``, in the unit of the flow's time; on the grid the numbers
            ``0..T`` of the frames.
        labels: index of the transformation of each sequence, ``(b,)``, :data:`UNLABELLED` where it
            is unknown; None if it is unknown of all of them, or if several transformations act.
        horizon: ``T``, number of the last frame of the whole sequence.
        first_weight: how often the cost of the first frame counts in a sum over all frames.
        later_weight: likewise of each of the others; ``T / n`` for n random ones of ``1..T``.
        activity: the signed speed of each transformation from frame ``t`` to ``t + 1``, 0 where
            it rests, ``(b, T, k)``, of sequences that were drawn from an :class:`ActivityLaw`. The
            truth for evaluation; models that are not supervised do not read it.

    Example:
        >>> import torch
        >>> batch = SequenceBatch.full(torch.rand(4, 9, 3, 28, 28), torch.tensor([0, 0, 1, 2]))
        >>> len(batch), batch.horizon, batch.times[0].tolist()
        (4, 8, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        >>> uneven = SequenceBatch.full(torch.rand(4, 3, 1, 8, 8), times=torch.tensor([0, 0.5, 2]))
        >>> uneven.times[0].tolist(), uneven.is_complete
        ([0.0, 0.5, 2.0], False)
    """

    frames: Float[Tensor, "b f c h w"]
    times: Real[Tensor, "b f"]
    labels: Int[Tensor, "b"] | None
    horizon: int
    first_weight: float = 1.0
    later_weight: float = 1.0
    activity: Float[Tensor, "b n k"] | None = None

    @classmethod
    def full(
        cls, frames: Tensor, labels: Tensor | None = None, times: Tensor | None = None
    ) -> SequenceBatch:
        """Return whole sequences, with each of their frames ``0..T``, after checking them.

        Args:
            frames: floating point ``(b, T+1, c, h, w)``, in [0, 1].
            labels: integers ``(b,)``, the index of each sequence's transformation,
                :data:`UNLABELLED` where it is unknown; None if all are unknown.
            times: of the frames, ``(T+1,)`` or ``(b, T+1)``, increasing from 0; 0 to T by default.

        Raises:
            DataError: a wrong type, shape or value; the message names the first bad pixel.
        """
        if frames.ndim != 5 or 0 in frames.shape or not frames.is_floating_point():
            raise DataError(
                "frames must be floating point of shape (samples, frames, channels, height, "
                f"width), but they are {frames.dtype} of shape {tuple(frames.shape)}."
            )
        # NaN compares false with everything, so that "not inside" finds it too.
        bad = ~((frames >= 0) & (frames <= 1))
        if bool(bad.any()):
            place = tuple(bad.nonzero()[0].tolist())
            raise DataError(
                f"frames must be finite and in [0, 1], but {int(bad.sum())} values are not: the "
                f"first is {float(frames[place]):g} at (sample, frame, channel, row, column) "
                f"{place}."
            )
        if labels is not None:
            check_integers("labels", labels, (len(frames),))
            if int(labels.min()) < UNLABELLED:
                raise DataError(f"labels must be at least 0, or {UNLABELLED} where unknown.")
            labels = labels.to(frames.device).long()
        count = frames.shape[1]
        if times is None:
            times = torch.arange(count)
        if times.shape not in ((count,), (len(frames), count)):
            raise DataError(
                f"times must be of shape ({count},) or ({len(frames)}, {count}), but they are "
                f"{tuple(times.shape)}."
            )
        for row in torch.atleast_2d(times):
            check_frame_times("times", row.tolist(), count)
        dtype = torch.promote_types(frames.dtype, torch.float)
        times = times.to(frames.device, dtype).expand(len(frames), count)
        return cls(frames, times, labels, count - 1)

    @property
    def weights(self) -> Float[Tensor, "b f"]:
        """Weights ``w`` for which ``sum_f w_f cost_f`` estimates the sum over all frames, unbiased.

        Example:
            >>> import torch
            >>> SequenceBatch.full(torch.rand(1, 3, 1, 4, 4)).weights.tolist()
            [[1.0, 1.0, 1.0]]
        """
        weights = self.frames.new_full((self.frames.shape[1],), self.later_weight)
        weights[0] = self.first_weight
        return weights.expand(self.times.shape)

    @property
    def counted(self) -> SequenceBatch:
        """The same sequences without their first frame, if its weight is 0."""
        if self.first_weight != 0:
            return self
        return dataclasses.replace(
            self,
            frames=self.frames[:, 1:],
            times=self.times[:, 1:],
            first_weight=self.later_weight,
        )

    @property
    def shared_times(self) -> Real[Tensor, "*b f"]:
        """The times as a flow takes them: ``(f,)`` if all sequences have the same, else ``(b, f)``.

        Example:
            >>> import torch
            >>> SequenceBatch.full(torch.rand(2, 3, 1, 4, 4)).shared_times
            tensor([0., 1., 2.])
        """
        first = self.times[0]
        return first if bool((self.times == first).all()) else self.times

    @property
    def is_complete(self) -> bool:
        """Whether every row has the frames ``0..T`` in their order, on the grid."""
        count = self.times.shape[1]
        if count != self.horizon + 1:
            return False
        return bool((self.times == torch.arange(count, device=self.times.device)).all())

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Return the same sequences on another device; to CUDA without waiting for the copy."""
        waits = torch.device(device).type != "cuda"
        return self._map(lambda x: x.to(device, non_blocking=not waits))

    def pin_memory(self) -> SequenceBatch:
        """Return the same sequences in memory from which CUDA copies without the processor."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> SequenceBatch:
        return dataclasses.replace(
            self,
            frames=function(self.frames),
            times=function(self.times),
            labels=None if self.labels is None else function(self.labels),
            activity=None if self.activity is None else function(self.activity),
        )

    def __len__(self) -> int:
        return len(self.frames)


class SequenceDataset(ABC):
    """Samples that undergo transformations, rendered or read on demand.

    A data set names its transformations and says in :meth:`render_frames` what its frames look
    like while any of them act; the rest follows from it.

    At a *canonical* start no transformation has acted before frame 0. At a *random* one all of them
    have, by random numbers of :meth:`random_starts`, of which there are ``start_size`` for each
    sequence.

    Args:
        names: of the transformations, in the order of their index; recorded data without any
            label may have none.
        horizon: ``T``, number of the last frame of a sequence.
        image_shape: channels, height and width of a frame.
        device: where frames are made.
        labels: the transformation of each sample, :data:`UNLABELLED` where it is unknown, if it
            was recorded and cannot be chosen.
        classes: the class of the image of each sample, integers.
        initial_state: how :class:`SequenceLoader` starts sequences, ``canonical`` or ``random``.
        start_size: how many random numbers a random start takes; 0 if all starts are canonical.

    Attributes:
        names, horizon, image_shape, device, labels, classes, initial_state, start_size: as given.
        per_sample: names of the attributes that have one row for each sample; see :meth:`subset`.

    Raises:
        DataError: names that are not distinct, a horizon out of range, random starts of a data set
            that has none.

    Example:
        >>> import torch
        >>> class Fading(SequenceDataset):
        ...     def __init__(self, images, **options):
        ...         super().__init__(("fade",), 4, tuple(images.shape[1:]), **options)
        ...         self.images = images
        ...
        ...     def __len__(self):
        ...         return len(self.images)
        ...
        ...     def render_frames(self, indices, elapsed, active, starts):
        ...         brightness = 1 - 0.2 * elapsed[0] * active[0][:, None]
        ...         return self.images[indices, None] * brightness[..., None, None, None]
        >>> data = Fading(torch.ones(10, 1, 8, 8))
        >>> data.sample([3, 5], "fade").frames.mean(dim=(2, 3, 4))
        tensor([[1.0000, 0.8000, 0.6000, 0.4000, 0.2000],
                [1.0000, 0.8000, 0.6000, 0.4000, 0.2000]])
    """

    per_sample: ClassVar[tuple[str, ...]] = ("labels", "classes")
    moves_by_whole_steps: ClassVar[bool] = True
    """Whether ``elapsed`` of :meth:`render_frames` must be whole numbers."""
    depends_on_path: ClassVar[bool] = False
    """Whether a frame depends on the order in which transformations acted before it."""
    activity: ActivityLaw | None = None
    """From what :class:`SequenceLoader` draws what happens, None for one transformation at speed 1;
    see :meth:`with_activity`."""
    _dtype: torch.dtype | None = None  # of frames; None: as rendered

    def __init__(
        self,
        names: Sequence[str],
        horizon: int,
        image_shape: tuple[int, int, int],
        *,
        device: torch.device | str | None = None,
        labels: Int[Tensor, "n"] | None = None,
        classes: Int[Tensor, "n"] | None = None,
        initial_state: str = "canonical",
        start_size: int = 0,
    ) -> None:
        if names or labels is None:  # of recorded data nobody may know what happens
            check_names(names)
        check_choice("initial_state", initial_state, ("canonical", "random"))
        if initial_state == "random" and start_size == 0:
            raise DataError("initial_state: this data set has no random starts.")
        self.names = tuple(names)
        self.horizon = horizon
        self.image_shape = image_shape
        self.device = torch.device(device or "cpu")
        self.labels = None if labels is None else labels.to(self.device)
        self.classes = None if classes is None else classes.to(self.device)
        self.initial_state = initial_state
        self.start_size = start_size
        # Which samples show their label (all of them if None), and whether none of them does.
        self._labelled: Bool[Tensor, "n"] | None = None
        self._hidden = labels is not None and bool((labels == UNLABELLED).all())
        check_range("horizon", horizon, 1)

    # ---- what a data set says

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def render_frames(
        self,
        indices: Int[Tensor, "b"],
        elapsed: Real[Tensor, "k b f"],
        active: Bool[Tensor, "k b"],
        starts: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Return frames of samples while some of the ``k`` transformations act.

        Arguments are on the device of the data set and are not checked.

        Args:
            indices: numbers of the samples.
            elapsed: for how many frames each transformation has acted at each of the ``f`` frames,
                if it is active; whole numbers unless ``moves_by_whole_steps`` is false, and in
                the range of :meth:`path_range` if the activity of sequences is drawn.
            active: whether a transformation acts on a sample at all.
            starts: from :meth:`random_starts`, or None for canonical ones.
        """

    @property
    def max_horizon(self) -> float:
        """The largest horizon that the data set can have, infinity if there is no limit."""
        return math.inf

    @property
    def is_regular(self) -> bool:
        """Whether frame n of every sequence is at time n."""
        return True

    def times_of(
        self, indices: Int[Tensor, "b"], numbers: Int[Tensor, "b f"]
    ) -> Real[Tensor, "b f"]:
        """Return when frames of samples are, unchecked; at their numbers if data are regular.

        In the unit of the flow's time, in which sequences last some ``horizon`` of them; 0 for
        frame 0, and increasing with the numbers.

        Args:
            indices: numbers of the samples.
            numbers: of the frames.
        """
        return numbers

    def known_factors(self, bins: int = 10) -> KnownFactors:
        """Return images drawn together with the factors that made them.

        Args:
            bins: into how many values continuous factors are cut.

        Raises:
            DataError: the factors of this data set are not known.
        """
        raise DataError(f"The factors of {type(self).__name__} are not known.")

    def coverage(self, k: int) -> Coverage | None:
        """Return which states of a transformation training sequences show, None if unknown.

        Args:
            k: index of the transformation.
        """
        start_anywhere = self.initial_state == "random"
        return None if start_anywhere else Coverage((0.0, float(self.horizon)))

    def path_range(self, k: int) -> PathRange:
        """Return between which states transformation ``k`` moves where activity is drawn."""
        longest = self.max_horizon
        return PathRange(0, longest if math.isfinite(longest) else self.horizon)

    # ---- what follows

    def sample(
        self,
        indices: Tensor | Sequence[int],
        labels: Tensor | int | str | None = None,
        times: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> SequenceBatch:
        """Return the sequences of some samples, after checking what is asked for.

        Args:
            indices: numbers of the samples, ``(b,)``.
            labels: the transformation, an index or a name for all or an index each ``(b,)``; by
                default what was recorded, or :meth:`round_robin`.
            times: numbers in ``0..T`` of the frames, ``(b, f)``, all of ``0..T`` by default; the
                costs of those after the first count ``T / (f - 1)`` times. The batch says when
                these frames are, see :meth:`times_of`.
            starts: from :meth:`random_starts`; canonical by default.

        Raises:
            DataError: a sample, a transformation or a frame that does not exist; a transformation
                that a recorded sample does not undergo; starts of another shape or out of range;
                rendered frames of another type or shape, or with pixels out of [0, 1]; times of
                frames that do not increase from 0.
        """
        indices = self._checked_indices(indices)
        chosen = (
            self.round_robin(indices)
            if labels is None
            else self._checked_labels(labels, len(indices))
        )
        if self.labels is not None and not torch.equal(chosen, self.labels[indices]):
            raise DataError("labels: what was recorded cannot be chosen; leave the argument out.")
        times = self._checked_times(times, len(indices))
        batch = self.select(indices, chosen, times, self._checked_starts(starts, len(indices)))
        self._check_frames(batch.frames, times)
        self._check_times_of(times, batch.times)
        return batch

    def select(
        self,
        indices: Int[Tensor, "b"],
        labels: Int[Tensor, "b"],
        times: Int[Tensor, "b f"],
        starts: Float[Tensor, "b s"] | None = None,
    ) -> SequenceBatch:
        """Return the frames ``times`` of samples under transformations ``labels``, unchecked.

        What :meth:`sample` does, for callers that make valid arguments on the data set's device at
        every training step.
        """
        count = max(1, len(self.names))
        active = labels == torch.arange(count, device=labels.device)[:, None]
        frames = self._render(indices, times.expand(count, -1, -1), active, starts)
        shown: Tensor | None = None if self._hidden else labels
        if shown is not None and self._labelled is not None:
            shown = torch.where(self._labelled[indices], shown, UNLABELLED)
        return self._batch(frames, indices, times, shown)

    def compose(
        self,
        indices: Tensor | Sequence[int],
        transformations: Sequence[int | str],
        times: Tensor | None = None,
        starts: Tensor | None = None,
        *,
        elapsed: Sequence[Tensor] | None = None,
    ) -> SequenceBatch:
        """Return sequences that truly undergo several transformations, together or one by one.

        The truth against which a superposition of learned flows is measured. Two transformations of
        one parameter add up (scales multiply).

        Args:
            indices: numbers of the samples, ``(b,)``.
            transformations: indices or names, at least one.
            times, starts: as for :meth:`sample`.
            elapsed: for each transformation, how many frames it has acted for at each frame,
                integers in ``0..T`` of shape ``(b, f)``; ``times`` by default. One that stands
                still while another one moves makes a sequence that switches.

        Raises:
            DataError: a sample, a transformation or a frame that does not exist; ``elapsed`` that
                does not fit; recorded sequences, whose transformations cannot be chosen.

        Example:
            >>> import torch
            >>> from flowfactor.data import TransformedImages
            >>> data = TransformedImages(torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8))
            >>> both = data.compose([0, 1], ("rotation", "hue"))
            >>> tuple(both.frames.shape), both.labels
            ((2, 9, 3, 28, 28), None)
            >>> clock = torch.arange(9).expand(2, -1)
            >>> first, then = clock.clamp(max=5), (clock - 5).clamp(min=0)
            >>> turned = data.compose([0, 1], ("rotation", "hue"), elapsed=[first, then])
            >>> bool((turned.frames[:, 5] == data.sample([0, 1], "rotation").frames[:, 5]).all())
            True
        """
        if self.labels is not None:
            raise DataError("Recorded sequences cannot be composed.")
        indices = self._checked_indices(indices)
        count = len(indices)
        times = self._checked_times(times, count)
        chosen = [self._index_of(each) for each in transformations]
        check_distinct("transformations", chosen)
        clocks = [times] * len(self.names)
        if elapsed is not None:
            if len(elapsed) != len(chosen):
                raise DataError(f"elapsed must hold {len(chosen)} tensors, but has {len(elapsed)}.")
            for k, clock in zip(chosen, elapsed, strict=True):
                check_integers("elapsed", clock, tuple(times.shape))
                clocks[k] = self._checked_times(clock, count)
        acts = torch.tensor([k in chosen for k in range(len(self.names))], device=self.device)
        frames = self._render(
            indices,
            torch.stack(clocks),
            acts[:, None].expand(-1, count),
            self._checked_starts(starts, count),
        )
        self._check_frames(frames, times)
        return self._batch(frames, indices, times)

    def move(
        self,
        indices: Tensor | Sequence[int],
        activity: Float[Tensor, "b n k"],
        times: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> SequenceBatch:
        """Return sequences in which transformations act as ``activity`` says.

        A sequence stays within :meth:`path_range`: it starts where it would without activity, or
        as near to that as its path has room; from random starts anywhere where it has.

        Args:
            indices: numbers of the samples, ``(b,)``.
            activity: signed speed of each transformation from frame ``t`` to ``t + 1``, 1 for that
                of :meth:`sample`, ``(b, T, K)``; of recordings only what they undergo can act.
            times, starts: as for :meth:`sample`.

        Raises:
            DataError: what :meth:`sample` refuses; activity of another shape, for which there is
                no room, or of a transformation that a recording does not undergo; speeds that are
                no whole numbers where data moves by whole steps.

        Example:
            >>> import torch
            >>> from flowfactor.data import TransformedImages
            >>> data = TransformedImages(torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8))
            >>> turn, stop, back = (torch.tensor([[[0.0, speed, 0.0]]]) for speed in (2, 0, -2))
            >>> activity = torch.cat([turn, turn, stop, stop, stop, stop, back, back], 1)
            >>> frames = data.move([3], activity).frames[0]
            >>> bool((frames[2] == data.sample([3], "rotation").frames[0, 4]).all())
            True
            >>> bool(torch.equal(frames[0], frames[8]))
            True
        """
        indices = self._checked_indices(indices)
        times = self._checked_times(times, len(indices))
        starts = self._checked_starts(starts, len(indices))
        self._check_activity(indices, activity)
        batch = self.select_moving(indices, activity.to(self.device), times, starts)
        self._check_frames(batch.frames, times)
        return batch

    def select_moving(
        self,
        indices: Int[Tensor, "b"],
        activity: Float[Tensor, "b n k"],
        times: Int[Tensor, "b f"],
        starts: Float[Tensor, "b s"] | None = None,
    ) -> SequenceBatch:
        """Return the frames ``times`` of samples that move, unchecked: what :meth:`move` does."""
        moved = accumulate(activity)
        offsets, active = self.path_starts(indices, moved, (activity != 0).any(1), starts)
        clocks = rearrange(offsets[:, None] + moved, "b f k -> k b f")
        if self.labels is not None:  # whatever is asked for, what was recorded happens
            own = self.labels[indices][None, :, None].expand(1, *clocks.shape[1:])
            clocks = clocks.gather(0, own).expand_as(clocks)
        if self.moves_by_whole_steps:
            clocks = clocks.round().long()
        if self.depends_on_path:
            frames = self._render(indices, clocks, active.T, None)
            frames = frames[torch.arange(len(indices), device=self.device)[:, None], times]
        else:
            clocks = clocks.gather(2, times.expand(len(clocks), -1, -1))
            frames = self._render(indices, clocks, active.T, None)
        return self._batch(frames, indices, times, activity=activity)

    def path_starts(
        self,
        indices: Int[Tensor, "b"],
        moved: Float[Tensor, "b f k"],
        active: Bool[Tensor, "b k"],
        starts: Float[Tensor, "b s"] | None,
    ) -> tuple[Float[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """Return where sequences start that move.

        Args:
            indices: numbers of the samples.
            moved: by how many frames each transformation has moved since frame 0.
            active: whether it moves at all.
            starts: from :meth:`random_starts`, or None for canonical ones.

        Returns:
            States in frames from the canonical one, from which the whole path is within
            :meth:`path_range`; and which transformations are there, the others are at rest.
        """
        low, high = self.path_ends(indices)
        free = [self.path_range(k).is_closed for k in range(len(self.names))]
        bound = ~torch.tensor(free, device=self.device)
        low, high = low - moved.amin(1) * bound, high - moved.amax(1) * bound
        if starts is None:
            return torch.zeros_like(low).clamp(low, high), active
        random = starts[:, : len(self.names)]
        if self.moves_by_whole_steps:
            anywhere = low + (random * (high - low + 1)).floor().clamp(max=high - low)
        else:
            anywhere = low + random * (high - low)
        return anywhere, torch.ones_like(active)

    def path_ends(
        self, indices: Int[Tensor, "b"]
    ) -> tuple[Real[Tensor, "b k"], Real[Tensor, "b k"]]:
        """Return the ends of :meth:`path_range` of samples."""
        ranges = [self.path_range(k)[:2] for k in range(len(self.names))]
        low, high = torch.tensor(ranges, device=self.device).T
        return low.expand(len(indices), -1), high.expand(len(indices), -1)

    def draw_sequences(
        self,
        indices: Tensor | Sequence[int],
        law: ActivityLaw,
        seed: int = 0,
        *,
        random_starts: bool = True,
    ) -> SequenceBatch:
        """Return complete sequences whose activity is drawn, the same whenever it is asked.

        A sequence is a function of the seed and of the number of its sample. For evaluation, of any
        data set, whatever its own :attr:`activity` is.

        Args:
            indices: numbers of the samples, ``(b,)``.
            law: from which the activity is drawn.
            seed: of the activity and the starts.
            random_starts: whether sequences start anywhere, if the data set has random starts; all
                of them then, whatever the part is in training.

        Raises:
            DataError: as :meth:`with_activity`.

        Example:
            >>> from flowfactor.data import ActivityLaw, Sprites
            >>> batch = Sprites(10).draw_sequences([3, 7], ActivityLaw("switch"))
            >>> tuple(batch.frames.shape), tuple(batch.activity.shape)
            ((2, 9, 3, 32, 32), (2, 8, 5))
        """
        self._check_law(law)
        chosen = self._checked_indices(indices)
        generator = torch.Generator().manual_seed(seed)
        random = torch.rand(len(self), law.size, generator=generator)[chosen.cpu()]
        starts = None
        if random_starts:
            starts = self.random_starts(len(self), generator, always=True)
        activity = self.draw_activity(law, chosen, random)
        starts = None if starts is None else starts[chosen]
        return self.select_moving(chosen, activity, self._checked_times(None, len(chosen)), starts)

    def draw_activity(
        self, law: ActivityLaw, indices: Int[Tensor, "b"], random: Float[Tensor, "b m"]
    ) -> Float[Tensor, "b n k"]:
        """Return what happens to samples, from random numbers; see :meth:`ActivityLaw.draw`."""
        return law.draw(
            random,
            len(self.names),
            self.horizon,
            whole=self.moves_by_whole_steps,
            first=None if self.labels is None else self.labels[indices].cpu(),
        ).to(self.device)

    def with_activity(self, law: ActivityLaw | None) -> Self:
        """Return the same data set, in whose training sequences happens what ``law`` says.

        Args:
            law: from which the activity of each sequence is drawn; None for one transformation
                at speed 1, whose name is the label.

        Raises:
            DataError: a data set that has too few transformations or frames for it, no whole speed
                where it moves by whole steps, or no room for the fastest; recordings of which it is
                unknown what they undergo, or in which something else should happen.
        """
        if law is not None:
            self._check_law(law)
        changed = copy.copy(self)
        changed.activity = law
        return changed

    def can_follow(self, law: ActivityLaw) -> bool:
        """Return whether :meth:`with_activity` takes a law."""
        try:
            self._check_law(law)
        except DataError:
            return False
        return True

    def render_at_rest(
        self, indices: Int[Tensor, "b"], starts: Float[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Return the images of samples while no transformation acts, unchecked."""
        count = max(1, len(self.names)), len(indices)
        still = torch.zeros(*count, 1, dtype=torch.long, device=self.device)
        active = torch.zeros(count, dtype=torch.bool, device=self.device)
        return self._render(indices.to(self.device), still, active, starts)[:, 0]

    def random_starts(
        self, count: int, generator: torch.Generator, *, always: bool = False
    ) -> Float[Tensor, "count s"] | None:
        """Draw where ``count`` sequences start at random.

        Args:
            count: of the sequences.
            generator: on the CPU, so that every device gets the same numbers.
            always: let none of them be canonical after all, as some are in data sets that have both
                kinds.

        Returns:
            What :meth:`sample` takes as ``starts``, uniform in [0, 1], on the data set's device;
            None if all starts are canonical.
        """
        if self.start_size == 0:
            return None
        return torch.rand(count, self.start_size, generator=generator).to(self.device)

    def samples_undergoing(self, k: int) -> Int[Tensor, "m"]:
        """Return the numbers of the samples that can undergo transformation ``k``.

        All of them, unless what they undergo was recorded.
        """
        if self.labels is None:
            return torch.arange(len(self), device=self.device)
        return (self.labels == k).nonzero()[:, 0]

    def round_robin(self, indices: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """Return a transformation for each sample: ``i mod K`` for sample ``i``, or the recorded.

        For validation and figures, which need all transformations and no chance.
        """
        return indices % len(self.names) if self.labels is None else self.labels[indices]

    def with_horizon(self, horizon: int) -> Self:
        """Return the same samples in shorter or longer sequences. Random starts stay the same.

        Raises:
            DataError: the horizon is out of range, for instance as recordings end before.
        """
        check_range("horizon", horizon, 1, self.max_horizon)
        changed = copy.copy(self)
        changed.horizon = horizon
        return changed

    def extend_to(self, horizon: int) -> Self:
        """Return the longest sequences up to frame ``horizon`` that the data set has."""
        longest = int(min(horizon, self.max_horizon))
        return self.with_horizon(longest) if longest > self.horizon else self

    def to(self, device: torch.device | str) -> Self:
        """Return the same data set with its tensors on another device, where frames are made."""
        changed = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(changed, name, value.to(device))
        changed.device = torch.device(device)
        return changed

    def in_dtype(self, dtype: torch.dtype) -> Self:
        """Return the same data set with its frames in another floating-point type."""
        changed = copy.copy(self)
        changed._dtype = dtype
        return changed

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        """Return some of the samples, in this order.

        Raises:
            DataError: a sample that does not exist, or none; a data set whose ``per_sample`` does
                not name all attributes that have a row for each sample.
        """
        chosen = self._checked_indices(indices)
        changed = copy.copy(self)
        for name in (*self.per_sample, "_labelled"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(changed, name, value[chosen.to(value.device)])
            elif value is not None:
                setattr(changed, name, value[chosen.cpu().numpy()])
        if len(changed) != len(chosen):
            raise DataError(f"{type(self).__name__}.per_sample does not name all that it must.")
        if changed.labels is not None:
            changed._hidden = self._hidden or bool((changed.labels == UNLABELLED).all())
        return changed

    def without_labels(self, fraction: float = 0.0, seed: int = 0) -> Self:
        """Return the same data set, whose batches hide the transformations of most samples.

        ``labels`` of a recorded data set still says what can be asked of each sample.

        Args:
            fraction: part of the samples that keep their label, drawn once.
            seed: of that draw.

        Raises:
            DataError: the fraction is not in [0, 1].

        Example:
            >>> import torch
            >>> from flowfactor.data import Sprites
            >>> Sprites(10).without_labels().sample([3, 5], "hue").labels is None
            True
            >>> Sprites(10).without_labels(fraction=0.5).sample([3, 5], "hue").labels.tolist()
            [4, -1]
        """
        check_range("fraction", fraction, 0, 1)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(len(self), generator=generator) < fraction
        changed = copy.copy(self)
        changed._labelled = drawn.to(self.device)
        changed._hidden = self._hidden or not bool(drawn.any())
        return changed

    def name_of(self, index: int) -> str:
        """Return what messages call a sample: its number, if it has no name."""
        return str(index)

    def relabel(self, names: Sequence[str], labels: Int[Tensor, "n"]) -> Self:
        """Return the same recorded sequences, said to undergo other transformations.

        Args:
            names: of the transformations.
            labels: an index into ``names`` for each sequence, :data:`UNLABELLED` where unknown.

        Raises:
            DataError: an index out of range, a number of them that is not that of the sequences,
                names that are not distinct; sequences whose transformations can be chosen.
        """
        if self.labels is None:
            raise DataError("Only recorded sequences can be relabelled.")
        check_names(names)
        check_integers("labels", labels, (len(self),))
        for k in (int(labels.min()), int(labels.max())):
            check_range("labels", k, UNLABELLED, len(names) - 1)
        changed = copy.copy(self)
        changed.names, changed.labels = tuple(names), labels.to(self.device)
        changed._hidden = bool((labels == UNLABELLED).all())
        return changed

    def require_labels(self) -> None:
        """Require batches to say of each sequence what it undergoes.

        Raises:
            DataError: some do not.
        """
        if self.activity is not None:
            raise DataError(
                "activity: sequences at changing speeds have no labels, which full supervision "
                "needs. Choose `data.activity: none`, or a model that is not supervised."
            )
        unknown = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        if self._labelled is not None:
            unknown |= ~self._labelled
        if self.labels is not None:
            unknown |= self.labels == UNLABELLED
        if bool(unknown.any()):
            first = self.name_of(int(unknown.nonzero()[0, 0]))
            raise DataError(
                "labels: full supervision needs the label of every sequence, or a single name, but "
                f"{int(unknown.sum())} of {len(self)} have none; the first is {first!r}."
            )

    def _batch(
        self,
        frames: Tensor,
        indices: Tensor,
        numbers: Tensor,
        labels: Tensor | None = None,
        activity: Tensor | None = None,
    ) -> SequenceBatch:
        """Return frames of samples as a batch; those after the first stand for all T."""
        dtype = self._dtype or torch.get_default_dtype()
        times = self.times_of(indices, numbers).to(dtype).to(self.device)
        weight = self.horizon / max(numbers.shape[1] - 1, 1)
        return SequenceBatch(
            frames, times, labels, self.horizon, later_weight=weight, activity=activity
        )

    # ---- checks

    def _checked_indices(self, indices: Tensor | Sequence[int]) -> Tensor:
        chosen = torch.as_tensor(indices, device=self.device)
        check_integers("indices", chosen, (None,))
        for index in (int(chosen.min()), int(chosen.max())):
            check_range("indices", index, 0, len(self) - 1)
        return chosen.long()

    def _render(
        self, indices: Tensor, elapsed: Tensor, active: Tensor, starts: Tensor | None
    ) -> Tensor:
        """Return frames in the type that was asked for, or at least torch's default one."""
        frames = self.render_frames(indices, elapsed, active, starts)
        if not isinstance(frames, Tensor) or not frames.is_floating_point():
            return frames  # which is refused where it is checked
        default = torch.promote_types(frames.dtype, torch.get_default_dtype())
        return frames.to(self._dtype or default)

    def _check_frames(self, frames: Tensor, times: Tensor) -> None:
        """Refuse what a :meth:`render_frames` of one's own should not have returned."""
        try:
            name = f"{type(self).__name__}.render_frames: the result"
            check_tensor(name, frames, (*times.shape, *self.image_shape), pixels=True)
        except (TypeError, ValueError) as error:
            raise DataError(f"{error}.") from None

    def _check_times_of(self, numbers: Tensor, times: Tensor) -> None:
        """Refuse what a :meth:`times_of` of one's own should not have returned."""
        name = f"{type(self).__name__}.times_of: the times of frames"
        if self.is_regular:
            if not torch.equal(times, numbers.to(times.dtype)):
                raise DataError(f"{name} are not their numbers, so that is_regular must be false.")
            return
        order = numbers.argsort(1)
        rises = times.gather(1, order).diff(dim=1) > 0
        fits = times.isfinite().all() and torch.equal(
            rises, numbers.gather(1, order).diff(dim=1) > 0
        )
        if not fits or bool((times[numbers == 0] != 0).any()):
            raise DataError(
                f"{name} must be finite, 0 for frame 0, and increase with their numbers."
            )

    def _index_of(self, transformation: int | str) -> int:
        if isinstance(transformation, str):
            if transformation not in self.names:
                hint = suggest(transformation, self.names)
                raise DataError(f"There is no transformation {transformation!r}; {hint}.")
            return self.names.index(transformation)
        check_range("labels", transformation, 0, len(self.names) - 1)
        return transformation

    def _check_law(self, law: ActivityLaw) -> None:
        """Refuse a law that this data set cannot follow."""
        if self.labels is not None and (law.kind != "single" or bool((self.labels < 0).any())):
            raise DataError(
                f"activity: what happens in recordings cannot be chosen, so that {law.kind!r} is "
                "not possible. 'single' plays them at whole speeds, if all have a label."
            )
        if not self.is_regular:
            raise DataError(
                "activity: needs frames at a constant rate, but these have their times."
            )
        whole = self.moves_by_whole_steps
        law.check(len(self.names), self.horizon, whole=whole)
        fastest = math.floor(law.speeds[1]) if whole else law.speeds[1]
        needed = fastest * self.horizon
        for k, name in enumerate(self.names):
            allowed = self.path_range(k)
            if not allowed.is_closed and allowed.high - allowed.low < needed - _ROUNDING:
                raise DataError(
                    f"activity: {name!r} has room for {allowed.high - allowed.low:g} steps, but a "
                    f"sequence at speed {fastest:g} takes {needed:g}. Choose smaller speeds, a "
                    "smaller horizon, or a wider path_range of the transformation."
                )

    def _check_activity(self, indices: Tensor, activity: Tensor) -> None:
        shape = (len(indices), self.horizon, len(self.names))
        try:
            check_tensor("activity", activity, shape)
        except (TypeError, ValueError) as error:
            raise DataError(f"{error}.") from None
        if self.moves_by_whole_steps and bool((activity != activity.round()).any()):
            raise DataError("activity: this data moves by whole steps, but a speed is not whole.")
        acts = activity.to(self.device).any(1)
        if self.labels is not None:
            own = self.labels[indices, None] == torch.arange(len(self.names), device=self.device)
            if bool((acts & ~own).any()):
                raise DataError("activity: a recording undergoes what it does, and nothing else.")
        moved = accumulate(activity.to(self.device))
        low, high = self.path_ends(indices)
        length = moved.amax(1) - moved.amin(1)
        for k, name in enumerate(self.names):
            longest = float((length - high + low)[:, k].max())
            if longest > _ROUNDING and not self.path_range(k).is_closed:
                raise DataError(
                    f"activity: the path of {name!r} is longer than its path_range by {longest:g} "
                    "steps."
                )

    def _checked_labels(self, labels: Tensor | int | str, count: int) -> Tensor:
        if not isinstance(labels, Tensor):
            return torch.full((count,), self._index_of(labels), device=self.device)
        check_integers("labels", labels, (count,))
        lowest = 0 if self.labels is None else UNLABELLED
        for k in (int(labels.min()), int(labels.max())):
            check_range("labels", k, lowest, len(self.names) - 1)
        return labels.to(self.device).long()

    def _checked_times(self, times: Tensor | None, count: int) -> Tensor:
        if times is None:
            return torch.arange(self.horizon + 1, device=self.device).expand(count, -1)
        # The times of a batch on the grid are numbers of frames.
        if self.is_regular and times.is_floating_point() and bool((times == times.round()).all()):
            times = times.long()
        check_integers("times", times, (count, None))
        for t in (int(times.min()), int(times.max())):
            check_range("times", t, 0, self.horizon)
        return times.to(self.device).long()

    def _checked_starts(self, starts: Tensor | None, count: int) -> Tensor | None:
        if starts is None:
            return None
        shape = (count, self.start_size)
        inside = starts.shape == shape and bool(((starts >= 0) & (starts <= 1)).all())
        if not inside or self.start_size == 0:
            raise DataError(f"starts must be numbers in [0, 1] of shape {shape}.")
        return starts.to(self.device)


def check_names(names: Sequence[str]) -> None:
    """Require distinct names of transformations, and neither too many nor too long ones.

    Raises:
        DataError: they are not.
    """
    check_range("names: their number", len(names), 1, MAX_TRANSFORMATIONS)
    check_range("names: the length of each", max(map(len, names)), 1, MAX_NAME)
    check_distinct("names", names)


def check_integers(name: str, values: Tensor, shape: tuple[int | None, ...]) -> None:
    """Require a tensor of integers of a shape, none of whose sizes is 0; None is any size.

    Raises:
        DataError: it has another type or shape; the message names the argument.
    """
    fits = values.ndim == len(shape) and all(
        size == (size if expected is None else expected) and size > 0
        for size, expected in zip(values.shape, shape, strict=True)
    )
    if not fits or values.is_floating_point() or values.dtype == torch.bool:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(
            f"{name} must be integers of shape ({sizes}), but they are {values.dtype} of shape "
            f"{tuple(values.shape)}."
        )
