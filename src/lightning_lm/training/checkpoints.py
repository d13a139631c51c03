"""Checkpoints from which a run goes on exactly."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import stepped


class LastCheckpoint(Checkpoint):
    """``last.ckpt`` at an interval and after each validation, always between two optimiser steps."""

    def __init__(self, folder: Path, every_n_steps: int | None, val_every_n_steps: int | None):
        self.path = folder / "last.ckpt"
        self.every_n_steps, self.val_every_n_steps = every_n_steps, val_every_n_steps

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        checkpoint["accumulate"] = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        """Lightning counts micro batches; on another number of devices a step has another number of them."""
        before, now = checkpoint["accumulate"], trainer.accumulate_grad_batches
        for name in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
            for counts in map(checkpoint["loops"]["fit_loop"][name].get, ("current", "total")):
                more = counts["ready"] // before * (now - before)
                counts.update({key: count + more for key, count in counts.items()})  # the last may be uncompleted

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LanguageModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.every_n_steps or not stepped(trainer, batch_idx) or trainer.global_step % self.every_n_steps:
            return
        ends_epoch = batch_idx + 1 == trainer.num_training_batches
        validates = self.val_every_n_steps and trainer.global_step % self.val_every_n_steps == 0
        if not (ends_epoch or validates or trainer.should_stop):  # a save before a validation would skip it on resume
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if trainer.state.fn == "fit":
            trainer.save_checkpoint(self.path, weights_only=False)
