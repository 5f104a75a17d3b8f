"""Images of every combination of some factors, and the sequences along the axes of that grid."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Real
from pydantic import Field
from torch import Tensor

from flowfactor.data.activity import PathRange
from flowfactor.data.base import SequenceDataset, check_integers
from flowfactor.data.checks import check_choice, check_distinct, check_range
from flowfactor.data.coverage import Coverage
from flowfactor.data.factor_sampling import GridFactors
from flowfactor.data.io import Array, ImageStore, create_images, open_store, writing_h5
from flowfactor.data.known_factors import KnownFactors
from flowfactor.data.options import Count, DataOptions, Horizon, Name, Side, Transformations
from flowfactor.data.transformations import Transformation
from flowfactor.errors import DataError
from flowfactor.options import NonNegativeInt, PositiveInt, options
from flowfactor.registries import DATA

GRID_SPLITS = ("train", "validation", "test", "held_out", "all")

# Held out by default for validation and as many for testing: one position in so many, and no
# more than so many.
_ONE_IN, _AT_MOST = 1000, 500
_DEFAULT_HORIZON = 8
# Images that are written to a file at a time.
_BLOCK = 480


class _Move(NamedTuple):
    """A transformation of a grid: how a factor of ``size`` positions moves."""

    factor: str
    start: int | str
    step: int
    size: int
    stride: int
    cyclic: bool

    @property
    def max_horizon(self) -> float:
        """The last frame for which the factor has a position."""
        if self.cyclic:
            return math.inf
        start = 0 if isinstance(self.start, str) else self.start
        if self.start == "own" or self.step > 0:
            return (self.size - 1 - start) // abs(self.step)
        return start // -self.step

    @property
    def path(self) -> PathRange:
        """The states at which it has a position, from position 0 if it starts at its own."""
        if self.cyclic:
            period = self.size / abs(self.step)
            return PathRange(0, period, period)
        start = 0 if isinstance(self.start, str) else self.start
        low, high = sorted(((0 - start) / self.step, (self.size - 1 - start) / self.step))
        return PathRange(math.ceil(low), math.floor(high))

    def begin(self, own: Int[Tensor, "b"], horizon: int) -> Int[Tensor, "b"]:
        """Return the position of frame 0 of canonical sequences of samples at positions ``own``."""
        if isinstance(self.start, str):
            return own.clamp(*self.room(horizon))
        return torch.full_like(own, self.start)

    def room(self, horizon: int) -> tuple[int, int]:
        """Return the first and last position from which a whole sequence stays on the grid."""
        if self.cyclic:
            return (0, self.size - 1)
        distance = self.step * horizon
        return (max(0, -distance), self.size - 1 - max(0, distance))


class FactorGrid(SequenceDataset):
    """Sequences along the axes of a grid of images, one image for each combination of factors.

    Image number ``n`` shows factor ``j`` at position ``p_j``, where ``n = sum_j p_j * stride_j``
    and ``stride_j`` is the product of the sizes after ``j``: the last factor changes fastest. A
    *sample* is a position of the whole grid. Under the transformation that moves factor ``k`` it
    keeps all of its positions but ``p_k``, which becomes ``start + step * t``, modulo the size of
    the factor if it is cyclic.

    Splits: no held-out sequence shares the positions of its inactive factors with a training
    sequence. Positions are drawn at random for testing and for validation, and every position that
    differs from one of them in just one of the moved factors is in no split (on a grid with 48 such
    neighbours to a position, 48 images for each one held out), because a training sequence from
    there would be the same sequence. Single images can be on both sides, reached along another
    axis.

    Args:
        images: a tensor or array ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``; the path of
            an HDF5, ``.npy`` or ``.npz`` file with one; a folder of pictures in grid order; or an
            :class:`ImageStore`. HDF5 and ``.npy`` files and folders are read lazily.
        factors: names and sizes, slowest first. Their product is ``N``.
        cyclic: factors whose last position is followed by the first.
        transformations: by name, in the order of their index, each of its own factor; by default
            every factor with more than one position moves by one position a frame.
        horizon: ``T``, the number of the last frame; by default the largest for which all
            transformations have room, but no more than 8.
        split: one of :data:`GRID_SPLITS`: ``held_out`` for the values of the argument, ``all``.
        held_out: positions of factors that do not move, left out of the first three splits.
        validation, test: how many positions to hold out; by default one in 1000, at least 1 and
            at most 500.
        seed: of the positions that are held out.
        key, layout, size: see :func:`open_store`.
        initial_state: see :class:`SequenceDataset`.
        device: where frames are made, and where images in memory are held.

    Attributes:
        factors, cyclic, split: as given.
        transformations: as given, with defaults filled in.
        store: where the images are.
        description: what they are, in words.

    Raises:
        DataError: a file or folder that cannot be read; another number of images than the grid
            has positions; factors, transformations, a horizon or a split that are not possible.

    Example:
        >>> import torch
        >>> images = torch.randint(256, (24, 8, 8, 3), dtype=torch.uint8)
        >>> factors = {"hue": 4, "shape": 2, "size": 3}
        >>> grid = FactorGrid(images, factors, cyclic=["hue"], split="all")
        >>> grid.names, grid.horizon, len(grid)
        (('hue', 'shape', 'size'), 1, 24)
        >>> own = {"hue": Transformation(start="own")}
        >>> batch = grid.with_transformations(own, horizon=4).sample([7, 20], "hue")
        >>> tuple(batch.frames.shape)
        (2, 5, 3, 8, 8)
        >>> bool((batch.frames[:, 4] == batch.frames[:, 0]).all())
        True
        >>> grid.positions([7, 20]).tolist()
        [[1, 0, 1], [3, 0, 2]]
    """

    per_sample: ClassVar[tuple[str, ...]] = (*SequenceDataset.per_sample, "_numbers")

    def __init__(
        self,
        images: Tensor | Array | str | Path | ImageStore,
        factors: Mapping[str, int],
        *,
        cyclic: Collection[str] = (),
        transformations: Mapping[str, Transformation] | None = None,
        horizon: int | None = None,
        split: str = "train",
        held_out: Mapping[str, Collection[int]] | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
        key: str | None = None,
        layout: str = "auto",
        size: int | tuple[int, int] | None = None,
        initial_state: str = "canonical",
        device: torch.device | str | None = None,
    ) -> None:
        check_distinct("factors", list(factors))
        for name, count in factors.items():
            check_range(f"factors.{name}", count, 1)
        for name in cyclic:
            check_choice("cyclic", name, factors)
        check_choice("split", split, GRID_SPLITS)
        if isinstance(images, Tensor | np.ndarray | str | Path):
            images = open_store(images, key, layout, size)
        total = math.prod(factors.values())
        if len(images) != total:
            raise DataError(
                f"factors: {', '.join(f'{name} ({count})' for name, count in factors.items())} "
                f"have {total} combinations, but there are {len(images)} images ({images.where})."
            )
        self.factors = dict(factors)
        self.cyclic = frozenset(cyclic)
        self.split = split
        self.transformations: dict[str, Transformation] = {}
        self._set_transformations(transformations)
        if horizon is None:
            horizon = int(min(self.max_horizon, _DEFAULT_HORIZON))
        check_range("horizon", horizon, 1, self.max_horizon)
        if device is None and isinstance(getattr(images, "images", None), Tensor):
            device = images.images.device  # type: ignore[attr-defined]
        super().__init__(
            tuple(self.transformations),
            horizon,
            images.image_shape,
            device=device,
            initial_state=initial_state,
            start_size=len(self.transformations),
        )
        self.store = images.to(self.device)
        self.description = f"{total} images ({images.where})"
        held = self._held_out(held_out or {})
        self._numbers = self._split(held, validation, test, seed).to(self.device)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def max_horizon(self) -> float:
        """The largest horizon for which all transformations have room."""
        return min(move.max_horizon for move in self._moves)

    def with_transformations(
        self, transformations: Mapping[str, Transformation], horizon: int | None = None
    ) -> Self:
        """Return the same samples under other transformations.

        Args:
            transformations: of factors that already move; of another factor, the splits would no
                longer be apart.
            horizon: ``T``; by default the present one where there is room, else the largest.

        Raises:
            DataError: as the constructor does; a factor that did not move before.
        """
        other = copy.copy(self)
        other._set_transformations(transformations)
        moved = [move.factor for move in self._moves]
        if self.split not in ("all", "held_out"):
            for move in other._moves:
                check_choice("transformations: so that splits stay apart,", move.factor, moved)
        other.names, other.start_size = tuple(transformations), len(transformations)
        if horizon is None:
            horizon = int(min(self.horizon, other.max_horizon))
        return other.with_horizon(horizon)

    def to(self, device: torch.device | str) -> Self:
        """Return the same data set with its frames, and images in memory, on another device."""
        other = super().to(device)
        other.store = self.store.to(device)
        return other

    def known_factors(self, bins: int = 10) -> KnownFactors:
        """Return the images of the whole grid, whatever the split, with their positions.

        Raises:
            DataError: no factor has two positions.
        """
        whole = copy.copy(self)
        whole.split, whole._numbers = "all", torch.arange(len(self.store), device=self.device)
        positions = whole.positions(torch.arange(len(whole), device=whole.device)).cpu()
        return GridFactors(whole, positions, whole.factors)

    def coverage(self, k: int) -> Coverage | None:
        """Return which states of a transformation training sequences show."""
        move = self._moves[k]
        anywhere = (0.0, move.size - 1.0)
        if isinstance(move.start, str):  # as positions of other samples are shown too
            whole, period = (-math.inf, math.inf), move.size / abs(move.step)
            return Coverage(whole, whole, period if move.cyclic else None)
        last = float(move.start + move.step * self.horizon)
        path = (min(move.start, last), max(move.start, last))
        return Coverage.of_values(
            move.start,
            move.step,
            moving=anywhere if self.initial_state == "random" else path,
            resting=anywhere,
            cycle=move.size if move.cyclic else None,
        )

    def path_range(self, k: int) -> PathRange:
        """Return between which states a factor moves where activity is drawn: all of its axis."""
        return self._moves[k].path

    def path_ends(
        self, indices: Int[Tensor, "b"]
    ) -> tuple[Real[Tensor, "b k"], Real[Tensor, "b k"]]:
        """Return the ends of :meth:`path_range` of samples, each from where it starts itself."""
        low, high = super().path_ends(indices)
        base, columns = self._numbers[indices], []
        for move in self._moves:
            begin = move.begin(base // move.stride % move.size, self.horizon)
            own = isinstance(move.start, str) and not move.cyclic
            columns.append(begin.div(move.step, rounding_mode="trunc") * own)
        return low - torch.stack(columns, 1), high - torch.stack(columns, 1)

    def path_starts(
        self,
        indices: Int[Tensor, "b"],
        moved: Float[Tensor, "b f k"],
        active: Bool[Tensor, "b k"],
        starts: Float[Tensor, "b s"] | None,
    ) -> tuple[Float[Tensor, "b k"], Bool[Tensor, "b k"]]:
        """Return where sequences start that move; what rests is where its sample is."""
        return super().path_starts(indices, moved, active, starts)[0], active

    def positions(self, indices: Tensor | Sequence[int]) -> Int[Tensor, "b j"]:
        """Return the positions of samples on the axes of the factors."""
        numbers = self._numbers[self._checked_indices(indices)]
        return grid_positions(numbers, tuple(self.factors.values()))

    def images(self, numbers: Tensor | Sequence[int]) -> Float[Tensor, "b c h w"]:
        """Return images by their number in the whole grid, whatever the split.

        Raises:
            DataError: a number that does not exist.
        """
        chosen = torch.as_tensor(numbers, device=self.device)
        check_integers("numbers", chosen, (None,))
        for number in (int(chosen.min()), int(chosen.max())):
            check_range("numbers", number, 0, len(self.store) - 1)
        return self.store.read(chosen.long())

    def write_h5(self, path: str | Path) -> None:
        """Write all images of the grid, whatever the split, to an HDF5 file that reads fast.

        Data sets ``images``, ``uint8`` ``(N, H, W, C)``, gzipped with one image a chunk, and
        ``labels``, ``(N, factors)``, the positions on the axes. Some hundred images are in memory
        at a time. Worth it for a folder of pictures, which are decoded and reduced but once.

        Raises:
            DataError: the file exists, or cannot be written.
        """
        total, sizes = len(self.store), tuple(self.factors.values())
        channels, height, width = self.image_shape
        with writing_h5(path) as file:
            file.attrs["description"] = self.description
            images = create_images(file, (total, height, width, channels))
            value = self._values(grid_positions(torch.zeros(1, dtype=torch.long), sizes))
            labels = file.create_dataset("labels", (total, len(sizes)), value.numpy().dtype)
            for numbers in torch.arange(total).split(_BLOCK):
                rows = slice(int(numbers[0]), int(numbers[-1]) + 1)
                block = self.store.read(numbers.to(self.device)).mul_(255).round_()
                pixels = rearrange(block.to(torch.uint8), "n c h w -> n h w c")
                images[rows] = pixels.contiguous().cpu().numpy()
                labels[rows] = self._values(grid_positions(numbers, sizes)).numpy()

    def _values(self, positions: Int[Tensor, "b j"]) -> Tensor:
        """Return what is written of positions: themselves, or the factors' values there."""
        return positions

    def render_frames(
        self,
        indices: Int[Tensor, "b"],
        elapsed: Int[Tensor, "k b f"],
        active: Bool[Tensor, "k b"],
        starts: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Return frames of samples while factors move; see :class:`SequenceDataset`."""
        base = self._numbers[indices]
        numbers = base[:, None].expand(elapsed.shape[1:])
        for k, move in enumerate(self._moves):
            low, high = move.room(self.horizon)
            own = base // move.stride % move.size
            if starts is not None:
                begin = low + (starts[:, k] * (high - low + 1)).long().clamp(max=high - low)
            else:
                begin = move.begin(own, self.horizon)
            target = begin[:, None] + move.step * elapsed[k]
            if move.cyclic:
                target = target % move.size
            moved = numbers + (target - own[:, None]) * move.stride
            numbers = torch.where(active[k][:, None], moved, numbers)
        images = self.store.read(numbers.flatten())
        return rearrange(images, "(b f) c h w -> b f c h w", b=len(numbers))

    def _set_transformations(self, given: Mapping[str, Transformation] | None) -> None:
        if given is None:
            given = {name: Transformation() for name, count in self.factors.items() if count > 1}
        defaults = {name: Transformation(name, 0, 1) for name in self.factors}
        self.transformations = {name: each.resolve(name, defaults) for name, each in given.items()}
        strides = _strides(tuple(self.factors.values()))
        moves = []
        for name, each in self.transformations.items():
            factor, start, step = str(each.parameter), each.start, each.step
            count = self.factors[factor]
            key = f"transformations.{name}"
            if not isinstance(step, int) or step == 0 or each.start_range or each.path_range:
                raise DataError(
                    f"{key}: step must be a whole number, not 0, and neither start_range nor "
                    "path_range be given."
                )
            if isinstance(start, int):
                check_range(f"{key}.start", start, -count, count - 1)
                start %= count
            elif start != "own":
                raise DataError(f"{key}.start must be a position or 'own', but it is {start}.")
            stride = strides[list(self.factors).index(factor)]
            moves.append(_Move(factor, start, step, count, stride, factor in self.cyclic))
        check_distinct("transformations (their factors)", [move.factor for move in moves])
        self._moves = tuple(moves)

    def _held_out(self, held_out: Mapping[str, Collection[int]]) -> Bool[Tensor, "n"]:
        """Return which positions of the grid have a factor at a value that is held out."""
        held = torch.zeros(tuple(self.factors.values()), dtype=torch.bool)
        still = set(self.factors) - {move.factor for move in self._moves}
        for name, values in held_out.items():
            check_choice("held_out: of the factors that do not move,", name, still)
            for value in values:
                check_range(f"held_out.{name}", value, 0, self.factors[name] - 1)
            if len(set(values)) == self.factors[name]:
                raise DataError(f"held_out.{name} leaves no position for training.")
            held.movedim(list(self.factors).index(name), 0)[list(values)] = True
        return held.flatten()

    def _split(
        self, held: Bool[Tensor, "n"], validation: int | None, test: int | None, seed: int
    ) -> Int[Tensor, "m"]:
        """Return the numbers of the positions of a split, in increasing order."""
        total = len(held)
        if self.split == "all":
            return torch.arange(total)
        if self.split == "held_out":
            if not bool(held.any()):
                raise DataError("held_out: the split is empty, as nothing is held out.")
            return held.nonzero()[:, 0]
        default = max(1, min(_AT_MOST, total // _ONE_IN))
        free = ~held
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        for name, given in (("test", test), ("validation", validation)):
            count = default if given is None else given
            left = order[free[order]]
            check_range(name, count, int(self.split == name), max(0, len(left) - 1))
            if self.split == name:
                return left[:count].sort().values
            free[self._neighbours(left[:count])] = False
        if not bool(free.any()):
            raise DataError(
                f"validation, test: no position of the grid of {total} is left for training, as "
                "those held out and their neighbours along the moved factors take all."
            )
        return free.nonzero()[:, 0]

    def _neighbours(self, numbers: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
        """Return these positions and all that differ from one in just one moved factor."""
        lines = [numbers]
        for move in self._moves:
            foot = numbers - numbers // move.stride % move.size * move.stride
            lines.append((foot[:, None] + move.stride * torch.arange(move.size)).flatten())
        return torch.cat(lines)


def grid_numbers(positions: Int[Tensor, "*b j"], sizes: Sequence[int]) -> Int[Tensor, "*b"]:
    """Return the numbers of positions on a grid, ``n = sum_j p_j prod_{i>j} size_i``.

    Args:
        positions: whole numbers, one for each factor.
        sizes: of the factors, slowest first.

    Example:
        >>> import torch
        >>> grid_numbers(torch.tensor([[0, 1], [2, 3]]), (3, 4)).tolist()
        [1, 11]
    """
    strides = _strides(sizes)
    return (positions * torch.tensor(strides, device=positions.device)).sum(-1)


def grid_positions(numbers: Int[Tensor, "*b"], sizes: Sequence[int]) -> Int[Tensor, "*b j"]:
    """Return the positions of numbers on a grid, the inverse of :func:`grid_numbers`.

    Example:
        >>> import torch
        >>> grid_positions(torch.tensor([1, 11]), (3, 4)).tolist()
        [[0, 1], [2, 3]]
    """
    strides = torch.tensor(_strides(sizes), device=numbers.device)
    return numbers.unsqueeze(-1) // strides % torch.tensor(tuple(sizes), device=numbers.device)


def _strides(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[j + 1 :]) for j in range(len(sizes)))


@options
class GridOptions(DataOptions):
    """What grids of images have in common."""

    transformations: Transformations | None = None
    """What sequences undergo, by name: factors that move, with ``step`` positions a frame from
    position ``start``, or ``own``; by default the data set's own choice."""

    horizon: Horizon | None = None
    """T, the number of the last frame; by default the largest for which all transformations have
    room, at most 8."""

    held_out: dict[Name, tuple[NonNegativeInt, ...]] = dataclasses.field(default_factory=dict)
    """Positions of factors that do not move, which training never sees."""

    validation: Count | None = None
    """Number of validation positions; by default one in 1,000, at most 500."""

    test: Count | None = None
    """Number of test positions; by default one in 1,000, at most 500."""

    def describe_held_out(self) -> str | None:
        """Return which positions training never sees."""
        parts = (f"{name} {', '.join(map(str, at))}" for name, at in self.held_out.items())
        return "; ".join(parts) or None

    def load_held_out(self, split: str, seed: int) -> SequenceDataset:
        """Return the sequences at the positions that training leaves out, whatever the split."""
        if not self.held_out:
            return super().load_held_out(split, seed)
        return self.load("held_out", seed)

    def arguments(self, split: str, seed: int) -> dict[str, Any]:
        """Return the arguments of :class:`FactorGrid` that all grids have."""
        return {
            "transformations": self.transformations,
            "horizon": self.horizon,
            "split": split,
            "held_out": self.held_out,
            "validation": self.validation,
            "test": self.test,
            "seed": seed,
            "initial_state": self.initial_state,
        }


@DATA.register("factor_grid")
@options
class FactorGridOptions(GridOptions):
    """Any file or folder of images in the order of a grid of named factors."""

    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str = dataclasses.field(kw_only=True)
    """An HDF5, ``.npy`` or ``.npz`` file, or a folder of pictures."""

    factors: Annotated[dict[Name, PositiveInt], Field(min_length=1, max_length=100)] = (
        dataclasses.field(kw_only=True)
    )
    """Names of the factors and their numbers of positions, slowest first."""

    cyclic: tuple[str, ...] = ()
    """Factors whose last position is followed by the first."""

    key: str | None = None
    """Name of the images in the file; by default ``images``, or the only array."""

    layout: Literal["auto", "nhwc", "nchw"] = "auto"
    """Where the array has its channels, if its shape does not tell."""

    size: Side | None = None
    """Height and width to which pictures of a folder are reduced."""

    def load(self, split: str, seed: int) -> FactorGrid:
        """Return the sequences of a split."""
        return FactorGrid(
            self.path,
            self.factors,
            cyclic=self.cyclic,
            key=self.key,
            layout=self.layout,
            size=self.size,
            **self.arguments(split, seed),
        )

    @classmethod
    def tiny(cls, folder: Path) -> dict[str, Any]:
        """Return keys that make the data set tiny; writes a file of random images."""
        images = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), dtype=np.uint8)
        np.save(folder / "grid.npy", images)
        factors = {"hue": 4, "shape": 2, "scale": 3, "angle": 4}
        return {
            "path": str(folder / "grid.npy"),
            "factors": factors,
            "transformations": {"hue": {}, "scale": {}, "angle": {}},
            "validation": 2,
            "test": 2,
            "horizon": 2,
        }
