"""What can be said of several runs together."""

import json
import math
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lightning_lm.config.schema import may_change
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.report.runs import STATUSES, SavedRun
from lightning_lm.runs.numbers import format_value, is_number
from lightning_lm.runs.protocol import differing as differing_protocols

LENGTHS = tuple(f"trainer.max_{name}" for name in ("epochs", "steps", "tokens", "labels", "flops", "minutes"))
FIRST = ("optimizer.lr", "optimizer.weight_decay")  # of the settings that vary, these lead


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed alone."""

    settings: dict[str, Any]
    runs: list[SavedRun]
    ranked_by: str = "val/loss"

    @property
    def seeds(self) -> set[int]:
        return {run.settings.get("seed", 0) for run in self.runs}

    def values(self, figure: str) -> list[float]:
        """One for each seed that finished: to run a seed again is no news."""
        return [value for value in self.by_seed(figure).values() if value is not None]

    def by_seed(self, figure: str) -> dict[int, float | None]:
        return {run.settings["seed"]: run.summary.get(figure) for run in self.runs if run.loss is not None}

    @property
    def losses(self) -> list[float]:
        return self.values(self.ranked_by)

    @property
    def test_losses(self) -> list[float]:
        """Of all seeds that finished, or of none: a mean of some would mislead."""
        tested = self.values("test/loss")
        return tested if len(tested) == len(self.losses) else []

    @property
    def mean(self) -> float:
        """Of the seeds that finished; infinite where there is none."""
        return fmean(self.losses) if self.losses else math.inf

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds (n − 1), from two that finished on."""
        return stdev(self.losses) if len(self.losses) > 1 else None

    @property
    def complete(self) -> bool:
        return len(self.losses) == len(self.seeds)

    @property
    def rank(self) -> tuple[bool, bool, int, float]:
        """Best mean first; those of which a seed did not finish come behind, those with the most seeds first.

        A mean of fewer seeds is lower by luck more often.
        """
        return not self.losses, not self.complete, 0 if self.complete else -len(self.losses), self.mean


def by_objective(runs: list[SavedRun]) -> dict[str, list[SavedRun]]:
    """Objective → its runs, and those of others of its kind, whose losses mean the same.

    Runs that have no settings are among the first.
    """
    first_of = {kind_of(run): run.settings["objective.name"] for run in reversed(runs) if run.settings}
    kinds = list(dict.fromkeys(kind_of(run) for run in runs if run.settings)) or [""]
    return {first_of.get(kind, ""): [run for run in runs if (kind_of(run) or kinds[0]) == kind] for kind in kinds}


def kind_of(run: SavedRun) -> str | None:
    """Such as "causal"; None where a run has no settings."""
    return OBJECTIVES[run.settings["objective.name"]].facts.kind if run.settings else None


def like_with_like(runs: list[SavedRun]) -> dict[str, list[SavedRun]]:
    """What makes runs comparable, for people → the finished runs of one kind, text and length.

    Where the tokenizers differ, runs have bits per byte in common, or nothing.
    """
    rows = {}
    for run in runs:
        if run.loss is not None:
            entry = run.ledger.get("validation") or {}
            rows[run.folder] = {
                "objective": kind_of(run),
                "validation bytes": entry.get("bytes"),
                "token stream": None if "val/bits_per_byte" in run.summary else str(entry.get("key"))[:8],
                **{name: run.settings.get(name) for name in LENGTHS},
            }
    varied = [name for name in next(iter(rows.values()), {}) if len({str(row[name]) for row in rows.values()}) > 1]
    groups: dict[str, list[SavedRun]] = {}
    for run in runs:
        if row := rows.get(run.folder):
            groups.setdefault(", ".join(f"{name} {format_value(row[name])}" for name in varied), []).append(run)
    return groups


def ranking_figure(runs: list[SavedRun]) -> str:
    """By what comparable runs are ranked: across tokenizers by bits per byte, where all have them."""
    keys = {(run.ledger.get("validation") or {}).get("key") for run in runs if run.loss is not None}
    by_byte = all("val/bits_per_byte" in run.summary for run in runs if run.loss is not None)
    return "val/bits_per_byte" if len(keys) > 1 and by_byte else "val/loss"


def comparable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def differing(runs: list[SavedRun]) -> list[str]:
    """The settings in which the runs differ, learning rate and weight decay first, the seed last.

    A setting that a run lacks, of another option or from before there was one, is no difference by itself.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    known = [run.settings for run in runs if run.settings]
    free = may_change()
    given = {name: {comparable(of[name]) for of in known if name in of} for name in names if name not in free}
    varied = [name for name, values in given.items() if len(values) > 1]
    place = {name: number for number, name in enumerate(FIRST)} | {"seed": len(names)}
    return sorted(varied, key=lambda name: place.get(name, len(FIRST)))


def searched(runs: list[SavedRun]) -> list[str]:
    """The settings that a search may choose."""
    return [name for name in differing(runs) if name != "seed"]


def levels(runs: list[SavedRun], name: str) -> list[Any]:
    """The values of a setting, numbers in their order."""
    values = list({str(v): v for run in runs if run.settings for v in [run.settings.get(name)]}.values())
    return sorted(values, key=lambda v: (not is_number(v), v if is_number(v) else str(v)))


def configurations(runs: list[SavedRun]) -> list[Configuration]:
    """The best first."""
    names = searched(runs)
    sets: dict[tuple, list[SavedRun]] = {}
    for run in runs:
        sets.setdefault(tuple(comparable(run.settings.get(name)) for name in names), []).append(run)
    figure = ranking_figure(runs)
    groups = [Configuration({n: rs[0].settings.get(n) for n in names}, rs, figure) for rs in sets.values()]
    return sorted(groups, key=lambda c: c.rank)


def ranked(runs: list[SavedRun]) -> list[SavedRun]:
    """Finished runs, the best first, then the others by their status."""
    figure = ranking_figure(runs)
    return sorted(runs, key=lambda r: (r.loss is None, r.loss and r.summary[figure], STATUSES.index(r.status)))


def winner(runs: list[SavedRun]) -> SavedRun | None:
    """Of the configuration with the lowest mean loss the run with the lowest seed: luck is not to choose one.

    None where no run is finished, or where their losses can't be compared.
    """
    if len(like_with_like(runs)) > 1:
        return None
    best = configurations(runs)[0]
    finished = [run for run in best.runs if run.loss is not None]
    return min(finished, key=lambda run: run.settings["seed"]) if finished else None


def cautions(runs: list[SavedRun]) -> list[str]:
    """What a reader must know before the losses are compared."""
    if len(objectives := by_objective(runs)) > 1:
        apart = f"{' and '.join(objectives)} losses mean different things: they are shown apart and not compared."
        return [apart, *(f"{name}: {sentence}" for name, of in objectives.items() for sentence in cautions(of))]
    sentences = []
    if unended := sum(run.status in ("running", "interrupted", "cut off", "not run") for run in runs):
        sentences.append(f"{unended} of {len(runs)} runs have not ended: what is said here is about the others.")
    if len(unlike := like_with_like(runs)) > 1:
        sentences.append(f"No best is named, since the losses can't be compared: {'; '.join(unlike)}.")
    elif ranking_figure(runs) != "val/loss":
        sentences.append("The runs cut the text into different tokens: they are ranked by bits per byte.")
    protocols = [run.summary["val/protocol"] for run in runs if run.loss is not None and "val/protocol" in run.summary]
    shown_elsewhere = ("tokenizer", "objective", "limit")
    if unlike := {name: of for name, of in differing_protocols(protocols).items() if name not in shown_elsewhere}:
        differences = [
            f"{name.replace('_', ' ')} {' or '.join(dict.fromkeys(map(format_value, of)))}"
            for name, of in unlike.items()
        ]
        sentences.append(
            f"The losses were measured in different ways, and may differ by that: {', '.join(differences)}."
        )
    batches = {run.settings.get("trainer.limit_val_batches") for run in runs if run.loss is not None} - {None}
    if batches:
        few = " or ".join(map(str, sorted(batches)))
        sentences.append(
            f"Validation read {few} batch{'es' * (batches != {1})} only, not the whole text: the losses are estimates."
        )
    if any(not c.complete and c.losses for c in configurations(runs)):
        sentences.append("Where a seed did not finish, the mean is over those that did and ranks behind whole ones.")
    return sentences


def short_name(name: str) -> str:
    return {"optimizer.lr": "learning rate", "optimizer.weight_decay": "weight decay"}.get(name, name)


def loss_unit(runs: list[SavedRun]) -> str:
    return OBJECTIVES[next((name for run in runs if (name := run.settings.get("objective.name"))), "clm")].facts.unit


def ranking_label(runs: list[SavedRun]) -> str:
    bits = ranking_figure(runs) == "val/bits_per_byte"
    return "validation bits per byte" if bits else f"validation loss ({loss_unit(runs)})"
