"""Runs that are cut off and gone on with: their settings, and all that they decide."""

import csv

import torch
from tiny import part_of


def settings(model, text, run, *more):
    return [
        f"model.name_or_path={model}",
        "data=text",
        f"data.train={text}",
        f"data.validation={text}",
        f"data.test={part_of(text)}",
        "data.block_size=64",
        f"data.cache_dir={run.parent / 'cache'}",
        "objective.prompts=['The river']",
        "objective.preview_tokens=3",
        "optimizer.lr=1e-3",
        "scheduler.warmup=2",
        "trainer.max_steps=32",
        "trainer.global_batch_size=8",
        "trainer.limit_train_batches=13",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=1",
        "trainer.checkpoint_every_n_steps=3",
        "trainer.log_every_n_steps=1",
        "hardware=cpu",
        "hardware.micro_batch_size=4",
        "logger=none",
        f"run_dir={run}",
        *more,
    ]


def outcome(run):
    """All that a run decides: weights, optimizer state, figures without those of time."""
    checkpoints = {
        name: torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("last", "best")
    }
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        measured = ("tokens_per_second", "data_wait", "peak_memory_gb", "model_flops_utilization")
        rows = [{k: v for k, v in row.items() if k not in measured} for row in csv.DictReader(file)]
    return checkpoints, rows, (run / "samples.csv").read_text(encoding="utf-8")


def assert_same(run, reference):
    (ours, rows, samples), (theirs, expected, expected_samples) = outcome(run), outcome(reference)
    for name in ("last", "best"):
        assert ours[name]["global_step"] == theirs[name]["global_step"]
        for key, value in theirs[name]["state_dict"].items():
            assert torch.equal(ours[name]["state_dict"][key], value), (name, key)
        assert_equal(ours[name]["optimizer_states"], theirs[name]["optimizer_states"])
        assert ours[name]["lr_schedulers"][0]["last_epoch"] == theirs[name]["lr_schedulers"][0]["last_epoch"]
    assert rows == expected
    assert samples == expected_samples


def assert_equal(ours, theirs):
    """Nested states, tensor by tensor."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_equal(ours[key], value)
    elif isinstance(theirs, list | tuple):
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert ours == theirs
