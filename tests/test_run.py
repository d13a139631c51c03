"""A run's length, its folder, its figures, and what it reads from the cache."""

import csv
import json
import logging

import pytest
import torch
from conftest import compose

from lightning_lm import build
from lightning_lm.errors import Diverged
from lightning_lm.run import train

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
    assert rates == pytest.approx([1e-3 * (1 - i / steps) for i in range(1, steps + 1)])
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
    summary, rows, last = run(tiny_gpt2, text, tmp_path / "run", "trainer.max_minutes=0.05")
    assert 3 <= summary["seconds"] < 30
    assert last["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["val/loss"] and int(rows[-1]["step"]) == summary["steps"]


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


def test_what_is_left_behind(tiny_bert, text, tmp_path, caplog):
    folder = tmp_path / "run"
    more = ["objective=mlm", f"data.test={text}", "trainer.limit_test_batches=2"]
    summary, rows, _ = run(tiny_bert, text, folder, *more, "objective.prompts=['the <mask> house']")
    assert sorted(path.name for path in folder.iterdir()) == FILES.split()
    assert {path.name for path in (folder / "plots").iterdir()} == {"loss.png", "perplexity.png", "learning_rate.png"}
    assert summary["status"] == "finished"
    best = min((row for row in rows if row["val/loss"]), key=lambda row: float(row["val/loss"]))
    assert summary["val/loss"] == float(best["val/loss"]) and summary["best_step"] == int(best["step"])
    assert "val/bits_per_byte" not in summary and "test/perplexity" in summary
    assert "masked-token perplexity" in (folder / "train.log").read_text()
    for name in ("best", "last"):
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_a_sweeps_job_leaves_the_test_split_alone(tiny_gpt2, text, tmp_path):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", f"data.test={text}", "trainer.max_steps=2"))
    train(job, run_test=False)
    assert not any(name.startswith("test/") for name in json.loads((tmp_path / "run" / "summary.json").read_text()))


def test_divergence_ends_the_run_and_is_told(tiny_gpt2, text, tmp_path):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", "optimizer.lr=1e30", "trainer.max_steps=20"))
    with pytest.raises(Diverged, match="optimizer.lr"):
        train(job)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "diverged"}


def test_what_maps_the_text_again(tiny_gpt2, text, tmp_path, caplog, monkeypatch):
    copy = tmp_path / "text.txt"
    copy.write_bytes(text.read_bytes())
    monkeypatch.setattr(logging.getLogger("lightning_lm"), "propagate", True)

    def mapped(*more, model=tiny_gpt2):
        caplog.clear()
        with caplog.at_level(logging.INFO, "lightning_lm"):
            build.build(compose(*settings(model, copy, tmp_path / "run", *more)))
        return sum(message.startswith("tokenizing") for message in caplog.messages)

    assert mapped() > 0
    assert mapped() == 0, "a second start reads the cache"
    assert mapped("data.block_size=17") == 0, "blocks are a view"
    assert mapped("data.separator=eos") > 0
    assert mapped("model.pretrained=false", "model.tokenizer=train", "model.vocab_size=300") > 0, "another tokenizer"
    copy.write_bytes(text.read_bytes() + b"one more line\n")
    assert mapped() > 0, "another text"
