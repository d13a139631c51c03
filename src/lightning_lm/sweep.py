"""What the jobs of a sweep share: a folder that can be gone on with, the GPUs, and the table at the end."""

import itertools
import multiprocessing
import os
import random
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Override

from lightning_lm.config import Config
from lightning_lm.errors import refuse
from lightning_lm.folder import FREE, read_json, write_json
from lightning_lm.launch import launched, run_job

Settings = dict[str, str]  # what a job has to itself: setting → value, as in an override

DONE = ("finished", "diverged", "pruned")  # a sweep that is gone on with doesn't repeat these
LOCK = ".lock"  # of a sweep's folder, while it is at work
SWEEPS = Path("outputs/sweeps")
SAME = "give the settings in its sweep.json (a list of values may have grown so that jobs are added at the end)"


def combinations(swept: dict[str, Override]) -> list[Settings]:
    """Every combination of the values, the last setting varying fastest."""
    for key, override in swept.items():
        if not override.is_discrete_sweep():
            wrong = "an interval has no end of values"
            raise refuse(key, override.input_line.partition("=")[2], wrong, "list them, or add hydra.sweeper.trials=20")
    values = itertools.product(*(list(override.sweep_string_iterator()) for override in swept.values()))
    return [dict(zip(swept, chosen, strict=True)) for chosen in values]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuses where another process sweeps in this folder now, or where torchrun or srun has started several."""
    if launched(os.environ) is not None:
        wrong = "each process that torchrun or srun has started would sweep"
        raise refuse(
            "hydra.mode", "MULTIRUN", wrong, "start a sweep by python train.py; hardware.devices makes processes"
        )
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        with lock:
            yield
    except Timeout:
        raise refuse("hydra.sweep.dir", folder, "another process sweeps in it now", "wait, or choose another") from None
    finally:
        if made and {path.name for path in folder.iterdir()} <= {LOCK}:  # refused before it began
            (folder / LOCK).unlink(missing_ok=True)
            for path in itertools.takewhile(lambda path: not any(path.iterdir()), made):
                path.rmdir()


def claim_folder(folder: Path, fixed: Settings, search: list[Settings]) -> None:
    """Write what a sweep is about to its folder's ``sweep.json``, or check that it is the same or has grown at its end.

    Args:
        folder: of the sweep.
        fixed: the settings that all jobs share.
        search: each job's own settings; of a study one row, the space.

    Raises:
        Refused: the folder holds another sweep, or something else.
    """
    fixed = {key: value for key, value in fixed.items() if key not in FREE and key.split(".")[0] not in FREE}
    folder.mkdir(parents=True, exist_ok=True)
    there = read_json(folder / "sweep.json")
    if there is None and any(path.name != LOCK for path in folder.iterdir()):
        raise refuse("hydra.sweep.dir", folder, "the folder isn't empty and holds no sweep", "choose a new one")
    if there is not None and (there["fixed"], there["search"]) != (fixed, search[: len(there["search"])]):
        raise refuse("hydra.sweep.dir", folder, "the folder holds another sweep", f"{SAME}, or choose a new one")
    write_json(folder / "sweep.json", {"fixed": fixed, "search": search})


def run(job: Config) -> float:
    """One job of a sweep: nothing where it is done, else a run in a process of its own, on GPUs of its own."""
    folder = Path(job.run_dir)
    job.logger.group = job.logger.group or name(folder.parent)
    if (summary := read_json(folder / "summary.json")) and summary["status"] in DONE:
        return summary.get("val/loss")
    multiprocessing.set_start_method("forkserver", force=True)  # joblib's workers have one that their children lack
    with gpus_for(job):
        return run_job(job, run_test=False)  # a sweep must not choose by the test


def name(folder: Path) -> str:
    """Of a sweep: its place below ``outputs/sweeps``."""
    folder = folder.absolute()
    return str(folder.relative_to(SWEEPS.absolute()) if folder.is_relative_to(SWEEPS.absolute()) else folder.name)


# ---------------------------------------------------------------------------------------------------------------- GPUs


@contextmanager
def gpus_for(job: Config) -> Iterator[None]:
    """Let the job see only GPUs that no other job of its sweep uses; waits for them. SLURM does so by itself."""
    wanted, folder = job.hardware.devices, Path(job.run_dir).parent
    gpus = [] if job.hardware.accelerator == "cpu" or "SLURM_JOB_ID" in os.environ else visible_gpus()
    if not 0 < wanted <= len(gpus) or job.hardware.nodes > 1:  # nothing to share, or refused when the run begins
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with claimed(gpus, wanted, folder / ".gpus") as mine:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)  # the job's processes start with it
        try:
            yield
        finally:
            del os.environ["CUDA_VISIBLE_DEVICES"]
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def visible_gpus() -> list[str]:
    import torch

    gpus = [str(number) for number in range(torch.cuda.device_count())]  # counts by NVML: CUDA isn't started here
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[: len(gpus)] if named else gpus


@contextmanager
def claimed(devices: Sequence[str], count: int, folder: Path) -> Iterator[list[str]]:
    """``count`` of the devices, each locked by a file in ``folder`` until the block or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with ExitStack() as locks:
            mine: list[str] = []
            for device in devices:
                try:
                    locks.enter_context(FileLock(folder / f"{device}.lock", blocking=False))
                except Timeout:
                    continue
                mine.append(device)
                if len(mine) == count:
                    yield mine
                    return
        time.sleep(random.uniform(0.5, 1.5))  # all or none, so that two jobs never wait for each other's


# ---------------------------------------------------------------------------------------------------------- the table


def status(folder: Path) -> str:
    """Of a job by its folder."""
    summary = read_json(folder / "summary.json")
    return summary["status"] if summary else "cut off" if (folder / "config.yaml").exists() else "not run"


def exit_code(folder: Path, jobs: int) -> int:
    """Of a sweep: 2 where all that isn't done was refused, 1 where something failed; to diverge is a result."""
    left = {status(folder / str(number)) for number in range(jobs)} - {*DONE}
    return 0 if not left else 2 if left == {"not run"} else 1


def table(folder: Path, jobs: list[Settings]) -> str:
    """A line for each job: what it had to itself, and what became of it; then the best one, and how to test it."""
    summaries = [read_json(folder / str(number) / "summary.json") or {} for number in range(len(jobs))]
    columns = [*dict.fromkeys(key for settings in jobs for key in settings)]
    rows = [["job", *columns, "val/loss", "val/perplexity", "status", "seconds"]]
    for number, (settings, summary) in enumerate(zip(jobs, summaries, strict=True)):
        figures = [summary.get(figure) for figure in ("val/loss", "val/perplexity")]
        rows.append(
            [
                str(number),
                *(short(settings.get(key, "")) for key in columns),
                *("–" if value is None else f"{value:.4f}" if value < 1e5 else f"{value:.3g}" for value in figures),
                status(folder / str(number)),
                f"{summary['seconds']:.0f}" if "seconds" in summary else "–",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    counts = Counter(row[-2] for row in rows[1:])
    lines.append(f"{len(jobs)} jobs in {folder}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    finished = [number for number, summary in enumerate(summaries) if summary.get("status") == "finished"]
    if finished:
        seeds: dict[tuple, list[float]] = {}  # of each configuration, the losses: one seed may be lucky
        for number in finished:
            seeds.setdefault(apart_from_seed(jobs[number]), []).append(summaries[number]["val/loss"])
        best = min(finished, key=lambda number: fmean(seeds[apart_from_seed(jobs[number])]))
        own = " ".join(shlex.quote(f"{key}={value}") for key, value in jobs[best].items())
        lines.append(f"best: job {best}; the same command with {own} instead of the search trains and tests it alone")
    return "\n" + "\n".join(lines) + "\n"


def apart_from_seed(settings: Settings) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in settings.items() if key != "seed")


def short(value: str) -> str:
    """A drawn number with four digits; what was typed as it is."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value
