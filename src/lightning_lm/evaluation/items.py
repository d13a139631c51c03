"""Tests of many items, such as sentences, words or passages: how well a model did at each, and how sure the mean is."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lightning_lm.certainty.pairs import FEWEST_DOCUMENTS, Estimate, over_documents


@dataclass(frozen=True)
class Items:
    """What a model got at each item, float64 [items], and the mean of such values, or of differences, over items."""

    values: np.ndarray
    mean: Callable[[np.ndarray], Estimate]
    most: float = 1.0  # that an item can bring; nought is the least

    @property
    def estimate(self) -> Estimate:
        mean = self.mean(self.values)
        return replace(mean, low=max(0.0, mean.low), high=min(self.most, mean.high))

    @property
    def interval(self) -> tuple[float, ...]:
        """The mean's; empty where all values are equal, which tells nothing of how far others may lie."""
        mean = self.estimate
        return (mean.low, mean.high) if np.ptp(self.values) else ()


def mean_over(document: np.ndarray) -> Callable[[np.ndarray], Estimate] | None:
    """The mean over items of documents; None where there are too few documents for an interval.

    Args:
        document: [items], the number of each one's document.
    """
    sizes = np.bincount(document)
    held = sizes > 0
    if held.sum() < FEWEST_DOCUMENTS:
        return None
    return lambda values: over_documents(np.bincount(document, values)[held], sizes[held])
