"""Tests of many items, such as sentences, words or passages: how well a model did at each, and how sure the mean is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightning_lm.certainty.pairs import FEWEST_DOCUMENTS, Estimate, over_documents


@dataclass(frozen=True)
class Items:
    """What a model got at each item, float64 [items], and the mean of such values, or of differences, over items."""

    values: np.ndarray
    mean: Callable[[np.ndarray], Estimate]

    @property
    def estimate(self) -> Estimate:
        return self.mean(self.values)


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
