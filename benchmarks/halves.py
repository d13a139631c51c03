"""How well half of a search predicts the other half: ``python benchmarks/halves.py SWEEP``.

The surface of the report's 90 % region is fitted to a random half of the configurations, and says for each other one in
which interval its mean loss lies in 90 % of cases. Printed is the share of those that lie there, over many halves.
"""

import sys
from pathlib import Path

import numpy as np
from scipy import stats

from lightning_lm.certainty.spread import Means
from lightning_lm.certainty.surface import REGION_CONFIDENCE, fit_surface
from lightning_lm.report.certainty import fitted, noise_of
from lightning_lm.report.comparison import configurations
from lightning_lm.report.runs import collect


def predicted(points: np.ndarray, noise: Means, halves: int = 100) -> list[bool]:
    """Whether each mean that was left out lies in its interval, over random halves.

    Args:
        points: (k, d) in the box from −1 to 1.
        noise: of the k configurations.
        halves: how often a half is drawn.
    """
    chance, hits = np.random.default_rng(0), []
    means, counts, spread, freedom = noise
    for _ in range(halves):
        half, rest = np.split(chance.permutation(len(means)), [(len(means) + 1) // 2])
        surface = fit_surface(points[half], means[half], counts[half], spread, freedom)
        if surface is not None:
            errors = np.sqrt(surface.error(points[rest]) ** 2 + spread**2 / counts[rest])
            reach = stats.t.ppf((1 + REGION_CONFIDENCE) / 2, freedom) * errors
            hits += (np.abs(surface.height(points[rest]) - means[rest]) <= reach).tolist()
    return hits


if __name__ == "__main__":
    sets = [c for c in configurations(collect([Path(sys.argv[1])])) if c.complete]
    over = fitted(sets, noise_of(sets))
    if over is None:
        sys.exit("there are too few configurations or seeds")
    hits = predicted(over.points, noise_of(over.configurations))
    print(f"{np.mean(hits):.1%} of {len(hits)} means that were left out lie in their {REGION_CONFIDENCE:.0%} interval")
