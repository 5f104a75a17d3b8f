"""What the ``data`` section of a configuration may say about every data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from flowfactor.data.activity import ActivityKind, ActivityLaw, Directions
from flowfactor.data.base import MAX_NAME, MAX_TRANSFORMATIONS, InitialState, SequenceDataset
from flowfactor.data.checks import check_range
from flowfactor.data.fingerprints import fingerprint
from flowfactor.data.io import local_path
from flowfactor.data.transformations import Transformation
from flowfactor.errors import DataError
from flowfactor.options import Fraction, PositiveFloat, PositiveInt, dump, options

Split = Literal["train", "validation", "test"]
# Limits of what is allocated for a stranger's configuration.
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Side = Annotated[PositiveInt, Field(le=16_384)]
Horizon = Annotated[PositiveInt, Field(le=100_000)]
Count = Annotated[PositiveInt, Field(le=10**9)]
Transformations = Annotated[
    dict[Name, Transformation], Field(min_length=1, max_length=MAX_TRANSFORMATIONS)
]


@options
class DataOptions:
    """Options of a data set: what all of them have, and what may be overridden.

    A data set becomes a ``data.source`` of a configuration by a class of options that is derived
    from this one, registered, and has :meth:`load`::

        @DATA.register("bouncing_balls")
        @options
        class BouncingBallsOptions(DataOptions):
            balls: PositiveInt = 3
            \"\"\"How many balls there are.\"\"\"

            def load(self, split: str, seed: int) -> SequenceDataset:
                return BouncingBalls(self.balls, split, initial_state=self.initial_state)
    """

    initial_state: InitialState = "canonical"
    """How training sequences start: with no transformation having acted, or with all of them at
    random."""

    labelled_fraction: Fraction | None = None
    """Fraction of the training sequences whose labels a weakly supervised model sees; none by
    default."""

    activity: ActivityKind | Literal["none"] = "none"
    """What happens in training sequences. ``none``: one transformation at speed 1, the label. The
    others are drawn at random, without a label: ``single``, one at a constant speed; ``switch``,
    one and from some frame on another one at a speed of its own; ``pairs``, two at once; ``mixed``,
    half ``single`` and half ``switch``."""

    speeds: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.5)
    """Range of the speeds that ``activity`` draws, in steps per frame; whole numbers for grids and
    recordings, whose images are a step apart."""

    directions: Directions = "both"
    """Whether ``activity`` lets transformations run backwards as often as forwards."""

    paths: ClassVar[tuple[str, ...]] = ()
    """Keys that hold files or folders of the data: ``~`` and relative paths, which are relative to
    the working directory of the training, become absolute in what the run keeps."""

    irrelevant: ClassVar[frozenset[str]] = frozenset(
        {"initial_state", "labelled_fraction", "activity", "speeds", "directions"}
    )
    """Keys that do not change the held-out sequences from canonical starts."""

    split_depends_on_seed: ClassVar[bool] = True
    """Whether the seed of a run decides which samples are held out."""

    @model_validator(mode="after")
    def _speeds_in_order(self) -> Self:
        if self.speeds[0] > self.speeds[1]:
            raise ValueError("`speeds` must be the smallest and the largest")
        return self

    @property
    def law(self) -> ActivityLaw | None:
        """From what the activity of training sequences is drawn, if it is."""
        if self.activity == "none":
            return None
        return ActivityLaw(self.activity, self.speeds, self.directions)

    def load(self, split: str, seed: int) -> SequenceDataset:
        """Return the sequences of a split. Every data set must implement this method.

        Args:
            split: ``train``, ``validation`` or ``test``.
            seed: of the run.

        Raises:
            DataError: they cannot be read, or are not what the options say.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement load()")

    def resolve(self) -> Self:
        """Return the same options with everything decided that depends on the machine."""
        given = {key: getattr(self, key) for key in self.paths}
        absolute: dict[str, Any] = {
            key: str(local_path(path).absolute()) for key, path in given.items() if path
        }
        return dataclasses.replace(self, **absolute)

    def fingerprint(self) -> dict[str, str]:
        """Return what tells other data from these: a checksum for each of :attr:`paths`.

        Of a file it is made from the size and some blocks, of a folder from the names and sizes of
        all files and the beginnings of some, so that it takes no longer for much data.

        Raises:
            DataError: a file cannot be read.
        """
        given = {key: getattr(self, key) for key in self.paths}
        return {key: fingerprint(local_path(path)) for key, path in given.items() if path}

    def check_fingerprint(self, stored: object) -> None:
        """Require the data to be those of a training.

        Args:
            stored: their :meth:`fingerprint`, or anything else if it is not known.

        Raises:
            DataError: they are others, or cannot be read.
        """
        if not isinstance(stored, dict) or not stored:
            return
        for key, found in self.fingerprint().items():
            if stored.get(key, found) != found:
                raise DataError(
                    f"data.{key}: {getattr(self, key)} no longer holds what the run was trained "
                    "on. Restore it, or write where it is into the config.yaml of the run."
                )

    def describe_held_out(self) -> str | None:
        """Return what training never sees, as in ``digits 8, 9``; None if nothing is held out."""
        return None

    def load_held_out(self, split: str, seed: int) -> SequenceDataset:
        """Return sequences of exactly what training never sees.

        Raises:
            DataError: nothing is held out, or it cannot be read.
        """
        raise DataError("Nothing is held out of this training; see data.held_out or similar keys.")

    def held_out_sequences(self) -> dict[str, Any]:
        """Return the options on which held-out sequences from canonical starts depend."""
        content = {key: value for key, value in dump(self).items() if key not in self.irrelevant}
        # Neither do the ranges of random starts and of activity matter.
        for each in (content.get("transformations") or {}).values():
            each.pop("start_range", None)
            each.pop("path_range", None)
        return content

    def differences(self, other: DataOptions) -> list[str]:
        """Return how the held-out sequences of two data sets of one source differ.

        Returns:
            ``data.key: value -> other value`` for each key that matters; empty if errors that are
            measured on them can be compared.
        """
        ours, theirs = self.held_out_sequences(), other.held_out_sequences()
        return [
            f"data.{key}: {ours.get(key)} -> {theirs.get(key)}"
            for key in sorted({*ours, *theirs})
            if ours.get(key) != theirs.get(key)
        ]

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny, for tests of the whole program.

        Args:
            folder: where files that it reads may be written.
        """
        return {}


@options
class ParametricOptions(DataOptions):
    """What data sets have in common whose transformations move continuous parameters."""

    irrelevant: ClassVar[frozenset[str]] = DataOptions.irrelevant | {
        "active_start",
        "random_start_prob",
        "train",
    }

    horizon: Horizon = 8
    """T, the number of the last frame."""

    active_start: Literal["random", "canonical"] = "random"
    """Where active transformations begin at a random start: anywhere, like those at rest, or at
    their canonical start."""

    random_start_prob: Fraction = 0.8
    """Probability that a random start is not canonical after all."""


@options
class DrawnOptions(ParametricOptions):
    """What data sets have in common whose samples are drawn, as many as one likes.

    Samples are the same for every seed of a run.
    """

    split_depends_on_seed: ClassVar[bool] = False

    train: Count = 60_000
    """Number of training samples."""

    validation: Count = 1000
    """Number of validation samples."""

    test: Count = 1000
    """Number of test samples."""

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def take(count: int | None, available: int, key: str) -> int:
    """Return how many samples to take: all that are available if ``count`` is None.

    Raises:
        DataError: fewer are available; the message names the key.
    """
    if count is None:
        return available
    check_range(f"data.{key}", count, 1, available)
    return count
