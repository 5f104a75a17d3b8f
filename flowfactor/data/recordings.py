"""One's own recorded sequences: clips that show what happened, with or without its name."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from flowfactor.data.base import (
    MAX_NAME,
    MAX_TRANSFORMATIONS,
    UNLABELLED,
    SequenceDataset,
    check_names,
)
from flowfactor.data.checks import check_choice, check_frame_times, check_range
from flowfactor.data.clips import Clips, Labels, Preparation, VideoClips, open_clips
from flowfactor.data.io import Array, local_path, map_npy, natural_key, read_text, reading, to_list
from flowfactor.data.options import DataOptions, Horizon, Name, Side
from flowfactor.data.splits import SPLITS, Part, split_indices
from flowfactor.errors import DataError
from flowfactor.options import NonNegativeInt, PositiveFloat, PositiveInt, options, shorten
from flowfactor.registries import DATA

# What marks pixels or samples to be ignored in many data sets.
_IGNORED = 255

_log = logging.getLogger(__name__)

Numbers = Int[np.ndarray, "n"]


class Recordings(SequenceDataset):
    """Recorded sequences, each of which underwent a transformation that cannot be chosen.

    What can be read:

    * an array or tensor, or a ``.npy``, ``.npz``, ``.h5`` or ``.hdf5`` file with one (named
      ``frames`` if the file holds several), of shape ``(N, T+1, C, H, W)``, ``(N, T+1, H, W, C)``
      or ``(N, T+1, H, W)``, ``uint8`` (0..255) or floating point in [0, 1] (kept to 8 bits);
    * a folder with one folder of pictures for each recording, in natural order (``frame9`` before
      ``frame10``);
    * a video file or an animated picture, or a folder of them;
    * a folder of such folders or videos for each transformation, which it is named after;
    * a folder with a ``metadata.csv`` of columns ``file_name`` and, if known, ``label`` and
      ``group``, as for Hugging Face's VideoFolder.

    Frames are read when they are asked for, except from compressed ``.npz`` archives. Recordings
    are cut to sequences of ``T + 1`` frames: one from the beginning of each, or with ``stride`` as
    many as it has.

    Frames are a unit of time apart, unless the recordings bring times. The time of a frame is then
    that since frame 0 of its sequence, in such a unit that the longest sequence lasts T of them:
    ``0..T`` as ever where the frames are at a constant rate.

    Args:
        frames: the array, file or folder.
        labels: the transformation of each recording, names or indices into ``names``: a list, an
            array, a mapping from the recordings' names, or the path of a ``.npy``, ``.json`` or
            ``.csv`` file with one of these (in a ``.csv`` a label on each line, or a name and a
            label). -1, null or nothing is one that is unknown. By default what the file or the
            folders say, the array ``labels`` of an ``.npz`` or HDF5 file.
        names: of the transformations, in the order of their index; by default the different
            labels in natural order. Without labels a single name is that of all sequences; else
            it is unknown which one a sequence undergoes.
        groups: what belongs together, for instance the film that a recording is cut from: a name
            or number of each recording, given like ``labels``; by default what the file says, the
            array ``groups``, else each recording is a group of its own. See :meth:`split`.
        times: when the frames are, in any unit: numbers that increase from 0, ``(T+1,)`` for all
            recordings or ``(N, T+1)``, given like ``labels``; by default what the file says, the
            array ``times``.
        stamps: whether the times are the time stamps of videos and animated pictures; else those
            at a variable rate become films at a constant one.
        time_unit: how much of the times is one unit of the flow's.
        frames_first: whether arrays are ``(T+1, N, ...)``, as that of Moving MNIST.
        horizon: ``T``, the number of the last frame of a sequence; by default all that the shortest
            recording has.
        crop: top, left, height and width of the part of each frame that is taken.
        size: height and width, or one number for both, to which frames are resized, and their
            middle cut out where the shape differs.
        grey: make frames grey, by luminance.
        every: n, to keep every n-th frame.
        stride: let a new sequence begin this many recorded frames after the one before it.
        short: ``error``, or ``drop`` to leave out recordings with too few frames.
        memory_limit: bytes of frames that were read to keep; clips that fit are read only once.
        device: where the frames are taken to.

    Attributes:
        time_unit: how much of the times that were given is one unit of the flow's time, None if
            there are none.

    Raises:
        DataError: something that is missing, cannot be read, has another type, shape or value;
            recordings that are too short; labels or times that do not fit.

    Example:
        >>> import numpy as np
        >>> clips = np.random.default_rng(0).random((20, 9, 3, 16, 16))
        >>> recordings = Recordings(clips, labels=["turn", "grow"] * 10)
        >>> recordings.names, recordings.labels[:4].tolist()
        (('grow', 'turn'), [1, 0, 1, 0])
        >>> tuple(recordings.sample([0, 3]).frames.shape)
        (2, 9, 3, 16, 16)
        >>> {name: len(part) for name, part in recordings.split(test=0.2).items()}
        {'train': 14, 'validation': 2, 'test': 4}
        >>> uneven = Recordings(clips, times=[0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.6])  # seconds
        >>> uneven.sample([0]).times[0].tolist(), round(uneven.time_unit, 3)
        ([0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 8.0], 0.2)
    """

    per_sample: ClassVar[tuple[str, ...]] = (
        *SequenceDataset.per_sample,
        *("_clip", "_begin", "_end", "_group"),
    )

    def __init__(
        self,
        frames: Tensor | Array | str | Path,
        labels: Tensor | Array | Sequence[Any] | Mapping[str, Any] | str | Path | None = None,
        names: Sequence[str] | None = None,
        *,
        groups: Tensor | Array | Sequence[Any] | Mapping[str, Any] | str | Path | None = None,
        times: Tensor | Array | Sequence[Any] | Mapping[str, Any] | str | Path | None = None,
        stamps: bool = False,
        time_unit: float | None = None,
        frames_first: bool = False,
        horizon: int | None = None,
        crop: Sequence[int] | None = None,
        size: int | Sequence[int] | None = None,
        grey: bool = False,
        every: int = 1,
        stride: int | None = None,
        short: str = "error",
        memory_limit: int = 1 << 30,
        device: torch.device | str | None = None,
    ) -> None:
        check_range("every", every, 1)
        check_range("stride", 1 if stride is None else stride, 1)
        check_choice("short", short, ("error", "drop"))
        if horizon is None and (short == "drop" or stride is not None):
            raise DataError("horizon must be given if stride or short='drop' is.")
        sides = None
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            check_range("size", min(height, width), 1)
            sides = (height, width)
        part = None
        if crop is not None:
            top, left, height, width = crop
            check_range("crop", min(top, left, height - 1, width - 1), 0)
            part = (top, left, height, width)
        prepare = Preparation(sides, grey, part, stamps)
        clips = open_clips(frames, prepare, memory_limit, frames_first=frames_first)
        labels = clips.labels if labels is None else labels
        names, numbers = _number_labels(clips, labels, names)
        if horizon is None:
            horizon = (min(clips.lengths) - 1) // every
        check_range("horizon", horizon, 1)
        # One entry for each sequence; on the CPU, where files are read.
        self._clip, self._begin = _cut(clips, horizon * every + 1, stride, short)
        super().__init__(
            names,
            horizon,
            clips.image_shape,
            device=device,
            labels=torch.from_numpy(numbers[self._clip]),
        )
        self._clips = clips
        self._every = every
        self._end = np.array(clips.lengths)[self._clip]
        belongs = clips.groups if groups is None else groups
        self._group = _number_groups(clips, belongs)[self._clip]
        if stamps and (times is not None or not isinstance(clips, VideoClips)):
            raise DataError(
                "stamps: only videos and animated pictures have time stamps, which go without "
                "`times`."
            )
        # Of all recordings in a row, None on the grid.
        self._times = _frame_times(clips, times)
        self._rows = np.cumsum([0, *clips.lengths[:-1]])
        self.time_unit = time_unit
        if self._times is not None:
            first = self._rows[self._clip] + self._begin
            lasting = self._times[first + horizon * every] - self._times[first]
            self.time_unit = time_unit or float(lasting.max()) / horizon
            numbers = np.concatenate([np.arange(length) for length in clips.lengths]) / every
            if np.allclose(self._times / self.time_unit, numbers, rtol=0, atol=1e-6):
                self._times = None
        elif time_unit is not None:
            raise DataError("time_unit: the recordings bring no times; see `times` and `stamps`.")

    def __len__(self) -> int:
        return len(self._clip)

    @property
    def max_horizon(self) -> float:
        """The last frame that all recordings have."""
        return int(((self._end - 1 - self._begin) // self._every).min())

    @property
    def groups(self) -> Int[Tensor, "n"]:
        """The number of the group of each sequence: sequences of one group belong together."""
        return torch.from_numpy(self._group)

    @property
    def is_regular(self) -> bool:
        """Whether frames are at a constant rate."""
        return self._times is None

    def times_of(
        self, indices: Int[Tensor, "b"], numbers: Int[Tensor, "b f"]
    ) -> Real[Tensor, "b f"]:
        """Return when frames of sequences are, since frame 0; see :class:`SequenceDataset`."""
        if self._times is None:
            return numbers
        chosen = indices.cpu().numpy()
        first = (self._rows[self._clip[chosen]] + self._begin[chosen])[:, None]
        since = self._times[first + self._every * numbers.cpu().numpy()] - self._times[first]
        return torch.from_numpy(since / self.time_unit)

    def warn_range(self) -> None:
        """Log a warning if frames in the middle of some recordings hardly look like pictures."""
        self._clips.warn_range("the recordings")

    def name_of(self, index: int) -> str:
        """Return the name of the recording of a sequence: its file, folder or number."""
        return self._clips.names[int(self._clip[index])]

    def split(self, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> dict[str, Self]:
        """Return disjoint parts, drawn at random, with all sequences of a group in one of them.

        A single recording is cut in time: its first frames are for training, those that follow for
        validation, and its last for the test; no frame is in two parts.

        Args:
            validation: how many groups are for validation, a whole number, or a part of all, at
                least one; none if 0. Of a single recording a part of its frames.
            test: the same for the test.
            seed: of the draw.

        Returns:
            ``train``, and ``validation`` and ``test`` unless their part is 0.

        Raises:
            DataError: a part out of range, or too few groups or frames for one in each.
        """
        if len(np.unique(self._clip)) == 1:
            return self._split_in_time(validation, test)
        present = np.unique(self._group)
        parts = split_indices(len(present), validation, test, seed, "recordings or groups of them")
        return {
            name: self.subset(np.flatnonzero(np.isin(self._group, present[part.numpy()])).tolist())
            for name, part in parts.items()
            if len(part)
        }

    def _split_in_time(self, validation: float, test: float) -> dict[str, Self]:
        for name, part in (("validation", validation), ("test", test)):
            check_range(f"{name}, of a single recording", part, 0, 1)
        first, last = int(self._begin.min()), int(self._end.max())
        cuts = [first + round((last - first) * (1 - p)) for p in (validation + test, test)]
        bounds = dict(zip(SPLITS, itertools.pairwise([first, *cuts, last]), strict=True))
        span = self.horizon * self._every + 1
        parts = {}
        for name, (begin, end) in bounds.items():
            inside = (self._begin >= begin) & (self._begin + span <= end)
            if begin == end and name != "train":
                continue
            if not inside.any():
                short = end - begin < span
                advice = "Take a longer film" if short else "Give a smaller stride"
                raise DataError(
                    f"validation, test: of the {last - first} frames of the only recording, "
                    f"{end - begin} are for {name}, where no sequence of {span} frames lies. "
                    f"{advice}, a smaller horizon, or other parts."
                )
            parts[name] = self.subset(np.flatnonzero(inside).tolist())
            parts[name]._end = np.minimum(parts[name]._end, end)
        return parts

    def render_frames(
        self,
        indices: Int[Tensor, "b"],
        elapsed: Int[Tensor, "k b f"],
        active: Bool[Tensor, "k b"],
        starts: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Return the recorded frames, whatever acts; see :class:`SequenceDataset`."""
        chosen = indices.cpu().numpy()
        numbers = self._begin[chosen][:, None] + self._every * elapsed[0].cpu().numpy()
        frames = self._clips.frames(self._clip[chosen], numbers)
        return frames.to(self.device).float().div_(255)


def _cut(clips: Clips, span: int, stride: int | None, short: str) -> tuple[Numbers, Numbers]:
    """Return the clip and the first frame of each sequence of ``span`` frames."""
    sequences: list[tuple[int, int]] = []
    for number, length in enumerate(clips.lengths):
        if length < span and short == "error":
            raise DataError(
                f"horizon: a sequence needs {span} frames, but recording {clips.names[number]!r} "
                f"has {length}. Choose a smaller horizon, or leave it out with short='drop'."
            )
        begins = range(0, length - span + 1, stride or length)
        sequences += [(number, begin) for begin in begins]
    if not sequences:
        raise DataError(
            f"horizon: a sequence needs {span} frames, but the longest recording has "
            f"{max(clips.lengths)}."
        )
    clip, begin = np.array(sequences, dtype=np.int64).T
    return clip, begin


def _number_groups(clips: Clips, groups: Any) -> Numbers:
    """Return the number of the group of each clip; one that is unknown is a group of its own."""
    if groups is None:
        return np.arange(len(clips.names))
    if isinstance(groups, str | Path):
        groups = _read_labels(local_path(groups), "groups")
    known: dict[str, int] = {}
    values = [_plain(value, "groups") for value in _in_order(clips.names, groups, "groups")]
    keys = [f"\0{k}" if value is None else str(value) for k, value in enumerate(values)]
    return np.array([known.setdefault(key, len(known)) for key in keys])


def _frame_times(clips: Clips, times: Any) -> Float[np.ndarray, "n"] | None:
    """Return the times of the frames of all clips in a row, None if nobody says any.

    Raises:
        DataError: those of a clip are not as many as its frames, or do not increase from 0.
    """
    given = clips.times if times is None else times
    if isinstance(given, str | Path):
        given = _read_labels(local_path(given), "times")
    if given is None:
        return None
    if isinstance(given, Mapping) or (len(given) and np.ndim(given[0])):
        rows = _in_order(clips.names, given, "times")
    else:
        rows = [given] * len(clips.names)
    found = []
    for name, row, length in zip(clips.names, rows, clips.lengths, strict=True):
        what = f"times: those of recording {name!r}"
        try:
            found.append(np.asarray(row, dtype=np.float64).reshape(-1))
        except (TypeError, ValueError):
            raise DataError(f"{what} are no numbers.") from None
        check_frame_times(what, found[-1].tolist(), length)
    return np.concatenate(found)


def _number_labels(
    clips: Clips, labels: Any, names: Sequence[str] | None
) -> tuple[tuple[str, ...], Numbers]:
    """Return the names of the transformations, and the index of that of each clip.

    Raises:
        DataError: labels that cannot be read, do not fit the clips, or name nothing known.
    """
    if isinstance(labels, str | Path):
        path = local_path(labels)
        if clips.labels is not None and not path.exists():
            raise DataError(
                f"labels: there is no file {path.absolute()}, but the recordings bring labels of "
                f"their own, which are taken if none are given (`data.labels=null`)."
            )
        labels = _read_labels(path)
    if labels is None:
        # One transformation is that of all; which of several it is, only a model can find out.
        names = tuple(names or ())
        return names, np.full(len(clips.names), 0 if len(names) == 1 else UNLABELLED)
    values = [_plain(value) for value in _in_order(clips.names, labels)]
    values = _without_ignored(values, 0 if names is None else len(names))
    if names is None:
        names, known = _names_of(values)
    else:
        names = [_normal(name) for name in names]
        known = {str(k): k for k in range(len(names))}
        known |= {name: k for k, name in enumerate(names)}
    check_names(names)
    for recording, value in zip(clips.names, values, strict=True):
        if value is not None and str(value) not in known:
            raise DataError(
                f"labels: that of recording {recording!r} is {value!r}, which is neither one of "
                f"the names {shorten(str(list(names)), 200)} nor the index of one, counted from 0."
            )
    numbers = [UNLABELLED if value is None else known[str(value)] for value in values]
    return tuple(names), np.array(numbers)


def _names_of(values: Labels) -> tuple[list[str], dict[str, int]]:
    """Return the names that labels without names imply, and the index of each label."""
    texts = sorted({str(value) for value in values if value is not None}, key=natural_key)
    if not texts:
        raise DataError("names: no label is known, so that the transformations must be named.")
    if negative := next((text for text in texts if re.fullmatch(r"-\d+", text)), None):
        raise DataError(f"labels: {negative} is none; -1 or nothing is one that is unknown.")
    numeric = all(text.isdecimal() for text in texts)
    names = [f"transformation_{int(text)}" if numeric else text for text in texts]
    return names, {text: k for k, text in enumerate(texts)}


def _without_ignored(values: Labels, count: int) -> Labels:
    """Return labels in which 255 is unknown where it is far beyond all others."""
    numbers = {int(value) for value in values if value is not None and str(value).isdecimal()}
    others = numbers - {_IGNORED}
    if _IGNORED not in numbers or max(others, default=0) >= _IGNORED - 1 or count > _IGNORED:
        return values
    _log.warning("labels: %d is taken for an unknown one, as is usual in images.", _IGNORED)
    return [None if str(value) == str(_IGNORED) else value for value in values]


def _normal(text: str) -> str:
    """Return a text in which accents are composed in one way."""
    return unicodedata.normalize("NFC", text.strip())


def _in_order(recordings: Sequence[str], labels: Any, what: str = "labels") -> list[Any]:
    """Return the labels of all recordings, in the order of these."""
    if not isinstance(labels, Mapping):
        values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
        if len(values) != len(recordings):
            raise DataError(f"{what}: {len(values)} of them for {len(recordings)} recordings.")
        return values
    # A file may be called by its name with or without what kind of file it is.
    stems = {_normal(Path(name).with_suffix("").as_posix()): name for name in recordings}
    stems |= {_normal(name): name for name in recordings}
    given = {stems.get(_normal(str(name)), name): value for name, value in labels.items()}
    if wrong := sorted({*given} ^ {*recordings}, key=str):
        raise DataError(
            f"{what}: they must name each of the {len(recordings)} recordings, such as "
            f"{recordings[0]!r}; {wrong[0]!r} is only named there or only recorded."
        )
    return [given[name] for name in recordings]


def _plain(value: Any, what: str = "labels") -> str | int | None:
    """Return a label as a name or number, None if it is unknown."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise DataError(
            f"{what} must be names or whole numbers, but one of them is {shorten(repr(value))}."
        )
    value = _normal(value) if isinstance(value, str) else value
    if value is not None and (
        len(value) > MAX_NAME if isinstance(value, str) else abs(value) >= 2**63
    ):
        raise DataError(f"{what} may have {MAX_NAME} characters, or 64 bits as numbers.")
    return None if value in ("", "-1", -1) else value


def _read_labels(path: Path, what: str = "labels") -> Any:
    suffix = path.suffix.lower()
    check_choice(f"{what}: their file ends in", suffix, (".npy", ".json", ".csv", ".tsv"))
    if suffix == ".npy":
        with reading(path):
            return to_list(map_npy(path))
    text = read_text(path)
    with reading(path):
        if suffix == ".json":
            values = json.loads(text, object_pairs_hook=_distinct)
            if not isinstance(values, list | dict):
                raise DataError(f"{what}: {path} must hold a list or an object.")
            return values
        rows = _split_columns(text)
    # A first line that says what the columns are; anything else there is taken for a label.
    if rows and [cell.strip().casefold() for cell in rows[0]] in (
        [what[:-1]],
        ["name", what[:-1]],
    ):
        rows = rows[1:]
    widths = {len(row) for row in rows}
    if widths == {1}:
        return [row[0] for row in rows]
    if widths != {2}:
        raise DataError(
            f"{what}: {path} must have one column or two, on each line the same, separated by "
            "commas, semicolons or tabs."
        )
    named: dict[str, str] = {}
    for name, label in rows:
        if named.setdefault(name.strip(), label) != label:
            raise DataError(f"{what}: {path} has different ones for recording {name.strip()!r}.")
    return named


def _split_columns(text: str) -> list[list[str]]:
    """Return the cells of each line, separated by what gives two columns."""
    tables = []
    for separator in ",;\t":
        rows = csv.reader(io.StringIO(text, newline=None), delimiter=separator)
        # A line of an empty label has no cells; the last lines may be empty for no reason.
        tables.append([row for row in rows if any(cell.strip() for cell in row)])
        if {len(row) for row in tables[-1]} == {2}:
            return tables[-1]
    return tables[0]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a recording has two labels")
    return content


@DATA.register("recordings")
@options
class RecordingsOptions(DataOptions):
    """Your own sequences: an array in a file, folders of frames, or videos."""

    irrelevant: ClassVar[frozenset[str]] = DataOptions.irrelevant | {"memory_limit"}

    paths: ClassVar[tuple[str, ...]] = (
        *("path", "labels", "groups", "times"),
        *("test_path", "test_labels", "test_times"),
    )

    path: str = dataclasses.field(kw_only=True)
    """The file or folder."""

    labels: str | None = None
    """A ``.csv``, ``.json`` or ``.npy`` file with the transformation of each recording."""

    groups: str | None = None
    """A ``.csv``, ``.json`` or ``.npy`` file that says which recordings belong together, such as
    the film each is cut from: those of one group are in one split. By default the array ``groups``
    of the file, or the column ``group`` of ``metadata.csv``, else each is on its own."""

    times: str | None = None
    """A ``.npy``, ``.json`` or ``.csv`` file that says when the frames are, in any unit, increasing
    from 0: T + 1 numbers for all recordings, or as many for each. By default the array ``times`` of
    the file, else frames are at a constant rate."""

    stamps: bool = False
    """Whether frames of videos and animated pictures are taken as they are, at their time stamps;
    else a variable rate becomes constant by repeating frames or leaving them out."""

    time_unit: PositiveFloat | None = None
    """How much of the times is one unit of the flow's, such as 0.04 for seconds at 25 frames a
    second; by default so much that the longest sequence lasts T of them."""

    test_path: str | None = None
    """A file or folder of recordings for the test; by default a part of ``path`` is held out."""

    test_labels: str | None = None
    """The labels of ``test_path``, as ``labels``."""

    test_times: str | None = None
    """When the frames of ``test_path`` are, as ``times``."""

    names: Annotated[tuple[Name, ...], Field(max_length=MAX_TRANSFORMATIONS)] | None = None
    """Names of the transformations; by default the different labels. Without labels a single name
    is that of all sequences."""

    horizon: Horizon | None = None
    """T, the number of the last frame; by default all that the shortest recording has."""

    frames_first: bool = False
    """Whether arrays are (T+1, N, ...), as that of Moving MNIST, and not (N, T+1, ...)."""

    crop: tuple[NonNegativeInt, NonNegativeInt, Side, Side] | None = None
    """Top, left, height and width of the part of each frame that is taken."""

    size: Side | tuple[Side, Side] | None = None
    """Height and width to which frames are resized, the middle being cut out."""

    grey: bool = False
    """Whether to convert colours to grey (luminance)."""

    every: PositiveInt = 1
    """Keep every n-th frame."""

    stride: PositiveInt | None = None
    """Begin a new sequence this many frames after the one before it; one of each recording by
    default."""

    short: Literal["error", "drop"] = "error"
    """What happens to recordings with too few frames."""

    memory_limit: PositiveInt = 1 << 30
    """Bytes of frames that were read to keep in memory."""

    validation: Part = 0.1
    """Recordings, or groups of them, for validation: a number, or a fraction of all. Of a
    single recording, the fraction of its frames just before those for the test."""

    test: Part = 0.1
    """The same for the test; of a single recording, the fraction at its end."""

    @model_validator(mode="after")
    def _starts_as_recorded(self) -> Self:
        if self.initial_state == "random":
            raise ValueError("recorded sequences start as recorded: `initial_state: canonical`")
        return self

    def load(self, split: str, seed: int) -> Recordings:
        """Return the recordings of a split, drawn by the seed."""
        whole = self._open(
            self.path,
            self.labels,
            groups=self.groups,
            times=self.times,
            time_unit=self.time_unit,
            horizon=self.horizon,
        )
        if split == "train":
            whole.warn_range()
        if self.test_path is None:
            return whole.split(self.validation, self.test, seed)[split]
        if split != "test":
            return whole.split(self.validation, 0, seed)[split]
        test = self._open(
            self.test_path,
            self.test_labels,
            times=self.test_times,
            time_unit=whole.time_unit,
            horizon=whole.horizon,
        )
        if unknown := [name for name in test.names if name not in whole.names]:
            raise DataError(f"test_path: {unknown[0]!r} is no label of {self.path}.")
        if test.names == whole.names:
            return test
        own = torch.tensor([*(whole.names.index(name) for name in test.names), UNLABELLED])
        assert test.labels is not None
        return test.relabel(whole.names, own[test.labels])

    def _open(self, path: str, labels: str | None, **own: Any) -> Recordings:
        return Recordings(
            path,
            labels,
            self.names,
            **own,
            stamps=self.stamps,
            frames_first=self.frames_first,
            crop=self.crop,
            size=self.size,
            grey=self.grey,
            every=self.every,
            stride=self.stride,
            short=self.short,
            memory_limit=self.memory_limit,
        )

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes folders of frames and their labels."""
        lines = []
        for number in range(20):
            clip = folder / "recordings" / f"clip{number:02}"
            clip.mkdir(parents=True)
            for t in range(5):
                frame = np.full((16, 16, 3), 20 + 8 * number, dtype=np.uint8)
                frame[4 + t * (number % 2) :, 4 + t * (1 - number % 2) :] = 200
                Image.fromarray(frame).save(clip / f"{t}.png")
            lines.append(f"clip{number:02},{('right', 'down')[number % 2]}")
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")
        return {
            "path": str(folder / "recordings"),
            "labels": str(folder / "labels.csv"),
            "test_path": None,
        }
