"""Surfaces whose lowest point is known, and noisy grids over them, for the proofs of the region."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightning_lm.certainty.region import confidence_region, plausible
from lightning_lm.certainty.spread import pooled
from lightning_lm.certainty.surface import REGION_CONFIDENCE, fit_surface

KINDS = ("quadratic", "skewed", "ridge", "beyond the edge")
GRID = np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 4)), axis=-1).reshape(-1, 2)
SEEDS = 3


@dataclass(frozen=True)
class Truth:
    height: Callable[[np.ndarray], np.ndarray]
    optimum: np.ndarray  # (2,); of a ridge one of its points
    edges: set[tuple[int, int]]  # those that the region has to be open to


def draw(kind: str, chance: np.random.Generator) -> Truth:
    """Curvatures from 0.3 to 3, turned by up to 45 degrees, around an optimum in the inner three fifths of the box."""
    angle = chance.uniform(-np.pi / 4, np.pi / 4)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    curvatures, optimum = np.exp(chance.uniform(np.log(0.3), np.log(3), 2)), chance.uniform(-0.6, 0.6, 2)
    skew, edges = 0.0, set()
    if kind == "skewed":  # half a box from the optimum one side is up to five times as high as the other
        skew = chance.uniform(0.3, 0.8) * chance.choice([-1, 1])
    elif kind == "ridge":
        curvatures[1] = 0
        edges = ends_of_line(optimum, turn[:, 1])
    elif kind == "beyond the edge":
        side, sign = int(chance.integers(2)), int(chance.choice([-1, 1]))
        optimum[side] = sign * chance.uniform(1.2, 2)
        edges = {(side, sign)}
    form = turn @ np.diag(curvatures) @ turn.T

    def height(points: np.ndarray) -> np.ndarray:
        away = points - optimum
        if skew:
            away[:, 0] = np.expm1(skew * away[:, 0]) / skew
        return 3 + np.einsum("ni,ij,nj->n", away, form, away) / 2

    return Truth(height, optimum, edges)


def ends_of_line(point: np.ndarray, direction: np.ndarray) -> set[tuple[int, int]]:
    """The two edges of the box at which a line leaves it."""
    ends = set()
    for way in (-1, 1):
        steps = (np.sign(way * direction) - point) / (way * direction)  # to the edge of each setting
        ends.add((int(np.argmin(steps)), int(np.sign(way * direction[np.argmin(steps)]))))
    return ends


def proof(kind: str, surfaces: int, first_seed: int) -> tuple[float, float]:
    """The share of the surfaces whose optimum the region covers, and of those where it is open as it has to be."""
    covered, open_as_due = [], []
    for number in range(surfaces):
        chance = np.random.default_rng([first_seed, number])
        truth = draw(kind, chance)
        noise = np.exp(chance.uniform(np.log(0.02), np.log(0.2)))
        losses = truth.height(GRID)[:, None] + noise * chance.normal(size=(len(GRID), SEEDS))
        losses += chance.normal(size=SEEDS)  # what a seed does to all configurations alike
        surface = fit_surface(GRID, *pooled([dict(enumerate(row)) for row in losses]))
        found = confidence_region(surface)
        optimum, lowest = truth.optimum[None], found.best if found.best is not None else truth.optimum
        covered.append(plausible(surface, optimum, lowest[None])[0] >= 1 - REGION_CONFIDENCE)
        open_as_due.append(truth.edges <= set(found.open_to) and found.best is None)
    return float(np.mean(covered)), float(np.mean(open_as_due))
