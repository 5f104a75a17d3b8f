"""Images whose factors are known, and the codes that a model gives them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data import FactorGrid, SequenceDataset, Sprites, TransformedImages
from flowfactor.data.factor_grid import grid_numbers
from flowfactor.models import SequenceModel


@runtime_checkable
class KnownFactors(Protocol):
    """Images drawn at random together with the factors that made them.

    A factor is numbered from 0; one that is continuous is cut into bins.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the F factors."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values, or bins, each factor has: at least two."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    def sample_factors(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n k"]]:
        """Draw images and their factors.

        Args:
            count: how many.
            generator: on the CPU, so that every device gives the same.
            fixed: number of a factor that is the same in all of them, itself drawn at random. A
                continuous one is then the same exactly, not only in its bin.
        """


class GridFactors:
    """Images of a :class:`~flowfactor.data.FactorGrid`, whose factors are positions on its axes.

    Drawn are the samples of its split, each as it is, with replacement; give a grid with
    ``split="all"`` to draw from the whole of it, as is customary. Factors of which the split has
    a single position are left out.

    Args:
        grid: for instance :class:`~flowfactor.data.Shapes3D`.

    Raises:
        ValueError: no factor has two positions.

    Example:
        >>> import torch
        >>> from flowfactor.data import FactorGrid
        >>> images = torch.randint(256, (24, 8, 8, 3), dtype=torch.uint8)
        >>> grid = FactorGrid(images, {"hue": 4, "shape": 2, "size": 3}, split="all")
        >>> known = GridFactors(grid)
        >>> known.names, known.sizes
        (('hue', 'shape', 'size'), (4, 2, 3))
        >>> drawn, factors = known.sample_factors(5, torch.Generator().manual_seed(0), fixed=0)
        >>> tuple(drawn.shape), len(factors[:, 0].unique())
        ((5, 3, 8, 8), 1)
    """

    def __init__(self, grid: FactorGrid) -> None:
        self._grid = grid
        self._positions = grid.positions(torch.arange(len(grid), device=grid.device)).cpu()
        names = list(grid.factors)
        self._columns = [j for j in range(len(names)) if len(self._positions[:, j].unique()) > 1]
        if not self._columns:
            raise ValueError("no factor of the grid has two positions; there is nothing to tell")
        self._names = tuple(names[j] for j in self._columns)
        self._sizes = tuple(grid.factors[name] for name in self._names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the factors that have at least two positions."""
        return self._names

    @property
    def sizes(self) -> tuple[int, ...]:
        """Their sizes."""
        return self._sizes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self._grid.image_shape

    def sample_factors(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n k"]]:
        """Draw images and positions; see :class:`KnownFactors`."""
        able = torch.arange(len(self._positions))
        if fixed is not None:
            able = _with_one_value(self._positions[:, self._columns[fixed]], generator)
        chosen = able[torch.randint(len(able), (count,), generator=generator)]
        positions = self._positions[chosen]
        numbers = grid_numbers(positions, tuple(self._grid.factors.values()))
        return self._grid.images(numbers.to(self._grid.device)), positions[:, self._columns]


class StartFactors:
    """Digits or sprites at random starts: their class, and where in its range each start is.

    Frame 0 at a random start has undergone every transformation at random, by uniform numbers that
    are cut into bins. The first factor is the class, ``shape`` for sprites, where it is known and
    there are at least two. What is a sample's own (a digit's hand, a sprite's stretch) varies as
    it does in the data and is no factor.

    Args:
        data: all of its samples are drawn from, with replacement.
        bins: for each transformation.

    Raises:
        ValueError: fewer than two bins, or no factor that varies, for instance as all starts are
            canonical.

    Example:
        >>> import torch
        >>> from flowfactor.data import Sprites
        >>> known = StartFactors(Sprites(100), bins=5)
        >>> known.names
        ('shape', 'scaling', 'rotation', 'x', 'y', 'hue')
        >>> images, factors = known.sample_factors(3, torch.Generator().manual_seed(0))
        >>> tuple(images.shape), tuple(factors.shape)
        ((3, 3, 32, 32), (3, 6))
    """

    def __init__(self, data: TransformedImages | Sprites, bins: int = 10) -> None:
        if bins < 2:
            raise ValueError(f"bins must be at least 2; it is {bins}")
        self._data, self._bins = data, bins
        classes, classes = data.classes.cpu().unique(return_inverse=True)
        self._labels = classes
        self._classes = len(classes) if len(classes) > 1 else 0
        # Only numbers below the fraction start at random.
        varied = [low != high for low, high in _ranges(data)] if data.random_start_prob > 0 else []
        self._moving = [k for k, varies in enumerate(varied) if varies]
        if not self.names:
            raise ValueError("nothing varies at the starts of this data; there is nothing to tell")

    @property
    def names(self) -> tuple[str, ...]:
        """The class, and the transformations whose starts vary."""
        label = ("shape" if isinstance(self._data, Sprites) else "class",) if self._classes else ()
        return (*label, *(self._data.names[k] for k in self._moving))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of classes, and of bins."""
        return (*((self._classes,) if self._classes else ()), *[self._bins] * len(self._moving))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self._data.image_shape

    def sample_factors(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n k"]]:
        """Draw images and bins; see :class:`KnownFactors`."""
        data, able = self._data, torch.arange(len(self._data))
        if fixed == 0 and self._classes:
            able = _with_one_value(self._labels, generator)
        indices = able[torch.randint(len(able), (count,), generator=generator)]
        start = torch.rand(count, data.start_size, generator=generator)
        # The last number says whether the others count; 0 is below every fraction.
        start[:, -1] = 0.0
        if fixed is not None and not (fixed == 0 and self._classes):
            column = self._moving[fixed - bool(self._classes)]
            start[:, column] = start[:1, column]
        bins = (start[:, self._moving] * self._bins).long().clamp(max=self._bins - 1)
        label = self._labels[indices, None][:, : 1 if self._classes else 0]
        # No transformation acts, so that all of them rest where they start.
        still = torch.full_like(indices, -1)
        sequences = data.select(
            indices.to(data.device),
            still.to(data.device),
            torch.zeros(count, 1, dtype=torch.long, device=data.device),
            start.to(data.device),
        )
        return sequences.frames[:, 0], torch.cat([label, bins], dim=1)


def known_factors(data: SequenceDataset, bins: int = 10) -> KnownFactors:
    """Return the factors of a data set that has some.

    Args:
        data: a :class:`~flowfactor.data.FactorGrid` (of which :class:`~flowfactor.data.Shapes3D`
            is one), :class:`~flowfactor.data.Sprites` or digits.
        bins: for factors that are continuous.

    Raises:
        ValueError: recordings or another data set whose factors are not known; what
            :class:`GridFactors` and :class:`StartFactors` refuse.

    Example:
        >>> from flowfactor.data import Sprites
        >>> known_factors(Sprites(100), bins=5).sizes
        (3, 5, 5, 5, 5, 5)
    """
    if isinstance(data, FactorGrid):
        return GridFactors(data)
    if isinstance(data, (Sprites, TransformedImages)):
        return StartFactors(data, bins)
    raise ValueError(
        f"the factors of {type(data).__name__} are not known; give a FactorGrid, Sprites, digits, "
        f"or an object with names, sizes, image_shape and sample_factors"
    )


class ModelCodes:
    """Codes of images with known factors that a model encodes when they are asked for.

    A code is the mean of ``q(z_0 | x_0)``.

    Args:
        model: in evaluation mode.
        factors: what is encoded.
        batch_size: images at a time.

    Raises:
        ValueError: the images have another shape than the model's.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import Sprites
        >>> model = flowfactor.FlowVAE.build(("x",), (3, 32, 32), latent_dim=4, width=8).eval()
        >>> source = ModelCodes(model, known_factors(Sprites(100)))
        >>> codes, factors = source.sample(6, torch.Generator().manual_seed(0), fixed=0)
        >>> codes.shape, factors.shape
        ((6, 4), (6, 6))
    """

    def __init__(self, model: SequenceModel, factors: KnownFactors, batch_size: int = 250) -> None:
        if tuple(factors.image_shape) != tuple(model.image_shape):
            raise ValueError(
                f"the images of the data have the shape {tuple(factors.image_shape)}, but the "
                f"model takes {tuple(model.image_shape)}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; it is {batch_size}")
        self.model, self.factors, self.batch_size = model, factors, batch_size

    @property
    def factor_count(self) -> int:
        """F."""
        return len(self.factors.names)

    @torch.no_grad()
    def sample(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Draw codes ``(count, D)`` and factors ``(count, F)``."""
        if count < 1:
            raise ValueError(f"at least one sample must be drawn; {count} were asked for")
        # A fixed value holds for one draw only, so that such a draw cannot be cut into batches.
        sizes = [min(self.batch_size, count - i) for i in range(0, count, self.batch_size)]
        device = next(self.model.parameters()).device
        codes: list[npt.NDArray[Any]] = []
        factors: list[npt.NDArray[Any]] = []
        for size in sizes if fixed is None else [count]:
            images, values = self.factors.sample_factors(size, generator, fixed)
            codes.extend(
                self.model.represent(batch.to(device)).double().cpu().numpy()
                for batch in images.split(self.batch_size)
            )
            factors.append(values.cpu().numpy())
        return np.concatenate(codes), np.concatenate(factors)


def encode_dataset(
    model: SequenceModel,
    data: SequenceDataset | KnownFactors,
    count: int = 10_000,
    *,
    bins: int = 10,
    seed: int = 0,
    batch_size: int = 250,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return codes of random images of a data set, and the factors of the images.

    This is what :func:`~flowfactor.metrics.mig`, :func:`~flowfactor.metrics.dci`,
    :func:`~flowfactor.metrics.sap` and :class:`~flowfactor.metrics.CodeTable` take.

    Args:
        model: in evaluation mode.
        data: with known factors, see :func:`known_factors`.
        count: N.
        bins: for factors that are continuous.
        seed: of the images.
        batch_size: images at a time.

    Returns:
        Codes ``(N, D)``, the means of ``q(z_0 | x_0)``, and factors ``(N, F)``.

    Raises:
        ValueError: the factors are not known, or the images have another shape than the model's.

    Example:
        >>> import flowfactor
        >>> from flowfactor.data import Sprites
        >>> model = flowfactor.FlowVAE.build(("x",), (3, 32, 32), latent_dim=4, width=8).eval()
        >>> codes, factors = encode_dataset(model, Sprites(100), 20)
        >>> codes.shape, factors.shape
        ((20, 4), (20, 6))
    """
    known = known_factors(data, bins) if isinstance(data, SequenceDataset) else data
    source = ModelCodes(model, known, batch_size)
    return source.sample(count, torch.Generator().manual_seed(seed))


def _with_one_value(values: Int[Tensor, "n"], generator: torch.Generator) -> Int[Tensor, "m"]:
    """The rows that have one of the values, drawn at random."""
    present = values.unique()
    value = int(present[int(torch.randint(len(present), (), generator=generator))])
    rows: Tensor = (values == value).nonzero().flatten()
    return rows


def _ranges(data: TransformedImages | Sprites) -> list[tuple[float, float]]:
    """Between which values each transformation rests at a random start."""
    if isinstance(data, TransformedImages):
        return list(data.start_ranges)
    if data.active_start == "canonical":
        return [(motion.start, motion.value(data.horizon)) for motion in data.transformations]
    return [motion.starts for motion in data.transformations]
