"""What a comparison of two sides has found, line by line."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from lightning_lm.certainty.pairs import Estimate, over_seeds
from lightning_lm.evaluation.items import Items
from lightning_lm.evaluation.result import decimals

HEADS = ("A", "B", "B − A", "95 % interval", "p", "with other items", "better")
WIDTHS = (26, 26, 10, 20, 9, 20, 12)


@dataclass(frozen=True)
class Finding:
    """One thing that both sides were asked, and how their runs did. Where there is a difference, more is better."""

    test: str
    part: str
    values: tuple[list[float], list[float]]  # of A's runs and of B's; empty where they can't do it
    intervals: tuple[Sequence[float], Sequence[float]] = ((), ())  # each model's own; of recipes none
    difference: Estimate | None = None  # B's mean less A's; with other items, or of recipes with other seeds
    over_items: Estimate | None = None  # of recipes: the same, of these runs with other items

    @property
    def estimates(self) -> list[Estimate]:
        return [estimate for estimate in (self.difference, self.over_items) if estimate is not None]

    @property
    def better(self) -> str | None:
        """The side whose lead isn't chance, neither that of items nor that of seeds; None where that can't be told."""
        estimates = self.estimates
        if not estimates or not all(estimate.differs for estimate in estimates):
            return None
        return "B" if estimates[0].value > 0 else "A"

    def cells(self) -> list[str]:
        """For people, under ``HEADS``."""
        given = [(estimate.low, estimate.high) for estimate in self.estimates]
        spreads = [] if given else [(0.0, 4 * stdev(results)) for results in self.values if len(results) > 1]
        pairs = [pair for pair in [*given, *self.intervals, *spreads] if pair and pair[1] > pair[0]]
        digits = max((decimals(*pair) for pair in pairs), default=2)

        def shown(interval: Sequence[float], sign: str = "") -> str:
            return "–" if np.isnan(interval).any() else " to ".join(f"{bound:{sign}.{digits}f}" for bound in interval)

        sides = []
        for values, interval in zip(self.values, self.intervals, strict=True):
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else f"  {shown(interval)}" if interval else ""
            sides.append(f"{fmean(values):.{digits}f}{spread}" if values else "–")
        if self.difference is None:
            return [*sides, "", "", "", "", ""]
        value, p = self.difference.value, self.difference.p_value
        p_value = "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
        intervals = [shown(of_given, "+") for of_given in given] + [""] * (2 - len(given))
        return [*sides, f"{value:+.{digits}f}", intervals[0], p_value, intervals[1], self.better or "can't tell"]


def finding(test: str, part: str, sides: Sequence[list[Items]], recipes: bool, paired: bool) -> Finding:
    """How the runs of both sides did at the same items; a side without runs can't do them."""
    values = [[result.estimate.value for result in side] for side in sides]
    intervals = [side[0].interval if side and not recipes else () for side in sides]
    if not all(sides):
        return Finding(test, part, (values[0], values[1]), (intervals[0], intervals[1]))
    gain = np.subtract(*(np.mean([result.values for result in side], axis=0) for side in reversed(sides)))
    over_items = sides[0][0].mean(gain)
    differences = (over_seeds(*values, paired), over_items) if recipes else (over_items, None)
    return Finding(test, part, (values[0], values[1]), (intervals[0], intervals[1]), *differences)


def table(findings: Sequence[Finding], recipes: bool) -> list[str]:
    """Lines for people, test by test."""

    def line(part: str, cells: Sequence[str]) -> str:
        shown = [f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)]
        return (f"{part:<28}" + "".join(shown if recipes else shown[:5] + shown[6:])).rstrip()

    lines = ["", line("", HEADS)]
    for test in dict.fromkeys(finding.test for finding in findings):
        lines += [test, *(line(f"  {finding.part}", finding.cells()) for finding in findings if finding.test == test)]
    return lines
