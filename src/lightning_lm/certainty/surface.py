"""A smooth surface through losses over one or two settings: a quadratic, and as much more as the losses ask for."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

REGION_CONFIDENCE = 0.90  # how surely the region has the best point in it
DEGREE = 4
MISFITS = 10 ** np.arange(
    -1.5, 2.1, 0.2
)  # spread of the coefficients above degree 2, in noise units; the first is none
FAR = 10  # times the median's distance from the best loss: what is worse, such as half diverged, is left out


def exponents(d: int) -> np.ndarray:
    """(p, d): of each monomial up to ``DEGREE``, those of a quadratic first."""
    powers = [e for e in itertools.product(range(DEGREE + 1), repeat=d) if sum(e) <= DEGREE]
    return np.array(sorted(powers, key=sum))


def terms(points: np.ndarray) -> np.ndarray:
    """(n, d) points → (n, p) monomials."""
    return np.prod(points[:, None] ** exponents(points.shape[1]), axis=2)


def slopes(points: np.ndarray) -> np.ndarray:
    """(n, d) points → (n, d, p): the derivatives of ``terms`` along each setting."""
    d = points.shape[1]
    powers = exponents(d)
    lowered = [np.maximum(powers - np.eye(d, dtype=int)[k], 0) for k in range(d)]
    return np.stack([powers[:, k] * np.prod(points[:, None] ** lowered[k], axis=2) for k in range(d)], axis=1)


@dataclass(frozen=True)
class Surface:
    """Over d settings, each scaled so that the searched box goes from −1 to 1."""

    coefficients: np.ndarray  # (p,) of ``terms``
    covariance: np.ndarray  # (p, p) of the coefficients
    spread: float  # standard deviation of a single run
    freedom: int  # degrees of freedom of ``spread``
    dimensions: int

    def height(self, points: np.ndarray) -> np.ndarray:
        """(n,) the loss at (n, d) points."""
        return terms(points) @ self.coefficients

    def error(self, points: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
        """(n,) standard error of the height, or of its difference from the height at ``reference`` (1, d)."""
        row = terms(points) - (0 if reference is None else terms(reference))
        return np.sqrt(np.einsum("np,pq,nq->n", row, self.covariance, row))

    def with_run(self, point: np.ndarray) -> "Surface":
        """What one more run at the point (1, d) is expected to leave: the same heights, known better."""
        row = terms(point)
        gain = self.covariance @ row.T
        return replace(self, covariance=self.covariance - gain @ gain.T / (self.spread**2 + float((row @ gain)[0, 0])))

    def flatness(self, points: np.ndarray) -> np.ndarray:
        """(n,) P-values of the slope being zero there, which it is at the lowest point.

        Those of at least 1 − ``REGION_CONFIDENCE`` are the confidence region of Box & Hunter (1954, Biometrika 41).
        It is exact for a quadratic, and has no end along a ridge.
        """
        by_setting = slopes(points)
        slope = by_setting @ self.coefficients
        errors = by_setting @ self.covariance @ by_setting.transpose(0, 2, 1)
        squares = np.einsum("nd,nd->n", slope, np.linalg.solve(errors, slope[..., None])[..., 0])
        return stats.f.sf(squares / self.dimensions, self.dimensions, self.freedom)


def fit_surface(
    points: np.ndarray, means: np.ndarray, counts: np.ndarray, spread: float, freedom: int
) -> Surface | None:
    """The surface; None where the points don't tell a quadratic's coefficients, or the noise isn't known.

    Coefficients above degree 2 are drawn towards 0, as if they came from a normal distribution. Its standard deviation
    is the likeliest by the losses (restricted maximum likelihood): near 0 where the surface is a quadratic.

    Args:
        points: (k, d), scaled so that the box goes from −1 to 1.
        means: (k,) mean loss of each.
        counts: (k,) how many seeds each has.
        spread: standard deviation between seeds.
        freedom: degrees of freedom of ``spread``.
    """
    near = means <= means.min() + FAR * (np.median(means) - means.min())
    monomials, losses, noise = terms(points[near]), means[near], spread**2 / counts[near]
    free = exponents(points.shape[1]).sum(axis=1) <= 2
    quadratic, further = monomials[:, free], monomials[:, ~free]
    if not spread > 0 or np.linalg.matrix_rank(quadratic) < free.sum():
        return None

    def unlikelihood(misfit: float) -> float:
        covariance = np.diag(noise) + (misfit * spread) ** 2 * further @ further.T
        inverse = np.linalg.inv(covariance)
        information = quadratic.T @ inverse @ quadratic
        rest = losses - quadratic @ np.linalg.solve(information, quadratic.T @ inverse @ losses)
        price = 0.5 * (misfit > MISFITS[0])  # of leaving the quadratic: none makes the region too large for one
        return np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1] + rest @ inverse @ rest + price

    misfit = min(MISFITS, key=unlikelihood) * spread
    weighted = monomials / noise[:, None]
    covariance = np.linalg.inv(weighted.T @ monomials + np.diag(np.where(free, 0, misfit**-2)))
    return Surface(covariance @ weighted.T @ losses, covariance, spread, freedom, points.shape[1])
