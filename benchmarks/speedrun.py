"""How soon our masked recipe reaches what Trainer's AdamW has after its last step; both with four trials.

Both are judged by the same evaluation of the same test text, and the clock runs in training steps only: neither
start-up nor evaluation counts. The recipe's time is that of its first validation at or below the target. The trials
vary the rate alone. The recipe's shape, batch and length were chosen before, in 12 shorter runs that were scored on the
last 15 % of the training text. The baseline's are those of ``model=bert-tiny``, and were not searched. The causal race,
``race.py``, has stricter rules.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import inputs
from measure import fresh, tell

RATES = {"baseline": [5e-4, 1e-3, 1.5e-3, 2e-3], "recipe": [0.02, 0.03, 0.04, 0.06]}  # the trials of either side
STEPS, WARM_UP, BATCH, BLOCK = 400, 20, 16, 128
EXPERIMENT, FIGURE = "speedrun_mlm", "loss"  # nats per masked token; the vocabulary is the same


@dataclass(frozen=True)
class Found:
    """The target, and what times either side's best trial once more."""

    target: float
    steps: int
    ours: Callable[[], dict[str, Any]]
    baseline: Callable[[], dict[str, Any]]


def files(text: Path | None, test: Path | None) -> tuple[Path, Path]:
    """What is trained on and what is scored: the given files, or Python's reference text, split by topic."""
    if text is not None:
        if test is None:
            raise RuntimeError("--text needs --test here, a text that the models don't see")
        return text, test
    paths = [inputs.FOLDER / "texts" / f"python_docs-{split}.txt" for split in ("train", "test")]
    for path, split in zip(paths, ("train", "test"), strict=True):
        inputs.write(path, "".join(inputs.lines(None, split)).encode())
    return paths[0], paths[1]


def search(train: Path, test: Path, quick: bool = False) -> Found:
    """All trials of both sides, each in a fresh process; prints them and keeps them in ``outputs/bench``.

    Raises:
        RuntimeError: none of the recipe's trials reaches the target.
    """
    case = {"train": train, "test": test, "steps": 8 if quick else STEPS}
    rates = {side: tried[: 1 if quick else None] for side, tried in RATES.items()}
    trials = [{"rate": rate, **fresh("speedrun.py", "baseline", rate=rate, **case)} for rate in rates["baseline"]]
    best = min(trials, key=lambda trial: trial["figure"])
    target = best["figure"]
    for trial in trials:
        print(f"  baseline {trial['rate']:g}: {trial['figure']:.4f} in {trial['seconds']:.0f} s", flush=True)
    shorter = [f"trainer.max_steps={case['steps']}"] if quick else []
    race = {"figure": FIGURE, "train_text": train, "test_text": test}

    def ours(rate: float) -> dict[str, Any]:
        overrides = [f"experiment={EXPERIMENT}", f"optimizer.lr={rate}", *shorter]
        points = fresh("ours.py", "race", overrides=overrides, **race)
        seconds = next((seconds for _, seconds, figure in points if figure <= target), None)
        return {"rate": rate, "seconds": seconds, "points": points}

    recipes = [ours(rate) for rate in rates["recipe"]]
    for trial in recipes:
        reached = f"the target in {trial['seconds']:.0f} s" if trial["seconds"] else "never at the target"
        print(f"  recipe {trial['rate']:g}: {trial['points'][-1][2]:.4f}, {reached}", flush=True)
    kept = {"target": target, "baseline": trials, "recipe": recipes}
    inputs.write(inputs.FOLDER / f"{EXPERIMENT}{'-quick' if quick else ''}.json", json.dumps(kept, indent=1).encode())
    there = [trial for trial in recipes if trial["seconds"]]
    if not there:
        raise RuntimeError(f"no trial of {EXPERIMENT} reaches {target:.4f}, the baseline's {FIGURE}")
    fastest = min(there, key=lambda trial: trial["seconds"])["rate"]

    def again() -> dict[str, Any]:
        found = ours(fastest)
        if found["seconds"] is None:
            raise RuntimeError(f"{EXPERIMENT} with {fastest} missed {target:.4f} this time")
        return found

    return Found(target, case["steps"], again, lambda: fresh("speedrun.py", "baseline", rate=best["rate"], **case))


def baseline(train: str, test: str, steps: int, rate: float) -> dict[str, Any]:
    """Trainer's AdamW from scratch: seconds of its steps, and the figure on the test text that it ends with."""
    import ours
    import peers
    from transformers import TrainerCallback

    from lightning_lm.data.windows import Windows
    from lightning_lm.evaluation.perplexity import score as evaluate
    from lightning_lm.training import components as build

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.began

    watch = Stopwatch()
    with TemporaryDirectory() as folder:
        data = ["data=text", f"data.train={train}", f"data.validation={test}", f"data.block_size={BLOCK}"]
        data += [f"data.cache_dir={folder}/cache", "logger=none", "hardware=cpu"]
        parts = build.build(ours.settings("model=bert-tiny", "objective=mlm", *NO_DROPOUT, *data))
        samples = peers.recipe("mlm", parts.tokenizer, train, BLOCK, folder)
        peers.train(
            parts.model.train(),
            samples,
            peers.collator("mlm", parts.tokenizer),
            watch,
            max_steps=steps,
            warmup_steps=WARM_UP,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            weight_decay=0.01,
        )
        windows = Windows(parts.data.streams["validation"], BLOCK, parts.objective.stride(BLOCK))
        figures = evaluate(parts.model, parts.tokenizer, parts.objective, windows)
    return {"seconds": watch.seconds, "figure": figures[FIGURE]}


NO_DROPOUT = [f"model.config.{place}_dropout_prob=0" for place in ("hidden", "attention_probs")]


if __name__ == "__main__":
    tell(baseline)
