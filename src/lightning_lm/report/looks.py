"""How each run is drawn: the same colour and dashes in the table, on the page and in the files."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_lm.report.comparison import differing, levels, searched, short_name
from lightning_lm.report.runs import SavedRun
from lightning_lm.runs.numbers import brief, is_number

DISTINCT = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#999999")  # Paul Tol's, for all eyes
DASHES = ("", "6 2", "2 2", "8 2 2 2")  # as SVG writes them
SHADES = {"light": (0.0, 0.85), "dark": (0.25, 1.0)}  # of viridis, that stand out from the page
INKS = {"light": "#1f2328", "dark": "#e6edf3"}  # of text


@dataclass(frozen=True)
class LineStyle:
    """How a run is drawn."""

    light: str
    dark: str
    dash: str = ""


def line_styles(runs: list[SavedRun]) -> tuple[dict[str, LineStyle], list[tuple[str, LineStyle]]]:
    """Colour by the first setting that varies and dashes by the second, or a colour each; and the legend of it.

    Args:
        runs: the best one first.
    """
    names = searched(runs) or differing(runs)
    if not names:
        styles = {run.name: LineStyle(color, color) for run, color in zip(runs, DISTINCT * len(runs), strict=False)}
        return styles, list(styles.items()) if len(runs) > 1 else []
    values = [levels(runs, name) for name in names[:2]]
    colors = palette(values[0])
    best = [str(value) for value in values[0]].index(str(runs[0].settings.get(names[0])))
    evenly = np.linspace(0, len(values[0]) - 1, min(len(values[0]), 6)).round().astype(int)
    shown = [values[0][i] for i in sorted({*evenly, best})]
    legend = [(f"{short_name(names[0])} {brief(value)}", LineStyle(*colors[str(value)])) for value in shown]
    dashes: dict[str, str] = {}
    if len(values) > 1 and len(values[1]) <= len(DASHES):
        dashes = dict(zip(map(str, values[1]), DASHES, strict=False))
        label = short_name(names[1])
        legend += [(f"{label} {brief(v)}", LineStyle(INKS["light"], INKS["dark"], dashes[str(v)])) for v in values[1]]
    styles = {}
    for run in runs:
        keys = [str(run.settings.get(name)) for name in names[:2]]
        styles[run.name] = LineStyle(*colors.get(keys[0], (DISTINCT[-1],) * 2), dashes.get(keys[-1], ""))
    return styles, legend


def palette(values: list[Any]) -> dict[str, tuple[str, str]]:
    """A colour for light and one for dark pages: shades of one scale for numbers, else colours far apart."""
    import matplotlib
    from matplotlib.colors import to_hex

    if not all(map(is_number, values)):
        return {str(v): (color, color) for v, color in zip(values, DISTINCT * len(values), strict=False)}
    scale, shares = matplotlib.colormaps["viridis"], np.linspace(0, 1, len(values))
    return {
        str(value): (to_hex(scale(light)), to_hex(scale(dark)))
        for value, share in zip(values, shares, strict=True)
        for light, dark in [[low + share * (high - low) for low, high in SHADES.values()]]
    }
