"""A quadratic through losses over one or two settings, and the region in which its lowest point lies."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.90
MESH = 81  # points along each side of the box


def pairs(d: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(d) for j in range(i, d)]


def terms(points: np.ndarray) -> np.ndarray:
    """(n, d) points → (n, p) regressors of a quadratic: 1, each setting, each product of two."""
    products = [points[:, i] * points[:, j] for i, j in pairs(points.shape[1])]
    return np.column_stack([np.ones(len(points)), points, *products])


def slopes(points: np.ndarray) -> np.ndarray:
    """(n, d) points → (n, d, p): the derivatives of ``terms`` along each setting."""
    n, d = points.shape
    by_setting = np.zeros((n, d, 1 + d + len(pairs(d))))
    by_setting[:, range(d), range(1, d + 1)] = 1
    for column, (i, j) in enumerate(pairs(d), 1 + d):
        by_setting[:, i, column] += points[:, j]
        by_setting[:, j, column] += points[:, i]
    return by_setting


@dataclass(frozen=True)
class Surface:
    """A quadratic over d settings, each scaled so that the searched box goes from −1 to 1."""

    coefficients: np.ndarray  # (p,)
    covariance: np.ndarray  # (p, p), of the coefficients
    freedom: int  # degrees of freedom of the noise
    used: np.ndarray  # (k,) booleans: the configurations that it was fitted to

    @property
    def dimensions(self) -> int:
        return {3: 1, 6: 2}[len(self.coefficients)]

    def height(self, points: np.ndarray) -> np.ndarray:
        return terms(points) @ self.coefficients

    def flatness(self, points: np.ndarray) -> np.ndarray:
        """(n,) P-values of the slope being zero there, which it is at the lowest point.

        Those of at least 1 − ``LEVEL`` are the confidence region of Box & Hunter (1954, Biometrika 41). It is exact
        where the surface is a quadratic, and has no end along a ridge.
        """
        by_setting = slopes(points)
        slope = by_setting @ self.coefficients
        errors = by_setting @ self.covariance @ by_setting.transpose(0, 2, 1)
        squares = np.einsum("nd,nd->n", slope, np.linalg.solve(errors, slope[..., None])[..., 0])
        return stats.f.sf(squares / self.dimensions, self.dimensions, self.freedom)

    @property
    def lowest(self) -> np.ndarray | None:
        """(d,) the point at which the slope is zero; None where the surface has no lowest point."""
        curvature = slopes(np.eye(self.dimensions)) @ self.coefficients - self.coefficients[1 : 1 + self.dimensions]
        if np.linalg.eigvalsh(curvature)[0] <= 0:
            return None
        return np.linalg.solve(curvature, -self.coefficients[1 : 1 + self.dimensions])


def fit(points: np.ndarray, means: np.ndarray, counts: np.ndarray, spread: float, freedom: int) -> Surface | None:
    """A quadratic through as many of the best configurations as one goes through; None where there are too few.

    The highest are left out until what remains fits within the noise (F test of lack of fit). What then remains of a
    misfit counts as noise.

    Args:
        points: (k, d), scaled so that the box goes from −1 to 1.
        means: (k,) mean loss of each.
        counts: (k,) how many seeds each has.
        spread: standard deviation between seeds.
        freedom: degrees of freedom of ``spread``.
    """
    order = np.argsort(means)
    surface = None
    for size in range(len(means), terms(points[:1]).shape[1] - 1, -1):
        used = order[:size]
        regressors, weights = terms(points[used]), np.sqrt(counts[used])
        if np.linalg.matrix_rank(regressors) < regressors.shape[1]:
            break
        weighted = weights[:, None] * regressors
        coefficients = np.linalg.lstsq(weighted, weights * means[used], rcond=None)[0]
        surplus = size - len(coefficients)
        squares = float(np.sum((weights * means[used] - weighted @ coefficients) ** 2))
        misfit = squares / surplus / spread**2 if surplus else 1.0
        variance = spread**2 * max(misfit, 1.0)
        inside = np.isin(np.arange(len(means)), used)
        surface = Surface(coefficients, variance * np.linalg.inv(weighted.T @ weighted), freedom, inside)
        if surplus and stats.f.sf(misfit, surplus, freedom) > 0.1:
            break
    return surface
