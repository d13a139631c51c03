"""Steps whose gradients are no numbers: noted on the device, looked at when a row is logged, told with their text."""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_lm.data.datamodule import TextDataModule
from lightning_lm.errors import Diverged
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import stepped

log = logging.getLogger(__name__)
MOST_SKIPPED = 100  # steps of a run; where there are more, something else is wrong
SHOWN = 100  # characters of a step's first block


class NonFinite(Callback):
    """Ends the run at the first such step, or counts those that ``LanguageModel`` has skipped."""

    def __init__(self, data: TextDataModule, skips: bool, every_n_steps: int):
        self.data, self.skips, self.every_n_steps = data, skips, every_n_steps
        self.skipped: list[int] = []
        self.unseen: dict[int, Tensor] = {}  # step → whether its gradients are numbers, still on the device

    def state_dict(self) -> dict[str, Any]:
        self._look()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LanguageModel, outputs, batch, batch_idx: int) -> None:
        if stepped(trainer, batch_idx):
            self.unseen[trainer.global_step] = torch.isfinite(pl_module.gradient_norm)
            if trainer.global_step % self.every_n_steps == 0 or trainer.should_stop:
                self._judge(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._judge(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        """So that no checkpoint has weights that are no numbers: the run could not go on from there."""
        self._judge(trainer)

    def _judge(self, trainer: L.Trainer) -> None:
        self._look()
        rate = trainer.lr_scheduler_configs[0].scheduler.base_lrs[0]
        if self.skipped and not self.skips:
            wrong = f"gradients are no numbers at step {self.skipped[0]}, {self._text_of(self.skipped[0])}"
            raise Diverged("optimizer.lr", rate, f"{wrong}; trainer.on_nonfinite=skip leaves out such steps")
        if len(self.skipped) > MOST_SKIPPED:
            wrong = f"{len(self.skipped)} steps were skipped up to step {trainer.global_step}"
            raise Diverged("optimizer.lr", rate, wrong)

    def _look(self) -> None:
        """Fetch the notes from the device."""
        numbers = torch.stack([*self.unseen.values()]).tolist() if self.unseen else []
        bad = [step for step, finite in zip(self.unseen, numbers, strict=True) if not finite]
        for step in bad if self.skips else ():
            log.warning("step %d is skipped: its gradients are no numbers; %s", step, self._text_of(step))
        self.skipped = self.skipped + bad
        self.unseen = {}

    def _text_of(self, step: int) -> str:
        blocks = self.data.blocks_of(step)
        tokens = self.data.windows("train").take(blocks[:1]).tokens[0]
        text = self.data.tokenizer.decode(tokens.tolist())[:SHOWN]
        return f"with the blocks {', '.join(map(str, blocks))} of the training text; the first begins {text!r}"
