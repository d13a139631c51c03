"""Pictures that compare runs: loss over steps, tokens and minutes, and over the settings that were searched.

Each is drawn four times: for light and dark pages, wide ones and phones.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.report.comparison import differing, levels, short_name
from lightning_lm.report.runs import Run
from lightning_lm.report.search_map import search
from lightning_lm.runs.numbers import brief, is_number
from lightning_lm.runs.plots import Series, read

DISTINCT = (
    "#4477AA",
    "#EE6677",
    "#228833",
    "#CCBB44",
    "#66CCEE",
    "#AA3377",
    "#999999",
)  # Paul Tol's, for all eyes
DASHES = ("", "6 2", "2 2", "8 2 2 2")  # as SVG writes them
SHADES = {"light": (0.0, 0.85), "dark": (0.25, 1.0)}  # of viridis, that stand out from the page
INKS = {"light": ("#1f2328", "#d0d7de", "#ffffff"), "dark": ("#e6edf3", "#3d444d", "#15191f")}  # text, lines, page
SIZES = {"wide": (10, 4.4), "narrow": (3.9, 7.0)}  # inches
OVER = {"steps": "optimiser steps", "tokens": "tokens seen", "minutes": "minutes of training steps"}
Kind = tuple[str, str]  # theme, size


@dataclass(frozen=True)
class LineStyle:
    """How a run is drawn."""

    light: str
    dark: str
    dash: str = ""

    def line(self, theme: str) -> dict[str, Any]:
        numbers = [float(part) / 1.6 for part in self.dash.split()]
        return {"color": getattr(self, theme), "linestyle": (0, tuple(numbers)) if numbers else "-"}


def line_styles(runs: list[Run]) -> tuple[dict[str, LineStyle], list[tuple[str, LineStyle]]]:
    """Colour by the first setting that varies and dashes by the second, or a colour each; and the legend of it."""
    names = [name for name in differing(runs) if name != "seed"] or differing(runs)
    if not names:
        styles = {run.name: LineStyle(color, color) for run, color in zip(runs, DISTINCT * len(runs), strict=False)}
        return styles, list(styles.items()) if len(runs) > 1 else []
    values = [levels(runs, name) for name in names[:2]]
    legend: list[tuple[str, LineStyle]] = []
    colors = palette(values[0])
    shown = [values[0][i] for i in np.linspace(0, len(values[0]) - 1, min(len(values[0]), 7)).round().astype(int)]
    legend += [(f"{short_name(names[0])} {brief(value)}", LineStyle(*colors[str(value)])) for value in shown]
    dashes: dict[str, str] = {}
    if len(values) > 1 and len(values[1]) <= len(DASHES):
        dashes = dict(zip(map(str, values[1]), DASHES, strict=False))
        ink = [INKS[theme][0] for theme in INKS]
        legend += [
            (f"{short_name(names[1])} {brief(value)}", LineStyle(*ink, dashes[str(value)])) for value in values[1]
        ]
    styles = {}
    for run in runs:
        keys = [str(run.settings.get(name)) for name in names[:2]]
        styles[run.name] = LineStyle(*colors.get(keys[0], (DISTINCT[-1],) * 2), dashes.get(keys[-1], ""))
    return styles, legend


def palette(values: list[Any]) -> dict[str, tuple[str, str]]:
    """A colour for light and one for dark pages: shades of one scale for numbers, else colours far apart."""
    if not all(map(is_number, values)):
        return {str(v): (color, color) for v, color in zip(values, DISTINCT * len(values), strict=False)}
    scale, shares = matplotlib.colormaps["viridis"], np.linspace(0, 1, len(values))
    return {
        str(value): tuple(to_hex(scale(low + share * (high - low))) for low, high in SHADES.values())
        for value, share in zip(values, shares, strict=True)
    }


# --------------------------------------------------------------------------------------------------------- drawing


def draw(runs: list[Run], kinds: Iterable[Kind]) -> dict[str, dict[Kind, bytes]]:
    """Name of a picture → theme and size → PNG."""
    styles, legend = line_styles(runs)
    curves = {run.name: read(run.folder / "metrics.csv") for run in runs}
    unit = OBJECTIVES[next((name for run in runs if (name := run.settings.get("objective.name"))), "clm")].facts.unit
    pictures: dict[str, dict[Kind, bytes]] = {}
    for theme, size in kinds:
        with matplotlib.rc_context(style(theme)):
            for over in OVER if any(curves.values()) else ():
                figure = loss_curves(runs, curves, styles, legend, over, unit, theme, size)
                pictures.setdefault(f"loss_over_{over}", {})[theme, size] = png(figure)
            if (figure := search(runs, unit, size)) is not None:
                pictures.setdefault("search", {})[theme, size] = png(figure)
    return pictures


def style(theme: str) -> dict[str, Any]:
    ink, grid, page = INKS[theme]
    colored = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), ink)
    page_colored = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), page)
    return {
        **colored,
        **page_colored,
        "axes.edgecolor": grid,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "legend.frameon": False,
    }


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=160)
    return buffer.getvalue()


def loss_curves(
    runs: list[Run],
    curves: dict[str, dict[str, Series]],
    styles: dict[str, LineStyle],
    legend: list[tuple[str, LineStyle]],
    over: str,
    unit: str,
    theme: str,
    size: str,
) -> Figure:
    """Training loss and validation loss of all runs; those that ended early have a cross at their end."""
    figure = Figure(SIZES[size], layout="constrained")
    panels = figure.subplots(1, 2) if size == "wide" else figure.subplots(2, 1)
    for axes, column, title in zip(panels, ("train/loss", "val/loss"), ("training", "validation"), strict=True):
        heights = []
        for rank, run in reversed(list(enumerate(runs))):  # the best on top
            steps, losses = curves[run.name].get(column, ([], []))
            where = np.interp(steps, *progress(curves[run.name], over)) if steps else np.array([])
            values = np.array(losses)
            finite = np.isfinite(values) & np.isfinite(where)
            if not finite.any():
                continue
            where, values, line = where[finite], values[finite], styles[run.name].line(theme)
            marker = "o" if title == "validation" or len(values) < 3 else None
            width = {"linewidth": 2.4 if rank == 0 else 1.2, "markersize": 3.5, "zorder": 3 if rank == 0 else 2}
            axes.plot(where, values, marker=marker, **line, **width)
            if run.status in ("diverged", "failed"):
                axes.plot(where[-1], values[-1], "X", color=line["color"], markersize=8, zorder=4)
            if run.loss is not None:
                heights += list(values)
        if heights and max(heights) > (low := min(heights)):
            usual = low + 1.5 * (np.quantile(heights, 0.97) - low)  # a steep start or a spike is cut off
            axes.set_ylim(low - 0.04 * (usual - low), min(max(heights) + 0.04 * (max(heights) - low), usual))
        axes.set(title=f"{title} loss ({unit})", xlabel=OVER[over])
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=over == "steps"))
        axes.xaxis.set_major_formatter(EngFormatter() if over == "tokens" else "{x:g}")
        axes.grid(True)
    handles = [Line2D([], [], label=label, linewidth=2, **look.line(theme)) for label, look in legend]
    if any(run.status in ("diverged", "failed") for run in runs):
        handles.append(Line2D([], [], marker="X", color=INKS[theme][0], linestyle="", label="diverged or failed"))
    if handles:
        longest = max(len(handle.get_label()) for handle in handles)
        columns = max(1, min(len(handles), int(12 * SIZES[size][0] / (longest + 9))))
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=9, handlelength=2.8)
    return figure


def progress(curves: dict[str, Series], over: str) -> tuple[np.ndarray, np.ndarray]:
    """Optimiser steps, and what had been seen or spent by then: steps, tokens, or minutes in training steps."""
    steps, tokens = map(np.array, curves["tokens_seen"])
    if over != "minutes":
        return steps, steps if over == "steps" else tokens
    at, speeds = map(np.array, curves.get("tokens_per_second", ([], [])))
    if not len(at):
        return steps, np.full(len(steps), np.nan)
    seen = np.interp(at, steps, tokens)
    minutes = np.cumsum(np.diff(seen, prepend=0) / speeds) / 60  # each row's speed is since the row before
    return np.concatenate([[0], at]), np.concatenate([[0], minutes])
