"""A run's length, its folder, its figures, and what it reads from the cache."""

import csv
import json
import logging
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import compose
from tiny import part_of

from lightning_lm.data.batches import Batches
from lightning_lm.errors import Diverged, Refused
from lightning_lm.evaluation.scoring import evaluate
from lightning_lm.run import train
from lightning_lm.training import components as build
from lightning_lm.training import telemetry
from lightning_lm.training import throughput as speed
from lightning_lm.training.checkpoints import WholeCheckpointIO
from lightning_lm.training.module import LanguageModel

FILES = (
    "checkpoints config.yaml environment.json export export_check.json ledger.json metrics.csv plots samples.csv "
    "summary.json train.log"
)


def run(model, text, folder, *more):
    """Train with these settings; returns the summary, the rows of the metrics, and the last checkpoint."""
    job = compose(*settings(model, text, folder, *more))
    train(job)
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((folder / "summary.json").read_text())
    return summary, rows, torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def settings(model, text, folder, *more):
    return [
        f"model.name_or_path={model}",
        "data=text",
        f"data.train={text}",
        f"data.validation={text}",
        "data.block_size=32",
        f"data.cache_dir={folder.parent / 'cache'}",
        "objective.prompts=[]",
        "optimizer.lr=1e-3",
        "trainer.global_batch_size=8",
        "trainer.limit_train_batches=5",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1",
        "hardware=cpu",
        "logger=none",
        f"run_dir={folder}",
        *more,
    ]


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ([], 15),
        (["trainer.max_epochs=2"], 10),
        (["trainer.max_steps=7"], 7),
        (["trainer.max_epochs=2", "trainer.max_steps=7"], 7),
        (["trainer.max_epochs=1", "trainer.max_steps=7"], 5),
        (["trainer.max_tokens=1000"], 4),  # 256 tokens a step
        (["trainer.max_tokens=1300", "hardware.micro_batch_size=2"], 6),
    ],
)
def test_the_run_and_its_schedule_end_together(tiny_gpt2, text, tmp_path, duration, steps):
    summary, rows, last = run(tiny_gpt2, text, tmp_path / "run", *duration)
    assert summary["steps"] == last["global_step"] == steps
    assert summary["tokens_seen"] == steps * 8 * 32
    rates = [float(row["learning_rate"]) for row in rows if row["learning_rate"]]
    assert rates == pytest.approx([1e-3 * (1 - i / steps) for i in range(steps)])
    assert all(float(row["epoch"]) == pytest.approx(int(row["step"]) / 5) for row in rows)
    validated = [int(row["step"]) for row in rows if row["val/loss"]]
    assert validated == sorted({*range(5, steps + 1, 5), steps}), "once an epoch, and at the end"


def test_a_partial_last_batch_counts_as_a_step(tiny_gpt2, text, tmp_path):
    more = ["trainer.limit_train_batches=null", "trainer.max_epochs=1", "trainer.global_batch_size=256"]
    summary, _, _ = run(tiny_gpt2, text, tmp_path / "run", *more, "hardware.micro_batch_size=64")
    blocks = json.loads((tmp_path / "run" / "ledger.json").read_text())["train"]["blocks"]
    assert blocks % 256
    assert summary["steps"] == blocks // 256 + 1
    assert summary["tokens_seen"] == blocks * 32


def test_a_time_budget_ends_the_run_and_the_schedule(tiny_gpt2, text, tmp_path):
    summary, rows, last = run(tiny_gpt2, text, tmp_path / "run", "trainer.max_minutes=0.02")
    assert 1.2 <= summary["seconds"] < 30
    assert last["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["val/loss"] and int(rows[-1]["step"]) == summary["steps"]
    assert re.search(r"step 2 · loss .* left$", (tmp_path / "run" / "train.log").read_text(), re.MULTILINE)
    (tmp_path / "run" / "summary.json").unlink()  # as if it was cut off before its last line
    again, _, _ = run(tiny_gpt2, text, tmp_path / "run", "trainer.max_minutes=0.02")
    assert again["steps"] == summary["steps"] and again["val/loss"] == summary["val/loss"]


def test_validation_by_steps(tiny_gpt2, text, tmp_path):
    more = ["trainer.val_every_n_steps=3", "trainer.max_steps=10", "hardware.micro_batch_size=4"]
    _, rows, _ = run(tiny_gpt2, text, tmp_path / "run", *more)
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [3, 6, 9, 10]


def test_early_stopping(tiny_gpt2, text, tmp_path):
    more = ["optimizer.lr=1e-12", "trainer.patience=2", "trainer.max_epochs=9"]
    more += ["scheduler=constant"]
    summary, rows, _ = run(tiny_gpt2, text, tmp_path / "run", *more)
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert losses[-1] >= losses[-3] and losses[-2] >= losses[-3], "two without improvement"
    assert summary["steps"] == 5 * len(losses) < 45
    assert "stopped early: val/loss did not improve in 2 validations" in (tmp_path / "run" / "train.log").read_text()


def test_what_is_left_behind(tiny_bert, text, tmp_path, caplog):
    folder = tmp_path / "run"
    more = ["objective=mlm", f"data.test={part_of(text)}", "trainer.limit_test_batches=2"]
    summary, rows, _ = run(tiny_bert, text, folder, *more, "objective.prompts=['the <mask> house']")
    assert sorted(path.name for path in folder.iterdir()) == FILES.split()
    assert {path.name for path in (folder / "plots").iterdir()} == {"loss.png", "perplexity.png", "learning_rate.png"}
    assert summary["status"] == "finished"
    best = min((row for row in rows if row["val/loss"]), key=lambda row: float(row["val/loss"]))
    assert summary["val/loss"] == float(best["val/loss"]) and summary["best_step"] == int(best["step"])
    assert "val/bits_per_byte" not in summary and "test/perplexity" in summary
    assert "masked-token perplexity" in (folder / "train.log").read_text()
    assert "data.validation is the training text" in (folder / "train.log").read_text()
    assert summary["test/protocol"]["limit"] == 16 and summary["val/protocol"]["masking"]["probability"] == 0.15
    assert "test: only the first 16 windows were scored, not the whole text" in (folder / "train.log").read_text()
    for name in ("best", "last"):
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_the_validation_text_is_no_test(tiny_gpt2, text, tmp_path):
    """By its content: its files are others."""
    lines, parts = text.read_text(encoding="utf-8").splitlines(keepends=True), [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, half in zip(parts, (lines[:300], lines[300:]), strict=True):
        path.write_text("".join(half), encoding="utf-8")
    more = [f"data.train={part_of(text)}", f"data.test=[{parts[0]},{parts[1]}]"]
    with pytest.raises(Refused, match="^data.test=.*: validation and test are the same text"):
        run(tiny_gpt2, text, tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("documents", [False, True])
def test_a_run_and_evaluate_measure_in_one_way(tiny_gpt2, text, tmp_path, documents):
    more = [
        "data.separator=eos",
        f"data.documents={documents}",
        "trainer.limit_val_batches=null",
        "trainer.max_steps=1",
    ]
    summary, _, _ = run(tiny_gpt2, text, tmp_path / "run", *more)
    again = evaluate(tmp_path / "run", split="validation")
    assert summary["val/protocol"] == again.protocol
    assert summary["val/protocol_hash"] == json.loads(again.as_json())["protocol_hash"]
    rows = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert summary["val/separators"] == again.separators == len(rows) - 1
    assert summary["val/loss"] == pytest.approx(again.loss, rel=1e-6)
    assert summary["val/bits_per_byte"] == pytest.approx(again.bits_per_byte, rel=1e-6)
    assert summary["val/tokens"] == again.tokens


def test_a_sweeps_job_leaves_the_test_split_alone(tiny_gpt2, text, tmp_path):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", f"data.test={part_of(text)}", "trainer.max_steps=2"))
    train(job, run_test=False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not any(name.startswith("test/") for name in summary) and summary["times_tested"] == 0


def test_divergence_ends_the_run_and_is_told(tiny_gpt2, text, tmp_path):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", "optimizer.lr=1e30", "trainer.max_steps=20"))
    with pytest.raises(Diverged, match="optimizer.lr"):
        train(job)
    ended = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert ended["status"] == "diverged" and ended["reason"].startswith("optimizer.lr=1e+30: gradients are no num")


def test_what_maps_the_text_again(tiny_gpt2, text, tmp_path, caplog, monkeypatch):
    copy = tmp_path / "text.txt"
    copy.write_bytes(text.read_bytes())
    monkeypatch.setattr(logging.getLogger("lightning_lm"), "propagate", True)

    def mapped(*more, model=tiny_gpt2):
        caplog.clear()
        with caplog.at_level(logging.INFO, "lightning_lm"):
            build.build(compose(*settings(model, copy, tmp_path / "run", *more)))
        return sum(message.startswith("tokenising") for message in caplog.messages)

    assert mapped() > 0
    assert mapped() == 0, "a second start reads the cache"
    assert mapped("data.block_size=17") == 0, "blocks are a view"
    assert mapped("data.separator=eos") > 0
    assert mapped("model.pretrained=false", "model.tokenizer=train", "model.vocab_size=300") > 0, "another tokenizer"
    copy.write_bytes(text.read_bytes() + b"one more line\n")
    assert mapped() > 0, "another text"


def test_low_precision_weights_leave_the_sums_exact(tiny_gpt2, text, tmp_path):
    more = ["hardware.precision=bf16-true", "trainer.max_steps=2", "trainer.limit_val_batches=20"]
    summary, _, _ = run(tiny_gpt2, text, tmp_path / "run", *more)
    exact, _, _ = run(tiny_gpt2, text, tmp_path / "exact", *more[1:])
    assert summary["val/loss"] == pytest.approx(exact["val/loss"], rel=5e-3)
    words = [s["val/loss"] / s["val/bits_per_byte"] for s in (summary, exact)]  # tokens per byte, but for a constant
    assert words[0] == pytest.approx(words[1], rel=1e-12)


def test_a_run_cut_off_after_its_early_stop_trains_no_further(tiny_gpt2, text, tmp_path):
    more = ["optimizer.lr=1e-12", "trainer.patience=1", "trainer.max_epochs=9", "scheduler=constant"]
    more += [f"data.test={part_of(text)}", "trainer.limit_test_batches=1"]
    first, rows, _ = run(tiny_gpt2, text, tmp_path / "run", *more)
    (tmp_path / "run" / "summary.json").unlink()
    again, rows_again, _ = run(tiny_gpt2, text, tmp_path / "run", *more)
    assert first["steps"] == again["steps"] < 45 and first["test/loss"] == again["test/loss"]
    assert [row["test/loss"] for row in rows] == [row["test/loss"] for row in rows_again]


def test_the_profiler_leaves_a_trace(tiny_gpt2, text, tmp_path):
    more = ["trainer.profiler=true", f"data.test={part_of(text)}", "trainer.limit_test_batches=1"]
    run(tiny_gpt2, text, tmp_path / "run", *more)
    assert any(path.stat().st_size > 10_000 for path in (tmp_path / "run" / "profile").glob("*.json"))


def test_speed_is_that_of_the_steps_alone(tiny_gpt2, text, tmp_path, monkeypatch):
    """On a clock that moves in steps (2 s) and in waiting for data, and also in validation and saving."""
    now = [0.0]
    for module in (telemetry, speed):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def takes(owner, name, seconds):
        function = getattr(owner, name)

        def slower(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, slower)

    takes(LanguageModel, "training_step", 2)
    takes(Batches, "__getitem__", 0.5)
    takes(LanguageModel, "validation_step", 100)
    takes(WholeCheckpointIO, "save_checkpoint", 1000)
    summary, rows, _ = run(tiny_gpt2, text, tmp_path / "r")
    rows = [row for row in rows if row["tokens_per_second"]]
    seconds = [8 * 32 / float(row["tokens_per_second"]) for row in rows]
    waits = [float(row["data_wait"]) * took for row, took in zip(rows, seconds, strict=True)]
    assert len(rows) == 15 and sum(waits) > 0
    assert [took - wait for took, wait in zip(seconds, waits, strict=True)] == pytest.approx([2] * 15)
    assert {round(wait, 6) for wait in waits} <= {0, 0.5}
    assert summary["tokens_per_second"] == pytest.approx(10 * 8 * 32 / sum(seconds[5:])), "the first five are left out"
    assert summary["data_wait"] == pytest.approx(sum(waits[5:]) / sum(seconds[5:]))
    assert summary["seconds"] > 3 * 1100


def test_sampling_stays_within_the_models_positions(tiny_gpt2, text, tmp_path):
    run(tiny_gpt2, text, tmp_path / "run", "objective.prompts=['the river']", "objective.preview_tokens=500")
    assert "the river" in (tmp_path / "run" / "samples.csv").read_text()


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        (["optimizer.groups=[{ndim: 1}]"], "optimizer.groups"),
        (["scheduler.warmup=16"], "scheduler.warmup"),
        (["scheduler=wsd", "scheduler.warmup=8", "scheduler.decay=8"], "scheduler.warmup"),
        (["trainer.profiler=true", "trainer.max_epochs=1"], "trainer.profiler"),
        (["objective.prompts=['" + "the river " * 70 + "']"], "objective.prompts"),
        (["data.block_size=65"], "data.block_size"),
        (["data.validation=ONE"], "data.validation"),
        (["model.config.n_layers=3"], "model.config.n_layers"),
        (["model.config.n_embd=48"], "model.config"),
        (["objective=mlm"], "objective"),
        (["hardware.accelerator=gpu"], "hardware.accelerator"),
    ],
)
def test_what_only_the_parts_can_tell_is_refused_before_anything_is_written(tiny_gpt2, text, tmp_path, more, setting):
    (tmp_path / "one.txt").write_text("a")
    more = [m.replace("ONE", str(tmp_path / "one.txt")) for m in more]
    if setting == "hardware.accelerator" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Refused) as refused:
        train(compose(*settings(tiny_gpt2, text, tmp_path / "run", *more)))
    assert setting in [problem.setting for problem in refused.value.problems]
    assert "\n" not in str(refused.value.problems[0])
    assert not (tmp_path / "run").exists()
