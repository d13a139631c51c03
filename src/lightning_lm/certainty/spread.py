"""Which of several configurations can't be told from the best one, by the spread between their seeds."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95  # how surely the set has the best one in it
NODES = (np.arange(50) + 0.5) / 50  # quantiles over which an expectation is taken


def pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation between seeds, and its degrees of freedom; (nan, 0) where no group has two seeds.

    Pooled over the better half of the groups, since at rates near divergence the spread is many times larger. To
    choose by the mean leaves the pooled variance unbiased: of normal losses, mean and variance are independent.
    """
    repeated = sorted((group for group in groups if len(group) > 1), key=np.mean)
    better = repeated[: max((len(repeated) + 1) // 2, 2)]
    freedom = sum(len(group) - 1 for group in better)
    squares = sum(np.var(group) * len(group) for group in better)
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else (float("nan"), 0)


def within_noise(means: np.ndarray, counts: np.ndarray, spread: float, freedom: int) -> np.ndarray:
    """For each configuration whether no other one is shown to have a lower mean.

    Multiple comparisons with the best (Hsu, 1984, Annals of Statistics 12): each is held against all others at once by
    Dunnett's one-sided test. So the set has the true best in it with probability ``LEVEL``, however many there are.

    Args:
        means: (k,) mean loss of each configuration.
        counts: (k,) how many seeds each has.
        spread: the standard deviation between seeds.
        freedom: degrees of freedom of ``spread``.

    Returns:
        (k,) booleans; at least the best one is true.
    """
    inside = np.ones(len(means), dtype=bool)
    for i in set(range(len(means))) - {int(np.argmin(means))}:
        others = np.arange(len(means)) != i
        behind = means[i] - means[others]
        errors = spread * np.sqrt(1 / counts[i] + 1 / counts[others])
        with np.errstate(divide="ignore", invalid="ignore"):  # all seeds may give the same loss
            largest = np.max(np.nan_to_num(behind / errors, posinf=1e6), initial=0)
        inside[i] = dunnett(largest, counts[i], counts[others], freedom) > 1 - LEVEL
    return inside


def dunnett(largest: float, count: int, others: np.ndarray, freedom: int) -> float:
    """P-value of the largest of Dunnett's t statistics, of a group of ``count`` values against ``others``.

    As ``scipy.stats.dunnett``, one-sided, but for a spread that is not pooled over all groups.
    """
    share = np.sqrt(others / (count + others))  # of a difference's error, what all comparisons have in common
    common = stats.norm.ppf(NODES)[:, None, None]
    ratio = np.sqrt(stats.chi2.ppf(NODES, freedom) / freedom)[None, :, None]  # estimated spread over the true one
    below = stats.norm.cdf((largest * ratio - share * common) / np.sqrt(1 - share**2))
    return float(1 - below.prod(axis=2).mean())
