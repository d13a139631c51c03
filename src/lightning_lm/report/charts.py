"""Pictures that compare runs, as files: loss over steps, and over the settings that were searched."""

import io
from collections.abc import Iterator, Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lightning_lm.report.comparison import by_objective, loss_unit, searched, winner
from lightning_lm.report.curves import Curves
from lightning_lm.report.looks import INKS, LineStyle, line_styles
from lightning_lm.report.runs import SavedRun
from lightning_lm.report.search_map import search

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.linewidth": 0.6,
    "grid.alpha": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}
LOST = ("diverged", "failed")


def draw_figures(runs: list[SavedRun], curves_of: Mapping[str, Curves]) -> Iterator[tuple[str, Figure]]:
    """Names of pictures and the pictures, of each objective by itself; the best run comes first.

    Args:
        runs: the best one first.
        curves_of: name of a run → its curves.
    """
    objectives = by_objective(runs)
    for name, of in objectives.items():
        unit, suffix = loss_unit(of), f"_{name}" * (len(objectives) > 1)
        with matplotlib.rc_context(STYLE):
            if any(curves_of[run.name] for run in of):
                yield f"loss{suffix}", loss_curves(of, unit, curves_of)
            if (figure := search(of, unit)) is not None:
                yield f"search{suffix}", figure


def encode_figure(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=160)
    return buffer.getvalue()


def loss_curves(runs: list[SavedRun], unit: str, curves_of: Mapping[str, Curves]) -> Figure:
    """Training loss and validation loss of all runs; those that came to nothing have a cross at their end."""
    styles, legend = line_styles(runs)
    figure = Figure((10, 4.4), layout="constrained")
    titles = {"train/loss": "training", "val/loss": "validation"}
    for axes, (column, title) in zip(figure.subplots(1, 2, sharex=True), titles.items(), strict=True):
        heights: list[float] = []
        thick = winner(runs) and searched(runs) and runs[0]
        for run in reversed(runs):  # the best on top
            if (curve := curves_of[run.name].get(column)) is None:
                continue
            steps, losses, line = curve["steps"], curve["values"], drawn_as(styles[run.name])
            marker = "o" if title == "validation" or len(losses) < 3 else None
            width = {"linewidth": 2.4 if run is thick else 1.2, "markersize": 3.5, "zorder": 3 if run is thick else 2}
            axes.plot(steps, losses, marker=marker, **line, **width)
            if run.status in LOST:
                axes.plot(steps[-1], losses[-1], "X", color=line["color"], markersize=8, zorder=4)
            if run.loss is not None:
                heights += losses
        if heights and max(heights) > (low := min(heights)):
            usual = low + 1.5 * (np.quantile(heights, 0.97) - low)  # a steep start or a spike is cut off
            axes.set_ylim(low - 0.04 * (usual - low), min(max(heights) + 0.04 * (max(heights) - low), usual))
        axes.set(title=f"{title} loss ({unit})", xlabel="optimizer steps")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.grid(True)
    handles = [Line2D([], [], label=label, linewidth=2, **drawn_as(look)) for label, look in legend]
    if any(run.status in LOST for run in runs):
        handles.append(Line2D([], [], marker="X", color=INKS["light"], linestyle="", label="diverged or failed"))
    if handles:
        longest = max(len(handle.get_label()) for handle in handles)
        columns = max(1, min(len(handles), int(120 / (longest + 9))))
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, fontsize=9, handlelength=2.8)
    return figure


def drawn_as(look: LineStyle) -> dict:
    lengths = tuple(float(part) / 1.6 for part in look.dash.split())
    return {"color": look.light, "linestyle": (0, lengths) if lengths else "-"}
