"""Training equals ``transformers.Trainer`` step by step, where that can be trusted.

Trainer gets the same weights, the same blocks in the same order and, for MLM, the same masks. It scales MLM losses
wrongly under gradient accumulation, so there our accumulated run is held against its single large batch.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments

from lightning_lm.data.windows import order
from lightning_lm.run import train
from lightning_lm.training import components as build

STEPS, BATCH, BLOCK = 30, 8, 32


class InOrder(Trainer):
    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def trainer_losses(model, samples, folder, accumulate):
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // accumulate,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-3,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        warmup_steps=5,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = InOrder(model, arguments, train_dataset=samples)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def settings(model, text, run, micro_batch_size, objective):
    return compose(
        f"objective={objective}",
        "data=text",
        f"data.train={text}",
        f"data.validation={text}",
        f"data.block_size={BLOCK}",
        f"data.cache_dir={run.parent / 'cache'}",
        f"model.name_or_path={model}",
        "optimizer.lr=1e-3",
        "scheduler.warmup=5",
        f"trainer.max_steps={STEPS}",
        f"trainer.global_batch_size={BATCH}",
        "trainer.log_every_n_steps=1",
        "trainer.limit_val_batches=1",
        f"hardware.micro_batch_size={micro_batch_size}",
        "hardware=cpu",
        "logger=none",
        f"run_dir={run}",
    )


def our_losses(*args):
    job = settings(*args)
    train(job)
    with Path(job.run_dir, "metrics.csv").open(encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_clm_losses_equal_trainers(tiny_gpt2, text, tmp_path, accumulate):
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    with Path(text).open(encoding="utf-8", newline="\n") as file:
        stream = [token for line in file for token in tokenizer(line)["input_ids"]]
    blocks = [stream[i : i + BLOCK] for i in range(0, len(stream) - BLOCK + 1, BLOCK)]
    assert len(blocks) > STEPS * BATCH, "the test needs text for one epoch"
    shuffled = [blocks[i] for i in order(len(blocks), seed=0, epoch=0)]
    # A block's first label is never predicted, yet Trainer counts it when it averages, unless it is marked as none.
    samples = [{"input_ids": torch.tensor(b), "labels": torch.tensor([-100, *b[1:]])} for b in shuffled]
    theirs = trainer_losses(AutoModelForCausalLM.from_pretrained(tiny_gpt2), samples, tmp_path, accumulate)
    ours = our_losses(tiny_gpt2, text, tmp_path / "run", BATCH // accumulate, "clm")
    assert len(ours) == STEPS
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ours[-1] < ours[0] - 0.5, "nothing was learnt, so nothing was compared"


@pytest.mark.parametrize("accumulate", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_mlm_losses_equal_trainers_with_the_whole_batch(tiny_bert, text, tmp_path, accumulate):
    parts = build.build(settings(tiny_bert, text, tmp_path / "probe", BATCH, "mlm"))
    batches = parts.data._batches("train", parts.data.plan("train"), rank=0)
    assert batches.plan.steps > STEPS
    samples = [
        {"input_ids": ids, "labels": labels}
        for step in range(STEPS)
        for ids, labels in zip(batches[0, step]["input_ids"], batches[0, step]["labels"], strict=True)
    ]
    theirs = trainer_losses(AutoModelForMaskedLM.from_pretrained(tiny_bert), samples, tmp_path, 1)
    ours = our_losses(tiny_bert, text, tmp_path / "run", BATCH // accumulate, "mlm")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
