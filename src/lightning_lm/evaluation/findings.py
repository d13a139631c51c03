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
    def better(self) -> str | None:
        """The side whose lead isn't chance, neither that of items nor that of seeds; None where that can't be told."""
        estimates = [of for of in (self.difference, self.over_items) if of is not None]
        if not estimates or not all(of.differs for of in estimates):
            return None
        return "B" if estimates[0].value > 0 else "A"

    def cells(self) -> list[str]:
        """For people, under ``HEADS``."""
        given = [(of.low, of.high) for of in (self.difference, self.over_items) if of is not None]
        spreads = [] if given else [(0.0, 4 * stdev(of)) for of in self.values if len(of) > 1]
        widths = [of for of in [*given, *self.intervals, *spreads] if of and of[1] > of[0]]
        digits = max((decimals(*of) for of in widths), default=2)

        def shown(interval: Sequence[float], sign: str = "") -> str:
            return "–" if np.isnan(interval).any() else " to ".join(f"{bound:{sign}.{digits}f}" for bound in interval)

        sides = []
        for values, interval in zip(self.values, self.intervals, strict=True):
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else f"  {shown(interval)}" if interval else ""
            sides.append(f"{fmean(values):.{digits}f}{spread}" if values else "–")
        if (of := self.difference) is None:
            return [*sides, "", "", "", "", ""]
        p_value = "–" if np.isnan(of.p_value) else "< 0.001" if of.p_value < 0.001 else f"{of.p_value:.3f}"
        intervals = [shown(of_given, "+") for of_given in given] + [""] * (2 - len(given))
        return [*sides, f"{of.value:+.{digits}f}", intervals[0], p_value, intervals[1], self.better or "can't tell"]


def finding(test: str, part: str, sides: Sequence[list[Items]], recipes: bool, paired: bool) -> Finding:
    """How the runs of both sides did at the same items; a side without runs can't do them."""
    values = [[of.estimate.value for of in side] for side in sides]
    intervals = [side[0].interval if side and not recipes else () for side in sides]
    if not all(sides):
        return Finding(test, part, (values[0], values[1]), (intervals[0], intervals[1]))
    gain = np.subtract(*(np.mean([of.values for of in side], axis=0) for side in reversed(sides)))
    over_items = sides[0][0].mean(gain)
    differences = (over_seeds(*values, paired), over_items) if recipes else (over_items, None)
    return Finding(test, part, (values[0], values[1]), (intervals[0], intervals[1]), *differences)


def table(findings: Sequence[Finding], recipes: bool) -> list[str]:
    """Lines for people, test by test."""

    def line(part: str, cells: Sequence[str]) -> str:
        shown = [f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)]
        return (f"{part:<28}" + "".join(shown if recipes else shown[:5] + shown[6:])).rstrip()

    lines = ["", line("", HEADS)]
    for test in dict.fromkeys(of.test for of in findings):
        lines += [test, *(line(f"  {of.part}", of.cells()) for of in findings if of.test == test)]
    return lines
