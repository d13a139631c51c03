"""What is within noise of the best, against scipy's Dunnett test, and how often the true best is in the set."""

import numpy as np
import pytest
from scipy import stats

from lightning_lm.certainty.spread import dunnett, pooled, within_noise


@pytest.mark.parametrize("sizes", [(3, 3), (3, 3, 3, 3), (2, 3, 4, 5, 3), (4, 2, 2, 2, 2, 2, 2, 2)])
def test_the_p_value_is_dunnetts(sizes):
    chance = np.random.default_rng(len(sizes))
    control, *others = [chance.normal(size=size) for size in sizes]
    theirs = stats.dunnett(*others, control=control, alternative="less", rng=0)
    largest, freedom = -theirs.statistic.min(), sum(sizes) - len(sizes)
    ours = dunnett(largest, sizes[0], np.array(sizes[1:]), freedom)
    assert ours == pytest.approx(theirs.pvalue.min(), abs=2e-3)


def test_the_pooled_spread_is_of_the_better_half():
    """Variances of 1 and 4 with one degree of freedom each; the worst two groups, near divergence, don't count."""
    groups = [[0, np.sqrt(2)], [10, 10 + 2 * np.sqrt(2)], [50, 90], [60, 99], [1.0]]
    assert pooled(groups) == (pytest.approx(np.sqrt(2.5)), 2)
    assert pooled([[1.0], [2.0]])[1] == 0


def test_the_set_has_the_true_best_in_95_percent():
    """Nine equal configurations are the worst case: of 200 searches the first one is left out of about 10."""
    chance, left_out = np.random.default_rng(3), 0
    for _ in range(200):
        groups = chance.normal(size=(9, 3))
        left_out += not within_noise(groups.mean(axis=1), np.full(9, 3), *pooled(groups.tolist()))[0]
    assert 2 <= left_out <= 20


def test_clear_differences_are_told():
    means, counts = np.array([3.0, 3.1, 3.015]), np.array([3, 3, 3])
    assert within_noise(means, counts, 0.01, 6).tolist() == [True, False, True]
    assert within_noise(means, counts, 0.0, 6).tolist() == [True, False, False]
    assert within_noise(np.array([3.0, 3.0]), np.array([2, 2]), 0.0, 2).tolist() == [True, True]
