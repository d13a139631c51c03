"""How sure the winner of a search is: in sentences, and in figures to draw."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lightning_lm.certainty.region import confidence_region
from lightning_lm.certainty.spread import Means, pooled, within_noise
from lightning_lm.certainty.surface import Surface, fit_surface
from lightning_lm.report.comparison import FIRST, Configuration, configurations, short_name
from lightning_lm.report.runs import SavedRun
from lightning_lm.runs.numbers import brief, is_number
from lightning_lm.runs.step_table import read_series

RATE, DECAY = FIRST
SIDES = {-1: "lower", 1: "higher"}
ENDED = {"finished", "diverged"}  # statuses that tell of the settings


@dataclass(frozen=True)
class SearchedRegion:
    """Where the best learning rate, or rate and weight decay, lie at 90 %, in the settings' own units."""

    settings: list[str]  # one or two, as the columns below
    outlines: list[np.ndarray]  # (n, 2) closed polygons, to be drawn on logarithmic axes; none for one setting
    limits: dict[str, tuple[float, float]]  # of the region's part in the searched box; empty where it has none
    open_to: list[str]  # such as "higher learning rate": the region goes on beyond this edge
    best: dict[str, float] | None  # the lowest point of the surface; None where the region is open


@dataclass(frozen=True)
class AveragingTime:
    """Over how many steps AdamW's weights average past updates: 1/(peak rate × weight decay)."""

    name: str  # of the configuration
    loss: float
    steps: float  # infinite without decay
    epochs: float | None


@dataclass(frozen=True)
class Verdict:
    sentences: list[str]
    region: SearchedRegion | None = None
    averaging_times: list[AveragingTime] = field(default_factory=list)


def name(configuration: Configuration) -> str:
    """Such as "learning rate 0.01, weight decay 0.1"."""
    return ", ".join(f"{short_name(key)} {brief(value)}" for key, value in configuration.settings.items())


def judge_search(runs: list[SavedRun]) -> Verdict:
    """What the runs of a search say about its winner, and what they can't say; no sentence where nothing was chosen."""
    every = configurations(runs)
    sets = [c for c in every if c.complete]
    if len(sets) < 2:
        return Verdict([])
    noise, sentences, searched = noise_of(sets), edges(every), None
    if noise.freedom:
        sentences.insert(0, noise_sentence(len(near_best(sets, noise)), len(sets), noise.spread))
        over = fitted(sets, noise)
        searched = searched_region(over) if over else None
        sentences += region_sentences(searched) if searched else []
    else:
        sentences.insert(0, "There is one seed, so the noise is unknown: another seed may have another winner.")
    sensitive = sensitivity(every)
    if sensitive is not None:
        sentences.append(f"Sensitivity to the learning rate: {sensitive:.4f}, the mean loss above the best one's.")
    times = averaging_times(sets)
    if times and math.isfinite(times[0].steps):
        epochs = f" ({times[0].epochs:.3g} epochs)" if times[0].epochs else ""
        sentences.append(f"AdamW averages over {times[0].steps:,.0f} steps{epochs} in the best configuration.")
    return Verdict(sentences, searched, times)


def noise_of(sets: list[Configuration]) -> Means:
    return pooled([c.by_seed(c.ranked_by) for c in sets])


def near_best(sets: list[Configuration], noise: Means) -> list[Configuration]:
    """Those that can't be told from the best."""
    return [c for c, near in zip(sets, within_noise(*noise), strict=True) if near]


def noise_sentence(near: int, count: int, spread: float) -> str:
    seeds = f"Beyond what a seed does to all alike, the spread between seeds is {spread:.4f}."
    if near == 1:
        others = f"{count - 1} others" if count > 2 else "other"
        return f"The best configuration is told from the {others} (95 %). {seeds}"
    return f"{near} of {count} configurations are within noise of the best (95 %). {seeds}"


def edges(every: list[Configuration]) -> list[str]:
    """Warnings of numeric settings whose best value is the lowest or highest tried, or is next to one that diverged."""
    warnings = []
    for key, value in every[0].settings.items():
        beside = {side: next_tried(every, key, value, sign) for sign, side in SIDES.items()} if is_number(value) else {}
        for side, neighbour in beside.items() if any(beside.values()) else ():
            if neighbour is None and value != 0:
                edge = f"The best {short_name(key)}, {brief(value)}, lies on the grid's edge"
                warnings.append(f"{edge}: try {side} ones.")
            elif neighbour is not None and neighbour.diverged:
                warnings.append(f"The next {side} {short_name(key)} tried, {brief(neighbour.value)}, diverged.")
    return warnings


class Tried(NamedTuple):
    value: float
    diverged: bool  # in every run that ended


def next_tried(every: list[Configuration], key: str, value: float, side: int) -> Tried | None:
    """The next lower (−1) or higher (1) value of a setting with which a run has finished or diverged."""
    ended = [
        (number, run.status)
        for c in every
        for run in c.runs
        if run.status in ENDED and is_number(number := c.settings[key]) and side * number > side * value
    ]
    if not ended:
        return None
    nearest = min((number for number, _ in ended), key=lambda number: side * number)
    return Tried(nearest, {status for number, status in ended if number == nearest} == {"diverged"})


def neighbours(sets: list[Configuration], keys: list[str]) -> list[Configuration]:
    """Those that differ from the best in these settings alone, and have them above 0, so that they have a logarithm."""
    best = sets[0].settings
    return [
        c
        for c in sets
        if all(c.settings[key] == value or key in keys for key, value in best.items())
        and all(is_number(value := c.settings.get(key)) and value > 0 for key in keys)
    ]


@dataclass(frozen=True)
class Fitted:
    """A surface over one or two settings, whose logarithms it has scaled to the box from −1 to 1."""

    surface: Surface
    settings: list[str]
    configurations: list[Configuration]

    @property
    def logs(self) -> np.ndarray:
        """(k, d)"""
        return np.log([[c.settings[key] for key in self.settings] for c in self.configurations])

    @property
    def points(self) -> np.ndarray:
        """(k, d) the configurations in the box."""
        return to_box(self.logs)

    def unit(self, points: np.ndarray) -> np.ndarray:
        """Points of the box as values of the settings."""
        return np.exp(self.logs.min(axis=0) + (points + 1) / 2 * np.ptp(self.logs, axis=0))


def to_box(logs: np.ndarray) -> np.ndarray:
    return 2 * (logs - logs.min(axis=0)) / np.ptp(logs, axis=0) - 1


def fitted(sets: list[Configuration], noise: Means) -> Fitted | None:
    """Over both settings, else over one with the other as the best has it; None where there are too few values."""
    means, counts, spread, freedom = noise
    for keys in ([RATE, DECAY], [RATE], [DECAY]) if freedom else ():
        near = neighbours(sets, keys)
        if any(len({c.settings[key] for c in near}) < 3 for key in keys):
            continue
        chosen = [sets.index(c) for c in near]
        logs = np.log([[c.settings[key] for key in keys] for c in near])
        surface = fit_surface(to_box(logs), means[chosen], counts[chosen], spread, freedom)
        if surface is not None:
            return Fitted(surface, keys, near)
    return None


def searched_region(over: Fitted) -> SearchedRegion:
    keys, scaled = over.settings, confidence_region(over.surface)
    corners = over.unit(scaled.corners).T.tolist() if scaled.corners is not None else []
    return SearchedRegion(
        settings=keys,
        outlines=[over.unit(polygon) for polygon in scaled.outlines],
        limits={key: (low, high) for key, (low, high) in zip(keys, corners, strict=False)},
        open_to=[f"{SIDES[side]} {short_name(keys[k])}" for k, side in scaled.open_to],
        best=None if scaled.best is None else dict(zip(keys, over.unit(scaled.best).tolist(), strict=True)),
    )


def region_sentences(searched: SearchedRegion) -> list[str]:
    within = " and ".join(f"{short_name(key)} {low:.3g} to {high:.3g}" for key, (low, high) in searched.limits.items())
    if searched.best is not None:
        point = ", ".join(f"{short_name(key)} {value:.3g}" for key, value in searched.best.items())
        return [f"The surface is lowest at {point}; the 90 % region is {within}."]
    where = f"Within the searched values it is {within}." if within else "It lies beyond the searched values."
    return [f"The 90 % region of the best point is open to {', '.join(searched.open_to)}. {where}"]


def sensitivity(sets: list[Configuration]) -> float | None:
    """Learning rate sensitivity (Wortsman et al., 2023, arXiv:2309.14322): how far losses lie above the best one's.

    It is the mean over the logarithm of the rate, and no loss counts as higher than that before training, also where a
    run diverged. Over the rates that were tried with the best configuration's other settings; None below three.
    """
    near = [c for c in neighbours(sets, [RATE]) if {run.status for run in c.runs} <= ENDED]
    if len(near) < 3:
        return None
    start = first_loss(near)
    losses = [np.mean([min(start if run.loss is None else run.loss, start) for run in c.runs]) for c in near]
    if not np.isfinite(losses).all():
        return None
    order = np.argsort([c.settings[RATE] for c in near])
    rates, excess = np.log([near[i].settings[RATE] for i in order]), np.array(losses)[order] - min(losses)
    return float(np.trapezoid(excess, rates) / (rates[-1] - rates[0]))


def first_loss(near: list[Configuration]) -> float:
    """The first training loss that was logged, at the lowest rate, which changes it least; infinite where none was."""
    gentlest = min(near, key=lambda c: c.settings[RATE])
    _, losses = read_series(gentlest.runs[0].folder / "metrics.csv").get("train/loss", ([], [math.inf]))
    return losses[0] if math.isfinite(losses[0]) else math.inf


def averaging_times(sets: list[Configuration]) -> list[AveragingTime]:
    """Of the configurations that AdamW trained (Wang & Aitchison, 2024, arXiv:2405.13698).

    AdamW multiplies weights by 1 − rate × decay at each step, so that they average updates over 1/(rate × decay) steps.
    """
    times = []
    for c in sets:
        run = c.runs[0]
        if run.settings.get("optimizer.name") != "adamw":
            continue
        product = run.settings[RATE] * run.settings[DECAY]
        steps = 1 / product if product else math.inf
        blocks = run.ledger.get("train", {}).get("blocks")
        epoch = math.ceil(blocks / run.settings["trainer.global_batch_size"]) if blocks else None
        if epoch and (limit := run.settings.get("trainer.limit_train_batches")):
            epoch = min(epoch, limit)
        times.append(AveragingTime(name(c), c.mean, steps, steps / epoch if epoch else None))
    return times
