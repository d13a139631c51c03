"""The curves of a run over steps, tokens and minutes, thinned to what a screen can show."""

import math
from typing import Any

import numpy as np

from lightning_lm.report.runs import SavedRun
from lightning_lm.runs.step_table import Series, read_series

FIGURES = ("train/loss", "val/loss", "learning_rate", "gradient_norm", "tokens_per_second")
OVER = {"steps": "optimizer steps", "tokens": "tokens seen", "minutes": "minutes in training steps"}
Curves = dict[str, dict[str, list[Any]]]
POINTS = 400  # of a curve: more than a screen has columns for it


def progress(series: dict[str, Series], over: str) -> tuple[np.ndarray, np.ndarray]:
    """Optimizer steps, and what had been seen or spent by then: steps, tokens, or minutes in training steps."""
    steps, tokens = series["tokens_seen"]
    if over != "minutes":
        return steps, steps if over == "steps" else tokens
    at, speeds = series.get("tokens_per_second", (np.array([]), np.array([])))
    if not len(at):
        return steps, np.full(len(steps), np.nan)
    seen = np.interp(at, steps, tokens)
    minutes = np.cumsum(np.diff(seen, prepend=0) / speeds) / 60  # each row's speed is since the row before
    return np.concatenate([[0], at]), np.concatenate([[0], minutes])


def thinned(values: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Places of the lowest and the highest value in each of ``points / 2`` stretches, so that no peak is lost."""
    if len(values) <= points:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(len(values)), points // 2)
    extremes = [stretch[[values[stretch].argmin(), values[stretch].argmax()]] for stretch in stretches]
    return np.unique(np.concatenate([[0], *extremes, [len(values) - 1]]))


def read_curves(run: SavedRun) -> Curves:
    """Figure → its values, and the steps, tokens and minutes at which it had them; what is not known is None."""
    series = read_series(run.folder / "metrics.csv")
    drawn = {}
    for name in FIGURES:
        steps, values = series.get(name, (np.array([]), np.array([])))
        steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
        if not len(values):
            continue
        places = thinned(values)
        steps, values = steps[places], values[places]
        along = {over: np.interp(steps, *progress(series, over)) for over in OVER}
        drawn[name] = {"values": rounded(values), **{over: rounded(reached) for over, reached in along.items()}}
    return drawn


def rounded(values: np.ndarray) -> list[float | None]:
    """Five digits, which are more than a screen shows."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]
