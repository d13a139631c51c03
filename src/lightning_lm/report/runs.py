"""Runs, finished and unfinished, read from their folders."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lightning_lm.config.composition import flat
from lightning_lm.errors import Problem, Refused
from lightning_lm.runs.folder import in_use, job_status, read_json_file
from lightning_lm.runs.settings import UNREADABLE, read_settings

STATUSES = ("finished", "running", "pruned", "interrupted", "cut off", "diverged", "failed", "not run")


@dataclass(frozen=True)
class SavedRun:
    folder: Path
    name: str  # how the page calls it
    status: str
    settings: dict[str, Any]  # flat, under their dotted names
    summary: dict[str, Any]
    ledger: dict[str, Any]

    @property
    def loss(self) -> float | None:
        """The best validation loss in nats per token, where the run is finished."""
        loss = self.summary.get("val/loss")
        return loss if self.status == "finished" and loss is not None and math.isfinite(loss) else None


def run_at(folder: Path, name: str, settings: dict[str, Any]) -> SavedRun:
    summary, ledger = (read_json_file(folder / f"{file}.json") or {} for file in ("summary", "ledger"))
    return SavedRun(folder, name, "running" if in_use(folder) else job_status(folder), settings, summary, ledger)


def collect(folders: Sequence[Path]) -> list[SavedRun]:
    """All runs in these folders; each is a run's or a sweep's.

    Raises:
        Refused: a folder is neither, or is damaged.
    """
    settings: dict[Path, dict[str, Any]] = {}  # of each run folder
    problems = []
    for folder in map(Path.resolve, folders):
        try:
            runs = {folder: settings_of(folder)} if (folder / "config.yaml").exists() else settings_of_jobs(folder)
            for run, of_run in runs.items():
                if (run / "config.yaml").exists() and "objective.name" not in of_run:
                    raise ValueError(f"{run / 'config.yaml'} is none of a run")
                read_json_file(run / "summary.json")
        except UNREADABLE as error:
            why = str(error).splitlines()[0]
            problems.append(Problem("FOLDER", folder, f"one of its files can't be read: {why}", "repair or remove it"))
            continue
        if not runs:
            problems.append(Problem("FOLDER", folder, "neither a run nor a sweep", "give a folder with config.yaml"))
        settings |= {run.absolute(): of_run for run, of_run in runs.items()}
    if problems:
        raise Refused(*problems)
    above = os.path.commonpath([run.parent for run in settings])
    return [run_at(run, os.path.relpath(run, above), of_run) for run, of_run in settings.items()]


def settings_of(run: Path) -> dict[str, Any]:
    return flat(read_settings(run))


def settings_of_jobs(sweep: Path) -> dict[Path, dict[str, Any]]:
    """The folders of a sweep's jobs and their settings; those that never began have the ones that were planned."""
    folders = {int(child.name): child for child in sweep.glob("[0-9]*") if child.name.isdigit() and child.is_dir()}
    begun = {n: settings_of(folder) for n, folder in sorted(folders.items()) if (folder / "config.yaml").exists()}
    search = (read_json_file(sweep / "sweep.json") or {}).get("search", [])
    if (sweep / "study.db").exists():  # its search is the space that the jobs are drawn from
        search = []
    shared = next(iter(begun.values()), {})  # but for what each has to itself, all jobs have the same settings
    planned = {n: shared | parsed(of_run) for n, of_run in enumerate(search)}
    numbers = sorted(folders.keys() | planned.keys())
    return {sweep / str(n): begun.get(n, planned.get(n, {})) for n in numbers}


def parsed(planned: dict[str, str]) -> dict[str, Any]:
    """Settings that were typed as overrides, as values; choices of an axis's option are left out."""
    typed = [f"{name}={value}" for name, value in planned.items() if "." in name or name == "seed"]
    return flat(OmegaConf.to_container(OmegaConf.from_dotlist(typed)))
