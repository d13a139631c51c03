"""Measures every workload of the table beside its peers and writes ``benchmarks/results.md``.

Each side of a workload runs in a fresh process, one after the other, A/B/A/B; a figure is the median over the pairs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import growth
import inputs
import speedrun
from inputs import Options
from measure import OFFLINE, PAIR, THREADS, fresh

RESULTS = Path(__file__).with_name("results.md")
LIBRARIES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "accelerate")
KEPT = "Trainer that keeps freed blocks"
Sides = dict[str, dict[str, Any]]  # what each side of a pair told


@dataclass(frozen=True)
class Figure:
    """A number made from a pair: ``what`` says its unit or which ratio it is; ``goal`` is such as "≥ 2.5"."""

    what: str
    goal: str
    of: Callable[[Sides], float]


@dataclass(frozen=True)
class Row:
    """A workload: for each side what runs it, and the figures that come of it."""

    workload: str
    sides: dict[str, Callable[[], dict[str, Any]]]
    figures: list[Figure]
    pairs: int
    shown: str  # of each side, beside the figures: tokens_per_second or seconds


def side(script: str, function: str, **arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: fresh(script, function, **arguments)


def ratio(key: str, over: str, under: str) -> Callable[[Sides], float]:
    return lambda sides: sides[over][key] / sides[under][key]


# ------------------------------------------------------------------------------------------------- a row per function


def training(
    o: Options,
    workload: str,
    objective: str,
    model: Path,
    batch: int,
    block: int,
    goals: list[str],
    small: bool,
) -> Row:
    case = {"objective": objective, "model": model, "text": o.corpus(2), "batch": batch, "block": block}
    case["steps"] = o.steps(30 if small else 15)
    sides = {name: side(script, "steps", **case) for name, script in PAIR.items()}
    sides["bare loop"] = side("peers.py", "bare", **case)
    figures = [
        Figure("tokens/s, ours / Trainer", goals[0], ratio("tokens_per_second", "ours", "Trainer")),
        Figure("tokens/s, ours / bare loop", "≥ 0.97", ratio("tokens_per_second", "ours", "bare loop")),
        Figure("tokens/s, bare loop / Trainer", "", ratio("tokens_per_second", "bare loop", "Trainer")),
        Figure("peak memory, ours / Trainer", goals[1], ratio("peak_memory", "ours", "Trainer")),
    ]
    if small:  # how much of it the allocator does
        sides[KEPT] = side("peers.py", "steps", keep=True, **case)
        figures.insert(1, Figure(f"tokens/s, ours / {KEPT}", "", ratio("tokens_per_second", "ours", KEPT)))
    return Row(workload, sides, figures, 5 if small else 3, "tokens_per_second")


def mlm_small(o: Options) -> Row:
    what = "MLM, BERT shape 256×4, vocabulary 30522, batch 8 × 128"
    return training(o, what, "mlm", o.model("bert", 256, 4), 8, 128, ["≥ 2.5", ""], small=True)


def mlm_base(o: Options) -> Row:
    what = "MLM, BERT-base shape, batch 8 × 128"
    return training(o, what, "mlm", o.model("bert", 768, 12), 8, 128, ["", ""], small=False)


def clm_small(o: Options) -> Row:
    what = "CLM, GPT-2 shape 256×4, vocabulary 50257, batch 8 × 128"
    return training(o, what, "clm", o.model("gpt2", 256, 4), 8, 128, ["≥ 1.6", ""], small=True)


def clm_base(o: Options) -> Row:
    what = "CLM, GPT-2 small shape, batch 4 × 512"
    return training(o, what, "clm", o.model("gpt2", 768, 12), 4, 512, ["≥ 1.15", "≤ 0.6"], small=False)


def beside_bare_loop(o: Options, workload: str, width: int, heads: int, steps: int) -> Row:
    model = o.model("gpt2", width, 4, heads=heads, bpe=True, source=o.text)
    case = {"objective": "clm", "model": model, "text": o.corpus(2), "batch": 8, "block": 128, "steps": o.steps(steps)}
    sides = {"ours": side("ours.py", "steps", **case), "bare loop": side("peers.py", "bare", **case)}
    figures = [Figure("tokens/s, ours / bare loop", "≥ 0.97", ratio("tokens_per_second", "ours", "bare loop"))]
    return Row(workload, sides, figures, 5, "tokens_per_second")


def clm_4096(o: Options) -> Row:
    what = "CLM, GPT-2 shape 256×4, vocabulary 4096, batch 8 × 128"
    return beside_bare_loop(o, what, width=256, heads=4, steps=60)


def clm_tiny(o: Options) -> Row:
    what = "CLM, `model=gpt2-tiny` (192×4, vocabulary 4096), batch 8 × 128"
    return beside_bare_loop(o, what, width=192, heads=4, steps=200)


def evaluation(o: Options, objective: str, model: Path) -> Row:
    few, many = (1_000, 4_000) if o.quick else (30_000, 120_000)
    case = {"objective": objective, "model": model, "batch": 8, "block": 128}
    text, longer = (
        fresh("inputs.py", "cut", text=o.corpus(2), tokenizer=model, tokens=tokens) for tokens in (few, many)
    )
    sides = {name: side(script, "evaluate", text=text, **case) for name, script in PAIR.items()}
    sides["ours, 4 × the text"] = side("ours.py", "evaluate", text=longer, **case)
    figures = [
        Figure("seconds, Trainer / ours", "≥ 1.5", ratio("seconds", "Trainer", "ours")),
        Figure("peak memory, ours / Trainer", "", ratio("peak_memory", "ours", "Trainer")),
        Figure("peak memory, 4 × the text / the text", "≤ 1.05", ratio("peak_memory", "ours, 4 × the text", "ours")),
    ]
    what = f"evaluation, {objective.upper()} 256×4, {few:,} tokens, batch 8 × 128, perplexity and accuracy"
    return Row(what, sides, figures, 5, "seconds")


def evaluate_clm(o: Options) -> Row:
    return evaluation(o, "clm", o.model("gpt2", 256, 4))


def evaluate_mlm(o: Options) -> Row:
    return evaluation(o, "mlm", o.model("bert", 256, 4))


def preparation(o: Options, objective: str, model: Path, kind: str, megabytes: int) -> Row:
    case = {"model": model, "text": o.corpus(megabytes)}
    sides = {
        "ours": side("ours.py", "prepare", objective=objective, block=128, **case),
        "recipe": side("peers.py", "prepare", objective=objective, block=128, **case),
        "Rust alone": side("peers.py", "rust", **case),
    }
    figures = [
        Figure("seconds, recipe / ours", "≥ 2.5", ratio("seconds", "recipe", "ours")),
        Figure("seconds, ours / Rust tokenizer alone", "≤ 1.2", ratio("seconds", "ours", "Rust alone")),
        Figure("peak memory, ours / recipe", "", ratio("peak_memory", "ours", "recipe")),
    ]
    return Row(f"first preparation of {megabytes} MB of text, {kind}", sides, figures, 3, "seconds")


def prepare_10(o: Options) -> Row:
    return preparation(o, "clm", o.model("gpt2", 256, 4), "GPT-2's byte-level BPE", 10)


def prepare_100(o: Options) -> Row:
    return preparation(o, "clm", o.model("gpt2", 256, 4), "GPT-2's byte-level BPE", 100)


def prepare_wordpiece(o: Options) -> Row:
    return preparation(o, "mlm", o.model("bert", 256, 4), "BERT's WordPiece", 10)


def prepare_again(o: Options) -> Row:
    case = {"objective": "clm", "model": o.model("gpt2", 256, 4), "text": o.corpus(100)}
    case["cache"] = inputs.FOLDER / "cache" / case["text"].stem
    fresh("ours.py", "prepare", block=128, **case)
    figures = [
        Figure("seconds beyond imports", "≤ 0.5", lambda s: s["ours"]["seconds"] + s["ours"]["tokenizer_seconds"]),
        Figure("seconds of these, to load the tokenizer", "", lambda s: s["ours"]["tokenizer_seconds"]),
    ]
    sides = {"ours": side("ours.py", "prepare", block=256, **case)}
    return Row("second preparation of 100 MB of text, other block size", sides, figures, 5, "seconds")


def loading(o: Options, objective: str, model: Path, goal: str) -> Row:
    case = {"objective": objective, "model": model, "text": o.corpus(10), "batch": 64, "block": 512}
    figure = Figure("million tokens/s per process", goal, lambda sides: sides["ours"]["tokens_per_second"] / 1e6)
    sides = {"ours": side("ours.py", "batches", seconds=0.5 if o.quick else 5, **case)}
    what = f"batches of 64 × 512 from the loader, {objective.upper()}, no model"
    return Row(what, sides, [figure], 5, "tokens_per_second")


def batches_clm(o: Options) -> Row:
    return loading(o, "clm", o.model("gpt2", 256, 4), "≥ 20")


def batches_mlm(o: Options) -> Row:
    return loading(o, "mlm", o.model("bert", 256, 4), "≥ 5")


def race_mlm(o: Options) -> Row:
    train, test = speedrun.files(o.text, o.test)
    found = speedrun.search(train, test, quick=o.quick)
    figure = Figure("seconds, Trainer / ours", "≥ 3", ratio("seconds", "Trainer", "ours"))
    reached = (
        f"{found.target:.3f} nats per masked token on {test.name}, what Trainer's AdamW has after {found.steps} steps"
    )
    what = f"training time, MLM from scratch on {train.name}, to {reached}"
    return Row(what, {"ours": found.ours, "Trainer": found.baseline}, [figure], 3, "seconds")


def command(o: Options, workload: str, *arguments: str, code: int = 0) -> Row:
    def seconds() -> dict[str, Any]:
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "train.py", *arguments],
            cwd=inputs.ROOT,
            capture_output=True,
            env={**os.environ, **OFFLINE},
        )
        if ended.returncode != code:
            raise RuntimeError(f"train.py {' '.join(arguments)} ended with {ended.returncode}\n{ended.stderr.decode()}")
        return {"seconds": time.perf_counter() - began}

    return Row(workload, {"ours": seconds}, [Figure("seconds", "≤ 1.5", lambda s: s["ours"]["seconds"])], 5, "seconds")


def show_help(o: Options) -> Row:
    return command(o, "`train.py --help`", "--help")


def refuse(o: Options) -> Row:
    return command(o, "an error that the schema finds (`optimizer.lrr=1`)", "optimizer.lrr=1", code=2)


ROWS = [mlm_small, mlm_base, clm_small, clm_base, clm_4096, clm_tiny, evaluate_clm, evaluate_mlm, prepare_10]
ROWS += [prepare_100, prepare_wordpiece, prepare_again, batches_clm, batches_mlm, race_mlm, show_help, refuse]

# ---------------------------------------------------------------------------------------------------------- the table


def measured(row: Row) -> dict[str, Any]:
    """Run the pairs; returns what is kept of the row."""
    pairs, code = [], code_version()
    for number in range(row.pairs):
        pairs.append({name: run() for name, run in row.sides.items()})
        told = ", ".join(f"{name} {pairs[-1][name][row.shown]:,.4g}" for name in row.sides)
        print(f"  {number + 1}/{row.pairs}  {row.shown}: {told}", flush=True)
    figures = [{"what": f.what, "goal": f.goal, "values": [f.of(pair) for pair in pairs]} for f in row.figures]
    kept = {"workload": row.workload, "figures": figures, "shown": row.shown, "pairs": pairs}
    return kept | {"on": machine(), "date": time.strftime("%Y-%m-%d"), "code": code}


def code_version() -> str:
    """The last commit that changed what is measured; with a plus where changes aren't committed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(inputs.ROOT), *arguments, "--", "train.py", "conf", "src", "benchmarks/*.py"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("log", "-1", "--format=%h") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "not kept"


def met(goal: str, value: float) -> bool:
    sign, bound = goal.split()
    return value >= float(bound) if sign == "≥" else value <= float(bound)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table(results: dict[str, Any]) -> str:
    """The finished rows as Markdown, in the order of ``ROWS``."""
    heads = ["workload", "figure", "goal", "median (lowest–highest)", "medians of the sides", "pairs", "date, code"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in (results[make.__name__] for make in ROWS if make.__name__ in results):
        unit = row["shown"].replace("tokens_per_second", "tokens/s").replace("seconds", "s")
        sides = {n: number(median(p[n][row["shown"]] for p in row["pairs"])) for n in row["pairs"][0]}
        memory = {n: median(p[n].get("peak_memory", 0) for p in row["pairs"]) / 1e6 for n in sides}
        for i, figure in enumerate(row["figures"]):
            values, goal = figure["values"], figure["goal"]
            middle, told = median(values), {n: f"{x:,.0f} MB" for n, x in memory.items()}
            told = told if "memory" in figure["what"] else {n: f"{x} {unit}" for n, x in sides.items()}
            verdict = "" if not goal else " met" if met(goal, middle) else " **missed**"
            cells = [
                row["workload"] if i == 0 else "",
                figure["what"],
                goal + verdict,
                f"{number(middle)} ({number(min(values))}–{number(max(values))})",
                "; ".join(f"{n} {x}" for n, x in told.items()),
                str(len(values)),
                f"{row['date']}, {row['code']}" if i == 0 else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    chip = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "CPU")
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"{chip}, {THREADS} threads, Python {platform.python_version()}, {libraries}"


MEASURED = "Measured by `make bench` on "
NOTES = """
Each side runs in a fresh process, one after the other (A/B/A/B), on the same text, from the same weights, in float32,
without dropout; tokens/s leave out start-up and the first five steps. The text is Python's reference text, or the file
given as `TEXT`, repeated until it is large enough; in each copy a fifth of the distinct words have their letters
shuffled, or caches of words would gain by the repetition. The speedrun takes the files `TEXT` and `TEST` as they are.
The code is the last commit that changed it; a plus stands for changes that weren't committed.

Trainer has the fused AdamW that is its default, the two maps of transformers' examples (the *recipe*) and their
collators. The bare loop has our loss and its batches ready in memory. On a CPU ours, the bare loop and the speedrun's
baseline tell glibc to keep freed blocks (`allocator.py`); Trainer in the other rows is as it comes, but for the side
that is named so. Peak memory is the largest resident set of the whole process (VmHWM), libraries included; in training
up to the end of the last step, before checkpoints; in evaluation from its start. The Rust tokenizer alone reads the
lines and drops the tokens, in whichever of two batch sizes is faster. The speedrun's rate is the best of four trials,
as the baseline's is; its shape, batch and length were found before, in 12 runs on a part of the training text, while
the baseline keeps the tiny model's shape. The causal race stands in `race.md`.

"""


def write(path: Path, results: dict[str, Any]) -> None:
    """The page; workloads of the page as it is that aren't among the results stay on it."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    before = page.partition("\n")[0].removeprefix(MEASURED).removesuffix(".").split("; ") if page else []
    machines = "; ".join(sorted({row["on"] for row in results.values()} | set(before)))
    rows = table_rows(page) | table_rows(table(results))
    inputs.write(path, f"{MEASURED}{machines}.\n{NOTES}{''.join(rows.values())}".encode())


def table_rows(page: str) -> dict[str, str]:
    """Workload → its lines in a page's table, the table's head among them; lines without a workload belong to it."""
    rows: dict[str, str] = {}
    for line in (line for line in page.splitlines(keepends=True) if line.startswith("|")):
        workload = line.split("|")[1].strip() or next(reversed(rows))
        rows[workload] = rows.get(workload, "") + line
    return rows


def main(argv: list[str]) -> int:
    names = [make.__name__ for make in ROWS] + ["growth"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda s: s.split(","), default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--text", type=Path, help="lines of text; without it Python's reference text")
    parser.add_argument("--test", type=Path, help="the speedrun's test text, where --text is given")
    parser.add_argument("--pairs", type=int, help="instead of each workload's own number")
    parser.add_argument("--quick", action="store_true", help="one pair of tiny sizes, to see that everything runs")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(names):
        parser.error(f"--only: no workload {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for path in filter(None, (args.text, args.test)):
        if not path.is_file():
            parser.error(f"{path}: no such file")
    # As many cores for every library, however it counts them
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    options = Options(args.text, args.test, args.quick)
    raw = inputs.FOLDER / ("quick.json" if args.quick else "results.json")
    results = json.loads(raw.read_text()) if raw.exists() else {}
    failed = []
    for make in ROWS:
        if make.__name__ not in args.only:
            continue
        print(make.__name__, flush=True)
        try:
            row = make(options)
            pairs = 1 if args.quick else args.pairs or row.pairs
            results[make.__name__] = measured(replace(row, pairs=pairs))
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr)
            failed.append(make.__name__)
            continue
        inputs.write(raw, json.dumps(results, indent=1).encode())  # after each row: an interrupt loses one at most
        # Of this row alone: older raw results may be staler than what stands on the page
        write(raw.with_suffix(".md") if args.quick else RESULTS, {make.__name__: results[make.__name__]})
    print(table({name: results[name] for name in args.only if name in results and name not in failed}))
    if "growth" in args.only:
        growth.draw(options)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
