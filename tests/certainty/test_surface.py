"""The region of the best point: by hand where that can be done, and how often it covers a known optimum."""

import numpy as np
import pytest
from scipy import stats
from synthetic import GRID, KINDS, draw, proof

from lightning_lm.certainty.region import confidence_region
from lightning_lm.certainty.spread import pooled
from lightning_lm.certainty.surface import exponents, fit_surface, slopes, terms


def test_slopes_are_the_derivatives_of_the_terms():
    points, step = np.random.default_rng(0).uniform(-1, 1, (5, 2)), 1e-6
    for k in range(2):
        shift = step * np.eye(2)[k]
        numeric = (terms(points + shift) - terms(points - shift)) / (2 * step)
        assert np.allclose(slopes(points)[:, k], numeric, atol=1e-6)


def test_a_parabola_through_three_rates_by_hand():
    """Losses 1, 0, 1 with noise s/√n: the slope at x is 2x, its variance (1/2 + 6·x²)·s²/n by least squares."""
    surface = fit_surface(np.array([[-1.0], [0.0], [1.0]]), np.array([1.0, 0.0, 1.0]), np.array([3, 3, 3]), 0.3, 1000)
    at = np.array([[0.1], [0.2]])
    expected = (2 * at[:, 0]) ** 2 / ((0.5 + 6 * at[:, 0] ** 2) * 0.3**2 / 3)
    assert surface.flatness(at) == pytest.approx(stats.f.sf(expected, 1, 1000), rel=0.05)


def test_too_few_values_tell_no_surface():
    two_decays = GRID[np.abs(GRID[:, 1]) == 1]
    assert fit_surface(two_decays, np.arange(10.0), np.full(10, 3), 0.1, 20) is None
    assert fit_surface(GRID, np.arange(20.0), np.full(20, 3), 0.0, 20) is None, "without noise there is no region"


def test_the_region_shrinks_with_the_noise():
    truth = draw("quadratic", np.random.default_rng(1))
    sizes = []
    for noise in (0.1, 0.01):
        found = confidence_region(fit_surface(GRID, truth.height(GRID), np.full(20, 3), noise, 20))
        assert found.best == pytest.approx(truth.optimum, abs=0.02)
        sizes.append(np.prod(np.diff(found.corners, axis=0)))
    assert sizes[0] / 400 < sizes[1] < sizes[0] / 25, "an area goes with the square of the noise, here 100 times"


def test_higher_terms_come_after_a_quadratics():
    assert exponents(2).sum(axis=1).tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_the_region_covers_the_optimum_or_is_open(kind):
    """The short form of the proof: 30 surfaces, of which at 90 % fewer than 22 in one of 200 tries."""
    covered, open_as_due = proof(kind, 30, first_seed=7)
    assert covered >= 22 / 30
    if kind in ("ridge", "beyond the edge"):
        assert open_as_due >= 25 / 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_proof_over_500_surfaces(kind):
    covered, open_as_due = proof(kind, 500, first_seed=20261203)
    assert 0.86 <= covered <= 0.94 or open_as_due >= 0.86


def test_half_of_a_grid_predicts_the_rest():
    """The measurement of ``benchmarks/halves.py`` on 20 grids whose noise is known."""
    from benchmarks.halves import predicted

    hits = []
    for number in range(20):
        chance = np.random.default_rng([5, number])
        losses = draw("quadratic", chance).height(GRID)[:, None] + 0.05 * chance.normal(size=(20, 3))
        hits += predicted(GRID, pooled([dict(enumerate(row)) for row in losses]), halves=5)
    assert 0.84 <= np.mean(hits) <= 0.97
