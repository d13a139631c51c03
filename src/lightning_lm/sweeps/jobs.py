"""A sweep's jobs, and the folder that it can be gone on with."""

import itertools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from lightning_lm.config.composition import flat
from lightning_lm.config.schema import Config, may_change, with_before
from lightning_lm.errors import refuse
from lightning_lm.launch import launched, run_job
from lightning_lm.runs.folder import (
    DONE,
    LOCK,
    alone_in,
    job_settings,
    job_status,
    read_json_file,
    sweep_name,
    write_json,
)
from lightning_lm.runs.settings import read_settings, take_before
from lightning_lm.sweeps.gpus import gpus_for
from lightning_lm.sweeps.progress import JobPlace

JobSettings = dict[str, str]  # what a job has to itself: setting → value, as in an override
SAME = "give the settings in its sweep.json (a list of values may have grown so that jobs are added at the end)"


def combinations(swept: dict[str, Override]) -> list[JobSettings]:
    """Every combination of the values, the last setting varying fastest."""
    for key, override in swept.items():
        if not override.is_discrete_sweep():
            wrong = "an interval has no end of values"
            raise refuse(key, override.input_line.partition("=")[2], wrong, "list them, or add hydra.sweeper.trials=20")
        values = list(map(repr, override.sweep_iterator()))
        if len({*values}) < len(values):
            raise refuse(key, override.input_line.partition("=")[2], "a value is there twice", "leave one of them out")
    values = itertools.product(*(list(override.sweep_string_iterator()) for override in swept.values()))
    return [dict(zip(swept, chosen, strict=True)) for chosen in values]


def extended(folder: Path, more: Sequence[Mapping[str, object]]) -> list[JobSettings]:
    """The jobs of the sweep in the folder, and after them those of ``more`` that it doesn't have yet.

    Raises:
        Refused: there is no sweep, or ``more`` is no list of tables.
    """
    there = read_json_file(folder / "sweep.json")
    if there is None:
        raise refuse("hydra.sweep.dir", folder, "there is no sweep to add jobs to", "name the folder of one")
    if isinstance(more, str) or not all(isinstance(row, Mapping) for row in more):
        raise refuse("hydra.sweeper.more", more, "no list of tables", "write [{optimizer.lr:1e-3,seed:3}]")
    rows = [{str(key): "null" if value is None else str(value) for key, value in row.items()} for row in more]
    return there["search"] + [row for row in rows if row not in there["search"]]


def refuse_launched() -> None:
    """Refuses where torchrun or srun has started several processes."""
    if launched(os.environ) is not None:
        wrong = "each process that torchrun or srun has started would sweep"
        remedy = "start a sweep by python train.py; hardware.devices makes processes"
        raise refuse("hydra.mode", "MULTIRUN", wrong, remedy)


def claim_folder(
    folder: Path, fixed: JobSettings, search: list[JobSettings], jobs: int, parallel: bool = False
) -> list[JobSettings]:
    """Write what a sweep is about to its folder's ``sweep.json``, or check that it is the same or has grown at its end.

    Args:
        folder: of the sweep.
        fixed: the settings that all jobs share.
        search: the settings that each job has to itself; of a study one row, the space.
        jobs: how many there are to be.
        parallel: whether they run side by side.

    Returns:
        ``search``, or that of the folder where it goes on: it may have grown by an earlier command.

    Raises:
        Refused: the folder holds another sweep, or something else.
    """
    free = may_change()
    fixed = {key: value for key, value in fixed.items() if key not in free}
    folder.mkdir(parents=True, exist_ok=True)
    there = read_json_file(folder / "sweep.json")
    if there is None and any(path.name != LOCK for path in folder.iterdir()):
        raise refuse("hydra.sweep.dir", folder, "the folder isn't empty and holds no sweep", "choose a new one")
    if there is not None and not {"fixed", "search"} <= there.keys():
        raise refuse(
            "file", folder / "sweep.json", "it is damaged: settings are missing", "choose a new hydra.sweep.dir"
        )
    if there is not None:
        common = min(len(search), len(there["search"]))
        if (there["fixed"], there["search"][:common]) != (fixed, search[:common]):
            raise refuse("hydra.sweep.dir", folder, "the folder holds another sweep", f"{SAME}, or choose a new one")
        search = max(search, there["search"], key=len)
    sweep = {"fixed": fixed, "search": search, "jobs": jobs, "parallel": parallel}
    write_json(folder / "sweep.json", sweep | {"with_before": known_settings(folder, there)})
    return search


def known_settings(folder: Path, sweep: dict[str, Any] | None) -> list[str]:
    """Which of the settings with a ``before`` there were when the sweep began; all of its jobs go by these.

    In a sweep from before this was kept, its jobs tell.
    """
    if sweep is not None and "with_before" in sweep:
        return sweep["with_before"]
    begun = [flat(read_settings(config.parent)) for config in folder.glob("[0-9]*/config.yaml")]
    return sorted(with_before().intersection(*([{*itertools.chain(*begun)}] if begun else [])))


def run_sweep_job(job: Config) -> float:
    """One job of a sweep: nothing where it is done, else a run in a process of its own, on GPUs of its own."""
    folder = Path(job.run_dir)
    job.logger.group = job.logger.group or sweep_name(folder.parent)
    place = JobPlace(folder)
    if job_status(folder) in DONE:
        place.tell_done()
        return read_json_file(folder / "summary.json").get("val/loss")
    sweep = read_json_file(folder.parent / "sweep.json")
    take_before(job, with_before() - {*sweep["with_before"], *sweep["fixed"], *job_settings(folder)})
    multiprocessing.set_start_method("forkserver", force=True)  # joblib's workers have one that their children lack
    with gpus_for(job), alone_in(folder, "run_dir"), place.telling():
        return run_job(job, run_test=place.of_seeds)  # a search must not choose by the test
