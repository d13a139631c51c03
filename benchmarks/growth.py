"""How cost grows with the block, the vocabulary and the corpus, ours beside Trainer: ``docs/growth.png``.

Each point is one fresh process. Points that were measured before are kept; remove ``outputs/bench/growth.json`` to
measure them again.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inputs
from inputs import Options
from measure import PAIR, fresh

PLOT = inputs.ROOT / "docs" / "growth.png"
TOKENS = 2048  # per step
BLOCKS = [64, 256, 1024]
VOCABULARIES = [2**12, 2**14, 2**16, 2**17]
CORPORA = [1, 10, 100]  # MB
COLORS = {"ours": "#0072B2", "Trainer": "#D55E00"}  # Okabe and Ito's, told apart by all


def points(o: Options) -> Iterator[tuple[str, float, str, dict[str, Any]]]:
    """Axis, place on it, function and arguments of each measurement."""
    few, steps = (2 if o.quick else None), o.steps(9)
    training = {"objective": "clm", "text": str(o.corpus(2)), "steps": steps}
    tokens = TOKENS // 4 if o.quick else TOKENS
    published = str(o.model("gpt2", 256, 4))
    for block in BLOCKS[:few]:
        yield "block", block, "steps", {**training, "model": published, "block": block, "batch": tokens // block}
    for size in VOCABULARIES[:few]:
        # The text's tokens are the first 4096: what costs is the embedding's height
        model = str(o.model("gpt2", 256, 4, bpe=True, source=o.text, vocabulary=size))
        yield "vocabulary", size, "steps", {**training, "model": model, "block": 128, "batch": tokens // 128}
    for megabytes in CORPORA[:few]:
        case = {"objective": "clm", "model": published, "text": str(o.corpus(megabytes)), "block": 128}
        yield "corpus", megabytes, "prepare", case


def measure(o: Options, path: Path) -> list[dict[str, Any]]:
    """Runs what isn't in ``path`` yet, and keeps it there."""
    kept = json.loads(path.read_text()) if path.exists() else []
    for axis, place, function, case in points(o):
        for name, script in PAIR.items():
            if any((k["axis"], k["place"], k["side"], k["case"]) == (axis, place, name, case) for k in kept):
                continue
            told = fresh(script, function, **case)
            rate = told.get("tokens_per_second") or told["tokens"] / told["seconds"]
            point = {"axis": axis, "place": place, "side": name, "rate": rate, "memory": told["peak_memory"]}
            kept = [k for k in kept if (k["axis"], k["place"], k["side"]) != (axis, place, name)]
            kept.append({**point, "case": case})
            inputs.write(path, json.dumps(kept, indent=1).encode())
            print(f"{axis} {place}: {name} {rate:,.0f} tokens/s, {point['memory'] / 1e6:,.0f} MB", flush=True)
    return kept


def draw(o: Options) -> None:
    name = "growth-quick" if o.quick else "growth"
    kept = measure(o, inputs.FOLDER / f"{name}.json")
    plot(kept, inputs.FOLDER / f"{name}.png" if o.quick else PLOT)


def plot(kept: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes = {
        "block": ("Training, block size (tokens)", BLOCKS, "{:g}"),
        "vocabulary": ("Training, vocabulary (tokens)", VOCABULARIES, "{:g}k"),
        "corpus": ("First preparation, text (MB)", CORPORA, "{:g}"),
    }
    rows = {"rate": ("tokens per second", 1), "memory": ("peak memory (GB)", 1e9)}
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, grid = plt.subplots(2, 3, figsize=(10, 5.2), sharex="col", layout="constrained")
    for i, (quantity, (label, unit)) in enumerate(rows.items()):
        for j, (axis, (title, places, shown)) in enumerate(axes.items()):
            panel = grid[i, j]
            ends = {k["side"]: k[quantity] for k in kept if (k["axis"], k["place"]) == (axis, places[-1])}
            for side, color in COLORS.items():
                found = sorted((k["place"], k[quantity] / unit) for k in kept if (k["axis"], k["side"]) == (axis, side))
                x, y = zip(*found, strict=True)
                panel.plot(x, y, color=color, marker="o" if side == "ours" else "s", markersize=4, linewidth=1.8)
                above = ends.get(side, 0) == max(ends.values(), default=0)  # so that close ends don't hide each other
                place = {"xytext": (6, 1 if above else -1), "va": "bottom" if above else "top"}
                panel.annotate(side, (x[-1], y[-1]), textcoords="offset points", color=color, **place)
            panel.set(xscale="log", ylim=(0, 1.08 * max(k[quantity] / unit for k in kept if k["axis"] == axis)))
            panel.xaxis.set_major_locator(FixedLocator(places))
            size = 1024 if axis == "vocabulary" else 1
            panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _, s=shown, n=size: s.format(x / n)))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
            panel.grid(True, color="#e5e5e5", linewidth=0.6)
            panel.set_axisbelow(True)
            if i == 0:
                panel.set_title(title, loc="left", fontsize=9.5)
            if j in (0, 2) or i:
                panel.set_ylabel(label)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=160)
