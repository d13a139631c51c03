"""Settings of small runs on several processes, and ranks that die at a step."""

import os
import signal
import time

import pytest
import torch
from tiny import part_of

from lightning_lm import launch
from lightning_lm.errors import Died
from lightning_lm.launch import run_job
from lightning_lm.training.control import Budget

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started here: the models are too small for more


def settings(model, text, folder, *more):
    return [
        f"model.name_or_path={model}",
        "data=text",
        f"data.train={text}",
        f"data.validation={text}",
        f"data.test={part_of(text)}",
        "data.block_size=32",
        f"data.cache_dir={text.parent / 'cache'}",
        "objective.prompts=[]",
        "optimizer.lr=3e-3",
        "trainer.max_steps=26",
        "trainer.global_batch_size=8",
        "trainer.limit_train_batches=8",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=1",
        "trainer.log_every_n_steps=1",
        "hardware=cpu",
        "logger=none",
        f"run_dir={folder}",
        *more,
    ]


def dying(*arguments):
    """What a rank does in the place of ``_rank``: at a step, one of them dies, hangs, or interrupts the whole job."""
    environ = arguments[-1][1]  # of the process that called run_job
    rank, step, how = environ["DIES"].split()
    original = Budget.on_train_batch_end

    def die(self, trainer, *more):
        original(self, trainer, *more)
        if trainer.global_step == int(step):
            if how == "raises":
                raise RuntimeError("the disk is full")
            if how == "HANGS":
                time.sleep(600)
            os.kill(int(environ["AGENT"]) if how == "INTERRUPTS" else os.getpid(), SIGNALS[how])

    if os.environ["RANK"] == rank:
        Budget.on_train_batch_end = die
    return rank_of_a_job(*arguments)


SIGNALS = {"KILLED": signal.SIGKILL, "INTERRUPTS": signal.SIGTERM}
rank_of_a_job = launch._rank


def cut_off(monkeypatch, job, rank, step, how):
    """What ``run_job`` raises when that happens."""
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_rank", dying)
        patch.setenv("DIES", f"{rank} {step} {how}")
        patch.setenv("AGENT", str(os.getpid()))
        with pytest.raises((Died, SystemExit)) as ended:
            run_job(job)
    return ended.value


def weights(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
