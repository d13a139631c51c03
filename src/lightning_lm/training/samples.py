"""After each validation: what the model makes of the objective's prompts, to the log, a table and W&B."""

import logging
import textwrap
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from torch.distributed.fsdp import FSDPModule

from lightning_lm.logs import columns
from lightning_lm.runs.step_table import StepTable
from lightning_lm.training.module import LanguageModel

log = logging.getLogger(__name__)
SAMPLES_SHOWN = 500  # rows of the table in W&B; samples.csv has all


class PromptSamples(Callback):
    def __init__(self, run: Path, tokenizer: Any, seed: int):
        self.table = StepTable(run / "samples.csv", ["step", "prompt", "text"])
        self.tokenizer, self.seed = tokenizer, seed

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if trainer.is_global_zero:
            self.table.rewind(trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        """While the model has the weights that were validated, which may be averaged ones."""
        sharded = isinstance(pl_module.model, FSDPModule)  # then a rank alone can compute nothing
        self.texts: list[str] = []
        if pl_module.objective.prompts and (trainer.is_global_zero or sharded):
            with torch.compiler.set_stance("force_eager"):  # text of every length would be compiled anew
                self.texts = pl_module.objective.preview(pl_module.model, self.tokenizer, self.seed)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if not self.texts or not trainer.is_global_zero:
            return
        for prompt, text in zip(pl_module.objective.prompts, self.texts, strict=True):
            self.table.append({"step": trainer.global_step, "prompt": prompt, "text": text})
            shown = f"sample: {' '.join(text.split())}"
            log.info("%s", textwrap.fill(shown, columns(), initial_indent=" " * 4, subsequent_indent=" " * 6))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):  # the dashboard shows the last table: let it hold the earlier ones too
                rows = [[int(row["step"]), row["prompt"], row["text"]] for row in self.table.rows()[-SAMPLES_SHOWN:]]
                logger.log_text("samples", columns=self.table.columns, data=rows, step=trainer.global_step)
