"""The table that ends a sweep."""

import shlex
from collections import Counter
from pathlib import Path
from statistics import fmean

from lightning_lm.runs.folder import job_status, read_json
from lightning_lm.runs.numbers import short
from lightning_lm.sweeps.jobs import DONE, Settings


def exit_code(folder: Path, jobs: int) -> int:
    """Of a sweep: 2 where all that isn't done was refused, 1 where something failed; to diverge is a result."""
    not_done = {job_status(folder / str(number)) for number in range(jobs)} - {*DONE}
    return 0 if not not_done else 2 if not_done == {"not run"} else 1


def job_table(folder: Path, jobs: list[Settings]) -> str:
    """A line for each job, with its own settings and its result; then the best one, and how to test it."""
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
                job_status(folder / str(number)),
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
        overrides = " ".join(shlex.quote(f"{key}={value}") for key, value in jobs[best].items())
        lines.append(
            f"best: job {best}; the same command with {overrides} instead of the search trains and tests it alone"
        )
    return "\n" + "\n".join(lines) + "\n"


def apart_from_seed(settings: Settings) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in settings.items() if key != "seed")
