"""Does each dimension of a code hold one factor, and each factor one dimension?

Four scores of the literature, on codes whose true factors are known. They differ in what they
reward, so that none replaces the others: a code that holds one factor twice loses in MIG, SAP and
DCI's completeness alone, and only the FactorVAE score and DCI's disentanglement let it pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowfactor.data.films import optional_module

Array = npt.NDArray[Any] | Tensor
"""What the scores take: an array, or a tensor of any device."""

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
    """Codes that are there already; what is drawn are rows, with replacement.

    Args:
        codes: ``(N, D)``.
        factors: ``(N, F)``, whole numbers.

    Raises:
        ValueError: as :func:`mig` does for them.

    Example:
        >>> import torch
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(5, 1)
        >>> table = CodeTable(factors.double(), factors)
        >>> codes, drawn = table.sample(3, torch.Generator().manual_seed(0), fixed=1)
        >>> codes.shape, len(set(drawn[:, 1].tolist()))
        ((3, 2), 1)
    """

    def __init__(self, codes: Array, factors: Array) -> None:
        self.codes, self.factors = _checked(codes, factors)
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


def factor_vae_score(
    source: CodeSource,
    *,
    samples: int = 64,
    train_votes: int = 10_000,
    test_votes: int = 5_000,
    variance_samples: int = 10_000,
    least_std: float = 0.05,
    seed: int = 0,
) -> float:
    r"""Return how well the stillest dimension tells which factor was fixed.

    .. code-block:: text

        vote:   draw a factor k, and codes that share its value;
                d = argmin_j  Var_samples(z_j) / Var_data(z_j)
        score:  the part of the test votes (k, d) in which k is the commonest factor of d
                among the training votes

    Dimensions whose standard deviation is below ``least_std`` take no part: a model that does not
    use them would win every vote with them. A code without any other dimension scores 0.

    Args:
        source: draws codes with a fixed factor: :class:`CodeTable`, or
            :class:`~flowfactor.metrics.ModelCodes`, which encodes new images for each vote.
        samples: codes for each vote.
        train_votes: from which the factor of each dimension is learned.
        test_votes: on which the score is taken.
        variance_samples: codes from which ``Var_data`` is estimated.
        least_std: in units of the code.
        seed: of everything drawn.

    Returns:
        A number in [0, 1]; about 1/F for a code that says nothing of the factors.

    Raises:
        ValueError: fewer than two samples or no votes, or codes that are not finite.

    Source: Kim and Mnih, "Disentangling by Factorising", ICML 2018.

    Example:
        >>> import torch
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(5, 1)
        >>> table = CodeTable(factors.double(), factors)
        >>> factor_vae_score(table, train_votes=200, test_votes=100)
        1.0
    """
    for name, number, least in (
        ("samples", samples, 2),
        ("train_votes", train_votes, 1),
        ("test_votes", test_votes, 1),
        ("variance_samples", variance_samples, 2),
    ):
        if number < least:
            raise ValueError(f"{name} must be at least {least}; it is {number}")
    generator = torch.Generator().manual_seed(seed)
    codes, _ = source.sample(variance_samples, generator)
    if not np.isfinite(codes).all():
        raise ValueError("codes must be finite; some that were drawn are NaN or infinite")
    variance = codes.var(axis=0, ddof=1)
    used = (np.sqrt(variance) >= least_std) & (variance > 0)
    if not used.any():
        return 0.0

    def votes(count: int) -> npt.NDArray[np.int64]:
        """How often each dimension was the stillest with each factor fixed, ``(F, D)``."""
        found = np.zeros((source.factor_count, int(used.sum())), dtype=np.int64)
        fixed = torch.randint(source.factor_count, (count,), generator=generator).tolist()
        for k in fixed:
            codes, _ = source.sample(samples, generator, fixed=k)
            found[k, np.argmin(codes[:, used].var(axis=0, ddof=1) / variance[used])] += 1
        return found

    factor_of = votes(train_votes).argmax(axis=0)
    test = votes(test_votes)
    return float(test[factor_of, np.arange(test.shape[1])].sum() / test.sum())


def mig(codes: Array, factors: Array, *, bins: int = 20) -> float:
    r"""Return the mutual information gap.

    .. code-block:: text

        MIG = mean_k  ( I(z_a; v_k) - I(z_b; v_k) ) / H(v_k)

    with ``z_a`` and ``z_b`` the dimensions that know most and second most of the factor ``v_k``.
    Mutual information is that of histograms, whose bias shrinks with the number of samples: 10,000
    are customary.

    Args:
        codes: ``(N, D)``, finite, at least two dimensions.
        factors: ``(N, F)``, whole numbers, each column with at least two values.
        bins: into which the range of each dimension is cut evenly.

    Returns:
        A number in [0, 1]: 1 if every factor is held by one dimension and no other.

    Raises:
        ValueError: arrays of other shapes or types, codes that are not finite, a factor with a
            single value, fewer samples than ten for each value of a factor, a single dimension,
            or fewer than two bins.

    Source: Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational
    Autoencoders", NeurIPS 2018.

    Example:
        >>> import numpy as np
        >>> factors = np.random.default_rng(0).integers(5, size=(1000, 2))
        >>> mig(factors @ np.eye(2), factors) > 0.99
        True
        >>> mig(factors @ np.array([[1, 1], [1, -1]]), factors) < 0.05
        True
    """
    z, v = _checked(codes, factors)
    _check_rivals(z, "gap")
    if bins < 2:
        raise ValueError(f"bins must be at least 2; it is {bins}")
    binned = [
        np.searchsorted(np.histogram_bin_edges(column, bins)[1:-1], column, side="right")
        for column in z.T
    ]
    gaps = []
    for factor in v.T:
        value = np.unique(factor, return_inverse=True)[1]
        second, first = sorted(_mutual_information(code, value) for code in binned)[-2:]
        gaps.append((first - second) / _mutual_information(value, value))
    return float(np.mean(gaps))


class DCI(NamedTuple):
    """Three scores of one code, each in [0, 1]; see :func:`dci`.

    Attributes:
        disentanglement: whether a dimension serves one factor only.
        completeness: whether one dimension serves for a factor.
        informativeness: mean accuracy with which the code predicts the factors of held-out samples.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(
    codes: Array,
    factors: Array,
    *,
    test_fraction: float = 1 / 3,
    trees: int = 100,
    seed: int = 0,
) -> DCI:
    r"""Return disentanglement, completeness and informativeness.

    .. code-block:: text

        R_jk:             importance of dimension j to trees that predict factor k
        disentanglement:  sum_j  (R_j. / R_..)  ( 1 - H_F(R_j. as a distribution over factors) )
        completeness:     sum_k  (R_.k / R_..)  ( 1 - H_D(R_.k as a distribution over dimensions) )

    with the entropy H_n to the base n. The predictors are gradient-boosted trees, one set for each
    factor; their cost grows with samples, dimensions and values.

    Args:
        codes: ``(N, D)``, finite.
        factors: ``(N, F)``, whole numbers, each column with at least two values.
        test_fraction: the part of the samples, drawn at random, that the trees do not see.
        trees: rounds of boosting.
        seed: of that draw and of the trees.

    Raises:
        ValueError: as for :func:`mig`; a value of a factor that only test samples have; a
            fraction that leaves no samples on either side.
        DataError: scikit-learn is not installed.

    Source: Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled
    Representations", ICLR 2018.

    Example:
        >>> import numpy as np
        >>> factors = np.random.default_rng(0).integers(3, size=(300, 2))
        >>> scores = dci(factors.astype(float), factors, trees=10)
        >>> [round(score, 2) for score in scores]
        [1.0, 1.0, 1.0]
    """
    learners = optional_module("sklearn.ensemble", "metrics")
    z, v = _checked(codes, factors)
    if trees < 1:
        raise ValueError(f"trees must be at least 1; it is {trees}")
    train, test = _split(v, test_fraction, seed)
    importance = np.zeros((z.shape[1], v.shape[1]))
    right = []
    for k, factor in enumerate(v.T):
        model = learners.GradientBoostingClassifier(n_estimators=trees, random_state=seed)
        model.fit(z[train], factor[train])
        importance[:, k] = model.feature_importances_
        right.append(np.mean(model.predict(z[test]) == factor[test]))
    return DCI(_concentration(importance), _concentration(importance.T), float(np.mean(right)))


def sap(codes: Array, factors: Array, *, test_fraction: float = 1 / 3, seed: int = 0) -> float:
    r"""Return the separated attribute predictability.

    .. code-block:: text

        S_jk: test accuracy of a linear SVM (C = 0.01, classes balanced) that sees z_j alone
        SAP = mean_k  ( largest S_jk - second largest S_jk over j )

    A line through one dimension separates two values, not the middle ones of many: factors with
    more values score lower, however good the code.

    Args:
        codes: ``(N, D)``, finite, at least two dimensions.
        factors: ``(N, F)``, whole numbers, each column with at least two values.
        test_fraction: the part of the samples, drawn at random, on which accuracy is measured.
        seed: of that draw.

    Returns:
        A number in [0, 1]; 1/2 for a perfect code of balanced factors with two values.

    Raises:
        ValueError: as for :func:`mig` and :func:`dci`.
        DataError: scikit-learn is not installed.

    Source: Kumar, Sattigeri, Balakrishnan, "Variational Inference of Disentangled Latent Concepts
    from Unlabeled Observations", ICLR 2018.

    Example:
        >>> import numpy as np
        >>> factors = np.random.default_rng(0).integers(2, size=(1000, 2))
        >>> 0.4 < sap(factors.astype(float), factors) < 0.6
        True
    """
    learners = optional_module("sklearn.svm", "metrics")
    z, v = _checked(codes, factors)
    _check_rivals(z, "difference")
    train, test = _split(v, test_fraction, seed)
    gaps = []
    for factor in v.T:
        accuracies = []
        for column in z.T[:, :, None]:
            model = learners.LinearSVC(
                C=0.01, class_weight="balanced", dual="auto", random_state=seed
            )
            model.fit(column[train], factor[train])
            accuracies.append(float(np.mean(model.predict(column[test]) == factor[test])))
        second, first = sorted(accuracies)[-2:]
        gaps.append(first - second)
    return float(np.mean(gaps))


def _checked(codes: Array, factors: Array) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Codes in double precision and factors, after checking that they can be scored."""
    z, v = (
        array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
        for array in (codes, factors)
    )
    if z.ndim != 2 or v.ndim != 2 or len(z) != len(v) or 0 in (*z.shape, *v.shape):
        raise ValueError(
            f"codes must be (N, D) and factors (N, F), none of them empty; their shapes are "
            f"{z.shape} and {v.shape}"
        )
    if z.dtype.kind not in "fiu":
        raise ValueError(f"codes must be numbers; their type is {z.dtype}")
    if v.dtype.kind not in "iu":
        raise ValueError(
            f"factors must be whole numbers, for instance positions on a grid or numbers of bins; "
            f"their type is {v.dtype}"
        )
    bad = np.argwhere(~np.isfinite(z))
    if len(bad):
        raise ValueError(
            f"codes must be finite; {len(bad)} of {z.size} are not, the first in sample "
            f"{bad[0, 0]}, dimension {bad[0, 1]}"
        )
    for k, column in enumerate(v.T):
        values = len(np.unique(column))
        if values < 2:
            raise ValueError(
                f"factor {k} has the single value {column[0]}, of which no code can tell anything; "
                f"leave it out"
            )
        if len(v) < _PER_VALUE * values:
            raise ValueError(
                f"factor {k} has {values} values, so that at least {_PER_VALUE * values} samples "
                f"are needed; there are {len(v)}. Draw more samples, or use fewer bins"
            )
    return z.astype(np.float64), v


def _check_rivals(codes: npt.NDArray[Any], what: str) -> None:
    if codes.shape[1] < 2:
        raise ValueError(f"the {what} is between two dimensions of the code; it has only one")


def _split(
    factors: npt.NDArray[Any], test_fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows to train on and rows to test on."""
    count = round(len(factors) * test_fraction)
    if not 0 < count < len(factors):
        raise ValueError(
            f"test_fraction must leave samples to train and to test on; of {len(factors)} samples "
            f"{test_fraction} are {count}"
        )
    order = np.random.default_rng(seed).permutation(len(factors))
    test, train = order[:count], order[count:]
    for k, column in enumerate(factors.T):
        missing = np.setdiff1d(column, column[train])
        if len(missing):
            raise ValueError(
                f"factor {k} has the value {missing[0]} in test samples only; too few samples have "
                f"it. Draw more, or use fewer bins"
            )
    return train, test


def _mutual_information(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Of two columns of numbers from 0, in nats."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / independent[there])).sum())


def _concentration(importance: npt.NDArray[Any]) -> float:
    """1 minus the normalised entropy of each row, averaged by the sums of the rows."""
    total = importance.sum()
    if total == 0:
        return 0.0
    if importance.shape[1] == 1:
        return 1.0
    sums = importance.sum(axis=1, keepdims=True)
    parts = importance / np.where(sums > 0, sums, 1)
    entropy = -(parts * np.log(np.where(parts > 0, parts, 1))).sum(axis=1)
    return float((sums[:, 0] / total) @ (1 - entropy / np.log(importance.shape[1])))
