"""The part of a searched box in which the lowest point of a surface lies, or the edges over which it runs."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from lightning_lm.certainty.surface import REGION_CONFIDENCE, Surface

POINTS = 41  # of the mesh along each setting


@dataclass(frozen=True)
class Region:
    """Over d settings, 1 or 2, in a box in which each goes from −1 to 1."""

    corners: np.ndarray | None  # (2, d) lowest and highest value of each setting; None: it has no part in the box
    outlines: list[np.ndarray]  # (n, 2) closed polygons; none over one setting
    open_to: list[tuple[int, int]]  # edges that it runs over: which setting, and −1 for its low or 1 for its high
    best: np.ndarray | None  # (d,) the lowest point, where the region ends on all sides


def confidence_region(surface: Surface) -> Region:
    """Where the slope may be zero and the height the lowest, clipped to the box.

    It is open to an edge that it touches, and to one on which the surface's lowest point in the box lies.
    """
    box = np.array([[-1.0] * surface.dimensions, [1.0] * surface.dimensions])
    points = mesh(box)
    lowest = points[[np.argmin(surface.height(points))]]
    inside = points[plausible(surface, points, lowest) >= 1 - REGION_CONFIDENCE]
    ends = np.vstack([inside, lowest])
    open_to = [(k, sign) for k in range(surface.dimensions) for sign in (-1, 1) if np.any(ends[:, k] == sign)]
    if not len(inside) and open_to:
        return Region(None, [], open_to, None)
    margin = 2 / (POINTS - 1)  # the coarse mesh may have missed it by that much
    around = np.clip([ends.min(axis=0) - margin, ends.max(axis=0) + margin], -1, 1)
    points = mesh(around)
    lowest = points[[np.argmin(surface.height(points))]]
    values = plausible(surface, points, lowest)
    inside = np.vstack([points[values >= 1 - REGION_CONFIDENCE], lowest])
    polygons = outlines(around, values) if surface.dimensions == 2 else []
    return Region(np.array([inside.min(axis=0), inside.max(axis=0)]), polygons, open_to, None if open_to else lowest[0])


def size(surface: Surface, points: np.ndarray) -> float:
    """The mean P-value over points of a mesh: small where the region is, and smooth in what would change it."""
    return float(plausible(surface, points, points[[np.argmin(surface.height(points))]]).mean())


def plausible(surface: Surface, points: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """(n,) P-values of the points being the best one: of a zero slope, and 0 where they are surely higher."""
    higher = surface.height(points) - surface.height(lowest)
    surely = higher > stats.t.ppf(0.99, surface.freedom) * surface.error(points, lowest)
    return np.where(surely, 0.0, surface.flatness(points))


def mesh(box: np.ndarray, per_side: int = POINTS) -> np.ndarray:
    """(n, d) points over a box, given by its two corners (2, d)."""
    sides = np.linspace(box[0], box[1], per_side).T
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, len(sides))


def outlines(box: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Closed polygons around the region, from the P-values on the box's mesh."""
    from contourpy import contour_generator  # matplotlib's own

    x, y = np.linspace(box[0], box[1], POINTS).T
    filled = contour_generator(x, y, values.reshape(POINTS, POINTS).T).filled(1 - REGION_CONFIDENCE, np.inf)
    return [polygon for polygon in filled[0] if polygon is not None]
