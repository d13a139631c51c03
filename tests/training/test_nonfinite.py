"""Steps whose gradients are no numbers end the run, or are skipped as if they had not been; both tell the text."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import compose
from resumable import assert_equal, assert_same, settings

from lightning_lm.errors import Diverged, Refused
from lightning_lm.run import train
from lightning_lm.training import nonfinite
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import Telemetry

EPOCH = 13  # steps of 8 blocks
MORE = ("scheduler=constant", "scheduler.warmup=0", "objective.prompts=[]", "trainer.limit_val_batches=1")


def job(model, text, run, *more):
    return compose(*settings(model, text, run, *MORE, "trainer.log_every_n_steps=4", *more))


@pytest.fixture
def spoil(monkeypatch):
    """From here on the second micro batch of these steps has a loss that is no number."""

    def at(*steps):
        original = LanguageModel.training_step

        def spoiled(self, batch, batch_idx):
            loss = original(self, batch, batch_idx)
            return loss * float("nan") if self.trainer.global_step + 1 in steps and batch_idx % 2 else loss

        monkeypatch.setattr(LanguageModel, "training_step", spoiled)

    return at


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_changes_neither_weights_nor_optimizer(optimizer, spoil, dropping, text, tmp_path, capsys):
    """A run whose last step is skipped, against one that has a step less; torch's fused AdamW decides on the device."""
    more = (f"optimizer={optimizer}", "trainer.on_nonfinite=skip")
    train(job(dropping, text, tmp_path / "shorter", *more, "trainer.max_steps=5"))
    spoil(6)
    train(job(dropping, text, tmp_path / "run", *more, "trainer.max_steps=6"))
    ours, theirs = last(tmp_path / "run"), last(tmp_path / "shorter")
    assert (ours["global_step"], theirs["global_step"]) == (6, 5)
    assert_equal(ours["state_dict"], theirs["state_dict"])
    assert_equal(ours["optimizer_states"], theirs["optimizer_states"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_steps"] == 1
    assert "step 6 is skipped: its gradients are no numbers" in capsys.readouterr().err


def test_skips_are_the_same_after_a_resume(spoil, dropping, text, tmp_path, monkeypatch, capsys):
    spoil(3, 7, EPOCH + 2)
    more = ("trainer.on_nonfinite=skip", "trainer.max_steps=18")
    train(job(dropping, text, tmp_path / "whole", *more))
    told = [line for line in capsys.readouterr().err.splitlines() if "is skipped" in line]
    original = Telemetry.on_train_batch_end

    def dying(self, trainer, *args):
        if trainer.global_step == 8:  # saved at 6, looked at last at 4
            raise KeyboardInterrupt
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "on_train_batch_end", dying)
        with pytest.raises(SystemExit):
            train(job(dropping, text, tmp_path / "run", *more))
    train(job(dropping, text, tmp_path / "run", *more))
    assert_same(tmp_path / "run", tmp_path / "whole")
    states = [last(tmp_path / name)["callbacks"]["NonFinite"] for name in ("run", "whole")]
    assert states == [{"skipped": [3, 7, 15]}] * 2
    blocks = [list(map(int, re.search("blocks (.*) of the", line)[1].split(", "))) for line in told]
    orders = [np.random.default_rng([0, epoch]).permutation(EPOCH * 8) for epoch in (0, 1)]
    expected = [orders[0][16:24], orders[0][48:56], orders[1][8:16]]
    assert blocks == [row.tolist() for row in expected]


@pytest.mark.parametrize("more", [(), ("trainer.val_every_n_steps=5",)], ids=["saved", "validated"])
def test_a_run_that_stops_names_step_and_text_and_goes_on_by_skipping(more, spoil, dropping, text, tmp_path):
    """Between the step and the next row, where it has to see what that step has made of the weights."""
    spoil(5)
    more = ["trainer.max_steps=8", *more]
    with pytest.raises(Diverged, match="gradients are no numbers at step 5, with the blocks .* first begins '") as told:
        train(job(dropping, text, tmp_path / "run", *more))
    piece = re.search("begins ['\"](.*?)['\"]; ", str(told.value))[1].encode().decode("unicode_escape")
    assert piece.strip() and piece in text.read_text()
    train(job(dropping, text, tmp_path / "run", *more, "trainer.on_nonfinite=skip"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_steps"] == 1


@pytest.mark.parametrize("more", [["optimizer.lr=1e37"], ["optimizer.lr=1e30", "trainer.on_nonfinite=skip"]])
def test_weights_that_overflow_before_a_validation_with_samples(more, dropping, text, tmp_path):
    """The gradients of the only step are numbers, and what is drawn from such a model's logits fails in torch."""
    more = [*more, "trainer.max_steps=1", "trainer.log_every_n_steps=50", "objective.prompts=['The river']"]
    with pytest.raises(Diverged, match="optimizer.lr=1e.*the validation loss is nan at step 1; lower the rate") as told:
        train(job(dropping, text, tmp_path / "run", *more))
    assert len(str(told.value).splitlines()) == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


def test_skips_are_bounded(spoil, dropping, text, tmp_path, monkeypatch):
    monkeypatch.setattr(nonfinite, "MOST_SKIPPED", 2)
    spoil(1, 2, 5)
    with pytest.raises(Diverged, match="3 steps were skipped up to step 6"):
        train(job(dropping, text, tmp_path / "run", "trainer.on_nonfinite=skip"))


@pytest.mark.parametrize("hardware", ["hardware.precision=16-mixed", "hardware.strategy=fsdp"])
def test_where_steps_can_not_be_skipped(hardware, dropping, text, tmp_path):
    more = ("hardware=auto", hardware, "trainer.on_nonfinite=skip")
    with pytest.raises(Refused, match="trainer.on_nonfinite=skip"):
        train(job(dropping, text, tmp_path / "run", *more))
