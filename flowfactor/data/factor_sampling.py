"""Images drawn together with their generative factors, from grids and from random starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowfactor.data.base import SequenceDataset
from flowfactor.data.checks import check_range
from flowfactor.errors import DataError


class GridFactors:
    """Images of a :class:`FactorGrid`, whose factors are positions on its axes.

    Its samples are drawn with replacement. Factors of which they have a single position are left
    out.

    Args:
        grid: for instance :class:`Shapes3D`.
        positions: of each sample on each axis, ``(N, F)``.
        factors: the size of each axis by its name.

    Attributes:
        names, sizes, image_shape: see :class:`KnownFactors`.

    Raises:
        DataError: no factor has two positions.

    Example:
        >>> import torch
        >>> from flowfactor.data import FactorGrid
        >>> images = torch.randint(256, (24, 8, 8, 3), dtype=torch.uint8)
        >>> grid = FactorGrid(images, {"hue": 4, "shape": 2, "size": 3}, split="all")
        >>> known = grid.known_factors()
        >>> known.names, known.sizes
        (('hue', 'shape', 'size'), (4, 2, 3))
        >>> drawn, factors = known.sample_factors(5, torch.Generator().manual_seed(0), fixed=0)
        >>> tuple(drawn.shape), len(factors[:, 0].unique())
        ((5, 3, 8, 8), 1)
    """

    def __init__(
        self, grid: SequenceDataset, positions: Int[Tensor, "n k"], factors: Mapping[str, int]
    ) -> None:
        self._grid = grid
        columns = [j for j, column in enumerate(positions.unbind(1)) if len(column.unique()) > 1]
        if not columns:
            raise DataError("No factor of the grid has two positions.")
        self._positions = positions[:, columns]
        names = list(factors)
        self.names = tuple(names[j] for j in columns)
        self.sizes = tuple(factors[name] for name in self.names)
        self.image_shape = grid.image_shape

    def sample_factors(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n k"]]:
        """Draw images and positions; see :class:`KnownFactors`."""
        rows = torch.arange(len(self._positions))
        if fixed is not None:
            rows = _rows_of_one_value(self._positions[:, fixed], generator)
        indices = rows[torch.randint(len(rows), (count,), generator=generator)]
        return self._grid.render_at_rest(indices), self._positions[indices]


class StartFactors:
    """Images at random starts: their class, and where in its range each parameter starts.

    Frame 0 at a random start has undergone every transformation at random, by uniform numbers that
    are cut into bins. The first factor is the class, ``shape`` for sprites, if there are at least
    two. What is a sample's own (a digit's hand, a sprite's stretch) varies as it does in the data
    and is no factor.

    Args:
        data: all of its samples are drawn from, with replacement.
        ranges: between which values each transformation starts.
        bins: for each transformation.
        class_name: what the class is called.

    Attributes:
        names, sizes, image_shape: see :class:`KnownFactors`.

    Raises:
        DataError: fewer than two bins, or no factor that varies.

    Example:
        >>> import torch
        >>> from flowfactor.data import Sprites
        >>> known = Sprites(100).known_factors(bins=5)
        >>> known.names
        ('shape', 'scaling', 'rotation', 'x', 'y', 'hue')
        >>> images, factors = known.sample_factors(3, torch.Generator().manual_seed(0))
        >>> tuple(images.shape), tuple(factors.shape)
        ((3, 3, 32, 32), (3, 6))
    """

    def __init__(
        self,
        data: SequenceDataset,
        ranges: Sequence[tuple[float, float]],
        bins: int = 10,
        class_name: str = "class",
    ) -> None:
        check_range("bins", bins, 2)
        self._data, self._bins = data, bins
        classes = torch.zeros(len(data)) if data.classes is None else data.classes.cpu()
        values, self._classes = classes.unique(return_inverse=True)
        # The number of leading factors that are classes.
        self._leading = int(len(values) > 1)
        self._varied = [k for k, (low, high) in enumerate(ranges) if low != high]
        self.names = (
            *(class_name,) * self._leading,
            *(data.names[k] for k in self._varied),
        )
        self.sizes = (*(len(values),) * self._leading, *(bins,) * len(self._varied))
        self.image_shape = data.image_shape
        if not self.names:
            raise DataError("Nothing varies at the random starts of this data set.")

    def sample_factors(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n k"]]:
        """Draw images and bins; see :class:`KnownFactors`."""
        data, rows = self._data, torch.arange(len(self._data))
        if fixed is not None and fixed < self._leading:
            rows = _rows_of_one_value(self._classes, generator)
        indices = rows[torch.randint(len(rows), (count,), generator=generator)]
        starts = torch.rand(count, data.start_size, generator=generator)
        # The last number says whether the others count; 0 is below every probability.
        starts[:, -1] = 0.0
        if fixed is not None and fixed >= self._leading:
            column = self._varied[fixed - self._leading]
            starts[:, column] = starts[:1, column]
        bins = (starts[:, self._varied] * self._bins).long().clamp(max=self._bins - 1)
        classes = self._classes[indices, None][:, : self._leading]
        images = data.render_at_rest(indices, starts.to(data.device))
        return images, torch.cat([classes, bins], dim=1)


def _rows_of_one_value(values: Int[Tensor, "n"], generator: torch.Generator) -> Int[Tensor, "m"]:
    """Return the rows that have one of the values, drawn at random."""
    present = values.unique()
    value = int(present[int(torch.randint(len(present), (), generator=generator))])
    rows: Tensor = (values == value).nonzero().flatten()
    return rows
