"""Our side of the benchmarks: what ``train.py`` and ``lightning-lm evaluate`` do, with a clock."""

import csv
import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from measure import forget_peak_memory, peak_memory, tell
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_lm.config.overrides import compose
from lightning_lm.config.schema import Config
from lightning_lm.data.datamodule import TextDataModule
from lightning_lm.data.windows import Windows
from lightning_lm.evaluation.perplexity import score
from lightning_lm.models.flops import peak_flops
from lightning_lm.run import train
from lightning_lm.training import components as build


def settings(*overrides: str) -> Config:
    """What ``train.py`` hands to the library for these overrides."""
    return compose(*overrides)


def of_text(objective: str, model: str, text: str, block: int, cache: str, *more: str, hardware: str = "cpu") -> Config:
    validation = Path(cache) / "validation.txt"
    validation.parent.mkdir(parents=True, exist_ok=True)
    if not validation.exists():
        with Path(text).open(encoding="utf-8", newline="\n") as file:
            validation.write_text("".join(line for _, line in zip(range(200), file, strict=False)), encoding="utf-8")
    return settings(
        f"objective={objective}",
        "objective.prompts=[]",
        "data=text",
        f"data.train={text}",
        f"data.validation={validation}",
        f"data.block_size={block}",
        f"data.cache_dir={cache}/cache",
        f"model.name_or_path={model}",
        "logger=none",
        f"hardware={hardware}",
        *more,
    )


def steps(
    objective: str,
    model: str,
    text: str,
    batch: int,
    block: int,
    steps: int,
    hardware: str = "cpu",
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """Tokens per second of training, seconds of its first step, peak memory in bytes when its last step ends, and the
    losses that were logged. ``more`` are further overrides."""
    times: list[float] = []  # when each step began and ended: Lightning computes the loss within the optimizer's step
    registers = (register_optimizer_step_pre_hook, register_optimizer_step_post_hook)
    hooks = [register(lambda *_: times.append(time.perf_counter())) for register in registers]
    with TemporaryDirectory() as folder:
        cfg = of_text(
            objective,
            model,
            text,
            block,
            folder,
            f"trainer.max_steps={steps}",
            f"trainer.global_batch_size={batch}",
            f"trainer.log_every_n_steps={min(10, steps)}",
            "trainer.limit_val_batches=1",
            "optimizer.lr=1e-4",
            f"run_dir={folder}/run",
            *more,
            hardware=hardware,
        )
        train(cfg)
        for hook in hooks:
            hook.remove()
        summary = json.loads((Path(cfg.run_dir) / "summary.json").read_text(encoding="utf-8"))
        rows = [row for row in logged(cfg) if row["train/loss"]]
        losses, peak = [float(row["train/loss"]) for row in rows], float(rows[-1]["peak_memory_gb"])
    speed = {
        "tokens_per_second": summary["tokens_per_second"],
        "first_step": times[1] - times[0],
        "peak_memory": peak * 1e9,
    }
    return {**speed, "losses": losses}


def logged(cfg: Config) -> list[dict[str, str]]:
    with (Path(cfg.run_dir) / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def evaluate(objective: str, model: str, text: str, batch: int, block: int, hardware: str = "cpu") -> dict[str, Any]:
    """Seconds of scoring a text once it is tokens, its tokens per second, peak memory in bytes, and the scores.

    On a GPU in bfloat16, as validations are, and in the second of two passes: the first loads kernels.
    """
    device = "cpu" if hardware == "cpu" else "cuda"
    with TemporaryDirectory() as folder:
        parts = build.build(of_text(objective, model, text, block, folder, "hardware.compile=false", hardware=hardware))
        stream, network = parts.data.streams["train"], parts.model.to(device)
        for _ in range(1 if device == "cpu" else 2):
            forget_peak_memory()
            began = time.perf_counter()
            windows = Windows(stream, block, parts.objective.stride(block))
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                figures = score(network, parts.tokenizer, parts.objective, windows, batch_size=batch)
            seconds = time.perf_counter() - began
    peak = peak_memory() if device == "cpu" else torch.cuda.max_memory_allocated()
    speed = {"seconds": seconds, "tokens_per_second": len(stream.tokens) / seconds}
    return {**speed, "peak_memory": peak, **figures}


def prepared(cfg: Config) -> tuple[TextDataModule, float, float]:
    """The data, and the seconds that the tokenizer took to load and the text to become tokens."""
    began = time.perf_counter()
    tokenizer = build.build_tokenizer(cfg, None)
    loaded = time.perf_counter()
    data = build.build_data(cfg, cfg.data.build(), tokenizer, cfg.objective.build(tokenizer))
    data.prepare_data()
    return data, loaded - began, time.perf_counter() - loaded


def prepare(objective: str, model: str, text: str, block: int, cache: str | None = None) -> dict[str, Any]:
    """Seconds of making blocks from a text (and of loading the tokenizer), tokens, and peak memory in bytes."""
    with TemporaryDirectory() as folder:
        cfg = of_text(objective, model, text, block, cache or folder)
        data, loading, seconds = prepared(cfg)
        tokens = len(data.streams["train"].tokens)
    return {"seconds": seconds, "tokenizer_seconds": loading, "tokens": tokens, "peak_memory": peak_memory()}


def batches(objective: str, model: str, text: str, batch: int, block: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of the training loader, with no model: whole epochs for at least so many seconds."""
    with TemporaryDirectory() as folder:
        cfg = of_text(objective, model, text, block, folder, f"trainer.global_batch_size={batch}")
        data, _, _ = prepared(cfg)
        data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        loader, tokens = data.train_dataloader(), 0
        next(iter(loader))
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            tokens += sum(item["input_ids"].numel() for item in loader)
    return {"tokens_per_second": tokens / spent, "peak_memory": peak_memory()}


def race(overrides: list[str], figure: str, train_text: str, test_text: str) -> list[tuple[int, float, float]]:
    """A recipe's (step, seconds in training steps until then, figure on the test text) at each of its validations."""
    with TemporaryDirectory() as folder:
        files = [f"data.train={train_text}", f"data.validation={test_text}", f"data.cache_dir={folder}/cache"]
        cfg = settings(*overrides, "data=text", *files, "logger=none", "hardware=cpu", f"run_dir={folder}/run")
        train(cfg, run_test=False)
        rows = logged(cfg)
    seconds, tokens, clock = 0.0, 0, []  # the clock at each logged step; it stands still during validations
    for row in rows:
        if row["tokens_per_second"]:
            seconds += (int(row["tokens_seen"]) - tokens) / float(row["tokens_per_second"])
            tokens = int(row["tokens_seen"])
            clock.append((int(row["step"]), seconds))
    scores = [(int(row["step"]), float(row[name])) for row in rows if row[name := f"val/{figure}"]]
    return [(step, next(s for at, s in clock if at >= step), score) for step, score in scores]


def machine(hardware: str) -> dict[str, Any]:
    """The device that ``hardware=…`` means (None: there is none), its peak in FLOP/s, and the same for Trainer."""
    wanted, gpu = settings(f"hardware={hardware}").hardware, hardware == "gpu"
    for_trainer = {
        "use_cpu": not gpu,
        "tf32": wanted.tf32,
        "bf16": "bf16" in wanted.precision,
        "torch_compile": wanted.compile,
    }
    for_trainer["dataloader_num_workers"] = wanted.num_workers
    if gpu and not torch.cuda.is_available():
        return {"device": None}
    device = torch.cuda.get_device_name() if gpu else "CPU"
    versions = {name: version(name) for name in ("torch", "transformers", "lightning")}
    peak = peak_flops(device, wanted.precision, wanted.tf32)
    return {"device": device, "peak": peak, "for_trainer": for_trainer, "versions": versions}


if __name__ == "__main__":
    tell(steps, evaluate, prepare, batches, race, machine)
