"""Which of several configurations can't be told from the best one, by the spread between their seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

BEST_SET_CONFIDENCE = 0.95  # how surely the set has the best one in it
NODES = (np.arange(50) + 0.5) / 50  # quantiles over which an expectation is taken


class Means(NamedTuple):
    """Of k configurations."""

    means: np.ndarray  # (k,) of their losses, less what a seed does to all configurations alike
    counts: np.ndarray  # (k,) how many seeds each has
    spread: float  # standard deviation of a loss, beyond that; nan where nothing tells it
    freedom: int  # degrees of freedom of ``spread``


def pooled(groups: Sequence[Mapping[int, float]]) -> Means:
    """Means and noise of groups of losses, each seed → loss.

    One seed gives all configurations the same start and order, so that often it is good or bad for all of them. Least
    squares take this out: loss = configuration + seed + noise. Where configurations have no seeds in common, so that
    this can't be told, the noise is the spread within each. It is pooled over the better half of the groups, since near
    divergence it is many times larger. To choose by the mean leaves it unbiased where losses are normal.
    """
    repeated = sorted((group for group in groups if len(group) > 1), key=lambda group: np.mean([*group.values()]))
    better = repeated[: max((len(repeated) + 1) // 2, 2)]
    losses = np.array([loss for group in better for loss in group.values()])
    seeds = sorted({seed for group in better for seed in group})
    of_group = np.array([[i == j for j in range(len(better))] for i, group in enumerate(better) for _ in group], float)
    of_seed = np.array([[seed == other for other in seeds] for group in better for seed in group], float)
    effects = dict.fromkeys(seeds, 0.0)
    spread, freedom = float("nan"), 0
    for design in (np.hstack([of_group, of_seed]), of_group) if better else ():
        freedom = len(losses) - int(np.linalg.matrix_rank(design))
        if freedom:
            estimates = np.linalg.lstsq(design, losses, rcond=None)[0]
            spread = float(np.sqrt(np.sum((losses - design @ estimates) ** 2) / freedom))
            by_seed = estimates[len(better) :]
            effects |= dict(zip(seeds, by_seed - by_seed.mean(), strict=True)) if len(by_seed) else {}
            break
    means = [np.mean([loss - effects.get(seed, 0.0) for seed, loss in group.items()]) for group in groups]
    return Means(np.array(means), np.array([len(group) for group in groups]), spread, freedom)


def within_noise(means: np.ndarray, counts: np.ndarray, spread: float, freedom: int) -> np.ndarray:
    """For each configuration whether no other one is shown to have a lower mean.

    Multiple comparisons with the best (Hsu, 1984, Annals of Statistics 12): each is held against all others at once by
    Dunnett's one-sided test. So the set has the true best in it with probability
    ``BEST_SET_CONFIDENCE``, however many there are.

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
        inside[i] = dunnett(largest, counts[i], counts[others], freedom) > 1 - BEST_SET_CONFIDENCE
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
