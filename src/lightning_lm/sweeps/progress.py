"""What a sweep tells while it runs: which job begins, how it ended, and the time that is left."""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_lm.errors import Died, Refused
from lightning_lm.logs import JOB
from lightning_lm.runs.folder import DONE, job_settings, job_status, read_json_file
from lightning_lm.runs.numbers import brief_settings, duration


def only_seeds(search: list[dict[str, str]]) -> bool:
    """Whether nothing but the seed varies, so that nothing is chosen, and each job may be tested."""
    return all(settings.keys() == {"seed"} for settings in search)


def result(job: Path, error: object = None) -> str:
    """A job's figures, or why it has none; ``error`` is what has ended it, where that is known."""
    status, summary = job_status(job), read_json_file(job / "summary.json") or {}
    if status == "finished":
        return f"val/loss {summary['val/loss']:.4f}, val/perplexity {summary['val/perplexity']:.4g}"
    if status == "pruned":
        return f"pruned at step {summary['steps']:,}: val/loss {summary['val/loss']:.4f}"
    status = "refused" if status == "not run" and isinstance(error, Refused) else status
    reason = error if isinstance(error, Refused) else summary.get("reason") or error
    return " ".join(f"{status}: {reason}".split()) if reason else status


def exit_code(folder: Path, jobs: int) -> int:
    """Of a sweep: 2 where all that isn't done was refused, 1 where a job failed or all have diverged, else 0."""
    statuses = {job_status(folder / str(number)) for number in range(jobs)}
    if not_done := statuses - {*DONE}:
        return 2 if not_done == {"not run"} else 1
    return int(statuses == {"diverged"})


class JobPlace:
    """A job among those of its sweep, whose folder tells all of them, also to a job on another machine."""

    def __init__(self, folder: Path):
        self.folder, self.sweep, self.number = folder, folder.parent, int(folder.name)
        sweep = read_json_file(self.sweep / "sweep.json")
        self.jobs, self.label = sweep["jobs"], f"[{self.number + 1}/{sweep['jobs']}]"
        self.prefix = f"{self.label} " if sweep["parallel"] else ""
        self.settings = brief_settings(job_settings(folder))
        self.of_seeds = not (folder / "trial.json").exists() and only_seeds(sweep["search"])

    def tell(self, text: str) -> None:
        sys.stderr.write(f"{self.label} {text}\n")  # at once: jobs may share the console

    def tell_done(self) -> None:
        self.tell_result(f"{self.settings} done before: ")

    def tell_result(self, start: str = "", end: str = "", error: object = None) -> None:
        """In one line where the job diverged: its train.log has the whole reason."""
        text = result(self.folder, error)
        if job_status(self.folder) == "diverged":
            room = shutil.get_terminal_size().columns - len(f"{self.label} {start}{end}")
            text = textwrap.shorten(text, max(room, 20), placeholder=" …")
        self.tell(f"{start}{text}{end}")

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Around a job that runs; the reason why it ended early is told here, and nowhere else."""
        self.tell(f"{self.settings} → {self.folder}")
        began = time.monotonic()
        os.environ[JOB] = self.prefix  # its processes start with it
        try:
            yield
        except (Refused, Died) as error:
            if isinstance(error, Refused):
                error.reported = True
            self.tell_result(end=self.time_left(), error=error)
            raise
        else:
            self.tell_result(end=f", {duration(time.monotonic() - began)}{self.time_left()}")
        finally:
            del os.environ[JOB]

    def time_left(self) -> str:
        """By the mean time of the jobs since the sweep's command began."""
        path, numbers = self.sweep / "sweep.json", range(self.jobs)
        began = path.stat().st_mtime  # each command writes it
        since = time.time() - began
        ends = [self.sweep / str(number) / "summary.json" for number in numbers[: self.number + 1]]
        others = sum(not end.exists() or end.stat().st_mtime >= began for end in ends[:-1])
        here = others + 1  # with this job, which has just ended
        ahead = sum(job_status(self.sweep / str(number)) not in DONE for number in numbers[self.number + 1 :])
        return f"; about {duration(since / here * ahead)} left for {ahead} more" if ahead else ""
