"""One's own recorded sequences: films that show what happened, with or without its name."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowfactor.data.films import Array, Films, Labels, Preparation, natural, open_films
from flowfactor.data.sequences import SequenceBatch
from flowfactor.data.source import SequenceDataset
from flowfactor.errors import DataError


class Recordings(SequenceDataset):
    """Recorded sequences, each of which underwent a transformation that nobody can choose.

    What can be read:

    * an array or tensor, or a `.npy`, `.npz`, `.h5` or `.hdf5` file with one (named `frames` if
      the file holds several), of shape `(N, T+1, C, H, W)`, `(N, T+1, H, W, C)` or
      `(N, T+1, H, W)` with 1 or 3 channels, `uint8` (0..255) or floating point in [0, 1] (kept
      to 8 bits);
    * a folder with one folder of picture files for each recording, ordered as people count
      (`frame9` before `frame10`);
    * a video file, or a folder of them;
    * a folder of such folders or videos for each transformation, which it is named after.

    Files other than `.npz` are read when frames are asked for. Recordings are cut to sequences of
    `T + 1` frames: one from the beginning of each, or with `stride` as many as it has.

    Args:
        frames: the array, file or folder.
        labels: the transformation of each recording, names or indices into `names`: a list, an
            array, a mapping from the recordings' names, or the path of a `.npy`, `.json` or
            `.csv` file with one of these (in a `.csv` a label on each line, or a name and a
            label). -1, null or nothing is one that is not known. By default what the file or the
            folders say, the array `labels` of an `.npz` or HDF5 file.
        names: of the transformations, in the order of their index; by default the different
            labels in natural order. Without labels a single name is that of all sequences, and
            with several it is not known which one a sequence undergoes.
        horizon: `T`, the number of the last frame of a sequence; by default all that the shortest
            recording has.
        size: height and width, or one number for both, to which frames are resized, and their
            middle cut out where the shape differs.
        grey: make frames grey, by luminance.
        every: take only each frame of this number.
        stride: let a new sequence begin this many recorded frames after the one before it.
        short: `error`, or `drop` to leave out recordings with too few frames.
        memory_limit: bytes of frames that were read to keep; films that fit are read only once.
        device: where the frames are taken to.

    Raises:
        DataError: something that is not there, cannot be read, has another type, shape or value;
            recordings that are too short; labels that do not fit.

    Example:
        >>> import numpy as np
        >>> films = np.random.default_rng(0).random((20, 9, 3, 16, 16))
        >>> recordings = Recordings(films, labels=["turn", "grow"] * 10)
        >>> recordings.names, recordings.labels[:4].tolist()
        (('grow', 'turn'), [1, 0, 1, 0])
        >>> tuple(recordings.sample([0, 3]).frames.shape)
        (2, 9, 3, 16, 16)
        >>> {name: len(part) for name, part in recordings.split(test=0.2).items()}
        {'train': 14, 'validation': 2, 'test': 4}
    """

    def __init__(
        self,
        frames: Tensor | Array | str | Path,
        labels: Tensor | Array | Sequence[Any] | Mapping[str, Any] | str | Path | None = None,
        names: Sequence[str] | None = None,
        *,
        horizon: int | None = None,
        size: int | Sequence[int] | None = None,
        grey: bool = False,
        every: int = 1,
        stride: int | None = None,
        short: str = "error",
        memory_limit: int = 1 << 30,
        device: torch.device | str | None = None,
    ) -> None:
        for option, value in (("horizon", horizon), ("every", every), ("stride", stride)):
            if value is not None and value < 1:
                raise DataError(f"{option} must be at least 1, but it is {value}.")
        if short not in ("error", "drop"):
            raise DataError(f"short must be 'error' or 'drop', but it is {short!r}.")
        if horizon is None and (short == "drop" or stride is not None):
            raise DataError("stride and short='drop' need the length of a sequence: give last.")
        films = open_films(frames, Preparation(_size(size), grey), memory_limit)
        labels = films.labels if labels is None else labels
        self.labelled = labels is not None
        self._names, factors = _label_numbers(films, labels, names)
        self._films = films
        self._every = every
        self._last = (min(films.lengths) - 1) // every if horizon is None else horizon
        self._device = torch.device(device or "cpu")
        recordings, begins = _windows(films, self._last, every, stride, short)
        self.recordings: Int[Tensor, " n"] = recordings
        self._begins: Int[Tensor, " n"] = begins
        self._own: Int[Tensor, " n"] = factors[recordings].to(self._device)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations, in the order of their index."""
        return self._names

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The transformation that each sequence undergoes, -1 where it is not known."""
        return self._own

    @property
    def horizon(self) -> int:
        """`T`, number of the last frame of a sequence."""
        return self._last

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        return self._films.image_shape

    @property
    def device(self) -> torch.device:
        """Where the frames are taken to."""
        return self._device

    def __len__(self) -> int:
        return len(self.recordings)

    def recording(self, index: int) -> str:
        """The name of the recording that sequence `index` is from: its file, folder or number."""
        return self._films.names[int(self.recordings[index])]

    def with_last(self, horizon: int) -> Recordings:
        """The same sequences cut shorter, or longer where their recordings go on.

        Raises:
            DataError: a recording ends before.
        """
        if horizon < 1:
            raise DataError(f"A sequence needs a last frame of at least 1, but last is {horizon}.")
        lengths = torch.tensor(self._films.lengths)[self.recordings]
        ends = self._begins + horizon * self._every >= lengths
        if bool(ends.any()):
            first = int(ends.nonzero()[0])
            raise DataError(
                f"Sequence {first} has no frame {horizon}: its recording {self.recording(first)!r} "
                f"ends after {int(lengths[first])} frames. Recorded sequences cannot be extended."
            )
        changed = copy.copy(self)
        changed._last = horizon
        return changed

    def to(self, device: torch.device | str) -> Recordings:
        """The same sequences, their frames taken to another device."""
        changed = copy.copy(self)
        changed._device = torch.device(device)
        changed._own = self._own.to(device)
        return changed

    def subset(self, indices: Tensor | Sequence[int]) -> Recordings:
        """Some of the sequences, in this order.

        Raises:
            DataError: a sequence that does not exist, or none.
        """
        chosen = self._indices(indices)
        changed = copy.copy(self)
        changed._own = self._own[chosen]
        chosen = chosen.cpu()
        changed.recordings, changed._begins = self.recordings[chosen], self._begins[chosen]
        return changed

    def relabelled(self, names: Sequence[str], labels: Int[Tensor, " n"]) -> Recordings:
        """The same sequences, said to undergo other transformations.

        Args:
            names: of the transformations.
            labels: an index into ``names`` for each sequence, -1 where it is not known.

        Raises:
            DataError: an index out of range, a number of them that is not that of the sequences,
                names that are not one or more, each different.
        """
        _check_names(names)
        if labels.shape != (len(self),):
            raise DataError(
                f"There must be an index for each of the {len(self)} sequences, but their shape is "
                f"{tuple(factor.shape)}."
            )
        if not -1 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise DataError(
                f"The transformations must be in 0..{len(names) - 1}, or -1 for unknown, but they "
                f"are in {int(factor.min())}..{int(factor.max())}."
            )
        changed = copy.copy(self)
        changed._names, changed._own = tuple(names), labels.to(self.device)
        return changed

    def split(
        self, validation: float = 0.1, test: float = 0.1, seed: int = 0
    ) -> dict[str, Recordings]:
        """Disjoint parts, drawn at random; all sequences of a recording are in one of them.

        Args:
            validation: the part of the recordings for validation, at least one; none if 0.
            test: the same for the test.
            seed: of the draw.

        Returns:
            `train`, and `validation` and `test` unless their part is 0.

        Raises:
            DataError: a part out of range, or too few recordings for one in each.
        """
        if min(validation, test) < 0 or validation + test >= 1:
            raise DataError(
                f"validation and test must be parts, not negative and less than 1 together, but "
                f"they are {validation} and {test}."
            )
        present = self.recordings.unique()
        order = present[torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))]
        counts = [max(1, round(p * len(present))) if p else 0 for p in (validation, test)]
        if sum(counts) >= len(present):
            raise DataError(
                f"{len(present)} recordings are too few for a training, a validation and a test "
                f"split with {counts[0]} for validation and {counts[1]} for the test."
            )
        sizes = [len(present) - sum(counts), *counts]
        parts = zip(("train", "validation", "test"), order.split(sizes), strict=True)
        return {
            name: self.subset(torch.isin(self.recordings, part).nonzero()[:, 0].to(self.device))
            for name, part in parts
            if len(part)
        }

    def sample(
        self,
        indices: Tensor | Sequence[int],
        labels: Tensor | int | str | None = None,
        times: Tensor | None = None,
        start: Tensor | None = None,
    ) -> SequenceBatch:
        """Some of the sequences, after checking what is asked for.

        Args:
            indices: numbers of the sequences, `(B,)`.
            labels: best left out: the transformation they undergo is their own, and no other can
                be asked for.
            times: frames, whole numbers in `0..T` of shape `(B, F)`, the first of each row 0; all
                of `0..T` if not given.
            start: there are no random starts.

        Raises:
            DataError: a sequence or frame that does not exist, a transformation that a sequence
                does not undergo.
        """
        indices = self._indices(indices)
        own = self.labels[indices]
        if labels is not None:
            self._check_known(labels, indices)
            asked = self._factors(labels, len(indices))
            wrong = (asked != own).nonzero()
            if len(wrong):
                first = int(wrong[0])
                known = int(own[first])
                says = f"undergoes {self.names[known]!r}" if known >= 0 else "has no known one"
                raise DataError(
                    f"Sequence {int(indices[first])} {says}, not transformation "
                    f"{self.names[int(asked[first])]!r}: what was recorded cannot be chosen. Leave "
                    "factor out, or choose sequences by `labels`."
                )
        if start is not None:
            raise DataError("Recorded sequences have no random starts; they begin as they are.")
        if times is None:
            times = torch.arange(self.horizon + 1, device=self.device).expand(len(indices), -1)
        else:
            times = self._times(times, len(indices))
        return self.select(indices, own, times)

    def compose(
        self,
        indices: Tensor | Sequence[int],
        factors: Sequence[int | str],
        times: Tensor | None = None,
        start: Tensor | None = None,
        *,
        elapsed: Sequence[Tensor] | None = None,
    ) -> SequenceBatch:
        """Not to be had: what was recorded cannot undergo anything else.

        Raises:
            DataError: always.
        """
        raise DataError(
            "Recorded sequences cannot be composed: what several transformations do at the same "
            "time was not recorded. Data sets that draw their frames can, such as Sprites."
        )

    def _check_known(self, labels: Tensor | int | str, indices: Int[Tensor, " b"]) -> None:
        if not isinstance(labels, Tensor) or labels.shape != indices.shape:
            return
        unknown = (labels < 0).nonzero()
        if len(unknown):
            recording = self.recording(int(indices[unknown[0]]))
            raise DataError(
                f"Recording {recording!r} has no known transformation, which validation and "
                "evaluation compare with. Give its label, or leave factor out to have its frames."
            )

    def _frames(
        self,
        indices: Int[Tensor, " b"],
        elapsed: Sequence[Int[Tensor, "b f"]],
        active: Sequence[Bool[Tensor, " b"]],
        start: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """The recorded frames, whatever is said to act."""
        chosen = indices.cpu()
        numbers = self._begins[chosen][:, None] + self._every * elapsed[0].cpu()
        frames = self._films.frames(self.recordings[chosen], numbers)
        return frames.to(self.device).float().div_(255)


def _size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or min(sides) < 1:
        raise DataError(f"size must be a height and a width, both at least 1, but it is {size}.")
    return sides[0], sides[1]


def _windows(
    films: Films, horizon: int, every: int, stride: int | None, short: str
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The recording and the first frame of each sequence."""
    span = horizon * every + 1
    recordings: list[int] = []
    begins: list[int] = []
    for number, length in enumerate(films.lengths):
        if (length < span and short == "error") or horizon < 1:
            raise DataError(
                f"Recording {films.names[number]!r} has {length} frames, but a sequence of frames "
                f"0..{max(last, 1)}, taking every {every}, needs {max(span, every + 1)}. Choose a "
                "smaller last, or leave such recordings out with short='drop'."
            )
        found = range(0, length - span + 1, stride or length)
        recordings += [number] * len(found)
        begins += found
    if not recordings:
        raise DataError(
            f"None of the {len(films.lengths)} recordings has the {span} frames that a sequence "
            f"needs; the longest has {max(films.lengths)}. Choose a smaller last."
        )
    return torch.tensor(recordings), torch.tensor(begins)


def _label_numbers(
    films: Films,
    labels: Tensor | Array | Sequence[Any] | Mapping[str, Any] | str | Path | None,
    names: Sequence[str] | None,
) -> tuple[tuple[str, ...], Int[Tensor, " r"]]:
    """Names of the transformations, and the index of that of each recording."""
    if names is not None:
        _check_names(names)
    if isinstance(labels, str | Path):
        labels = _read_labels(Path(labels))
    if labels is None:
        # One transformation is that of all; which of several it is, only a model can find out.
        names = tuple(names or ("transformation",))
        return names, torch.full((len(films.names),), 0 if len(names) == 1 else -1)
    values = [_plain(value) for value in _in_order(films.names, labels)]
    if names is None:
        names = _names_of(values)
    known = {**{str(k): k for k in range(-1, len(names))}, **{n: k for k, n in enumerate(names)}}
    numbers = []
    for recording, value in zip(films.names, values, strict=True):
        if value is not None and str(value) not in known:
            raise DataError(
                f"The label of recording {recording!r} is {value!r}, which is neither one of the "
                f"names {list(names)}, nor an index in 0..{len(names) - 1}, nor -1 for unknown."
            )
        numbers.append(-1 if value is None else known[str(value)])
    return tuple(names), torch.tensor(numbers)


def _check_names(names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names):
        raise DataError(f"names must be one or more, each different, but they are {list(names)}.")


def _names_of(values: Labels) -> tuple[str, ...]:
    """The names that labels without names imply."""
    texts = {str(value) for value in values if value is not None} - {"-1"}
    if not texts:
        raise DataError("No label is known, so that the transformations must be named: give names.")
    if all(text.isdecimal() for text in texts):
        return tuple(f"transformation_{k}" for k in range(max(map(int, texts)) + 1))
    return tuple(sorted(texts, key=natural))


def _in_order(recordings: Sequence[str], labels: Any) -> list[Any]:
    """The labels of all recordings, in the order of these."""
    if isinstance(labels, Mapping):
        # A file may be called by its name with or without what kind of file it is.
        named = {str(Path(name).with_suffix("").as_posix()): name for name in recordings}
        given = {named.get(name, name): value for name, value in labels.items()}
        for what, missing in (
            ("There is no label for recording", [n for n in recordings if n not in given]),
            ("There is a label, but no recording,", [n for n in given if n not in recordings]),
        ):
            if missing:
                raise DataError(
                    f"{what} {missing[0]!r} ({len(missing)} in all). The labels must name each of "
                    f"the {len(recordings)} recordings, such as {recordings[0]!r}; -1 says that "
                    "a label is not known."
                )
        return [given[name] for name in recordings]
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if len(values) != len(recordings):
        raise DataError(
            f"There must be one label for each of the {len(recordings)} recordings, but there are "
            f"{len(values)}."
        )
    return values


def _plain(value: Any) -> str | int | None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value == "" or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"Labels must be names or whole numbers, but one of them is {value!r}, of type "
            f"{type(value).__name__}."
        )
    return value.strip() if isinstance(value, str) else value


def _read_labels(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix.lower() == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, list | dict):
                raise DataError(f"{path} must hold a list or an object of labels.")
            return values
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                return _from_rows([row for row in csv.reader(file) if row], path)
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path} with labels. Give another one, or none (`labels: null`) "
            "where folders are named after the transformations or all undergo the same."
        ) from error
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise DataError(f"The labels in {path} cannot be read ({error}).") from error
    raise DataError(f"Labels are read from .npy, .json or .csv files, but the file is {path}.")


def _from_rows(rows: list[list[str]], path: Path) -> list[str] | dict[str, str]:
    # A first line that says what the columns are; anything else there is taken for a label.
    if rows and [cell.strip().casefold() for cell in rows[0]] in (["label"], ["name", "label"]):
        rows = rows[1:]
    widths = {len(row) for row in rows}
    if widths == {1}:
        return [row[0] for row in rows]
    if widths != {2}:
        raise DataError(
            f"{path} must have one column (a label on each line) or two (a recording and its "
            f"label), but its lines have {sorted(widths)} columns."
        )
    found: dict[str, str] = {}
    for name, label in rows:
        if found.setdefault(name.strip(), label) != label:
            raise DataError(f"{path} has different labels for recording {name.strip()!r}.")
    return found
