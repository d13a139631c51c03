"""The table that ends a sweep."""

import io
import shlex
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_lm.figures import SPLITS, labels
from lightning_lm.report.comparison import Configuration, like_with_like, ranking_figure
from lightning_lm.report.runs import SavedRun, run_at, settings_of_jobs
from lightning_lm.runs.folder import DONE, read_json_file
from lightning_lm.runs.numbers import brief_name, brief_settings, duration, mean_and_spread, short
from lightning_lm.runs.summary import program
from lightning_lm.sweeps.jobs import JobSettings
from lightning_lm.sweeps.progress import only_seeds, result


def job_table(folder: Path, jobs: list[JobSettings], errors: Mapping[int, object]) -> str:
    """The finished configurations, best first; why the other jobs have no figures; what to type next.

    Args:
        folder: of the sweep.
        jobs: each job's own.
        errors: job → what has ended it, as far as this process knows.
    """
    settings = settings_of_jobs(folder)
    runs = [run_at(folder / str(n), str(n), settings.get(folder / str(n), {})) for n in range(len(jobs))]
    width = shutil.get_terminal_size().columns
    count = max(read_json_file(folder / "sweep.json")["jobs"], len(jobs))  # a study that was cut off hasn't drawn all
    open_jobs = count - sum(run.status in DONE for run in runs)
    blocks, commands = [], []
    for common, finished in like_with_like(runs).items():
        ranked = configurations_of_jobs(finished, runs, jobs)
        blocks.append([*([common] if common else []), as_text(ranked)])
        if only_seeds(jobs):
            blocks[-1] += ["", figures_as_text(ranked[0])]
        if len(ranked) > 1:
            from lightning_lm.report.certainty import judge_search  # numpy: only now

            sure = judge_search([run for configuration in ranked for run in configuration.runs]).sentences[:1]
            blocks[-1] += ["", *textwrap.wrap("".join(sure), width)]
            best = min(int(run.name) for run in ranked[0].runs if run.loss is not None)
            among = " so far" * (open_jobs > 0) + f" with {common}" * bool(common)
            sentence = f"job {best} is the best{among}; to train and test it alone:"
            commands.append([sentence, f"  {program()} rerun {shlex.quote(str(folder / str(best)))}"])
    ends: dict[str, list[str]] = {}  # why jobs have no figures → these jobs
    for number, (run, job) in enumerate(zip(runs, jobs, strict=True)):
        if run.loss is None and (why := result(run.folder, errors.get(number))) != "not run":  # these are counted below
            ends.setdefault(why, []).append(f"{run.name} ({brief_settings(job)})")
    without = []
    for why, of in ends.items():
        those = f"job{'s' * (len(of) > 1)} {', '.join(of)}"
        reason = textwrap.shorten(why, max(width, 2 * width - 20 - len(those)), placeholder=" …")
        without.append(textwrap.fill(f"{those} {reason}", width))
    counts = Counter(run.status for run in runs)
    total = f"{len(jobs)} job{'s' * (len(jobs) > 1)} in {folder}: " + ", ".join(
        f"{n} {status}" for status, n in counts.items()
    )
    if open_jobs:
        goes_on = f"the same command with hydra.sweep.dir={shlex.quote(str(folder))} goes on with them"
        total += f"\n{open_jobs} of {count} jobs are not done: {goes_on}"
    page = ["to compare all on a page:", f"  {program()} report {shlex.quote(str(folder))}"]
    return "".join("\n" + "\n".join(block) + "\n" for block in [*blocks, [*without, total], *commands, page])


def configurations_of_jobs(
    finished: list[SavedRun], runs: list[SavedRun], jobs: list[JobSettings]
) -> list[Configuration]:
    """Those that the finished runs are of, the best first, each with all of its runs."""
    each = zip(runs, jobs, strict=True)
    chosen = {run.name: tuple(sorted((k, v) for k, v in job.items() if k != "seed")) for run, job in each}
    members = {settings: [run for run in runs if chosen[run.name] == settings] for settings in chosen.values()}
    figure = ranking_figure(finished)
    several = {chosen[run.name] for run in finished}
    return sorted((Configuration(dict(key), members[key], figure) for key in several), key=lambda c: c.rank)


def as_text(ranked: list[Configuration]) -> str:
    """A line for each configuration: means over its seeds ± standard deviation (n − 1)."""
    several = any(len(configuration.runs) > 1 for configuration in ranked)
    figures = [ranked[0].ranked_by, "test/loss"]
    if figures[0] == "val/loss" and not several:  # another tokenizer's perplexity says something else
        figures.insert(1, "val/perplexity")
    figures = [name for name in figures if any(c.values(name) for c in ranked)]
    names = dict.fromkeys(name for configuration in ranked for name in configuration.settings)
    names = [name for name in names if len({c.settings.get(name) for c in ranked}) > 1]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("job", overflow="fold")
    for name in names:
        table.add_column(brief_name(name), justify="right", overflow="ellipsis")
    for name in [*figures, *["seeds"] * several, "time", ""]:
        table.add_column(name, justify="right", no_wrap=True)
    for place, configuration in enumerate(ranked):
        finished = [run for run in configuration.runs if run.loss is not None]
        table.add_row(
            ", ".join(run.name for run in finished),
            *(short(configuration.settings.get(name, "")) for name in names),
            *(mean_and_spread(configuration.values(name)) for name in figures),
            *[f"{len(finished)}/{len(configuration.runs)}"] * several,
            duration(sum(run.summary.get("seconds", 0) for run in finished)),
            "best" if place == 0 < len(ranked) - 1 else "",
        )
    return rendered(table)


def figures_as_text(configuration: Configuration) -> str:
    """All figures of a recipe: mean over its seeds ± standard deviation (n − 1)."""
    table = Table("", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for split in SPLITS.values():
        table.add_column(split, justify="right")
    for name, label in labels("perplexity").items():
        values = [configuration.values(f"{split}/{name}") for split in SPLITS]
        if any(values):
            table.add_row(label, *map(mean_and_spread, values))
    return rendered(table)


def rendered(table: Table) -> str:
    """As wide as the terminal at most, or as 80 columns where there is none."""
    width = shutil.get_terminal_size().columns
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
