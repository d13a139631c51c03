"""What happens around the steps: samples, stopping in time, randomness, and checkpoints that resume exactly."""

import logging
import random
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import Optimizer

from lightning_lm.folder import Table
from lightning_lm.memory import give_freed_blocks_back, keep_freed_blocks
from lightning_lm.module import LanguageModel
from lightning_lm.sharding import is_sharded
from lightning_lm.telemetry import Telemetry, stepped

log = logging.getLogger(__name__)

SAMPLES_SHOWN = 500  # rows of the table in W&B; samples.csv has all


class Budget(Callback):
    """Stops after the last step or when the time is spent; Lightning validates once more when told to stop."""

    def __init__(self, telemetry: Telemetry, max_steps: int, max_minutes: float | None):
        self.telemetry, self.max_steps, self.max_minutes = telemetry, max_steps, max_minutes
        self.progress = 0.0  # of the run, 0 to 1, by steps or by time, whichever is ahead

    def state_dict(self) -> dict[str, Any]:
        return {"progress": self.progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.progress = state_dict["progress"]

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        """A run that was cut off after its end or its early stop has nothing left to train."""
        early = any(c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)
        trainer.should_stop |= early or self.progress >= 1

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: LanguageModel, optimizer: Optimizer) -> None:
        """With a time budget the learning rate follows the progress: the ranks agree on the clock that is ahead."""
        share = 0.0 if self.max_minutes is None else self.telemetry.seconds / (60 * self.max_minutes)
        if share and trainer.world_size > 1:
            share = float(trainer.strategy.reduce(torch.tensor(share, device=pl_module.device), reduce_op="max"))
        self.progress = min(1.0, max(share, (trainer.global_step + 1) / self.max_steps))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LanguageModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if stepped(trainer, batch_idx):
            trainer.should_stop |= self.progress >= 1


class Samples(Callback):
    """After each validation: what the model makes of the objective's prompts, to the log, a table and W&B."""

    def __init__(self, run: Path, tokenizer: Any, seed: int):
        self.table = Table(run / "samples.csv", ["step", "prompt", "text"])
        self.tokenizer, self.seed = tokenizer, seed

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if trainer.is_global_zero:
            self.table.rewind(trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        prompts = pl_module.objective.prompts
        sharded = is_sharded(pl_module.model)  # then a rank alone can compute nothing
        if not prompts or not (trainer.is_global_zero or sharded):
            return
        pl_module.model.eval()
        with torch.compiler.set_stance("force_eager"):  # text of every length would be compiled anew
            texts = pl_module.objective.preview(pl_module.model, self.tokenizer, self.seed)
        pl_module.model.train()
        if not trainer.is_global_zero:
            return
        for prompt, text in zip(prompts, texts, strict=True):
            self.table.append({"step": trainer.global_step, "prompt": prompt, "text": text})
            log.info("    %s", " ".join(text.split()))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):  # the dashboard shows the last table: let it hold the earlier ones too
                rows = [[int(row["step"]), row["prompt"], row["text"]] for row in self.table.rows()[-SAMPLES_SHOWN:]]
                logger.log_text("samples", columns=self.table.columns, data=rows, step=trainer.global_step)


class Randomness(Callback):
    """Makes what dropout draws a function of the seed, the step, the micro batch and the rank, and of no history."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: LanguageModel, batch: Any, batch_idx: int) -> None:
        place = (trainer.global_step, batch_idx % trainer.accumulate_grad_batches, trainer.global_rank)
        seed = int(np.random.SeedSequence([self.seed, *place]).generate_state(1)[0])
        random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs much more where there is no GPU
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)


class Interrupts(Callback):
    """Of several ranks, all stop at the same step when one is told to; alone it would leave the others waiting."""

    def __init__(self) -> None:
        self.told = 0  # the signal

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if trainer.world_size > 1:  # Lightning puts the earlier handlers back
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._tell)

    def _tell(self, number: int, frame: Any) -> None:
        self.told = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LanguageModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not stepped(trainer, batch_idx) or trainer.world_size == 1:
            return
        if trainer.strategy.reduce_boolean_decision(self.told > 0, all=False):
            raise KeyboardInterrupt if self.told == signal.SIGINT else SIGTERMException


class Heap(Callback):
    """On a CPU: freed blocks are kept from the second step on.

    So the optimizer's state, which the first one leaves, lies outside the heap. Within, it would stand between the
    blocks that come and go, and the heap would grow for want of holes that are large enough.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        give_freed_blocks_back()
        self.stepped = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LanguageModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.stepped and stepped(trainer, batch_idx):
            self.stepped = True
            keep_freed_blocks()

    def on_train_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        keep_freed_blocks()  # where there was no step left to do, too


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
