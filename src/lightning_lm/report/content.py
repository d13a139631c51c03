"""What the report's page shows as text and tables."""

import os
import shlex
from collections import Counter
from typing import Any

from lightning_lm.figures import SPLITS, labels
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.report.certainty import Verdict, judge_search
from lightning_lm.report.comparison import cautions, configurations, differing, ranked, ranking_label, winner
from lightning_lm.report.runs import STATUSES, SavedRun
from lightning_lm.runs.folder import TASK_RESULTS, read_json_file
from lightning_lm.runs.protocol import as_line
from lightning_lm.runs.step_table import StepTable


def part(runs: list[SavedRun], alone: bool) -> dict[str, Any]:
    """What the page's tables show of the runs of one objective, which has a title where it isn't alone."""
    names, best, sets = differing(runs), winner(runs), configurations(runs)
    objective = next((run.settings["objective.name"] for run in runs if run.settings), "clm")
    over_seeds = len(sets) == 1 and "seed" in names
    if over_seeds:  # nothing was chosen
        best = None
    return {
        "objective": objective,
        "title": "" if alone else OBJECTIVES[objective].facts.kind,
        "facts": OBJECTIVES[objective].facts,
        "runs": ranked(runs),
        "names": names,
        "figures": figures_of(runs),
        "over_seeds": over_seeds,
        "configurations": sets if "seed" in names and not over_seeds else [],
        "best": sets[0],
        "ranking_label": ranking_label(runs),
        "winner": best,
        "winners_folder": best and shlex.quote(os.path.relpath(best.folder)),
        "verdict": judge_search(runs) if best else Verdict([]),
        "measured": [f"{SPLITS[prefix]} {line}" for prefix in SPLITS for line in protocols(runs, prefix)],
    }


def page_content(runs: list[SavedRun]) -> dict[str, Any]:
    """What else the page shows of all runs, in this order."""
    first = next((run for run in runs if run.settings), None)
    varied = {*differing(runs), "run_dir", "name"}
    shared = {k: v for k, v in (first.settings if first else {}).items() if k not in varied}
    tasks_of = {run.name: results for run in runs if (results := task_figures(run))}
    texts_of = {run.name: texts for run in runs if (texts := samples(run))}
    return {
        "runs": runs,
        "counts": Counter(run.status for run in sorted(runs, key=lambda run: STATUSES.index(run.status))),
        "cautions": cautions(runs),
        "shared": shared,
        "samples": texts_of,
        "tasks": tasks_of,
        "task_figures": list(dict.fromkeys(figure for of_run in tasks_of.values() for figure in of_run)),
        "prompts": list(dict.fromkeys(prompt for texts in texts_of.values() for prompt in texts)),
        "commit": (read_json_file(first.folder / "environment.json") or {}).get("commit") if first else None,
    }


def task_figures(run: SavedRun) -> dict[tuple[str, str], tuple[float, float | None]]:
    """(task, figure) → value and standard error, of ``evaluate --lm-eval``."""
    results = read_json_file(run.folder / TASK_RESULTS) or {}
    return {(task, name): tuple(pair) for task, of_task in results.items() for name, pair in of_task["figures"].items()}


def figures_of(runs: list[SavedRun]) -> list[str]:
    names = [f"{split}/{name}" for split in SPLITS for name in labels("perplexity")]
    return [name for name in names if any(name in run.summary for run in runs)]


def protocols(runs: list[SavedRun], prefix: str) -> list[str]:
    """The protocol that all runs share, as a line."""
    given = {run.summary.get(f"{prefix}/protocol_hash"): run.summary.get(f"{prefix}/protocol") for run in runs}
    given.pop(None, None)
    return [as_line(of) for of in given.values()] if len(given) == 1 else []


def samples(run: SavedRun) -> dict[str, str]:
    """Prompt → text, at the best step, else at the last that there are samples of."""
    rows = StepTable(run.folder / "samples.csv", []).rows()
    steps = [row["step"] for row in rows]
    if not steps:
        return {}
    step = best if (best := str(run.summary.get("best_step"))) in steps else steps[-1]
    return {row["prompt"]: row["text"] for row in rows if row["step"] == step}
