"""The runs that would tell most about where the best point of a search lies."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_lm.certainty.region import confidence_region, mesh, size
from lightning_lm.errors import refuse
from lightning_lm.report.certainty import Fitted, fitted, near_best, next_tried, noise_of
from lightning_lm.report.comparison import Configuration, by_objective, configurations, short_name
from lightning_lm.report.runs import SavedRun, collect
from lightning_lm.runs.folder import DONE, job_status, read_json_file

CANDIDATES = 9  # values of each setting that are considered, beside the tried ones


@dataclass(frozen=True)
class Proposal:
    settings: dict[str, str]  # of the job, as in the sweep's ``sweep.json``
    reason: str


def propose(folder: Path, count: int) -> str:
    """The next ``count`` runs of a grid's sweep, and the command that adds them to it, for people to read.

    Raises:
        Refused: the folder holds no sweep of a grid, or too little of it is finished.
    """
    runs, sweep = collect([folder]), read_json_file(folder / "sweep.json")
    if sweep is None:
        raise refuse("FOLDER", folder, "it holds no sweep", "give the folder of one")
    if (folder / "study.db").exists():
        remedy = "give its command again with a higher hydra.sweeper.trials"
        raise refuse("FOLDER", folder, "Optuna draws the next trials of a study", remedy)
    if len(objectives := by_objective(runs)) > 1:
        wrong = f"{' and '.join(objectives)} losses mean different things"
        raise refuse("FOLDER", folder, wrong, "give the folder of a sweep over one objective")
    every = configurations(runs)
    sets = [c for c in every if c.complete]
    if len(sets) < 2:
        raise refuse(
            "FOLDER", folder, "fewer than two configurations are finished", "give its command more values, or wait"
        )
    noise = noise_of(sets)
    over = fitted(sets, noise)
    if over is None:
        likely = near_best(sets, noise) if noise.freedom else []
        likely = likely if len(likely) > 1 else sets
        reason = f"another seed: noise is {'the limit' if noise.freedom else 'unknown'}"
        proposals = further_seeds(likely, sweep["search"], count, reason)
        alone = "a seed of one configuration alone"
        if not proposals:
            raise refuse("--runs", count, f"{alone} tells nothing", f"give {count + 1}")
        about = f"These are {len(proposals)}: {alone} tells nothing." if len(proposals) < count else ""
    else:
        about, proposals = shrinking(over, every, sweep["search"], count)
    lines = [", ".join(f"{short_name(key)} {value}" for key, value in p.settings.items()) for p in proposals]
    rows = [f"  {line:<{max(map(len, lines))}}  {p.reason}" for line, p in zip(lines, proposals, strict=True)]
    open_jobs = sum(job_status(folder / str(number)) not in DONE for number in range(len(sweep["search"])))
    first = f"{open_jobs} of its jobs are not done; the command below does them, too, before these." * (open_jobs > 0)
    return "\n".join(
        filter(
            None,
            [
                first,
                about,
                *rows,
                "this adds them to the sweep:",
                f"  {command(folder, sweep, proposals, sets[0].runs[0])}",
            ],
        )
    )


def command(folder: Path, sweep: dict, proposals: list[Proposal], like: SavedRun) -> str:
    """To be typed; its logger is that of a run of the sweep, whose file doesn't tell of what may change."""
    tables = ",".join("{" + ",".join(f"{k}:{v}" for k, v in p.settings.items()) + "}" for p in proposals)
    overrides = [*(f"{key}={value}" for key, value in sweep["fixed"].items()), f"hydra.sweep.dir={folder}"]
    if (logger := like.settings["logger.name"]) != "wandb":
        overrides.append(f"logger={logger}")
    return " ".join(["python train.py -m", *map(shlex.quote, [*overrides, f"hydra.sweeper.more=[{tables}]"])])


def search_settings(c: Configuration, search: list[dict[str, str]]) -> dict[str, str]:
    """Settings of a job like those of a configuration."""
    return search[int(c.runs[0].folder.name)]


def further_seeds(sets: list[Configuration], search: list[dict[str, str]], count: int, reason: str) -> list[Proposal]:
    """For those with the fewest seeds, first the seeds that others have: one that a single one has tells nothing."""
    seeds, tried = {id(c): set(c.seeds) for c in sets}, {seed for c in sets for seed in c.seeds}
    proposals = []
    for _ in range(count):
        fewest = min(sets[:count], key=lambda c: len(seeds[id(c)]))
        seed = min(tried - seeds[id(fewest)], default=max(tried) + 1)
        seeds[id(fewest)].add(seed)
        tried.add(seed)
        proposals.append(Proposal(search_settings(fewest, search) | {"seed": str(seed)}, reason))
    return [p for p in proposals if sum(int(p.settings["seed"]) in group for group in seeds.values()) > 1]


def shrinking(
    over: Fitted, every: list[Configuration], search: list[dict[str, str]], count: int
) -> tuple[str, list[Proposal]]:
    """One run after another, each the one with which the region is expected to be smallest; none where all diverged."""
    keys, surface = over.settings, over.surface
    box = np.array([[-1.0] * len(keys), [1.0] * len(keys)])
    for k, side in confidence_region(surface).open_to:  # one step of the grid beyond the edge
        box[(side + 1) // 2, k] += side * 2 / (len(np.unique(over.logs[:, k])) - 1)
    places, between = mesh(box, 21), mesh(box, CANDIDATES)
    # Far from the best, where losses are high, the surface is the least to be trusted
    near = surface.height(between) <= np.median(surface.height(over.points))
    near &= [np.abs(point - over.points).max(axis=1).min() > 0.05 for point in between]  # tried ones are there already
    for k, key in enumerate(keys):
        values = [c.settings[key] for c in over.configurations]
        for side, end in (-1, min(values)), (1, max(values)):
            beyond = next_tried(every, key, end, side)
            if beyond is not None and beyond.diverged:
                near &= side * over.unit(between)[:, k] < side * beyond.value
    new = [search_settings(every[0], search) | written(keys, values) for values in over.unit(between[near])]
    points = np.vstack([over.points, between[near]])
    jobs = [search_settings(c, search) for c in over.configurations] + new
    # A seed that one configuration alone has tells nothing: what it does to all alike isn't known
    seeds = sorted({seed for c in every if c.complete for seed in c.seeds})
    untried = [[seed for seed in seeds if seed not in c.seeds] for c in over.configurations] + [[*seeds] for _ in new]
    proposals, before = [], size(surface, places)
    for _ in range(count):
        available = [number for number, unused in enumerate(untried) if unused]
        if not available:
            break
        chosen = min(available, key=lambda n: size(surface.with_run(points[[n]]), places))
        surface = surface.with_run(points[[chosen]])
        reason = "another seed" if chosen < len(over.points) or len(untried[chosen]) < len(seeds) else "a new point"
        proposals.append(Proposal(jobs[chosen] | {"seed": str(untried[chosen].pop(0))}, reason))
    shrunk = 1 - size(surface, places) / before
    return f"With these runs the 90 % region is expected to shrink by about {shrunk:.0%}:", proposals


def written(keys: list[str], values: np.ndarray) -> dict[str, str]:
    return {key: f"{value:.3g}" for key, value in zip(keys, values, strict=True)}
