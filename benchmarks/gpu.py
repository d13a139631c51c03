"""Training and evaluation on one GPU: ours beside Trainer and a bare loop. Results are kept; the next call goes on.

Utilisation is that of Chowdhery et al. (2022, appendix B): the products of a plain forward pass, head at every
position, times three, over what the device's data sheet promises; causal attention counts the half that it needs. Ours
leaves out positions without a label, and may so show more than it computes: the same count for all makes them
comparable.
"""

import argparse
import json
import os
import re
import sys
import time
from datetime import date
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from inputs import ROOT, Options
from measure import fresh
from run import code_version, number

SHAPES = {  # objective, kind of model, blocks per step, block
    "GPT-2 small": ("clm", "gpt2", 16, 1024),
    "BERT-base": ("mlm", "bert", 32, 512),
    "GPT-2 small as fine-tuned": ("clm", "gpt2", 8, 128),
    "BERT-base as fine-tuned": ("mlm", "bert", 8, 128),
    "GPT-2 small, evaluation": ("clm", "gpt2", 16, 1024),
    "BERT-base, evaluation": ("mlm", "bert", 32, 512),
}
FOLDER = ROOT / "benchmarks" / "gpu"
HEAD = """Made by `make bench-gpu`. Each side runs in a fresh process, one after the other, from the same weights,
without dropout. Tokens per second of training leave out start-up and the first five steps. The first step
holds compiling, with nothing in the compiler's cache; it is the longest of all pairs. CUDA graphs are recorded
in the second step. "whole process" counts imports, compiling and data, too. The bare loop has one graph and
its batches ready in memory, and does nothing else: it is the limit. "Trainer at its best" makes no masks.
Utilisation counts the same products on all sides, causal attention once.

An evaluation scores a text with perplexity and accuracy, in bfloat16 and not compiled, on our side and by
Trainer.evaluate. Its tokens per second are those of the text, in the second of two passes.

"""


def sides(shape: str, hardware: str, for_trainer: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Name → script, function, its further arguments; the most informative first."""
    if shape.endswith("evaluation"):
        return {
            "ours": ("ours.py", "evaluate", {"hardware": hardware}),
            "Trainer": ("peers.py", "evaluate", for_trainer | {"torch_compile": False}),
        }
    ours, graph = {"hardware": hardware}, ["hardware.compile=step"]
    recorded = {}
    if hardware == "gpu" and shape.endswith("as fine-tuned"):  # only small steps wait for the host
        recorded = {"ours, CUDA graphs": ("ours.py", "steps", ours | {"more": [*graph, "hardware.cuda_graphs=true"]})}
    return {
        "ours": ("ours.py", "steps", ours),
        "Trainer": ("peers.py", "steps", for_trainer),
        "ours, one graph": ("ours.py", "steps", ours | {"more": graph}),
        **recorded,
        "bare loop, one graph": ("peers.py", "one_graph", {"on_cpu": hardware == "cpu"}),
        "Trainer at its best": ("peers.py", "steps", for_trainer | {"unmasked": True}),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="lines of text; without it Python's reference text")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=300, help="seconds after which nothing new is begun")
    parser.add_argument("--quick", action="store_true", help="tiny models on the CPU, to see that everything runs")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where results are kept")
    args = parser.parse_args(argv)
    began = time.monotonic()
    # One device: Trainer would spread the batch over all that it sees
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    options, hardware = Options(args.text, None, args.quick), "cpu" if args.quick else "gpu"
    machine = fresh("ours.py", "machine", hardware=hardware)
    if machine["device"] is None:
        print("error: torch sees no CUDA device; make bench-gpu needs one, make bench runs on the CPU", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    caches = TemporaryDirectory()  # of what is compiled, one for each side, so that none finds another's
    results = Results(
        args.out / "results.jsonl", {"device": machine["device"], "code": code_version(), **machine["versions"]}
    )
    for pair in range(args.pairs):
        for shape in SHAPES:
            case = inputs(options, shape, args.steps)
            for side, (script, function, more) in sides(shape, hardware, machine["for_trainer"]).items():
                if (shape, side, pair) in results.done:
                    continue
                if time.monotonic() - began > args.budget:
                    print(f"{args.budget:g} s are over; the same command goes on")
                    return 0
                cache = Path(caches.name) / re.sub(r"\W+", "-", f"{shape} {side}")
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
                started = time.monotonic()
                try:
                    figures = fresh(script, function, **case, **more)
                except RuntimeError as error:  # such as too little memory, on one side alone
                    figures = {"failed": str(error).splitlines()[-1]}
                figures |= {"date": str(date.today()), "seconds": time.monotonic() - started}
                results.add(shape, side, pair, figures)
                trained = [name for name, *_ in results.done if not name.endswith("evaluation")]
                flops = {name: flops_per_token(options, name, args.steps) for name in trained}
                (args.out / "results.md").write_text(HEAD + results.table(machine["peak"], flops), encoding="utf-8")
                print(f"{shape}, {side}: {figures}", flush=True)
    print(f"\n{(args.out / 'results.md').read_text(encoding='utf-8')}")
    return 0


@cache
def inputs(options: Options, shape: str, steps: int) -> dict[str, Any]:
    objective, kind, batch, block = SHAPES[shape]
    case = {"objective": objective, "model": options.model(kind, 768, 12), "text": options.corpus(4)}
    sizes = {"batch": 4, "block": 64} if options.quick else {"batch": batch, "block": block}
    return case | sizes | ({} if shape.endswith("evaluation") else {"steps": options.steps(steps)})


@cache
def flops_per_token(options: Options, shape: str, steps: int) -> float:
    case = inputs(options, shape, steps)
    return fresh("peers.py", "flops_per_token", **{name: case[name] for name in ("objective", "model", "block")})


class Results:
    """Measurements as lines of JSON; those of this machine and code count."""

    def __init__(self, path: Path, of: dict[str, str]):
        self.path, self.of = path, of
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        self.done = {(r["shape"], r["side"], r["pair"]): r for r in rows if r["of"] == of}

    def add(self, shape: str, side: str, pair: int, figures: dict[str, Any]) -> None:
        row = {"shape": shape, "side": side, "pair": pair, "of": self.of, **figures}
        self.done[shape, side, pair] = row
        with self.path.open("a", encoding="utf-8") as file:
            print(json.dumps(row), file=file)

    def table(self, peak: float | None, flops: dict[str, float]) -> str:
        lines = [", ".join(f"{name} {value}" for name, value in self.of.items()), ""]
        titles = "shape | side | tokens/s (lowest–highest) | beside ours | utilisation | peak memory, GB"
        lines += [f"| {titles} | first step, s | whole process, s | pairs | date |", "|" + "---|" * 10]
        for shape, side in dict.fromkeys(key[:2] for key in self.done):
            rows = [row for key, row in self.done.items() if key[:2] == (shape, side)]
            good = [row for row in rows if row.get("tokens_per_second")]
            if not good:
                lines.append(f"| {shape} | {side} | failed: {rows[0].get('failed', 'too few steps')} |" + " |" * 7)
                continue
            rates, first = ([row[key] for row in good if key in row] for key in ("tokens_per_second", "first_step"))
            memory, seconds = (median(row[key] for row in good) for key in ("peak_memory", "seconds"))
            ours = {
                key[2]: row.get("tokens_per_second") for key, row in self.done.items() if key[:2] == (shape, "ours")
            }
            ratios = [r["tokens_per_second"] / ours[r["pair"]] for r in good if ours.get(r["pair"])]
            cells = [
                f"{number(median(rates))} ({number(min(rates))}–{number(max(rates))})",
                f"{median(ratios):.2f}" if ratios else "–",
                f"{median(rates) * flops[shape] / peak:.1%}" if peak and shape in flops else "–",
                f"{memory / 1e9:.2f}",
                f"{max(first):.1f}" if first else "–",
                f"{seconds:.0f}",
                str(len(good)),
                good[-1]["date"],
            ]
            lines.append(f"| {shape} | {side} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
