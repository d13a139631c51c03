"""Checkpoints from which a run goes on exactly: when they are written, whole or not at all, and how they are read."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

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

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LanguageModel, outputs, batch, batch_idx: int) -> None:
        if not self.every_n_steps or not stepped(trainer, batch_idx) or trainer.global_step % self.every_n_steps:
            return
        ends_epoch = batch_idx + 1 == trainer.num_training_batches
        validates = self.val_every_n_steps and trainer.global_step % self.val_every_n_steps == 0
        if not (ends_epoch or validates or trainer.should_stop):  # a save before a validation would skip it on resume
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if trainer.state.fn == "fit":
            trainer.save_checkpoint(self.path, weights_only=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target and renames, so that a kill leaves the old file or the new one.

    Lightning's own goes through the system's temporary folder, which may lie on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(checkpoint, scratch)
        os.replace(scratch, path)


def load_weights(model: nn.Module, path: Path) -> dict[str, Any]:
    """Put the weights of a checkpoint of ``LanguageModel`` into its model; returns the checkpoint."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = {n.removeprefix("model."): v for n, v in checkpoint["state_dict"].items() if n.startswith("model.")}
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)
    return checkpoint
