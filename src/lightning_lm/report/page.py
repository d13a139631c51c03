"""The page that ``lightning-lm report`` writes, with its pictures as files beside it."""

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_lm.config.composition import CONF
from lightning_lm.errors import refuse
from lightning_lm.figures import SPLITS, labels
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.report.certainty import Verdict, verdict
from lightning_lm.report.comparison import (
    cautions,
    configurations,
    differing,
    levels,
    loss_unit,
    ranked,
    ranking_label,
    short_name,
    winner,
)
from lightning_lm.report.looks import INKS, LineStyle, line_styles
from lightning_lm.report.pruning import rank_correlations
from lightning_lm.report.runs import STATUSES, Run, collect
from lightning_lm.runs.folder import in_use, read_json, sweep_name, write_text
from lightning_lm.runs.numbers import brief_name, duration, mean_and_spread, show
from lightning_lm.runs.protocol import as_line
from lightning_lm.runs.step_table import StepTable

EVERY = 10  # seconds between two looks at the folders
FEW = 12  # values of a setting, so that a list of them can be chosen from


def report(folders: Sequence[Path], output: Path, recipe_name: str | None = None, conf: Path = CONF) -> str:
    """Write the page, beside it the pictures in ``report/``, and, where a name is given, the best run as a recipe.

    Returns:
        What was written, for people.

    Raises:
        Refused: there is nothing to compare, or the recipe that was asked for can't be written.
    """
    runs = collect(folders)
    check(output)
    recipe = recipe_name and write_recipe(runs, recipe_name, conf)
    write_page(runs, output, folders)
    written = f"{output} and {output.parent / 'report'}: {len(runs)} run{'s' * (len(runs) > 1)}"
    return f"{written}\n{os.path.relpath(recipe)}: python train.py experiment={recipe.stem}" if recipe else written


def watch(folders: Sequence[Path], output: Path) -> None:
    """Write the page again and again, which then loads itself again, as long as a run or a sweep is at work."""
    check(output)
    while True:
        runs = collect(folders)
        if not (any(run.status == "running" for run in runs) or any(map(in_use, folders))):
            return
        write_page(runs, output, folders, refresh=EVERY)
        time.sleep(EVERY)


def check(output: Path) -> None:
    if not output.absolute().parent.is_dir() or output.is_dir():
        raise refuse("--output", output, "can't be written", "give a file in a folder that exists")


def write_recipe(runs: list[Run], name: str, conf: Path) -> Path:
    """The winner's."""
    from lightning_lm.report import recipe

    if (run := winner(runs)) is None:
        raise refuse("--recipe", name, "there is no best run", "give runs that are finished and can be compared")
    best = configurations(runs)[0]
    spread = f" ± {best.spread:.4f} over {len(best.losses)} seeds" if best.spread is not None else ""
    about = f"Best of {len(runs)} runs, {sweep_name(run.folder.parent)}: validation loss {best.mean:.4f}{spread}"
    return recipe.write(run.folder, name, about, conf)


def write_page(runs: list[Run], output: Path, folders: Sequence[Path], refresh: int | None = None) -> None:
    from jinja2 import Environment, PackageLoader  # with its libraries for pictures a second: only now
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from lightning_lm.report import charts

    runs = ranked(runs)
    folder = output.parent / "report"
    folder.mkdir(exist_ok=True)
    for name, figure in charts.draw(runs):
        for suffix in ("png", "svg"):
            (folder / f"{name}.{suffix}").write_bytes(charts.encoded(figure, suffix))
    loader = PackageLoader("lightning_lm.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "setting": short_name, "duration": duration, "mean": mean_and_spread}
    looks, _ = line_styles(runs)
    certainty = verdict(runs) if winner(runs) else Verdict([])
    shown, data = content(runs), drawn(runs, looks, certainty)
    shown |= {
        "looks": looks,
        "verdict": certainty,
        "title": ", ".join(map(sweep_name, folders)),
        "folders": shlex.join(os.path.relpath(folder) for folder in folders),
        "correlations": rank_correlations(folders[0]) if len(folders) == 1 else {},
        "grid": shlex.quote(os.path.relpath(folders[0])) if is_grid(folders) else None,
        "filters": data["filters"],
        "search": {name: name for name in data["search"]},
        "curves": data["figures"] if any(run["curves"] for run in data["runs"]) else {},
        "links": {run.name: links(run, output.parent) for run in runs},
        "data": Markup(json.dumps(data, allow_nan=False).replace("<", "\\u003c")),
        "plotly": Markup(get_plotlyjs()),
        "refresh": refresh,
    }
    write_text(output, environment.get_template("report.html").render(**shown))


def is_grid(folders: Sequence[Path]) -> bool:
    """Whether ``lightning-lm next`` can propose its next runs."""
    return len(folders) == 1 and (folders[0] / "sweep.json").exists() and not (folders[0] / "study.db").exists()


def links(run: Run, page: Path) -> dict[str, str]:
    """Title → address, as seen from the page's folder: the run's folder, its figures, and its page in W&B."""
    url = run.folder / "wandb" / "url.txt"
    files = {"folder": run.folder, "metrics": run.folder / "metrics.csv"}
    near = {title: quote(os.path.relpath(path, page.absolute())) for title, path in files.items() if path.exists()}
    return near | ({"W&B": url.read_text(encoding="utf-8").strip()} if url.exists() else {})


def label(run: Run, names: list[str]) -> str:
    return " ".join([run.name, *(f"{brief_name(name)}={show(run.settings.get(name))}" for name in names)])


def drawn(runs: list[Run], looks: dict[str, LineStyle], certainty: Verdict) -> dict[str, Any]:
    """What the page's script draws and filters by."""
    from lightning_lm.report.curves import FIGURES, OVER, curves
    from lightning_lm.report.study import pictures

    names = differing(runs)
    few = [name for name in names if len(levels(runs, name)) <= FEW]
    best = configurations(runs)[0].runs if winner(runs) else []
    search = pictures(runs, ranking_label(runs), certainty)
    return {
        "runs": [
            {
                "name": run.name,
                "label": label(run, names),
                "status": run.status,
                "best": run in best and len(runs) > 1,
                "light": looks[run.name].light,
                "dark": looks[run.name].dark,
                "dash": ",".join(f"{part}px" for part in looks[run.name].dash.split()) or "solid",
                "settings": {name: show(run.settings.get(name)) for name in few},
                "curves": curves(run),
            }
            for run in runs
        ],
        "filters": [{"name": name, "values": [show(value) for value in levels(runs, name)]} for name in few],
        "search": {title: json.loads(figure.to_json()) for title, figure in search.items()},
        "figures": {"loss": f"loss ({loss_unit(runs)})"}
        | {name: name.replace("_", " ") for name in FIGURES if "/" not in name},
        "over": OVER,
        "inks": INKS,
    }


def content(runs: list[Run]) -> dict[str, Any]:
    """What the page's text and tables show."""
    names = differing(runs)
    first = next((run for run in ranked(runs) if run.settings), None)
    shared = {k: v for k, v in (first.settings if first else {}).items() if k not in {*names, "run_dir", "name"}}
    texts_of = {run.name: texts for run in ranked(runs) if (texts := samples(run))}
    return {
        "runs": ranked(runs),
        "names": names,
        "figures": figures_of(runs),
        "configurations": configurations(runs) if "seed" in names else [],
        "best": configurations(runs)[0],
        "ranking_label": ranking_label(runs),
        "winner": (run := winner(runs)),
        "winners_folder": run and shlex.quote(os.path.relpath(run.folder)),
        "counts": Counter(run.status for run in sorted(runs, key=lambda run: STATUSES.index(run.status))),
        "cautions": cautions(runs),
        "measured": [f"{SPLITS[prefix]} {line}" for prefix in SPLITS for line in protocols(runs, prefix)],
        "shared": shared,
        "samples": texts_of,
        "prompts": list(dict.fromkeys(prompt for texts in texts_of.values() for prompt in texts)),
        "perplexity": OBJECTIVES[shared.get("objective.name", "clm")].facts.perplexity_label,
        "commit": (read_json(first.folder / "environment.json") or {}).get("commit") if first else None,
    }


def figures_of(runs: list[Run]) -> list[str]:
    names = [f"{split}/{name}" for split in SPLITS for name in labels("perplexity")]
    return [name for name in names if any(name in run.summary for run in runs)]


def protocols(runs: list[Run], prefix: str) -> list[str]:
    """The protocol that all runs share, as a line."""
    given = {run.summary.get(f"{prefix}/protocol_hash"): run.summary.get(f"{prefix}/protocol") for run in runs}
    given.pop(None, None)
    return [as_line(of) for of in given.values()] if len(given) == 1 else []


def samples(run: Run) -> dict[str, str]:
    """Prompt → text, at the best step, else at the last that there are samples of."""
    rows = StepTable(run.folder / "samples.csv", []).rows()
    steps = [row["step"] for row in rows]
    if not steps:
        return {}
    step = best if (best := str(run.summary.get("best_step"))) in steps else steps[-1]
    return {row["prompt"]: row["text"] for row in rows if row["step"] == step}
