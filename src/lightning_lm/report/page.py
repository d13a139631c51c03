"""The page that ``lightning-lm report`` writes, with its pictures as PNG files beside it."""

import base64
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from lightning_lm.config.composition import CONF
from lightning_lm.errors import Refused, refuse
from lightning_lm.figures import SPLITS, labels
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.report.comparison import (
    cautions,
    configurations,
    differing,
    ranked,
    short_name,
    winner,
)
from lightning_lm.report.runs import STATUSES, Run, collect
from lightning_lm.runs.folder import read_json, sweep_name, write_text
from lightning_lm.runs.numbers import duration, show
from lightning_lm.runs.step_table import StepTable

log = logging.getLogger(__name__)


def report(folders: Sequence[Path], output: Path, recipe_name: str | None = None, conf: Path = CONF) -> str:
    """Write the page, beside it the pictures in ``report/``, and the best of several runs as a recipe.

    Returns:
        What was written, for people.

    Raises:
        Refused: there is nothing to compare, or the recipe that was asked for can't be written.
    """
    runs = collect(folders)
    if not output.absolute().parent.is_dir() or output.is_dir():
        raise refuse("--output", output, "can't be written", "give a file in a folder that exists")
    if recipe_name and winner(runs) is None:
        raise refuse("--recipe", recipe_name, "no run is finished", "wait for one")
    recipe = write_recipe(runs, recipe_name, conf) if recipe_name or len(runs) > 1 else None
    write_page(runs, output, ", ".join(map(sweep_name, folders)), recipe and recipe.stem)
    written = f"{output} and {output.parent / 'report'}: {len(runs)} run{'s' * (len(runs) > 1)}"
    return f"{written}\n{os.path.relpath(recipe)}: python train.py experiment={recipe.stem}" if recipe else written


def write_recipe(runs: list[Run], name: str | None, conf: Path) -> Path | None:
    """The best run's; None where there is none, or where it can't be and nobody asked for it by name."""
    from lightning_lm.report import recipe

    if (run := winner(runs)) is None:
        return None
    sweep, best = sweep_name(run.folder.parent), configurations(runs)[0]
    spread = f" ± {best.spread:.4f} over {len(best.losses)} seeds" if best.spread is not None else ""
    about = f"Best of {len(runs)} runs, {sweep}: validation loss {best.mean:.4f}{spread}"
    try:
        default = re.sub(r"[^\w.-]", "_", f"{sweep}_{run.folder.name}")
        return recipe.write(run.folder, name or default, about, conf)
    except Refused as error:
        if name:
            raise
        log.warning("no recipe is written: %s", error)
        return None


def write_page(runs: list[Run], output: Path, title: str, recipe: str | None) -> None:
    from jinja2 import Environment, PackageLoader  # with matplotlib a second: only now

    from lightning_lm.report import charts

    pictures = charts.draw(ranked(runs), product(charts.INKS, charts.SIZES))
    folder = output.parent / "report"
    folder.mkdir(exist_ok=True)
    for name, variants in pictures.items():
        (folder / f"{name}.png").write_bytes(variants["light", "wide"])
    images = {
        name: {"-".join(kind): base64.b64encode(png).decode() for kind, png in variants.items()}
        for name, variants in pictures.items()
    }
    loader = PackageLoader("lightning_lm.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "setting": short_name, "duration": duration}
    styles, _ = charts.line_styles(ranked(runs))
    shown = {"title": title, "recipe": recipe, "looks": styles, "images": images}
    write_text(output, environment.get_template("report.html").render(**content(runs), **shown))


def content(runs: list[Run]) -> dict[str, Any]:
    """What the page shows, but for the pictures."""
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
        "winner": winner(runs),
        "counts": Counter(run.status for run in sorted(runs, key=lambda run: STATUSES.index(run.status))),
        "cautions": cautions(runs),
        "shared": shared,
        "samples": texts_of,
        "prompts": list(dict.fromkeys(prompt for texts in texts_of.values() for prompt in texts)),
        "perplexity": OBJECTIVES[shared.get("objective.name", "clm")].facts.perplexity_label,
        "commit": (read_json(first.folder / "environment.json") or {}).get("commit") if first else None,
    }


def figures_of(runs: list[Run]) -> list[str]:
    names = [f"{split}/{name}" for split in SPLITS for name in labels("perplexity")]
    return [name for name in names if any(name in run.summary for run in runs)]


def samples(run: Run) -> dict[str, str]:
    """Prompt → text, at the best step, else at the last that there are samples of."""
    rows = StepTable(run.folder / "samples.csv", []).rows()
    steps = [row["step"] for row in rows]
    if not steps:
        return {}
    step = best if (best := str(run.summary.get("best_step"))) in steps else steps[-1]
    return {row["prompt"]: row["text"] for row in rows if row["step"] == step}
