"""A run's folder, which one process at a time works in, and its files: written whole or not at all, and read again."""

import errno
import itertools
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_lm.errors import refuse
from lightning_lm.files import replacing

log = logging.getLogger(__name__)

PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "torchmetrics", "hydra-core", "wandb")
SWEEPS = Path("outputs/sweeps")
FIGURES = ("val/loss", "steps", "best_step", "tokens_seen", "tokens_per_second", "seconds")  # of a finished run
DONE = ("finished", "diverged", "pruned")  # a sweep that is gone on with does not repeat jobs of these statuses
TASK_RESULTS = "lm_eval.json"  # of evaluate --lm-eval
LOCK = ".lock"  # of a folder, while a process works in it
KINDS = {"status": str, "options": dict, "wandb_run_id": str}  # of what a run's JSON files hold
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what a file system says that has none


@contextmanager
def alone_in(folder: Path, setting: str, *, new: bool = False) -> Iterator[Path]:
    """Hold a folder, which is made where there is none, as long as the block runs; yields it.

    With ``new``, it is one that was empty: a number is put behind the name of one that isn't. What this has made and
    nothing was written into goes again. Raises Refused where another process holds the folder.

    Args:
        folder: of a run or a sweep.
        setting: the one that names it.
        new: nobody has named it, so that any name serves.
    """
    for number in itertools.count(1):
        place = folder.with_name(f"{folder.name}_{number}") if number > 1 else folder
        made = [path for path in (place, *place.parents) if not path.exists()]
        place.mkdir(parents=True, exist_ok=True)
        before = {path.name for path in place.iterdir()}
        lock = FileLock(place / LOCK, blocking=False)
        try:
            with _held(lock, setting):
                if new and any(path.name != LOCK for path in place.iterdir()):
                    continue
                try:
                    yield place
                    return
                finally:
                    _remove_unused(place, before, made)
        except Timeout:
            if not new:
                remedy = "wait until it has ended, or choose another"
                raise refuse(setting, place, "another process is at work in it", remedy) from None


@contextmanager
def _held(lock: FileLock, setting: str) -> Iterator[None]:
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:  # a Timeout, too
            raise
        log.warning("%s: its file system has no locks; see to it that no other process works in it", setting)
    try:
        yield
    finally:
        lock.release()


def _remove_unused(folder: Path, before: set[str], made: list[Path]) -> None:
    """Remove the lock where nothing else has come into the folder, and what of it and those above it was made.

    A lock that was there before stays beside other files: they are a run's.
    """
    names = {path.name for path in folder.iterdir()}
    if names - before <= {LOCK} and (LOCK not in before or names == {LOCK}):
        (folder / LOCK).unlink(missing_ok=True)
        for path in itertools.takewhile(lambda path: not any(path.iterdir()), made):
            path.rmdir()


def in_use(folder: Path) -> bool:
    """Whether a process is at work in the folder, as far as its lock tells; leaves no trace of having looked."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in (*NO_LOCKS, errno.EROFS, errno.EACCES):
            raise
        return False


def write_text(path: Path, text: str) -> None:
    """Write all or nothing."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write all or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json_file(path: Path) -> Any:
    """The content of a JSON file, or None where there is no such file; raises Refused where it is damaged."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no table")
        if wrong := [name for name, kind in KINDS.items() if not isinstance(content.get(name, kind()), kind)]:
            raise ValueError(f"{wrong[0]} is {content[wrong[0]]!r}")
    except ValueError as error:
        raise refuse("file", path, f"it is damaged: {error}", "restore it, or begin again in another folder") from error
    return content


def environment(**more: Any) -> dict[str, Any]:
    """Where and with what a run was made: commit, uncommitted changes, versions, hardware, command."""
    import torch

    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": _uncommitted(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
        **more,
    }


def _uncommitted() -> str | None:
    """The changes since the last commit as a patch, with the new files of code and configuration."""
    changes, top = _git("diff", "HEAD"), _git("rev-parse", "--show-toplevel")
    if changes is None or top is None:
        return None
    new = (_git("-C", top, "ls-files", "--others", "--exclude-standard", "src", "conf") or "").splitlines()
    patches = [_git("-C", top, "diff", "--no-index", "--", os.devnull, file, codes=(0, 1)) for file in new]
    return "\n".join(filter(None, [changes, *patches]))


def _git(*arguments: str, codes: tuple[int, ...] = (0,)) -> str | None:
    """What git prints; None where there is no git, no repository, or another exit code."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode in codes else None


def is_finished(run: Path) -> bool:
    """Raises Refused where the summary says so without the figures that belong to it."""
    path = run / "summary.json"
    summary = read_json_file(path) or {}
    finished = summary.get("status") == "finished"
    if finished and (missing := [name for name in FIGURES if isinstance(summary.get(name, ""), str)]):
        wrong = f"it is damaged: it has no number for {', '.join(missing)}"
        raise refuse("file", path, wrong, "delete it: the command that began the run then writes it again")
    return finished


def job_status(folder: Path) -> str:
    """The status of a sweep's job, by its folder."""
    summary = read_json_file(folder / "summary.json")
    if summary and "status" in summary:
        return summary["status"]
    return "cut off" if (folder / "config.yaml").exists() else "not run"


def why_unfinished(run: Path) -> str | None:
    """The status of a run whose export, where there is one, is of an earlier end; None for one that is finished."""
    summary = read_json_file(run / "summary.json")
    status = "cut off" if summary is None else summary.get("status", "finished")
    return None if status == "finished" else status


def job_settings(job: Path) -> dict[str, str]:
    """What a sweep's job has to itself: what its trial has drawn, or its row of the sweep."""
    trial = read_json_file(job / "trial.json")
    return trial["settings"] if trial else read_json_file(job.parent / "sweep.json")["search"][int(job.name)]


def sweep_name(folder: Path) -> str:
    """The name of a sweep: the place of its folder below ``outputs/sweeps``."""
    folder = folder.absolute()
    return str(folder.relative_to(SWEEPS.absolute()) if folder.is_relative_to(SWEEPS.absolute()) else folder.name)
