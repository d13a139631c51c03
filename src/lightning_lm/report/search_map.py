"""Validation loss over the settings that were searched: a map of two settings, or points."""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lightning_lm.report.comparison import Configuration, configurations, levels, searched, short_name, winner
from lightning_lm.report.runs import SavedRun
from lightning_lm.runs.numbers import format_value, is_number

MARKERS = {"finished": ("o", 60), "pruned": ("s", 24), "diverged": ("x", 50), "failed": ("X", 50)}  # and their size
RING = {"facecolors": "none", "lw": 1.5, "label": "best"}


def search(runs: list[SavedRun], unit: str) -> Figure | None:
    """Validation loss over the settings that were searched: a map of two, or points; None where there is none."""
    sets = configurations(runs)
    names = searched(runs)
    if not names or not any(c.losses for c in sets):
        return None
    figure = Figure((7, 4.4), layout="constrained")
    axes = figure.subplots()
    numeric = [name for name in names if all(map(is_number, levels(runs, name)))]
    if len(names) > 1 and len(levels(runs, names[0])) * len(levels(runs, names[1])) <= max(6, 2 * len(sets)):
        heatmap(axes, runs, sets, names, unit)
    elif numeric:
        points(axes, runs, numeric, unit)
    else:
        return None
    return figure


def scale_of(values: list[float], reach: float) -> Normalize:
    """From the best to the worst, but what is far off doesn't wash out the rest."""
    low, middle = min(values), float(np.median(values))
    return Normalize(low, max(min(max(values), middle + reach * (middle - low)), low + 1e-9))


def heatmap(axes: Axes, runs: list[SavedRun], sets: list[Configuration], names: list[str], unit: str) -> None:
    across, up = levels(runs, names[0]), levels(runs, names[1])
    cells: dict[tuple[str, str], Configuration] = {}
    for configuration in sets:  # best first: other settings that vary are at their best
        place = (str(configuration.settings[names[1]]), str(configuration.settings[names[0]]))
        cells.setdefault(place, configuration)
    grid = [[cells.get((str(y), str(x))) for x in across] for y in up]
    values = np.array([[c.mean if c and c.losses else np.nan for c in row] for row in grid])
    norm = scale_of(list(values[np.isfinite(values)]), 10)
    font = min(9, 9 * axes.figure.get_figwidth() / len(across))  # so that a cell's text fits
    gaps = {"edgecolors": matplotlib.rcParams["axes.facecolor"], "linewidth": 2}
    image = axes.pcolormesh(values, cmap="viridis_r", norm=norm, **gaps)
    for (i, j), value in np.ndenumerate(values):
        configuration = grid[i][j]
        if configuration is None:
            continue
        red, green, blue, _ = image.cmap(norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        color = matplotlib.rcParams["text.color"] if math.isnan(value) else "white" if dark else "black"
        weight = "bold" if configuration is sets[0] and winner(runs) else "normal"
        look = {"color": color, "fontsize": font, "weight": weight}
        axes.text(j + 0.5, i + 0.5, cell(configuration), ha="center", va="center", **look)
    axes.set_xticks(np.arange(len(across)) + 0.5, map(format_value, across))
    axes.set_yticks(np.arange(len(up)) + 0.5, map(format_value, up))
    axes.set(xlabel=short_name(names[0]), ylabel=short_name(names[1]))
    over = f", best over {', '.join(map(short_name, names[2:]))}" if len(names) > 2 else ""
    axes.set_title(f"validation loss ({unit}){over}")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.figure.colorbar(image, ax=axes, extend="max" if np.nanmax(values) > norm.vmax else "neither", pad=0.02)


def cell(c: Configuration) -> str:
    if not c.losses:
        return "\n".join(dict.fromkeys(run.status for run in c.runs))
    lines = [f"{c.mean:.4f}"]
    if c.spread is not None:
        lines.append(f"± {c.spread:.4f}")
    if len(c.seeds) > 1:
        lines.append(f"n = {len(c.losses)}" + ("" if c.complete else f" of {len(c.seeds)}"))
    return "\n".join(lines)


def points(axes: Axes, runs: list[SavedRun], names: list[str], unit: str) -> None:
    """Of two settings a map with the loss as colour, of one the loss over it; crosses where a run came to nothing."""
    x, y = names[0], names[1] if len(names) > 1 else None
    losses = {run.name: run.summary.get("val/loss", math.inf) for run in runs}
    worst_first = sorted((run for run in runs if run.settings), key=lambda run: -losses[run.name])  # the best on top
    norm = scale_of([loss for loss in losses.values() if math.isfinite(loss)], 2)
    ink, label = matplotlib.rcParams["text.color"], f"validation loss ({unit})"
    top = norm.vmax + 0.05 * (norm.vmax - norm.vmin)  # of one setting: where the losses leave the picture
    for status, (marker, size) in MARKERS.items():
        of_status = [run for run in worst_first if run.status == status]
        if not of_status:
            continue
        at = [run.settings[x] for run in of_status]
        heights = [run.settings[y] if y else min(losses[run.name], top) for run in of_status]
        shade = {"color": ink}
        if status in ("finished", "pruned"):
            shade = {"c": [losses[run.name] for run in of_status], "cmap": "viridis_r", "norm": norm, "edgecolors": ink}
        dots = axes.scatter(at, heights, marker=marker, s=size, lw=0.5, label=status, zorder=2, **shade)
        if status == "finished":
            if winner(runs):
                axes.scatter(at[-1:], heights[-1:], s=190, **RING, edgecolors=ink, zorder=3)
            if y:
                axes.figure.colorbar(dots, ax=axes, label=label, pad=0.02, extend="max")
    for axis, name in zip("xy", names[:2], strict=False):
        values = levels(runs, name)
        if values[0] > 0 and values[-1] / values[0] > 20:
            axes.set(**{f"{axis}scale": "log"})
    axes.set(xlabel=short_name(x), ylabel=short_name(y) if y else label)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.figure.legend(loc="outside lower left", ncols=5, fontsize=9)
