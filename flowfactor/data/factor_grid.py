"""Images of every combination of some factors, and the sequences along the axes of that grid."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowfactor.data.image_stores import (
    H5Writer,
    ImageStore,
    TensorStore,
    create_images,
    open_store,
)
from flowfactor.data.source import SequenceDataset
from flowfactor.errors import DataError

GridSplit = Literal["train", "validation", "test", "held_out", "all"]

# Held out by default for validation and as many for testing: one position in so many, and no
# more than so many.
_ONE_IN, _AT_MOST = 1000, 500
_DEFAULT_LAST = 8
# Images that are written to a file at a time.
_BLOCK = 480

_Grid = TypeVar("_Grid", bound="FactorGrid")


@dataclass(frozen=True)
class Move:
    """A transformation: one factor goes `step` positions further with every frame.

    The position at frame `t` is `start + step t`, modulo the factor's size if it is cyclic.

    Args:
        factor: name of the factor, which is also that of the transformation.
        step: positions from frame to frame, not 0; negative to go down.
        start: position at frame 0, from the end if negative; `"own"` for the position of the
            sample itself, or the nearest one from which there is room for a whole sequence.

    Example:
        >>> Move("orientation", step=-2, start=-1)
        Move(factor='orientation', step=-2, start=-1)
    """

    factor: str
    step: int = 1
    start: int | Literal["own"] = 0


class FactorGrid(SequenceDataset):
    """Sequences along the axes of a grid of images, one image for each combination of factors.

    Image number `n` shows factor `j` at position `p_j`, where `n = sum_j p_j * stride_j` and
    `stride_j` is the product of the sizes after `j`: the last factor changes fastest. A *sample*
    is a position of the whole grid. Under the transformation that moves factor `k` it keeps all
    of its positions but `p_k`, which becomes `start_k + step_k t`.

    Splits: held-out sequences share the positions of their still factors with none of training.
    Positions are drawn at random for testing and for validation, and every position that differs
    from one of them in just one of the moved factors is in no split (on a grid with 48 such
    neighbours to a position, 48 images for each one held out), because a training sequence from
    there would be the same sequence. Single images can be on both sides, reached along another
    axis.

    Args:
        images: a `uint8` tensor or array `(N, H, W, C)` or `(N, C, H, W)`; or the path of an
            HDF5, `.npy` or `.npz` file with one; or a folder of pictures in grid order; or an
            `ImageStore`. Files are read lazily, `.npz` archives excepted.
        factors: names and sizes, slowest first. Their product is `N`.
        cyclic: factors whose last position is followed by the first.
        moves: the transformations, in the order of their index; by default every factor with more
            than one position, one position a frame.
        horizon: `T`, the number of the last frame; by default the largest for which all moves have
            room, but no more than 8.
        split: `train`, `validation`, `test`; `held_out` for the values of `held_out`; `all`.
        held_out: positions of factors that do not move, left out of the first three splits.
        validation, test: how many positions to hold out; by default one in 1000, at least 1 and
            at most 500.
        seed: of the positions that are held out.
        key: name of the images in an HDF5 file or an archive, by default `images`.
        layout: `nhwc` or `nchw`, where the shape does not tell.
        size: height and width to which pictures of a folder are reduced.
        device: where frames are made, and where images in memory are held.

    Raises:
        DataError: a file or folder that cannot be read; another number of images than the grid
            has positions; factors, moves, a last frame or a split that are not possible.

    Example:
        >>> import torch
        >>> images = torch.randint(256, (24, 8, 8, 3), dtype=torch.uint8)
        >>> factors = {"hue": 4, "shape": 2, "size": 3}
        >>> grid = FactorGrid(images, factors, cyclic=["hue"], split="all")
        >>> grid.names, grid.horizon, len(grid)
        (('hue', 'shape', 'size'), 1, 24)
        >>> batch = grid.with_moves([Move("hue", start="own")], horizon=4).sample([7, 20], "hue")
        >>> tuple(batch.frames.shape)
        (2, 5, 3, 8, 8)
        >>> bool((batch.frames[:, 4] == batch.frames[:, 0]).all())
        True
        >>> grid.positions([7, 20]).tolist()
        [[1, 0, 1], [3, 0, 2]]
    """

    def __init__(
        self,
        images: Tensor | npt.NDArray[np.generic] | str | Path | ImageStore,
        factors: Mapping[str, int],
        *,
        cyclic: Collection[str] = (),
        moves: Sequence[Move] | None = None,
        horizon: int | None = None,
        split: str = "train",
        held_out: Mapping[str, Collection[int]] | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
        key: str | None = None,
        layout: str = "auto",
        size: int | tuple[int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _check_factors(factors, cyclic)
        self.factors = dict(factors)
        self.cyclic = frozenset(cyclic)
        self.strides = dict(zip(factors, _strides(tuple(factors.values())), strict=True))
        if moves is None:
            moves = [Move(name) for name, count in factors.items() if count > 1]
        store = open_store(images, key, layout, size)
        total = math.prod(factors.values())
        if len(store) != total:
            raise DataError(
                f"There are {len(store)} images ({store.where}), but the factors "
                f"{', '.join(f'{name} ({count})' for name, count in factors.items())} have "
                f"{total} combinations. There must be one image for each; give the sizes of these."
            )
        device = torch.device(_device_of(images) if device is None else device)
        self.store = store.to(device)
        self._device = device
        self.description = f"{total} images ({store.where})"
        self._set_moves(moves, horizon)
        self.split = split
        held = _held_out(self.factors, held_out or {}, {move.labels for move in moves})
        self._numbers = self._split(split, held, validation, test, seed).to(device)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the transformations: of the factors that they move."""
        return tuple(move.labels for move in self.moves)

    @property
    def horizon(self) -> int:
        """`T`, number of the last frame of a sequence."""
        return self._last

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        return self.store.image_shape

    @property
    def device(self) -> torch.device:
        """Where the frames are made."""
        return self._device

    @property
    def start_size(self) -> int:
        """One number for each transformation: how far up its range of starts it begins."""
        return len(self.moves)

    def __len__(self) -> int:
        return len(self._numbers)

    def with_last(self, horizon: int) -> FactorGrid:
        """The same images in shorter or longer sequences.

        Raises:
            DataError: a factor that is not cyclic has too few positions.
        """
        return self.with_moves(self.moves, horizon)

    def with_moves(
        self: _Grid, moves: Sequence[Move] | None = None, horizon: int | None = None
    ) -> _Grid:
        """The same samples with other steps and starts of the factors that move.

        Args:
            moves: of some or all of the factors that already move; of another factor, the
                splits would no longer be apart.
            horizon: `T`; by default the present one where there is room, else the largest.

        Raises:
            DataError: as the constructor does; a factor that did not move before.
        """
        other = copy.copy(self)
        moves = self.moves if moves is None else moves
        fresh = [move.labels for move in moves if move.labels not in self.names]
        if fresh and self.split not in ("all", "held_out"):
            raise DataError(
                f"The splits are apart only for moves of {', '.join(self.names)}, not of "
                f"{', '.join(fresh)}. Name these moves when the data set is made."
            )
        other._set_moves(moves, horizon)
        return other

    def to(self: _Grid, device: torch.device | str) -> _Grid:
        """The same data set with its frames, and images in memory, on another device."""
        other = copy.copy(self)
        other._device = torch.device(device)
        other._numbers = self._numbers.to(device)
        other.store = self.store.to(device)
        return other

    def positions(self, indices: Tensor | Sequence[int]) -> Int[Tensor, "b j"]:
        """Positions of samples on the axes of the factors, `(b, factors)`."""
        numbers = self._numbers[self._indices(indices)]
        return grid_positions(numbers, tuple(self.factors.values()))

    def images(self, numbers: Tensor | Sequence[int]) -> Float[Tensor, "b c h w"]:
        """Images by their number in the whole grid, whatever the split.

        Raises:
            DataError: a number that does not exist.
        """
        chosen = torch.as_tensor(numbers, device=self.device)
        total = len(self.store)
        if chosen.ndim != 1 or chosen.is_floating_point() or not len(chosen):
            raise DataError(
                f"numbers must be a list of whole numbers, at least one, but they are "
                f"{chosen.dtype} of shape {tuple(chosen.shape)}."
            )
        if int(chosen.min()) < 0 or int(chosen.max()) >= total:
            raise DataError(
                f"numbers must be in 0..{total - 1}, but they run from {int(chosen.min())} to "
                f"{int(chosen.max())}."
            )
        return self.store.read(chosen.long())

    def write_h5(self, path: str | Path) -> None:
        """Write all images of the grid, whatever the split, to an HDF5 file that reads fast.

        Data sets `images`, `uint8` `(N, H, W, C)`, gzipped with one image a chunk, and `labels`,
        `(N, factors)`, the positions on the axes. Some hundred images are in memory at a time.
        Worth it for a folder of pictures, which are decoded and reduced but once.

        Raises:
            DataError: the file exists, or cannot be written.
        """
        total, sizes = len(self.store), tuple(self.factors.values())
        channels, height, width = self.image_shape
        with H5Writer(path) as file:
            file.attrs["description"] = self.description
            images = create_images(file, (total, height, width, channels))
            label = self._values(grid_positions(torch.zeros(1, dtype=torch.long), sizes))
            labels = file.create_dataset("labels", (total, len(sizes)), label.numpy().dtype)
            for numbers in torch.arange(total).split(_BLOCK):
                rows = slice(int(numbers[0]), int(numbers[-1]) + 1)
                block = self.store.read(numbers.to(self.device)).mul_(255).round_()
                images[rows] = block.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
                labels[rows] = self._values(grid_positions(numbers, sizes)).numpy()

    def _values(self, positions: Int[Tensor, "b j"]) -> Tensor:
        """What is written of positions: themselves, or the values that the factors have there."""
        return positions

    def _frames(
        self,
        indices: Int[Tensor, " b"],
        elapsed: Sequence[Int[Tensor, "b f"]],
        active: Sequence[Bool[Tensor, " b"]],
        start: Float[Tensor, "b s"] | None,
    ) -> Float[Tensor, "b f c h w"]:
        """Frames in which factor `k` moves on the samples where `active[k]` is true."""
        numbers = self._frame_numbers(indices, elapsed, active, start)
        return self.store.read(numbers.flatten()).reshape(*numbers.shape, *self.image_shape)

    def _frame_numbers(
        self,
        indices: Int[Tensor, " b"],
        elapsed: Sequence[Int[Tensor, "b f"]],
        active: Sequence[Bool[Tensor, " b"]],
        start: Float[Tensor, "b s"] | None,
    ) -> Int[Tensor, "b f"]:
        """Which image of the grid each frame is."""
        base = self._numbers[indices]
        numbers = base[:, None].expand(elapsed[0].shape)
        for k, (move, (low, high), mask) in enumerate(
            zip(self.moves, self._rooms, active, strict=True)
        ):
            count, stride = self.factors[move.labels], self.strides[move.labels]
            own = base // stride % count
            if start is not None:
                begin = low + (start[:, k] * (high - low + 1)).long().clamp(max=high - low)
            elif move.start == "own":
                begin = own.clamp(low, high)
            else:
                begin = torch.full_like(own, move.start % count)
            target = begin[:, None] + move.step * elapsed[k]
            if move.labels in self.cyclic:
                target = target % count
            numbers = torch.where(
                mask[:, None], numbers + (target - own[:, None]) * stride, numbers
            )
        return numbers

    def _set_moves(self, moves: Sequence[Move], horizon: int | None) -> None:
        _check_moves(moves, self.factors)
        largest = {move.labels: self._largest_last(move) for move in moves}
        most = min(largest.values())
        if horizon is None:
            horizon = int(min(most, getattr(self, "_last", _DEFAULT_LAST)))
        if horizon < 1 or horizon > most:
            each = ", ".join(
                f"{name} has room for {'any' if room == math.inf else room}"
                for name, room in largest.items()
            )
            raise DataError(
                f"The last frame must be in 1..{most}, but last is {horizon}: {each}. Lower last, "
                "move in smaller steps, start elsewhere, or leave that factor still."
            )
        self.moves = tuple(moves)
        self._last = horizon
        self._rooms = tuple(self._room(move, horizon) for move in moves)

    def _largest_last(self, move: Move) -> float:
        if move.labels in self.cyclic:
            return math.inf
        count = self.factors[move.labels]
        start = 0 if move.start == "own" else move.start % count
        if move.start == "own" or move.step > 0:
            return (count - 1 - start) // abs(move.step)
        return start // -move.step

    def _room(self, move: Move, horizon: int) -> tuple[int, int]:
        """First and last position from which a whole sequence stays on the grid."""
        count = self.factors[move.labels]
        if move.labels in self.cyclic:
            return (0, count - 1)
        way = move.step * horizon
        return (max(0, -way), count - 1 - max(0, way))

    def _split(
        self,
        split: str,
        held: Bool[Tensor, " n"],
        validation: int | None,
        test: int | None,
        seed: int,
    ) -> Int[Tensor, " m"]:
        """Numbers of the positions of a split, in increasing order."""
        if split not in get_args(GridSplit):
            raise DataError(
                f"split must be one of {', '.join(get_args(GridSplit))}, but it is {split!r}."
            )
        total = len(held)
        if split == "all":
            return torch.arange(total)
        if split == "held_out":
            if not bool(held.any()):
                raise DataError("Split 'held_out' is empty: say which values by held_out.")
            return held.nonzero()[:, 0]
        default = max(1, min(_AT_MOST, total // _ONE_IN))
        counts = {"test": test, "validation": validation}
        free = ~held
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        for name, given in counts.items():
            count = default if given is None else given
            left = order[free[order]]
            if not 0 <= count < max(1, len(left)):
                raise DataError(
                    f"{name} must not be negative and must leave some of {len(left)} positions "
                    f"of the grid for training, but it is {count}."
                )
            chosen = left[:count]
            if split == name:
                if not count:
                    raise DataError(f"Split {split!r} is empty: {name} is 0.")
                return chosen.sort().values
            free[self._neighbours(chosen)] = False
        if not bool(free.any()):
            raise DataError(
                f"No position of the grid of {total} is left for training: those held out for "
                "validation and testing and their neighbours along the moved factors take all. "
                "Lower validation and test, or move fewer factors."
            )
        return free.nonzero()[:, 0]

    def _neighbours(self, numbers: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """These positions and all that differ from one of them in just one moved factor."""
        lines = [numbers]
        for move in self.moves:
            count, stride = self.factors[move.labels], self.strides[move.labels]
            foot = numbers - numbers // stride % count * stride
            lines.append((foot[:, None] + stride * torch.arange(count)).flatten())
        return torch.cat(lines)


def grid_numbers(positions: Int[Tensor, "*b j"], sizes: Sequence[int]) -> Int[Tensor, "*b"]:
    """Numbers of positions on a grid, `n = sum_j p_j prod_{i>j} size_i`.

    Args:
        positions: whole numbers, one for each factor, `(..., factors)`.
        sizes: of the factors, slowest first.

    Example:
        >>> import torch
        >>> grid_numbers(torch.tensor([[0, 1], [2, 3]]), (3, 4)).tolist()
        [1, 11]
    """
    strides = _strides(sizes)
    return (positions * torch.tensor(strides, device=positions.device)).sum(-1)


def grid_positions(numbers: Int[Tensor, "*b"], sizes: Sequence[int]) -> Int[Tensor, "*b j"]:
    """Positions of numbers on a grid, the inverse of `grid_numbers`.

    Example:
        >>> import torch
        >>> grid_positions(torch.tensor([1, 11]), (3, 4)).tolist()
        [[0, 1], [2, 3]]
    """
    strides = torch.tensor(_strides(sizes), device=numbers.device)
    return numbers.unsqueeze(-1) // strides % torch.tensor(tuple(sizes), device=numbers.device)


def _strides(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[j + 1 :]) for j in range(len(sizes)))


def _device_of(images: object) -> torch.device:
    if isinstance(images, TensorStore):
        images = images.images
    return images.device if isinstance(images, Tensor) else torch.device("cpu")


def _check_factors(factors: Mapping[str, int], cyclic: Collection[str]) -> None:
    if not factors:
        raise DataError("Name at least one factor and its size.")
    for name, count in factors.items():
        if count < 1:
            raise DataError(f"Factor {name!r} must have at least 1 position, but it has {count}.")
    for name in cyclic:
        if name not in factors:
            raise DataError(f"cyclic names {name!r}; the factors are {', '.join(factors)}.")


def _check_moves(moves: Sequence[Move], factors: Mapping[str, int]) -> None:
    names = [move.labels for move in moves]
    if not names or len(set(names)) < len(names):
        raise DataError(
            f"There must be at least one move, and no factor moves twice, but the factors that "
            f"move are {names}."
        )
    for move in moves:
        count = factors.get(move.labels)
        if count is None:
            raise DataError(
                f"There is no factor {move.labels!r} to move. There are: {', '.join(factors)}."
            )
        if not isinstance(move.step, int) or move.step == 0:
            raise DataError(
                f"{move.labels!r} must move by a whole number of positions, not 0, for there are "
                f"no images between them, but its step is {move.step}."
            )
        if move.start != "own" and not (
            isinstance(move.start, int) and -count <= move.start < count
        ):
            raise DataError(
                f"{move.labels!r} must start at 'own' or a position in {-count}..{count - 1}, but "
                f"its start is {move.start!r}."
            )


def _held_out(
    factors: Mapping[str, int], held_out: Mapping[str, Collection[int]], moved: set[str]
) -> Bool[Tensor, " n"]:
    """Which positions of the grid have a factor at one of its values that are held out."""
    sizes = tuple(factors.values())
    held = torch.zeros(sizes, dtype=torch.bool)
    for name, values in held_out.items():
        if name not in factors:
            raise DataError(f"held_out names {name!r}; the factors are {', '.join(factors)}.")
        if name in moved:
            raise DataError(
                f"held_out names {name!r}, which moves, so that sequences would pass through its "
                f"values. Leave it out of moves, or hold out one that is still: "
                f"{', '.join(other for other in factors if other not in moved) or 'none is'}."
            )
        wrong = [value for value in values if not 0 <= value < factors[name]]
        if wrong or not len(set(values)) < factors[name]:
            raise DataError(
                f"held_out[{name!r}] must be some, not all, positions of "
                f"0..{factors[name] - 1}, but it is {sorted(values)}."
            )
        held.movedim(list(factors).index(name), 0)[list(values)] = True
    return held.flatten()
