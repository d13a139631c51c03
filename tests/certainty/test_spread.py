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


def test_the_spread_of_the_better_half_without_seeds_in_common():
    """Variances of 1 and 4 with one degree of freedom each; the worst two groups, near divergence, don't count."""
    groups = [[0, np.sqrt(2)], [10, 10 + 2 * np.sqrt(2)], [50, 90], [60, 99], [1.0]]
    noise = pooled([{10 * i + j: loss for j, loss in enumerate(group)} for i, group in enumerate(groups)])
    assert (noise.spread, noise.freedom) == (pytest.approx(np.sqrt(2.5)), 2)
    assert noise.means == pytest.approx([np.mean(group) for group in groups])
    assert pooled([{0: 1.0}, {0: 2.0}]).freedom == 0


def test_what_a_seed_does_to_all_alike_is_no_noise():
    """By hand: of [[0, 10], [1, 13]] the seeds' effects are ±5.5, and what is left are four residuals of 0.5."""
    noise = pooled([{0: 0.0, 1: 10.0}, {0: 1.0, 1: 13.0}, {1: 20.0}])
    assert (noise.spread, noise.freedom) == (pytest.approx(1.0), 1)
    assert noise.means == pytest.approx([5, 7, 14.5]), "the third has only the higher seed"


def test_the_set_has_the_true_best_in_95_percent():
    """Nine equal configurations are the worst case: of 200 searches the first one is left out of about 10."""
    chance, left_out = np.random.default_rng(3), 0
    for _ in range(200):
        losses = chance.normal(size=(9, 3)) + 10 * chance.normal(size=3)
        left_out += not within_noise(*pooled([dict(enumerate(row)) for row in losses]))[0]
    assert 2 <= left_out <= 20


def test_clear_differences_are_told():
    means, counts = np.array([3.0, 3.1, 3.015]), np.array([3, 3, 3])
    assert within_noise(means, counts, 0.01, 6).tolist() == [True, False, True]
    assert within_noise(means, counts, 0.0, 6).tolist() == [True, False, False]
    assert within_noise(np.array([3.0, 3.0]), np.array([2, 2]), 0.0, 2).tolist() == [True, True]
