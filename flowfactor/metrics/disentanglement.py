"""Does each dimension of a code hold one factor, and each factor one dimension?

Four scores of the literature, on codes whose true factors are known. They differ in what they
reward, so that none replaces the others: a code that holds one factor twice loses in MIG, SAP and
DCI's completeness alone, and only the FactorVAE score and DCI's disentanglement let it pass.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from flowfactor.checks import check_integer, check_number, check_type
from flowfactor.errors import DataError
from flowfactor.extras import import_extra
from flowfactor.metrics.base import Metric, MetricContext, MetricOptions
from flowfactor.metrics.codes import Array, CodeSource, CodeTable, check_codes, encode_dataset
from flowfactor.options import PositiveInt, options
from flowfactor.registries import METRICS
from flowfactor.tables import Column


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
    r"""Return how well the dimension that varies least tells which factor was fixed.

    A vote draws a factor k and codes that share its value, and names the dimension

    .. math::

        d = \arg\min_j \frac{\mathrm{Var}_{\text{samples}}(z_j)}{\mathrm{Var}_{\text{data}}(z_j)}

    The score is the share of the test votes (k, d) in which k is the commonest factor of d among
    the training votes.

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
    check_type("source", source, CodeSource, "a CodeTable or ModelCodes")
    check_integer("samples", samples, 2)
    check_integer("variance_samples", variance_samples, 2)
    check_integer("train_votes", train_votes)
    check_integer("test_votes", test_votes)
    check_number("least_std", least_std, 0)
    check_integer("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    codes, _ = source.sample(variance_samples, generator)
    if not np.isfinite(codes).all():
        raise ValueError("codes must be finite; some that were drawn are not")
    variance = codes.var(axis=0, ddof=1)
    used = (np.sqrt(variance) >= least_std) & (variance > 0)
    if not used.any():
        return 0.0

    def votes(count: int) -> npt.NDArray[np.int64]:
        """Count how often each dimension varied least with each factor fixed, ``(F, D)``."""
        counts = np.zeros((source.factor_count, int(used.sum())), dtype=np.int64)
        fixed = torch.randint(source.factor_count, (count,), generator=generator).tolist()
        for k in fixed:
            codes, _ = source.sample(samples, generator, fixed=k)
            counts[k, np.argmin(codes[:, used].var(axis=0, ddof=1) / variance[used])] += 1
        return counts

    factor_of = votes(train_votes).argmax(axis=0)
    test = votes(test_votes)
    return float(test[factor_of, np.arange(test.shape[1])].sum() / test.sum())


def mig(codes: Array, factors: Array, *, bins: int = 20) -> float:
    r"""Return the mutual information gap.

    .. math::

        \mathrm{MIG} = \mathrm{mean}_k\, \frac{I(z_a; v_k) - I(z_b; v_k)}{H(v_k)}

    with ``z_a`` and ``z_b`` the dimensions that know most and second most of the factor ``v_k``.
    Mutual information is that of histograms, whose bias shrinks with the number of samples: 10,000
    are customary.

    Args:
        codes: ``(N, D)``, finite, at least two dimensions.
        factors: ``(N, F)``, integers, each column with at least two values.
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
    z, v = check_codes(codes, factors)
    _check_rivals(z)
    check_integer("bins", bins, 2)
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

    .. math::

        \begin{aligned}
        \text{disentanglement} &= \sum_j \frac{R_{j \cdot}}{R_{\cdot \cdot}}
          \bigl( 1 - H_F(R_{j \cdot}) \bigr), \\
        \text{completeness} &= \sum_k \frac{R_{\cdot k}}{R_{\cdot \cdot}}
          \bigl( 1 - H_D(R_{\cdot k}) \bigr)
        \end{aligned}

    where ``R_jk`` is the importance of dimension j to trees that predict factor k, a dot the sum
    over an index, and ``H_n`` the entropy, to the base n, of a row or column as a distribution. The
    predictors are gradient-boosted trees, one set for each factor; their cost grows with samples,
    dimensions and values.

    Args:
        codes: ``(N, D)``, finite.
        factors: ``(N, F)``, integers, each column with at least two values.
        test_fraction: the part of the samples, drawn at random, that the trees do not see.
        trees: rounds of boosting.
        seed: of that draw and of the trees.

    Raises:
        ValueError: as for :func:`mig`; a value of a factor that only test samples have; a
            fraction that leaves no samples on either side.
        MissingExtraError: scikit-learn is not installed.

    Source: Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled
    Representations", ICLR 2018.

    Example:
        >>> import numpy as np
        >>> factors = np.random.default_rng(0).integers(3, size=(300, 2))
        >>> scores = dci(factors.astype(float), factors, trees=10)
        >>> [round(score, 2) for score in scores]
        [1.0, 1.0, 1.0]
    """
    learners = import_extra("sklearn.ensemble", "metrics")
    z, v = check_codes(codes, factors)
    check_integer("trees", trees)
    train, test = _split(v, test_fraction, seed)
    importance = np.zeros((z.shape[1], v.shape[1]))
    accuracies = []
    for k, factor in enumerate(v.T):
        model = learners.GradientBoostingClassifier(n_estimators=trees, random_state=seed)
        model.fit(z[train], factor[train])
        importance[:, k] = model.feature_importances_
        accuracies.append(np.mean(model.predict(z[test]) == factor[test]))
    return DCI(_concentration(importance), _concentration(importance.T), float(np.mean(accuracies)))


def sap(codes: Array, factors: Array, *, test_fraction: float = 1 / 3, seed: int = 0) -> float:
    r"""Return the separated attribute predictability.

    .. math::

        \mathrm{SAP} = \mathrm{mean}_k\, (S_{ak} - S_{bk})

    where ``S_jk`` is the test accuracy of a linear SVM (C = 0.01, classes balanced) that predicts
    factor k from ``z_j`` alone, and ``z_a`` and ``z_b`` are the dimensions with the largest and
    second largest. A threshold on one dimension separates two values, not the middle ones of many:
    factors with more values score lower, however good the code.

    Args:
        codes: ``(N, D)``, finite, at least two dimensions.
        factors: ``(N, F)``, integers, each column with at least two values.
        test_fraction: the part of the samples, drawn at random, on which accuracy is measured.
        seed: of that draw.

    Returns:
        A number in [0, 1]; 1/2 for a perfect code of balanced factors with two values.

    Raises:
        ValueError: as for :func:`mig` and :func:`dci`.
        MissingExtraError: scikit-learn is not installed.

    Source: Kumar, Sattigeri, Balakrishnan, "Variational Inference of Disentangled Latent Concepts
    from Unlabeled Observations", ICLR 2018.

    Example:
        >>> import numpy as np
        >>> factors = np.random.default_rng(0).integers(2, size=(1000, 2))
        >>> 0.4 < sap(factors.astype(float), factors) < 0.6
        True
    """
    learners = import_extra("sklearn.svm", "metrics")
    z, v = check_codes(codes, factors)
    _check_rivals(z)
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


def _check_rivals(codes: npt.NDArray[Any]) -> None:
    if codes.shape[1] < 2:
        raise ValueError("codes must have at least two dimensions; they have only one")


def _split(
    factors: npt.NDArray[Any], test_fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return rows to train on and rows to test on."""
    check_number("test_fraction", test_fraction, 0, 1)
    check_integer("seed", seed, 0)
    count = round(len(factors) * test_fraction)
    if not 0 < count < len(factors):
        raise ValueError(
            f"test_fraction must leave samples to train and to test on; it is {test_fraction} of "
            f"{len(factors)}"
        )
    order = np.random.default_rng(seed).permutation(len(factors))
    test, train = order[:count], order[count:]
    for k, column in enumerate(factors.T):
        missing = np.setdiff1d(column, column[train])
        if len(missing):
            raise ValueError(
                f"factor {k}: only test samples have the value {missing[0]}. Draw more samples, or "
                f"use fewer bins"
            )
    return train, test


def _mutual_information(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Return that of two columns of integers from 0, in nats."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    positive = joint > 0
    ratio = joint[positive] / independent[positive]
    return float((joint[positive] * np.log(ratio)).sum())


def _concentration(importance: npt.NDArray[Any]) -> float:
    """Return 1 minus the normalised entropy of each row, averaged by the sums of the rows."""
    total = importance.sum()
    if total == 0:
        return 0.0
    if importance.shape[1] == 1:
        return 1.0
    sums = importance.sum(axis=1, keepdims=True)
    parts = importance / np.where(sums > 0, sums, 1)
    entropy = -(parts * np.log(np.where(parts > 0, parts, 1))).sum(axis=1)
    return float((sums[:, 0] / total) @ (1 - entropy / np.log(importance.shape[1])))


@options
class DisentanglementOptions(MetricOptions):
    """Options of the scores of disentanglement."""

    codes: Annotated[PositiveInt, Field(ge=100)] = 10_000
    """The number of images that are encoded."""
    trees: PositiveInt = 100
    """The rounds of boosting of DCI."""


@dataclasses.dataclass(frozen=True)
class DisentanglementScores:
    """All scores of one code, each in [0, 1], and the factors and images behind them."""

    factors: list[str]
    codes: int
    trees: int
    factor_vae: float
    mig: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    sap: float


def _score(key: str, heading: str, attribute: str = "", *, shown: bool = True) -> Column:
    return Column(key, heading, "higher", ".3f", operator.attrgetter(attribute or key), shown)


@METRICS.register("disentanglement")
class Disentanglement(Metric):
    """Scores of the code of images whose factors are known: of the whole grid, or held out."""

    Options = DisentanglementOptions
    Result = DisentanglementScores
    by_name = False
    order = 70
    description = "disentanglement of the code"
    needs = "images whose factors are known: digits, sprites or a grid of factors"
    columns = (
        _score("factor_vae", "FactorVAE"),
        _score("mig", "MIG"),
        _score("dci", "DCI", "dci_disentanglement"),
        _score("dci_completeness", "DCI completeness", shown=False),
        _score("dci_informativeness", "DCI informativeness", shown=False),
        _score("sap", "SAP"),
    )
    options: DisentanglementOptions

    def applies(self, context: MetricContext) -> bool:
        """Return whether the factors of the data are known."""
        try:
            context.data.known_factors()
        except DataError:
            return False
        return True

    def measure(self, context: MetricContext) -> DisentanglementScores:
        """Return the scores."""
        known, seed = context.data.known_factors(), context.seed
        codes, factors = encode_dataset(context.model, known, self.options.codes, seed=seed)
        tree_scores = dci(codes, factors, trees=self.options.trees, seed=seed)
        return DisentanglementScores(
            list(known.names),
            self.options.codes,
            self.options.trees,
            factor_vae_score(CodeTable(codes, factors), seed=seed),
            mig(codes, factors),
            *tree_scores,
            sap(codes, factors, seed=seed),
        )
