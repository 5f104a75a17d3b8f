"""Codes of images whose factors are known: what scores of disentanglement are computed from."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowfactor.checks import check_integer, check_type, kind_of
from flowfactor.data import KnownFactors, SequenceDataset
from flowfactor.models import SequenceModel

Array = npt.NDArray[Any] | Tensor
"""What the scores take: an array, or a tensor on any device."""

_PER_VALUE = 10
"""Samples that each value of a factor must have on average."""


@runtime_checkable
class CodeSource(Protocol):
    """Codes of data whose factors are known, drawn at random, also with one factor fixed."""

    @property
    def factor_count(self) -> int:
        """F."""

    def sample(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Draw codes ``(count, D)`` and their factors ``(count, F)``.

        Args:
            count: how many.
            generator: on the CPU.
            fixed: a factor that has the same value in all of them, itself drawn at random.
        """


class CodeTable:
    """Codes that are given; rows of them are drawn with replacement.

    Args:
        codes: ``(N, D)``.
        factors: ``(N, F)``, integers.

    Raises:
        ValueError: as :func:`~flowfactor.metrics.mig` does for them.

    Example:
        >>> import torch
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(5, 1)
        >>> table = CodeTable(factors.double(), factors)
        >>> codes, drawn = table.sample(3, torch.Generator().manual_seed(0), fixed=1)
        >>> codes.shape, len(set(drawn[:, 1].tolist()))
        ((3, 2), 1)
    """

    def __init__(self, codes: Array, factors: Array) -> None:
        self.codes, self.factors = check_codes(codes, factors)
        self._rows = [
            [np.flatnonzero(column == value) for value in np.unique(column)]
            for column in self.factors.T
        ]

    @property
    def factor_count(self) -> int:
        """F."""
        return int(self.factors.shape[1])

    def sample(
        self, count: int, generator: torch.Generator, fixed: int | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Draw rows, all of one value of the factor ``fixed`` if one is given."""
        rows = np.arange(len(self.codes))
        if fixed is not None:
            groups = self._rows[fixed]
            rows = groups[int(torch.randint(len(groups), (), generator=generator))]
        drawn = rows[torch.randint(len(rows), (count,), generator=generator).numpy()]
        return self.codes[drawn], self.factors[drawn]


class ModelCodes:
    """Codes of images with known factors that a model encodes when they are drawn.

    A code is the mean of ``q(z_0 | x_0)``.

    Args:
        model: in evaluation mode.
        factors: of the images.
        batch_size: images at a time.

    Raises:
        ValueError: the images have another shape than the model's.

    Example:
        >>> import torch, flowfactor
        >>> from flowfactor.data import Sprites
        >>> model = flowfactor.FlowVAE.build(("x",), (3, 32, 32), latent_dim=4, width=8).eval()
        >>> source = ModelCodes(model, Sprites(100).known_factors())
        >>> codes, factors = source.sample(6, torch.Generator().manual_seed(0), fixed=0)
        >>> codes.shape, factors.shape
        ((6, 4), (6, 6))
    """

    def __init__(self, model: SequenceModel, factors: KnownFactors, batch_size: int = 250) -> None:
        check_type("model", model, SequenceModel)
        check_type("factors", factors, KnownFactors)
        check_integer("batch_size", batch_size)
        if tuple(factors.image_shape) != tuple(model.image_shape):
            raise ValueError(
                f"image_shape: the data has {tuple(factors.image_shape)}, the model takes "
                f"{tuple(model.image_shape)}"
            )
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
        # A fixed value holds for one draw only, so that such a draw cannot be cut into batches.
        sizes = [min(self.batch_size, count - i) for i in range(0, count, self.batch_size)]
        codes: list[npt.NDArray[Any]] = []
        factors: list[npt.NDArray[Any]] = []
        for size in sizes if fixed is None else [count]:
            images, values = self.factors.sample_factors(size, generator, fixed)
            codes.extend(
                self.model.represent(batch.to(self.model.device)).cpu().double().numpy()
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
        data: with known factors, see :meth:`SequenceDataset.known_factors
            <flowfactor.data.SequenceDataset.known_factors>`.
        count: N, at least 1.
        bins: into how many values continuous factors are cut.
        seed: of the images.
        batch_size: images at a time.

    Returns:
        Codes ``(N, D)``, the means of ``q(z_0 | x_0)``, and factors ``(N, F)``.

    Raises:
        DataError: the factors are not known.
        ValueError: the images have another shape than the model's, or ``count`` is 0.

    Example:
        >>> import flowfactor
        >>> from flowfactor.data import Sprites
        >>> model = flowfactor.FlowVAE.build(("x",), (3, 32, 32), latent_dim=4, width=8).eval()
        >>> codes, factors = encode_dataset(model, Sprites(100), 20)
        >>> codes.shape, factors.shape
        ((20, 4), (20, 6))
    """
    check_integer("count", count)
    check_integer("bins", bins, 2)
    check_integer("seed", seed, 0)
    check_type("data", data, (SequenceDataset, KnownFactors))
    known = data.known_factors(bins) if isinstance(data, SequenceDataset) else data
    source = ModelCodes(model, known, batch_size)
    return source.sample(count, torch.Generator().manual_seed(seed))


def _as_array(name: str, array: Any) -> npt.NDArray[Any]:
    if isinstance(array, Tensor):
        return array.detach().cpu().numpy()
    try:
        return np.asarray(array)
    except ValueError:  # rows of different lengths
        raise TypeError(f"{name} must be an array of numbers; it is {kind_of(array)}") from None


def check_codes(codes: Array, factors: Array) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return codes in double precision and factors, after checking that they can be scored.

    Raises:
        ValueError: arrays of other shapes or types than ``(N, D)`` numbers and ``(N, F)`` integers,
            codes that are not finite, a factor with a single value, or fewer samples than ten for
            each value of a factor.
    """
    z, v = _as_array("codes", codes), _as_array("factors", factors)
    if z.ndim != 2 or v.ndim != 2 or len(z) != len(v) or 0 in (*z.shape, *v.shape):
        raise ValueError(
            f"codes must be (N, D) and factors (N, F), not empty; their shapes are {z.shape} and "
            f"{v.shape}"
        )
    if z.dtype.kind not in "fiu" or v.dtype.kind not in "iu":
        raise ValueError(
            f"codes must be numbers and factors integers; their types are {z.dtype} and {v.dtype}"
        )
    bad = np.argwhere(~np.isfinite(z))
    if len(bad):
        raise ValueError(
            f"codes must be finite; {len(bad)} of {z.size} are not, the first at {tuple(bad[0])}"
        )
    for k, column in enumerate(v.T):
        values = len(np.unique(column))
        if values < 2:
            raise ValueError(f"factor {k} has the single value {column[0]}; leave it out")
        if len(v) < _PER_VALUE * values:
            raise ValueError(
                f"factor {k} has {values} values, which takes at least {_PER_VALUE * values} "
                f"samples; there are {len(v)}. Draw more samples, or use fewer bins"
            )
    return z.astype(np.float64), v
