"""Whether two models differ on a text, and whether two recipes differ over their seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

INTERVAL_CONFIDENCE = 0.95  # of all intervals
RESAMPLES = 1999
FEWEST_DOCUMENTS = 10  # that a bootstrap is worth anything with
POWER = 0.8
MOST_SEEDS = 1000  # a side, that are counted out


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, and the p-value of its being nought."""

    value: float
    low: float
    high: float
    p_value: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves nought out; one that isn't known, of equal values, does not."""
        return self.low > 0 or self.high < 0


def over_documents(totals: np.ndarray, sizes: np.ndarray) -> Estimate:
    """The ratio of two sums over documents, such as a difference of NLL per token.

    Whole documents are drawn, since tokens of one document resemble each other. The interval is the bootstrap's
    standard error, corrected by √(n/(n−1)), times the quantile of Student's t (Efron & Tibshirani, 1993, ch. 12, 13).
    The bootstrap's percentiles would be too narrow here: with heavy tails, and with few documents.

    Args:
        totals: [documents], such as the NLL of model B in each less that of model A; ten or more.
        sizes: [documents], such as the tokens that were scored in each.
    """
    count = len(totals)
    error = (
        math.sqrt(count / (count - 1))
        * stats.bootstrap(
            (totals, sizes),
            lambda x, y, axis: x.sum(axis) / y.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, 2**21 // count),
            method="percentile",
            rng=np.random.default_rng(0),
        ).standard_error
    )
    return _by_t(totals.sum() / sizes.sum(), error, count - 1)


def over_strata(values: np.ndarray, strata: np.ndarray) -> Estimate:
    """The mean over strata of their means, such as that of paradigms of minimal pairs, or of a difference in them.

    Values are drawn within their stratum: the strata are those of the test. The error is the bootstrap's, corrected by
    n/(n−1); for means it needs no draws (Efron & Tibshirani, 1993, ch. 6).

    Args:
        values: [n].
        strata: [n], the name of each one's stratum; two or more values have the same.
    """
    parts = [values[strata == stratum] for stratum in np.unique(strata)]
    error = math.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)) / len(parts)
    return _by_t(np.mean([part.mean() for part in parts]), error, len(values) - len(parts))


def _by_t(value: float, error: float, freedom: int) -> Estimate:
    half = stats.t.ppf((1 + INTERVAL_CONFIDENCE) / 2, freedom) * error
    p_value = 2 * stats.t.sf(abs(value) / error, freedom) if error else float(value == 0)
    return Estimate(float(value), float(value - half), float(value + half), float(p_value))


def over_seeds(a: Sequence[float], b: Sequence[float], paired: bool = False) -> Estimate:
    """The difference of two recipes' means, B's less A's, with a run for each seed.

    By Welch's t (1947), which lets each side have a spread and a number of runs of its own. ``paired``: by Student's t
    of the differences, for runs that belong together, such as those of the same seed. Two runs a side are the least.
    Where values have no spread, nothing is known of the interval, which is then NaN.
    """
    spreads = [np.subtract(b, a)] if paired else [a, b]
    if not any(np.ptp(values) for values in spreads):
        return Estimate(float(np.mean(b) - np.mean(a)), math.nan, math.nan, math.nan)
    test = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=False)
    interval = test.confidence_interval(INTERVAL_CONFIDENCE)
    return Estimate(float(np.mean(b) - np.mean(a)), float(interval.low), float(interval.high), float(test.pvalue))


def seeds_to_tell(a: Sequence[float], b: Sequence[float], paired: bool = False) -> int | None:
    """How many runs a side find the difference of these means in 80 % of cases, if it and the spread are the true ones.

    None where more than 1000 are needed.
    """
    difference = abs(np.mean(b) - np.mean(a))
    variance = np.var(np.subtract(b, a), ddof=1) if paired else np.var(a, ddof=1) + np.var(b, ddof=1)
    counts = np.arange(2, MOST_SEEDS + 1)
    freedom = (counts - 1) * (1 if paired else 2)
    bound, shift = stats.t.ppf((1 + INTERVAL_CONFIDENCE) / 2, freedom), difference / np.sqrt(variance / counts)
    enough = counts[stats.nct.sf(bound, freedom, shift) >= POWER]  # the noncentral t
    return int(enough[0]) if len(enough) else None
