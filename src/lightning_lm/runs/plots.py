"""Pictures of a run, from its ``metrics.csv``."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lightning_lm.runs.step_table import Series, read_series


def write_plot(run: Path, perplexity_label: str) -> None:
    """``plots/``: loss, perplexity and learning rate over optimizer steps, as PNG."""
    series = read_series(run / "metrics.csv")
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    loss = {"training": "train/loss", "validation": "val/loss"}
    perplexity = {"training": "train/perplexity", "validation": "val/perplexity"}
    _draw(folder / "loss.png", series, loss, "loss (nats per token)")
    _draw(folder / "perplexity.png", series, perplexity, perplexity_label, logarithmic=True)
    _draw(folder / "learning_rate.png", series, {"": "learning_rate"}, "learning rate")


def _draw(path: Path, series: dict[str, Series], lines: dict[str, str], label: str, logarithmic: bool = False) -> None:
    figure = Figure((7, 4))
    axes = figure.subplots(gridspec_kw={"left": 0.14, "right": 0.92, "top": 0.96})
    for name, column in lines.items():
        if column not in series:
            continue
        steps, values = series[column]
        marker = "o" if name == "validation" or len(steps) < 3 else None
        axes.plot(steps, values, label=name, marker=marker, markersize=5, linewidth=1.6)
        if name == "validation":
            axes.annotate(f"{values[-1]:.4g}", (steps[-1], values[-1]), xytext=(6, 0), textcoords="offset points")
    axes.set(xlabel="optimizer step", ylabel=label)
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
