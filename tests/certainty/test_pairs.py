"""Comparisons of which the truth is known: how often a difference is seen where there is none, and where there is."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_lm.certainty.pairs import over_documents, over_seeds, seeds_to_tell


def drawn_documents(draw: np.random.Generator, count: int, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two models on documents of WikiText's lengths: differences of NLL, heavy-tailed and alike within a document."""
    tokens = np.maximum(50, draw.lognormal(8, 0.7, count)).astype(int).astype(float)
    of_document = 0.03 * draw.standard_t(3, count)  # what all tokens of a document share
    of_tokens = 0.8 * draw.standard_t(3, count) / np.sqrt(tokens)  # the mean of what each has to itself
    return (effect + of_document + of_tokens) * tokens, tokens


def rejected(comparisons: int, documents: int, effect: float = 0.0) -> float:
    draw = np.random.default_rng(7)
    return np.mean([over_documents(*drawn_documents(draw, documents, effect)).differs for _ in range(comparisons)])


def test_of_equal_models_few_are_told_apart():
    assert rejected(100, 20) <= 0.1  # of 100 such series, 1 or 2 have more
    assert rejected(20, 20, effect=0.2) == 1


@pytest.mark.slow
@pytest.mark.parametrize("documents", [20, 60, 200])
def test_of_1000_pairs_of_equal_models_5_percent_are_told_apart(documents: int):
    assert 0.035 <= rejected(1000, documents) <= 0.065


def drawn_losses(draw: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One model on documents of WikiText's lengths: NLL, right guesses and tokens; long documents are a bit easier."""
    tokens = np.maximum(50, draw.lognormal(8, 0.7, count)).astype(int).astype(float)
    of_document = 3.6 - 0.05 * np.log(tokens / 3000) + 0.25 * draw.standard_t(4, count)
    of_tokens = 2.8 * draw.standard_normal(count) / np.sqrt(tokens)
    return (of_document + of_tokens) * tokens, draw.binomial(tokens.astype(int), draw.beta(18, 27, count)), tokens


@pytest.mark.slow
@pytest.mark.parametrize("documents", [10, 20, 60])
def test_intervals_of_loss_and_accuracy_hold_the_truth(documents: int):
    """Measured over 1000 texts each, loss and accuracy: 95 and 92 % at 10, 92 and 93 % at 20, 93 and 94 % at 60."""
    nll, hits, tokens = drawn_losses(np.random.default_rng(99), 10**6)
    truth = nll.sum() / tokens.sum(), hits.sum() / tokens.sum()
    draw, covered = np.random.default_rng(1), []
    for _ in range(1000):
        nll, hits, tokens = drawn_losses(draw, documents)
        found = [over_documents(sums, tokens) for sums in (nll, hits)]
        covered.append([of.low <= value <= of.high for of, value in zip(found, truth, strict=True)])
    assert (np.mean(covered, axis=0) >= 0.92).all(), np.mean(covered, axis=0)


@pytest.mark.slow
def test_a_planted_effect_is_found_as_often_as_it_should_be():
    draw = np.random.default_rng(3)
    ratios = [totals.sum() / sizes.sum() for totals, sizes in (drawn_documents(draw, 60) for _ in range(20_000))]
    # an effect of 2.8 standard errors is found in 80 % of cases (1.96 + 0.84)
    assert 0.74 <= rejected(1000, 60, effect=2.8 * float(np.std(ratios))) <= 0.87


def test_the_interval_agrees_with_the_p_value():
    draw = np.random.default_rng(0)
    for _ in range(40):
        found = over_documents(*drawn_documents(draw, 30, effect=0.015))
        assert found.low < found.value < found.high and not np.isnan(found.p_value)
        assert found.differs == (found.p_value < 0.05)


def test_the_ratio_weighs_documents_by_their_size():
    found = over_documents(np.array([1.0] * 10 + [30.0] * 10), np.array([1.0] * 10 + [10.0] * 10))
    assert found.value == pytest.approx(310 / 110)
    same = over_documents(np.zeros(10), np.ones(10))
    assert (same.value, same.differs, same.p_value) == (0, False, 1)


def test_seeds_by_welch_and_in_pairs():
    a, b = [3.1, 3.3, 3.2], [3.0, 3.1, 2.6, 2.9]
    found = over_seeds(a, b)
    errors = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 2 + errors[1] ** 2 / 3)  # Welch–Satterthwaite
    t = (np.mean(b) - np.mean(a)) / math.sqrt(sum(errors))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(errors))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    pairs = over_seeds(a, b[:3], paired=True)
    differences = np.subtract(b[:3], a)
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / math.sqrt(3)
    assert (pairs.value, pairs.high) == pytest.approx((differences.mean(), differences.mean() + half))


@pytest.mark.parametrize("paired", [False, True])
def test_of_1000_pairs_of_one_recipe_5_percent_are_told_apart(paired: bool):
    draw = np.random.default_rng(1)
    pool = 3.4 + 0.004 * draw.standard_normal(200)  # losses of 200 seeds
    groups = [draw.choice(pool, 10, replace=False) for _ in range(1000)]
    differing = [over_seeds(of[:5], of[5:], paired).differs for of in groups]
    assert 0.035 <= np.mean(differing) <= 0.065


@pytest.mark.parametrize("paired", [False, True])
def test_as_many_seeds_as_are_said_find_the_difference(paired: bool):
    half, effect = math.sqrt(0.5), 1.2  # the standard deviation of ±√½ is 1
    a = [-half, half]
    b = [effect + half, effect - half] if paired else [effect - half, effect + half]
    spread = 2.0 if paired else math.sqrt(2)  # of the difference of two runs
    count = seeds_to_tell(a, b, paired)
    draw = np.random.default_rng(2)
    first = draw.standard_normal((800, count))
    second = effect - first if paired else effect + draw.standard_normal((800, count))
    power = np.mean([over_seeds(x, y, paired).differs for x, y in zip(first, second, strict=True)])
    assert 0.75 <= power <= 0.88
    assert np.std(second[:, 0] - first[:, 0]) == pytest.approx(spread, rel=0.1)
    assert seeds_to_tell([0.0, 1.0], [0.0, 1.0]) is None
