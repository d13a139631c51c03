"""The loss over the first two settings that were searched, to be looked at closely on the page."""

import math

import numpy as np
from plotly.graph_objects import Figure, Scatter

from lightning_lm.report.certainty import AveragingTime, SearchedRegion
from lightning_lm.report.comparison import Configuration, configurations, levels, searched, short_name, winner
from lightning_lm.report.runs import SavedRun
from lightning_lm.report.search_map import scale_of
from lightning_lm.runs.numbers import brief, format_value, is_number

TICKS = 8  # values of a setting, so that each can have a tick of its own


class Axis:
    """Where the values of a setting stand: by their logarithm where they span a range, and 0 a step below."""

    def __init__(self, name: str, values: list[float]):
        positive = [value for value in values if value > 0]
        self.title = short_name(name)
        self.is_log = values[0] >= 0 and len(positive) > 1 and positive[-1] / positive[0] >= 8
        logs = np.log10(positive) if self.is_log else np.array([0.0])
        self.zero = float(logs[0] - max(np.diff(logs).mean(), 0.3)) if self.is_log and len(logs) > 1 else 0.0
        places = np.linspace(0, len(values) - 1, min(TICKS, len(values))).astype(int)
        ticks = [values[place] for place in places]
        self.ticks = {"tickvals": [self.at(value) for value in ticks], "ticktext": [brief(value) for value in ticks]}

    def at(self, value: float) -> float:
        return (math.log10(value) if value > 0 else self.zero) if self.is_log else float(value)


def draw_landscape(runs: list[SavedRun], loss: str, region: SearchedRegion | None) -> Figure | None:
    """A point for each configuration, its colour the mean loss, and the region in which the best one lies.

    None where fewer than two numeric settings vary.
    """
    names = [name for name in searched(runs) if all(map(is_number, levels(runs, name)))][:2]
    sets = configurations(runs)
    finished = [c for c in sets if c.losses]
    if len(names) < 2 or not finished:
        return None
    axes = [Axis(name, levels(runs, name)) for name in names]
    best = finished[:1] if winner(runs) else []
    lost = [c for c in sets if not c.losses and all(is_number(c.settings[name]) for name in names)]
    norm = scale_of([c.mean for c in finished], 10)
    shade = {
        "color": [c.mean for c in reversed(finished)],
        "colorscale": "Viridis",
        "reversescale": True,
        "cmin": norm.vmin,
        "cmax": norm.vmax,
        "size": 20,
        "line": {"color": "#888888", "width": 1},  # dark ones stand out at night, too
        "colorbar": {"title": {"text": loss}},
    }
    sides = {"xaxis": axes[0], "yaxis": axes[1]}
    figure = Figure(layout={side: {"title": {"text": axis.title}, **axis.ticks} for side, axis in sides.items()})
    if region is not None:
        draw_region(figure, region, dict(zip(names, axes, strict=True)))
    for drawn, marker, title in (
        (finished[::-1], shade, "finished"),  # the best on top
        (lost, {"symbol": "x", "size": 12, "color": "#888888"}, "came to nothing"),
        (best, {"symbol": "circle-open", "size": 30, "color": "#EE6677", "line": {"width": 2}}, "lowest mean"),
    ):
        x, y = ([axis.at(c.settings[name]) for c in drawn] for axis, name in zip(axes, names, strict=True))
        hover = {"text": [described(c) for c in drawn], "hovertemplate": "%{text}<extra></extra>"}
        figure.add_trace(Scatter(x=x, y=y, mode="markers", marker=marker, name=title, showlegend=False, **hover))
    return figure


def draw_region(figure: Figure, region: SearchedRegion, axes: dict[str, Axis]) -> None:
    """The 90 % region and, where it is closed, its best point; over one setting a band."""
    look = {"fillcolor": "rgba(238, 102, 119, 0.18)", "line": {"color": "#EE6677", "width": 1}}
    if len(region.settings) == 1:
        (name,) = region.settings
        if limits := region.limits.get(name):
            ends = [axes[name].at(end) for end in limits]
            (figure.add_vrect if name == next(iter(axes)) else figure.add_hrect)(*ends, layer="below", **look)
        return
    for outline in region.outlines:
        x, y = ([axis.at(value) for value in outline[:, n]] for n, axis in enumerate(axes.values()))
        figure.add_trace(Scatter(x=x, y=y, fill="toself", mode="lines", hoverinfo="skip", showlegend=False, **look))
    if region.best is not None:
        x, y = ([axis.at(region.best[name])] for name, axis in axes.items())
        star = {"symbol": "star", "size": 14, "color": "#EE6677", "line": {"color": "white", "width": 1}}
        hover = {"hovertemplate": "lowest point of the surface<extra></extra>"}
        figure.add_trace(Scatter(x=x, y=y, mode="markers", marker=star, showlegend=False, **hover))


def averaging(times: list[AveragingTime], loss: str) -> Figure | None:
    """The loss over the steps that AdamW averages over; None where fewer than three configurations have such a time."""
    timed = [of for of in times if math.isfinite(of.steps)]
    if len({of.steps for of in timed}) < 3:
        return None
    epochs = [f"<br>{of.epochs:.3g} epochs" if of.epochs else "" for of in timed]
    hover = [f"{of.name}<br>{of.steps:,.0f} steps{of_epochs}" for of, of_epochs in zip(timed, epochs, strict=True)]
    titles = {"xaxis": {"title": {"text": "steps averaged over, 1/(learning rate × weight decay)"}, "type": "log"}}
    figure = Figure(layout=titles | {"yaxis": {"title": {"text": loss}}})
    x, y = [of.steps for of in timed], [of.loss for of in timed]
    look = {
        "mode": "markers",
        "marker": {"size": 9},
        "text": hover,
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
    }
    return figure.add_trace(Scatter(x=x, y=y, **look))


def described(c: Configuration) -> str:
    values = [f"{short_name(name)} {format_value(value)}" for name, value in c.settings.items()]
    spread = "" if c.spread is None else f" ± {c.spread:.4f} (n = {len(c.losses)})"
    result = f"loss {c.mean:.4f}{spread}" if c.losses else ", ".join({run.status for run in c.runs})
    return "<br>".join([*values, result])
