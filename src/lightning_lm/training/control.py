"""When a run stops, and what its randomness depends on."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from lightning_lm.allocator import give_freed_blocks_back, keep_freed_blocks
from lightning_lm.training.agreement import Agreement
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import Telemetry, stepped


class Budget(Callback):
    """Stops after the last step or when the time is spent; Lightning validates once more when told to stop."""

    def __init__(self, telemetry: Telemetry, max_steps: int, max_minutes: float | None, clocks: Agreement):
        self.telemetry, self.max_steps, self.max_minutes, self.clocks = telemetry, max_steps, max_minutes, clocks
        self.progress = 0.0  # of the run, 0 to 1, by steps or by time, whichever is ahead

    def state_dict(self) -> dict[str, Any]:
        return {"progress": self.progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.progress = state_dict["progress"]

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        """A run that was cut off after its end or its early stop has nothing left to train."""
        self.clocks.begin(trainer)
        if self.max_minutes is None:  # the run may have got a later end
            self.progress = trainer.global_step / self.max_steps
        early = any(c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)
        trainer.should_stop |= early or self.progress >= 1

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: LanguageModel, optimizer: Optimizer) -> None:
        """With a time budget the learning rate follows the progress: the ranks agree on the clock that is ahead."""
        share = 0.0
        if self.max_minutes is not None:
            share = self.clocks.largest_before(self.telemetry.seconds / (60 * self.max_minutes))[0]
        self.progress = min(1.0, max(share, (trainer.global_step + 1) / self.max_steps))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LanguageModel, outputs, batch, batch_idx: int) -> None:
        if stepped(trainer, batch_idx):
            trainer.should_stop |= self.progress >= 1


class StepSeed(Callback):
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


class KeepFreedMemory(Callback):
    """On a CPU: freed blocks are kept from the second step on.

    So the optimizer's state, which the first one leaves, lies outside the heap. Within, it would stand between the
    blocks that come and go, and the heap would grow for want of holes that are large enough.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        give_freed_blocks_back()
        self.has_stepped = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LanguageModel, outputs, batch, batch_idx: int) -> None:
        if not self.has_stepped and stepped(trainer, batch_idx):
            self.has_stepped = True
            keep_freed_blocks()

    def on_train_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        keep_freed_blocks()  # where there was no step left to do, too
