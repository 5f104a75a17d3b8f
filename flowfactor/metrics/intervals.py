"""Confidence intervals of proportions, also where samples belong together."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def proportion_interval(
    right: Bool[Tensor, "n"], groups: Int[Tensor, "n"] | None = None, level: float = 0.95
) -> tuple[float, float]:
    r"""Return Wilson's interval of the part of samples that are right.

    .. math::

        \frac{p + c / 2 \mp \sqrt{c\, p\, (1 - p) + c^2 / 4}}{1 + c}, \qquad c = \frac{z^2}{n}

    Samples of one group, such as sequences cut from one track, are not independent. With G groups
    the number n of samples is therefore divided by the *design effect*, how much larger the
    variance of p is than with independent ones, if it is; and z is the quantile of Student's t with
    G - 1 degrees of freedom instead of the normal one. If all samples are right, or none, n is G.

    Args:
        right: which samples are right.
        groups: the number of the group of each; None: all are independent.
        level: the probability that the interval covers, between 0 and 1.

    Raises:
        ValueError: no sample.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA
    1927; Korn and Graubard, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", Survey Methodology 1998, for the design effect.

    Example:
        >>> import torch
        >>> right = torch.tensor([True] * 8 + [False] * 2)
        >>> [round(end, 3) for end in proportion_interval(right)]
        [0.49, 0.943]
        >>> twice = right.repeat_interleave(2)  # no more is known than before
        >>> [round(end, 3) for end in proportion_interval(twice, torch.arange(20) // 2)]
        [0.427, 0.955]
    """
    from scipy.special import ndtri, stdtrit

    if not len(right):
        raise ValueError("right must hold at least one sample; there is none")
    count, p = float(len(right)), float(right.double().mean())
    tail = (1 + level) / 2
    z = float(ndtri(tail))
    if groups is not None:
        which, sizes = groups.unique(return_inverse=True, return_counts=True)[1:]
        G = len(sizes)
        if G == 1:
            return 0.0, 1.0
        if count > G:
            sums = torch.zeros(G, dtype=torch.double).index_add(0, which, right.double())
            spread = float((sums - sizes * p).square().sum()) * G / (G - 1)
            count = min(count, count**2 * p * (1 - p) / spread) if 0 < p < 1 else float(G)
            z = float(stdtrit(G - 1, tail))
    c = z**2 / count
    middle, reach = p + c / 2, (c * p * (1 - p) + c**2 / 4) ** 0.5
    return (middle - reach) / (1 + c), (middle + reach) / (1 + c)
