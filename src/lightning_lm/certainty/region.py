"""The part of a searched box in which the lowest point of a surface lies, or the edges over which it runs."""

from dataclasses import dataclass

import numpy as np

from lightning_lm.certainty.surface import LEVEL, Surface

POINTS = 101  # of the mesh along each setting


@dataclass(frozen=True)
class Region:
    """Over d settings, 1 or 2, in a box in which each goes from −1 to 1."""

    corners: np.ndarray | None  # (2, d) lowest and highest value of each setting; None: it has no part in the box
    outlines: list[np.ndarray]  # (n, 2) closed polygons; none over one setting
    open_to: list[tuple[int, int]]  # edges that it runs over: which setting, and −1 for its low or 1 for its high
    best: np.ndarray | None  # (d,) the lowest point, where the region ends on all sides


def region(surface: Surface) -> Region:
    """Where the slope may be zero, clipped to the box.

    It is open to an edge that it touches. Where the surface is a slope or a saddle, so that its lowest point in the box
    lies on an edge, it is open to this edge, too.
    """
    d, best = surface.dimensions, surface.lowest
    box = np.array([[-1.0] * d, [1.0] * d])
    points, flat = mesh(surface, box)
    ends = points[flat >= 1 - LEVEL]
    if best is not None and np.all(np.abs(best) <= 1):
        ends = np.vstack([ends, best])  # the region may be smaller than the mesh is wide
    corners = np.array([ends.min(axis=0), ends.max(axis=0)]) if len(ends) else None
    polygons: list[np.ndarray] = []
    if corners is not None:
        margin = 4 / POINTS
        around = np.clip(corners + [[-margin], [margin]], -1, 1)
        finer, flat_finer = mesh(surface, around)
        inside = finer[flat_finer >= 1 - LEVEL]
        corners = np.array([inside.min(axis=0), inside.max(axis=0)]) if len(inside) else corners
        polygons = outlines(around, flat_finer) if d == 2 else []
    if best is None or corners is None:
        ends = np.vstack([ends, points[[np.argmin(surface.height(points))]]])
    open_to = [(k, sign) for k in range(d) for sign in (-1, 1) if np.any(ends[:, k] == sign)]
    return Region(corners, polygons, open_to, None if open_to else best)


def mesh(surface: Surface, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) points of a mesh over a box, and (n,) the P-values of a zero slope there."""
    sides = np.linspace(box[0], box[1], POINTS).T  # (d, POINTS)
    points = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, len(sides))
    return points, surface.flatness(points)


def outlines(box: np.ndarray, flat: np.ndarray) -> list[np.ndarray]:
    """Closed polygons around the region, from the P-values on the box's mesh."""
    from contourpy import contour_generator  # matplotlib's own

    x, y = np.linspace(box[0], box[1], POINTS).T
    filled = contour_generator(x, y, flat.reshape(POINTS, POINTS).T).filled(1 - LEVEL, np.inf)
    return [polygon for polygon in filled[0] if polygon is not None]
