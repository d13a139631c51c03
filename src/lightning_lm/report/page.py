"""The page that ``lightning-lm report`` writes, with its pictures as files beside it."""

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning_lm.config.composition import CONF
from lightning_lm.errors import refuse
from lightning_lm.faults import first_line
from lightning_lm.files import replacing
from lightning_lm.report.comparison import by_objective, configurations, levels, loss_unit, short_name, winner
from lightning_lm.report.content import page_content, part
from lightning_lm.report.curves import FIGURES, OVER, Curves, read_curves
from lightning_lm.report.looks import INKS, LineStyle, line_styles
from lightning_lm.report.pruning import rank_correlations
from lightning_lm.report.runs import SavedRun, collect
from lightning_lm.runs.folder import in_use, read_json_file, sweep_name, write_text
from lightning_lm.runs.numbers import brief_name, duration, format_value, mean_and_spread
from lightning_lm.runs.protocol import as_line

EVERY = 10  # seconds between two looks at the folders
PICTURES = (".png", ".svg")
PROFILES = {"context": "tokens before it in its window", "occurrences": "times that it stands in the text"}
FEW = 12  # values of a setting, so that a list of them can be chosen from


def report(
    folders: Sequence[Path],
    output: Path,
    recipe_name: str | None = None,
    conf: Path = CONF,
    comparison: Path | None = None,
    losses: Sequence[Path] = (),
) -> str:
    """Write the page, beside it the pictures in ``report/``, and, where a name is given, the best run as a recipe.

    Args:
        folders: runs' and sweeps'.
        output: the page.
        recipe_name: of the recipe in ``conf``.
        comparison: a file of ``lightning-lm compare --json``, which the page then shows, too.
        losses: files of ``lightning-lm evaluate --nll``, likewise.

    Returns:
        What was written, for people.

    Raises:
        Refused: there is nothing to compare, or the recipe that was asked for can't be written.
    """
    runs, beside = collect(folders), others(comparison, losses)
    check_output(output)
    recipe = recipe_name and write_recipe(runs, recipe_name, conf)
    write_page(runs, output, folders, beside)
    written = f"{output} and {output.parent / 'report'}: {len(runs)} run{'s' * (len(runs) > 1)}"
    return f"{written}\n{os.path.relpath(recipe)}: python train.py experiment={recipe.stem}" if recipe else written


def watch(folders: Sequence[Path], output: Path, comparison: Path | None = None, losses: Sequence[Path] = ()) -> None:
    """Write the page again and again, which then loads itself again, as long as a run or a sweep is at work."""
    check_output(output)
    beside = others(comparison, losses)
    while True:
        runs = collect(folders)
        if not (any(run.status == "running" for run in runs) or any(map(in_use, folders))):
            return
        write_page(runs, output, folders, beside, refresh=EVERY)
        try:
            time.sleep(EVERY)
        except KeyboardInterrupt:
            write_page(runs, output, folders, beside)  # which doesn't load itself again
            raise


def check_output(output: Path) -> None:
    if not output.absolute().parent.is_dir() or output.is_dir():
        raise refuse("--output", output, "can't be written", "give a file in a folder that exists")
    if output.exists() and output.suffix != ".html":
        raise refuse("--output", output, "it is there already", "give a new file, or one of yours that ends in .html")
    folder = output.parent / "report"
    if not output.exists() and folder.is_dir() and any(path.suffix not in PICTURES for path in folder.iterdir()):
        raise refuse("--output", output, f"{folder}, which gets its pictures, has other files", "give another folder")


def write_recipe(runs: list[SavedRun], name: str, conf: Path) -> Path:
    """The winner's."""
    from lightning_lm.report import recipe

    if (run := winner(runs)) is None:
        raise refuse("--recipe", name, "there is no best run", "give runs that are finished and can be compared")
    best = configurations(runs)[0]
    spread = f" ± {best.spread:.4f} over {len(best.losses)} seeds" if best.spread is not None else ""
    about = f"Best of {len(runs)} runs, {sweep_name(run.folder.parent)}: validation loss {best.mean:.4f}{spread}"
    return recipe.write_recipe(run.folder, name, about, conf)


def write_page(
    runs: list[SavedRun],
    output: Path,
    folders: Sequence[Path],
    beside: dict[str, Any],
    refresh: int | None = None,
) -> None:
    from jinja2 import Environment, PackageLoader  # with its libraries for pictures a second: only now
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from lightning_lm.report import charts

    objectives = by_objective(runs)
    parts = [part(of, alone=len(objectives) == 1) for of in objectives.values()]
    runs = [run for of in parts for run in of["runs"]]
    folder = output.parent / "report"
    folder.mkdir(exist_ok=True)
    curves_of = {run.name: read_curves(run) for run in runs}
    for name, figure in charts.draw_figures(runs, curves_of):
        for suffix in PICTURES:
            with replacing(folder / f"{name}{suffix}") as scratch:
                scratch.write_bytes(charts.encode_figure(figure, suffix[1:]))
    loader = PackageLoader("lightning_lm.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": format_value, "setting": short_name, "duration": duration, "mean": mean_and_spread}
    looks, _ = line_styles(runs)
    data = drawn(parts, looks, curves_of) | {"refresh": refresh}
    shown = page_content(runs) | {
        "parts": parts,
        **beside,
        "looks": looks,
        "title": ", ".join(map(sweep_name, folders)),
        "folders": shlex.join(os.path.relpath(folder) for folder in folders),
        "correlations": rank_correlations(folders[0]) if len(folders) == 1 else ({}, 0),
        "grid": shlex.quote(os.path.relpath(folders[0])) if is_grid(folders, runs) else None,
        "filters": data["filters"],
        "search": {name: name for name in data["search"]},
        "curves": data["figures"] if any(curves_of.values()) else {},
        "links": {run.name: links(run, output.parent) for run in runs},
        "data": Markup(json.dumps(data, allow_nan=False).replace("<", "\\u003c")),
        "plotly": Markup(get_plotlyjs()),
    }
    write_text(output, environment.get_template("report.html").render(**shown))


def others(comparison: Path | None, losses: Sequence[Path]) -> dict[str, Any]:
    """What the page shows that stands in no run folder."""
    profiles = {str(path): read_profile(path) for path in losses}
    tables = {title: side_by_side(profiles, key) for key, title in PROFILES.items()}
    return {
        "comparison": comparison and read_comparison(comparison),
        "profiles": profiles,
        "profile_tables": tables if profiles else {},
    }


def side_by_side(profiles: dict[str, Any], key: str) -> dict[str, list[tuple[int, float] | None]]:
    """Range of sizes → of each profile how many tokens were scored there and their mean loss; None where none were."""
    known = [{sizes: (count, mean) for sizes, count, mean in profile[key]} for profile in profiles.values()]
    ranges = sorted({sizes for rows in known for sizes in rows}, key=lambda sizes: int(sizes.partition(" ")[0]))
    return {sizes: [rows.get(sizes) for rows in known] for sizes in ranges}


def read_profile(path: Path) -> dict[str, Any]:
    """Where a model's losses come from, as ``lightning-lm evaluate --nll`` has summed them up, and its ``protocol``.

    Raises:
        Refused: it is another file.
    """
    import pyarrow.parquet as pq

    try:
        facts = json.loads(pq.read_metadata(path).metadata[b"lightning_lm"])
        return facts["profile"] | {"protocol": as_line(facts["protocol"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "write one with lightning-lm evaluate --nll FILE"
        raise refuse("--nll", path, f"no token losses with their profile ({first_line(error)})", remedy) from error


def read_comparison(path: Path) -> dict[str, Any]:
    """What ``lightning-lm compare --json`` has written of what both sides can do.

    Raises:
        Refused: it is another file.
    """
    content = read_json_file(path) or {}
    if content.get("question") != "pair":
        remedy = "write one with lightning-lm compare A B --words 500 --json FILE"
        raise refuse("--comparison", path, "no comparison of what both sides can do", remedy)
    return content


def is_grid(folders: Sequence[Path], runs: list[SavedRun]) -> bool:
    """Whether ``lightning-lm next`` can propose its next runs."""
    sweep = len(folders) == 1 and (folders[0] / "sweep.json").exists() and not (folders[0] / "study.db").exists()
    return sweep and sum(c.complete for c in configurations(runs)) > 1


def links(run: SavedRun, page: Path) -> dict[str, str]:
    """Title → address, as seen from the page's folder: the run's folder, its figures, and its page in W&B."""
    url = run.folder / "wandb" / "url.txt"
    files = {"folder": run.folder, "metrics": run.folder / "metrics.csv"}
    near = {title: quote(os.path.relpath(path, page.absolute())) for title, path in files.items() if path.exists()}
    return near | ({"W&B": url.read_text(encoding="utf-8").strip()} if url.exists() else {})


def label(run: SavedRun, names: list[str]) -> str:
    return " ".join([run.name, *(f"{brief_name(name)}={format_value(run.settings.get(name))}" for name in names)])


def drawn(parts: list[dict[str, Any]], looks: dict[str, LineStyle], curves_of: Mapping[str, Curves]) -> dict[str, Any]:
    """What the page's script draws and filters by. The search is drawn where there is one objective."""
    from lightning_lm.report.study import pictures

    runs = [run for of in parts for run in of["runs"]]
    names = list(dict.fromkeys(name for of in parts for name in of["names"]))
    search, losses = {}, {f"loss {of['objective']}": f"loss ({loss_unit(of['runs'])})" for of in parts}
    if len(parts) == 1:
        search = pictures(runs, parts[0]["ranking_label"], parts[0]["verdict"])
        losses = {"loss": losses.popitem()[1]}
    else:
        names = ["objective.name", *names]
    few = [name for name in names if len(levels(runs, name)) <= FEW]
    best = [run for of in parts if of["winner"] for run in of["best"].runs]
    return {
        "runs": [
            {
                "name": run.name,
                "objective": run.settings.get("objective.name"),
                "label": label(run, names),
                "status": run.status,
                "best": run in best and len(runs) > 1,
                "light": looks[run.name].light,
                "dark": looks[run.name].dark,
                "dash": ",".join(f"{part}px" for part in looks[run.name].dash.split()) or "solid",
                "settings": {name: format_value(run.settings.get(name)) for name in few},
                "curves": curves_of[run.name],
            }
            for run in runs
        ],
        "filters": [{"name": name, "values": [format_value(value) for value in levels(runs, name)]} for name in few],
        "search": {title: json.loads(figure.to_json()) for title, figure in search.items()},
        "figures": losses | {name: name.replace("_", " ") for name in FIGURES if "/" not in name},
        "over": OVER,
        "inks": INKS,
    }
