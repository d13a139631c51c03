"""How soon our causal recipe has the loss that Trainer's AdamW ends with, and what each part of the recipe is worth.

The rules were committed before any run was scored on the text that judges:

1. The baseline is Trainer's AdamW on the shape of ``model=gpt2-tiny`` (192 wide, 4 layers, dropout off), for 400 steps
   of 16 × 128 tokens with a linear schedule. Its rate is the best of 1e-3, 2e-3, 3e-3 and 5e-3.
2. A rung of the ladder changes one more thing than the rung above it, with the rates that suit it. The last is
   ``experiment=speedrun_clm``.
3. All rates, shapes and lengths were chosen in runs that were trained on ``wiki.valid.tokens`` and scored on
   ``wiki.test.tokens``. They are fixed here. The race is trained on ``wiki.test.tokens`` and scored on
   ``wiki.valid.tokens``. Only the ten runs of Muon's layouts (docs/speed.md) were scored on a part of that before,
   and no setting follows from them. Python's reference text, split by topic, is kept back to check both ends. (It
   turned out to be too small for that: docs/speed.md.)
4. Each side has five seeds, for weights and order alike. Scored is the model after the last step, in bits per byte of
   the whole text, by the same evaluation for both sides.
5. A rung has reached the baseline if its mean is lower with p < 0.01 (Welch's one-sided t test). No run is left out.
6. The time of a rung is its number of steps times its seconds per step. Losses don't depend on how busy a machine is,
   so seconds per step are measured apart: in fresh processes, one rung after the other, on an idle machine. Neither
   start-up nor evaluation counts, on any side.

Two more rungs show what the schedule is worth, and, added when the baseline's seeds differed more than expected, a
baseline with a lower rate.

``python benchmarks/race.py --train FILE --test FILE`` makes the scores that are missing, times all rungs anew, and
writes ``benchmarks/race.md``.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, median, stdev
from tempfile import TemporaryDirectory
from typing import Any

import inputs
import speedrun
from measure import THREADS, fresh, tell
from run import code_version, machine
from scipy import stats

BLOCK, SEEDS, LEVEL = 128, 5, 0.01
ROUNDS, TIMED_STEPS = 3, 25
RAW = Path(__file__).with_suffix(".jsonl")
HEAD = """# The causal race

Made by `benchmarks/race.py`, whose first lines are the rules. All that was chosen was chosen in runs that were
trained on `wiki.valid.tokens` and scored on `wiki.test.tokens`. Each rung has all that the rung above it has, but for
two: the recipe at a constant rate, and the baseline at a lower rate, which was added afterwards. "p" is the chance
that a rung which is no better than the baseline looks so much better. Python's text is too small to check the race
(docs/speed.md).
"""
NO_DROPOUT = [f"model.config.{place}_pdrop=0.0" for place in ("resid", "embd", "attn")]
TINY = ["model=gpt2-tiny", *NO_DROPOUT]
ADAMW = ["optimizer=adamw", "optimizer.lr=3e-3", "optimizer.weight_decay=0.01", "scheduler.warmup=20"]
MUON = ["optimizer=muon", "optimizer.lr=0.02", "optimizer.adamw_lr=0.01", "scheduler.warmup=0.06"]
WIDE = ["model.config.n_layer=1", "model.config.n_embd=256"]
UNTIED = ["model.config.tie_word_embeddings=false", "optimizer.adamw_lr=0.03"]


@dataclass(frozen=True)
class Rung:
    """A side of the race: optimizer steps, blocks per step, and what ``train.py`` is told besides."""

    steps: int
    batch: int
    overrides: list[str]


BASELINE, GENTLER = "Trainer's AdamW", "Trainer's AdamW at 2e-3"
RATES = {BASELINE: 3e-3, GENTLER: 2e-3}
RUNGS = {
    BASELINE: Rung(400, 16, []),
    "ours, all else the same": Rung(400, 16, [*TINY, *ADAMW]),
    "Muon": Rung(130, 16, [*TINY, *MUON]),
    "one layer of 256 instead of four of 192": Rung(115, 16, [*TINY, *MUON, *WIDE]),
    "half the batch": Rung(200, 8, [*TINY, *MUON, *WIDE]),
    "another matrix for the output: `speedrun_clm`": Rung(170, 8, [*TINY, *MUON, *WIDE, *UNTIED]),
    "`speedrun_clm` at a constant rate": Rung(170, 8, [*TINY, *MUON, *WIDE, *UNTIED, "scheduler=constant"]),
    GENTLER: Rung(400, 16, []),  # added when the baseline's seeds turned out to differ so much
}


def run_rung(
    name: str, train: str, test: str, seed: int, steps: int | None = None, score: bool = True
) -> dict[str, float]:
    """Train a rung from scratch; its seconds per step, and bits per byte of the test text after the last step."""
    rung = RUNGS[name]
    steps = steps or rung.steps
    with TemporaryDirectory() as folder:
        data = ["objective=clm", "objective.prompts=[]", "data=text", f"data.train={train}", f"data.validation={test}"]
        data += [f"data.block_size={BLOCK}", f"data.cache_dir={inputs.FOLDER}/cache", "logger=none", "hardware=cpu"]
        if name in RATES:
            return _trainer(RATES[name], rung, data, train, seed, steps, score, folder)
        from lightning_lm.config.overrides import compose
        from lightning_lm.run import train as train_ours

        sizes = [f"trainer.max_steps={steps}", f"trainer.val_every_n_steps={steps}"]
        sizes += [f"trainer.global_batch_size={rung.batch}", f"seed={seed}", f"run_dir={folder}/run"]
        limit = [] if score else ["trainer.limit_val_batches=1"]
        cfg = compose(*rung.overrides, *data, *sizes, *limit)
        train_ours(cfg, run_test=False)
        summary = json.loads((Path(cfg.run_dir) / "summary.json").read_text(encoding="utf-8"))
    seconds = rung.batch * BLOCK / summary["tokens_per_second"]
    return {"seconds_per_step": seconds, "bits_per_byte": summary["val/bits_per_byte"]}


def _trainer(
    rate: float, rung: Rung, data: list[str], train: str, seed: int, steps: int, score: bool, folder: str
) -> dict[str, float]:
    import peers

    from lightning_lm.allocator import keep_freed_blocks
    from lightning_lm.config.overrides import compose
    from lightning_lm.data.windows import Windows
    from lightning_lm.evaluation.perplexity import score as evaluate
    from lightning_lm.training.components import build

    keep_freed_blocks()  # as ours does
    parts, clock = build(compose(*TINY, *data, f"seed={seed}")), peers.Clock()
    samples = peers.recipe("clm", parts.tokenizer, train, BLOCK, folder)
    peers.train(
        parts.model.train(),
        samples,
        peers.collator("clm", parts.tokenizer),
        clock,
        max_steps=steps,
        warmup_steps=20,
        per_device_train_batch_size=rung.batch,
        learning_rate=rate,
        seed=seed,
    )
    figures = {"seconds_per_step": rung.batch * BLOCK / clock.tokens_per_second(rung.batch * BLOCK)}
    if score:
        windows = Windows(parts.data.streams["validation"], BLOCK, parts.objective.stride(BLOCK))
        figures["bits_per_byte"] = evaluate(parts.model, parts.tokenizer, parts.objective, windows)["bits_per_byte"]
    return figures


def score_all(names: Sequence[str], train: Path, test: Path) -> None:
    """Every rung with every seed, two at once on a core each; those that are kept already aren't run again."""
    texts = (train.name, test.name)
    done = {(row["seed"], row["rung"]) for row in kept() if "seed" in row and (row["train"], row["test"]) == texts}

    def one(side: tuple[int, str]) -> None:
        seed, name = side
        figures = fresh("race.py", "run_rung", name=name, train=train, test=test, seed=seed)
        keep(train, test, rung=name, seed=seed, bits_per_byte=figures["bits_per_byte"])

    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, (side for side in product(range(SEEDS), names) if side not in done)))
    del os.environ["OMP_NUM_THREADS"]


def time_all(names: Sequence[str], train: Path, test: Path) -> None:
    """Seconds per step of the rungs and the baseline, one after the other: a series of rounds with a ratio each."""
    case = {"train": train, "test": test, "seed": 0, "steps": TIMED_STEPS, "score": False}
    series = time.strftime("%F %T")
    for number, name in product(range(ROUNDS), dict.fromkeys([BASELINE, *names])):
        seconds = fresh("race.py", "run_rung", name=name, **case)["seconds_per_step"]
        keep(train, test, rung=name, series=series, round=number, seconds_per_step=seconds)


def keep(train: Path, test: Path, **row: Any) -> None:
    made = {"date": time.strftime("%F"), "code": code_version(), "on": machine()}
    line = json.dumps({"train": train.name, "test": test.name, **row, **made}, ensure_ascii=False)
    print(line, flush=True)
    with RAW.open("a", encoding="utf-8") as file:
        print(line, file=file)


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RAW.read_text(encoding="utf-8").splitlines()] if RAW.exists() else []


def last_series(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Seconds of the baseline and of a rung in each round of the last whole series that has both."""
    sides: dict[str, dict[str, list[float]]] = {}
    for row in (row for row in rows if "round" in row):
        seconds = RUNGS[row["rung"]].steps * row["seconds_per_step"]
        sides.setdefault(row["series"], {}).setdefault(row["rung"], []).append(seconds)
    pairs = [(side.get(BASELINE, []), side.get(name, [])) for side in sides.values()]
    return next((pair for pair in reversed(pairs) if all(len(seconds) == ROUNDS for seconds in pair)), ([], []))


def table(rows: list[dict[str, Any]]) -> str:
    """The ladder as Markdown, from all that is kept of one pair of texts."""
    bits = {name: [row["bits_per_byte"] for row in rows if row["rung"] == name and "seed" in row] for name in RUNGS}
    heads = ["rung", "steps × blocks", "seeds", "bits per byte, mean ± spread", "p", "seconds"]
    heads.append("times as fast as the baseline")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in (name for name in RUNGS if len(bits[name]) > 1):
        rung, (theirs, mine) = RUNGS[name], last_series(rows, name)
        if name == BASELINE:  # of all series, each of which has it
            theirs = mine = [
                rung.steps * row["seconds_per_step"] for row in rows if row["rung"] == name and "round" in row
            ]
        p = stats.ttest_ind(bits[name], bits[BASELINE], equal_var=False, alternative="less").pvalue
        ratios = [over / under for over, under in zip(theirs, mine, strict=True)]
        cells = [
            name,
            f"{rung.steps} × {rung.batch}",
            str(len(bits[name])),
            f"{fmean(bits[name]):.4f} ± {stdev(bits[name]):.4f}",
            "" if name == BASELINE else f"{p:.1e}" if p < LEVEL else f"{p:.2g}, **not reached**",
            f"{median(mine):.1f}" if mine else "not timed",
            f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios and name != BASELINE else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    codes, machines = (", ".join(sorted({row[key] for row in rows})) for key in ("code", "on"))
    dates = ", ".join(sorted({row["date"] for row in rows}))
    title = f"Trained on `{rows[0]['train']}`, scored on `{rows[0]['test']}`, on {dates}; code {codes}; {machines}."
    return "\n".join(["", title, "", *lines, ""])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="without it Python's reference text, split by topic")
    parser.add_argument("--test", type=Path, help="the text that judges")
    parser.add_argument("--only", choices=["score", "time"], help="time needs an idle machine, score doesn't")
    numbers = range(len(RUNGS))
    parser.add_argument("--rungs", type=int, nargs="+", choices=numbers, default=numbers, help="0 is the baseline")
    args = parser.parse_args(argv)
    train, test = speedrun.files(args.train, args.test)
    names = [list(RUNGS)[number] for number in args.rungs]
    if args.only != "time":
        score_all(names, train, test)
    if args.only != "score":
        time_all(names, train, test)
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in kept():
        pairs.setdefault((row["train"], row["test"]), []).append(row)
    inputs.write(RAW.with_suffix(".md"), (HEAD + "".join(map(table, pairs.values()))).encode())
    return 0


if __name__ == "__main__":
    tell(run_rung) if sys.argv[1:2] == ["run_rung"] else sys.exit(main(sys.argv[1:]))
