"""Finished and unfinished runs, read from their folders, and what can be said of them together."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from lightning_lm import sweep
from lightning_lm.errors import Problem, Refused
from lightning_lm.folder import FREE, flat, read_json

FIRST = ("optimizer.lr", "optimizer.weight_decay")  # of the settings that vary, these lead
STATUSES = ("finished", "pruned", "interrupted", "cut off", "diverged", "failed", "not run")


@dataclass(frozen=True)
class Run:
    folder: Path
    name: str  # how the page calls it
    status: str
    settings: dict[str, Any]  # flat, under their dotted names
    summary: dict[str, Any]

    @property
    def loss(self) -> float | None:
        """The best validation loss in nats per token, where the run is finished."""
        loss = self.summary.get("val/loss")
        return loss if self.status == "finished" and loss is not None and math.isfinite(loss) else None


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed alone."""

    settings: dict[str, Any]
    runs: list[Run]

    @property
    def seeds(self) -> set[int]:
        return {run.settings.get("seed", 0) for run in self.runs}

    @property
    def losses(self) -> list[float]:
        """One for each seed that finished: to run a seed again is no news."""
        return list({run.settings["seed"]: run.loss for run in self.runs if run.loss is not None}.values())

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


# ---------------------------------------------------------------------------------------------------- run folders


def collect(folders: Sequence[Path]) -> list[Run]:
    """All runs in these folders; each is a run's or a sweep's.

    Raises:
        Refused: a folder is neither, or the runs can't be compared.
    """
    found: dict[Path, dict[str, Any]] = {}  # run folder → settings
    problems = []
    for folder in map(Path.resolve, folders):
        try:
            runs = {folder: settings_of(folder)} if (folder / "config.yaml").exists() else jobs(folder)
            for run, settings in runs.items():
                if (run / "config.yaml").exists() and "objective.name" not in settings:
                    raise ValueError(f"{run / 'config.yaml'} is none of a run")
                read_json(run / "summary.json")
        except (YAMLError, ValueError, AttributeError) as error:
            why = str(error).splitlines()[0]
            problems.append(Problem("FOLDER", folder, f"one of its files can't be read: {why}", "repair or remove it"))
            continue
        if not runs:
            problems.append(Problem("FOLDER", folder, "neither a run nor a sweep", "give a folder with config.yaml"))
        found |= {run.absolute(): settings for run, settings in runs.items()}
    kinds = {settings["objective.name"] for settings in found.values() if "objective.name" in settings}
    if len(kinds) > 1:
        wrong = f"{' and '.join(sorted(kinds))} losses mean different things"
        problems.append(Problem("FOLDER", " ".join(map(str, folders)), wrong, "report on each objective by itself"))
    if problems:
        raise Refused(*problems)
    above = os.path.commonpath([run.parent for run in found])
    return [
        Run(run, os.path.relpath(run, above), sweep.status(run), settings, read_json(run / "summary.json") or {})
        for run, settings in found.items()
    ]


def jobs(folder: Path) -> dict[Path, dict[str, Any]]:
    """The folders of a sweep's jobs and their settings; those that never began have the ones that were planned."""
    numbers = {int(child.name) for child in folder.glob("[0-9]*") if child.name.isdigit() and child.is_dir()}
    of_study = (folder / "study.db").exists()  # its search is the space that the jobs are drawn from
    search = [] if of_study else (read_json(folder / "sweep.json") or {}).get("search", [])
    runs = {folder / str(number): {} for number in sorted(numbers | set(range(len(search))))}
    begun = {run: settings_of(run) for run in runs if (run / "config.yaml").exists()}
    shared = next(iter(begun.values()), {})
    for run, planned in zip(map(folder.joinpath, map(str, range(len(search)))), search, strict=True):
        runs[run] = shared | parsed({key: value for key, value in planned.items() if "." in key or key == "seed"})
    return runs | begun


def parsed(settings: dict[str, str]) -> dict[str, Any]:
    """Values as they were typed."""
    return flat(OmegaConf.to_container(OmegaConf.from_dotlist([f"{k}={v}" for k, v in settings.items()])))


def settings_of(folder: Path) -> dict[str, Any]:
    return flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))


# ------------------------------------------------------------------------------------------------------ comparing


def comparable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def differing(runs: list[Run]) -> list[str]:
    """The settings in which the runs differ, learning rate and weight decay first, the seed last."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    known = [run.settings for run in runs if run.settings]
    varied = [
        name
        for name in names
        if name not in FREE
        and name.split(".")[0] not in FREE
        and len({comparable(settings.get(name)) for settings in known}) > 1
    ]
    place = {name: number for number, name in enumerate(FIRST)} | {"seed": len(names)}
    return sorted(varied, key=lambda name: place.get(name, len(FIRST)))


def levels(runs: list[Run], name: str) -> list[Any]:
    """The values of a setting, numbers in their order."""
    values = list({str(v): v for run in runs if run.settings for v in [run.settings.get(name)]}.values())
    return sorted(values, key=lambda v: (not number(v), v if number(v) else str(v)))


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def configurations(runs: list[Run]) -> list[Configuration]:
    """Best mean loss first; those of which a seed did not finish come after those of which all did."""
    names = [name for name in differing(runs) if name != "seed"]
    sets: dict[tuple, list[Run]] = {}
    for run in runs:
        sets.setdefault(tuple(comparable(run.settings.get(name)) for name in names), []).append(run)
    found = [Configuration({n: rs[0].settings.get(n) for n in names}, rs) for rs in sets.values()]
    return sorted(found, key=lambda c: (not c.losses, not c.complete, c.mean))


def ranked(runs: list[Run]) -> list[Run]:
    """Finished runs by their validation loss, then the others by their status."""
    return sorted(runs, key=lambda r: (r.loss is None, r.loss or 0.0, STATUSES.index(r.status)))


def winner(runs: list[Run]) -> Run | None:
    """Of the configuration with the lowest mean loss the run with the lowest seed: luck is not to choose one."""
    best = configurations(runs)[0]
    finished = [run for run in best.runs if run.loss is not None]
    return min(finished, key=lambda run: run.settings["seed"]) if finished else None


def cautions(runs: list[Run]) -> list[str]:
    """What a reader must know before the losses are compared."""
    found = []
    ledgers = [(read_json(run.folder / "ledger.json") or {}).get("validation") for run in runs if run.loss is not None]
    if len({entry["bytes"] for entry in ledgers if entry}) > 1:
        found.append("The runs were validated on different texts: their figures can't be compared.")
    elif len({entry["key"] for entry in ledgers if entry}) > 1:
        found.append("The runs cut the text into different tokens: compare bits per byte, not the loss per token.")
    if any(not c.complete and c.losses for c in configurations(runs)):
        found.append("Where a seed did not finish, the mean is over those that did and ranks behind whole ones.")
    return found


def show(value: Any, digits: str = "") -> str:
    """A value as people read it; a missing one is a dash."""
    match value:
        case None:
            return "–"
        case bool():
            return str(value).lower()
        case float() if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        case float() | int() if digits:
            return format(value, digits if abs(value) < 1e6 else ".3g")
        case float():
            return f"{value:.6g}"
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
    return str(value)


def short_name(name: str) -> str:
    return {"optimizer.lr": "learning rate", "optimizer.weight_decay": "weight decay"}.get(name, name)
