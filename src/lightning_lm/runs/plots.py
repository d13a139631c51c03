"""Pictures of a run, from its ``metrics.csv``."""

from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator  # noqa: E402

from lightning_lm.runs.step_table import StepTable  # noqa: E402

matplotlib.use("Agg")


Series = tuple[list[int], list[float]]


def read(path: Path) -> dict[str, Series]:
    """Per column of a metrics file: the steps at which it has a value, and the values."""
    series: dict[str, Series] = {}
    for row in StepTable(path, []).rows():
        for name, value in row.items():
            if value and name != "step":
                steps, values = series.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return series


def write(run: Path, perplexity_label: str) -> None:
    """``plots/``: loss, perplexity and learning rate over optimiser steps, as PNG."""
    series = read(run / "metrics.csv")
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    loss = {"training": "train/loss", "validation": "val/loss"}
    perplexity = {"training": "train/perplexity", "validation": "val/perplexity"}
    _draw(folder / "loss.png", series, loss, "loss (nats per token)")
    _draw(folder / "perplexity.png", series, perplexity, perplexity_label, logarithmic=True)
    _draw(folder / "learning_rate.png", series, {"": "learning_rate"}, "learning rate")


def _draw(path: Path, series: dict[str, Series], lines: dict[str, str], label: str, logarithmic: bool = False) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), gridspec_kw={"left": 0.14, "right": 0.92, "top": 0.96})
    for name, column in lines.items():
        if column not in series:
            continue
        steps, values = series[column]
        marker = "o" if name == "validation" or len(steps) < 3 else None
        axes.plot(steps, values, label=name, marker=marker, markersize=5, linewidth=1.6)
        if name == "validation":
            axes.annotate(f"{values[-1]:.4g}", (steps[-1], values[-1]), xytext=(6, 0), textcoords="offset points")
    axes.set(xlabel="optimiser step", ylabel=label)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:.4g}")
        axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
