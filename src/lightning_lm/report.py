"""The page that ``lightning-lm report`` writes, with its pictures as PNG files beside it."""

import base64
import io
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from lightning_lm import sweep
from lightning_lm.comparison import (
    STATUSES,
    Run,
    cautions,
    collect,
    comparable,
    configurations,
    differing,
    ranked,
    short_name,
    show,
    winner,
)
from lightning_lm.config import LoggerConfig
from lightning_lm.errors import Refused, refuse
from lightning_lm.folder import Table, read_json, write_text
from lightning_lm.overrides import CONF
from lightning_lm.summary import LABELS

log = logging.getLogger(__name__)

FIGURES = ("loss", "perplexity", "bits_per_byte", "word_perplexity", "accuracy")


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
    write_page(runs, output, ", ".join(map(sweep.name, folders)), recipe and recipe.stem)
    told = f"{output} and {output.parent / 'report'}: {len(runs)} run{'s' * (len(runs) > 1)}"
    return f"{told}\n{os.path.relpath(recipe)}: python train.py experiment={recipe.stem}" if recipe else told


def write_recipe(runs: list[Run], name: str | None, conf: Path) -> Path | None:
    """The best run's; None where there is none, or where it can't be and nobody asked for it by name."""
    from lightning_lm import recipe

    if (run := winner(runs)) is None:
        return None
    sweep_name, best = sweep.name(run.folder.parent), configurations(runs)[0]
    spread = f" ± {best.spread:.4f} over {len(best.losses)} seeds" if best.spread is not None else ""
    about = f"Best of {len(runs)} runs, {sweep_name}: validation loss {best.mean:.4f}{spread}"
    try:
        default = re.sub(r"[^\w.-]", "_", f"{sweep_name}_{run.folder.name}")
        return recipe.write(run.folder, name or default, about, conf)
    except Refused as error:
        if name:
            raise
        log.warning("no recipe is written: %s", error)
        return None


def write_page(runs: list[Run], output: Path, title: str, recipe: str | None) -> None:
    from jinja2 import Environment, PackageLoader  # with matplotlib a second: only now

    from lightning_lm import charts

    pictures = charts.draw(ranked(runs), product(charts.INKS, charts.SIZES))
    folder = output.parent / "report"
    folder.mkdir(exist_ok=True)
    for name, variants in pictures.items():
        (folder / f"{name}.png").write_bytes(variants["light", "wide"])
    images = {
        name: {"-".join(kind): base64.b64encode(png).decode() for kind, png in variants.items()}
        for name, variants in pictures.items()
    }
    loader = PackageLoader("lightning_lm", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "setting": short_name, "duration": duration}
    looks, _ = charts.looks(ranked(runs))
    shown = {"title": title, "recipe": recipe, "looks": looks, "images": images}
    write_text(output, environment.get_template("report.html").render(**content(runs), **shown))


def content(runs: list[Run]) -> dict[str, Any]:
    """What the page shows, but for the pictures."""
    names = differing(runs)
    first = next((run for run in ranked(runs) if run.settings), None)
    shared = {k: v for k, v in (first.settings if first else {}).items() if k not in {*names, "run_dir", "name"}}
    made = {run.name: texts for run in ranked(runs) if (texts := samples(run))}
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
        "samples": made,
        "prompts": list(dict.fromkeys(prompt for texts in made.values() for prompt in texts)),
        "perplexity": LABELS[shared.get("objective.name", "clm")],
        "commit": (read_json(first.folder / "environment.json") or {}).get("commit") if first else None,
    }


def figures_of(runs: list[Run]) -> list[str]:
    names = [f"{split}/{name}" for split in ("val", "test") for name in FIGURES]
    return [name for name in names if any(name in run.summary for run in runs)]


def samples(run: Run) -> dict[str, str]:
    """Prompt → text, at the best step, else at the last that there are samples of."""
    rows = Table(run.folder / "samples.csv", []).rows()
    steps = [row["step"] for row in rows]
    if not steps:
        return {}
    step = best if (best := str(run.summary.get("best_step"))) in steps else steps[-1]
    return {row["prompt"]: row["text"] for row in rows if row["step"] == step}


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


# ------------------------------------------------------------------------------------------------------------ W&B


def log_sweep(folder: Path, logger: LoggerConfig) -> None:
    """The sweep's table and pictures as a W&B run of its own, in its jobs' group; again, once it has been gone on with.

    Nothing where W&B isn't asked for, or where its own agent is the one that sweeps.
    """
    if logger.name != "wandb" or "WANDB_SWEEP_ID" in os.environ:
        return
    import wandb
    from PIL import Image

    from lightning_lm import charts
    from lightning_lm.tracking import wandb_mode

    group = logger.group or sweep.name(folder)
    earlier = [path.name.rpartition("-")[2] for path in folder.glob("wandb/*run-*-*")]
    try:
        runs = ranked(collect([folder]))
        with wandb.init(
            project=logger.project,
            entity=logger.entity,
            name=f"{group} (sweep)"[-128:],
            group=group[:128],
            job_type="sweep",
            tags=[tag[:64] for tag in logger.tags],
            id=earlier[0] if earlier else secrets.token_hex(4),
            resume="allow",
            dir=folder.absolute(),  # W&B's service may have been started in another folder
            mode=wandb_mode(),
            settings=wandb.Settings(silent=True),
        ) as run:
            columns, rows = as_table(runs)
            pictures = charts.draw(runs, [("light", "wide")])
            images = {name: wandb.Image(Image.open(io.BytesIO(png["light", "wide"]))) for name, png in pictures.items()}
            run.log({"runs": wandb.Table(columns, rows, allow_mixed_types=True), **images})
            run.summary.update({f"jobs/{status}": n for status, n in Counter(r.status for r in runs).items()})
            if (best := winner(runs)) is not None:
                chosen = configurations(runs)[0]
                facts = {"job": best.name, "val_loss": chosen.mean, "seeds": len(chosen.losses)} | chosen.settings
                run.summary.update({f"best/{name}": comparable(value) for name, value in facts.items()})
    except (wandb.Error, OSError, Refused) as error:  # the folders have it all
        log.warning("W&B: the sweep's summary could not be logged: %s", error)


def as_table(runs: list[Run]) -> tuple[list[str], list[list[Any]]]:
    """A row for each run: its name, the settings that differ, its figures, its status."""
    names, figures = differing(runs), [*figures_of(runs), "seconds", "tokens_per_second"]
    rows = [
        [
            run.name,
            *(comparable(run.settings.get(name)) for name in names),
            *(run.summary.get(figure) for figure in figures),
            run.status,
        ]
        for run in runs
    ]
    return ["run", *names, *figures, "status"], rows
