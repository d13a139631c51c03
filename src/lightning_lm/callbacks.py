"""What happens around the steps: telemetry, samples, stopping in time, and checkpoints that resume exactly."""

import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import WandbLogger

from lightning_lm.data.blocks import Plan
from lightning_lm.errors import Diverged
from lightning_lm.folder import Table
from lightning_lm.metrics import exp
from lightning_lm.module import LanguageModel
from lightning_lm.tracking import RunFolderLogger

log = logging.getLogger(__name__)

WARM_UP_STEPS = 5  # left out of tokens per second
SAMPLES_SHOWN = 500  # rows of the table in W&B; samples.csv has all


def stepped(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this micro batch completed an optimiser step; every step has the same number of them."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Telemetry(Callback):
    """Logs training figures at an interval, and keeps what the summary needs: time, speed, the latest validation."""

    def __init__(self, plan: Plan, block_size: int, every_n_steps: int):
        self.plan, self.block_size, self.every_n_steps = plan, block_size, every_n_steps
        self.state = {"seconds": 0.0, "measured_tokens": 0, "measured_seconds": 0.0, "figures": {}}
        self._started = time.monotonic()
        self._training_seconds = 0.0  # since this process began, without validation and checkpoints
        self._resumed_at: float | None = None
        self.steps = 0  # optimiser steps of the run
        self._timed = 0  # of this process
        self._logged = (0, 0.0)  # tokens and training seconds at the last log

    def tokens_seen(self, steps: int) -> int:
        return self.plan.samples_seen(steps) * self.block_size

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, over all its processes."""
        return self.state["seconds"] + time.monotonic() - self._started

    @property
    def tokens_per_second(self) -> float | None:
        seconds = self.state["measured_seconds"]
        return self.state["measured_tokens"] / seconds if seconds else None

    def state_dict(self) -> dict[str, Any]:
        return {**self.state, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunFolderLogger):
                logger.table.rewind(trainer.global_step)
        self._logged = (self.tokens_seen(trainer.global_step), 0.0)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: LanguageModel, batch: Any, batch_idx: int) -> None:
        if self._resumed_at is None:
            self._resumed_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LanguageModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not stepped(trainer, batch_idx):
            return
        step = trainer.global_step
        now = time.monotonic()
        spent, self._resumed_at = now - self._resumed_at, now
        self._training_seconds += spent
        self.steps = step
        self._timed += 1
        if self._timed > WARM_UP_STEPS:
            self.state["measured_tokens"] += self.tokens_seen(step) - self.tokens_seen(step - 1)
            self.state["measured_seconds"] += spent
        if step % self.every_n_steps == 0 or trainer.should_stop:
            self._log(trainer, pl_module, step)

    def _log(self, trainer: L.Trainer, pl_module: LanguageModel, step: int) -> None:
        loss = pl_module.train_nll.compute().get("loss")  # there is none where no token was labelled
        pl_module.train_nll.reset()
        if loss is None:
            return
        self._check(trainer, "training", loss)
        tokens, seconds = self.tokens_seen(step), self._training_seconds
        figures = {
            "train/loss": loss,
            "train/perplexity": exp(loss),
            "learning_rate": trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0],
            "gradient_norm": float(pl_module.gradient_norm),
            "tokens_seen": tokens,
            "epoch": step / self.plan.steps,
            "tokens_per_second": (tokens - self._logged[0]) / max(seconds - self._logged[1], 1e-9),
        }
        self._logged = (tokens, seconds)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        pl_module.log("train/loss", loss, prog_bar=True, logger=False)

    def on_validation_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._resumed_at = None  # the clock of training stops until the next batch

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        figures = self.state["figures"] = pl_module.figures  # the best checkpoint tells its own
        self._check(trainer, "validation", figures["val/loss"])
        self._log_evaluation(trainer, figures)
        names = {"val/perplexity": pl_module.objective.perplexity_label}
        shown = ", ".join(f"{names.get(n, n.removeprefix('val/'))} {value:.4g}" for n, value in figures.items())
        log.info("step %d: %s", trainer.global_step, shown)

    def _check(self, trainer: L.Trainer, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            rate = trainer.lr_scheduler_configs[0].scheduler.base_lrs[0]
            raise Diverged("optimizer.lr", rate, f"the {kind} loss is {loss} at step {trainer.global_step}")

    def on_test_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._log_evaluation(trainer, pl_module.figures)

    def _log_evaluation(self, trainer: L.Trainer, figures: dict[str, float]) -> None:
        step = trainer.global_step
        place = {"tokens_seen": self.tokens_seen(step), "epoch": step / self.plan.steps}
        for logger in trainer.loggers:
            logger.log_metrics({**place, **figures}, step=step)


class Budget(Callback):
    """Stops after the last step or when the time is spent; Lightning validates once more when told to stop."""

    def __init__(self, telemetry: Telemetry, max_steps: int, max_minutes: float | None):
        self.telemetry, self.max_steps, self.max_minutes = telemetry, max_steps, max_minutes

    @property
    def share_spent(self) -> float:
        """Of the time budget, 0 to 1."""
        return min(1.0, self.telemetry.seconds / (60 * self.max_minutes))

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        """A run that was cut off after its early stop has nothing left to train."""
        trainer.should_stop |= any(c.wait_count >= c.patience for c in trainer.early_stopping_callbacks)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LanguageModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not stepped(trainer, batch_idx):
            return
        out_of_time = self.max_minutes is not None and self.share_spent >= 1
        if trainer.global_step >= self.max_steps or trainer.strategy.reduce_boolean_decision(out_of_time, all=False):
            trainer.should_stop = True


class Samples(Callback):
    """After each validation: what the model makes of the objective's prompts, to the log, a table and W&B."""

    def __init__(self, run: Path, tokenizer: Any, seed: int):
        self.table = Table(run / "samples.csv", ["step", "prompt", "text"])
        self.tokenizer, self.seed = tokenizer, seed

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self.table.rewind(trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        prompts = pl_module.objective.prompts
        if not prompts or not trainer.is_global_zero:
            return
        pl_module.model.eval()
        texts = pl_module.objective.preview(pl_module.model, self.tokenizer, self.seed)
        pl_module.model.train()
        for prompt, text in zip(prompts, texts, strict=True):
            self.table.append({"step": trainer.global_step, "prompt": prompt, "text": text})
            log.info("    %s", " ".join(text.split()))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):  # the dashboard shows the last table: let it hold the earlier ones too
                rows = [[int(row["step"]), row["prompt"], row["text"]] for row in self.table.rows()[-SAMPLES_SHOWN:]]
                logger.log_text("samples", columns=self.table.columns, data=rows, step=trainer.global_step)


class RandomState(Callback):
    """Carries the generators that dropout draws from through a checkpoint, as tensors and plain lists."""

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = random.getstate()
        kind, keys, *rest = np.random.get_state()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": [version, list(internal), gauss],
            "numpy": [kind, keys.tolist(), *rest],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: LanguageModel, batch: Any, batch_idx: int) -> None:
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        torch.set_rng_state(saved["torch"])
        if saved["cuda"]:
            torch.cuda.set_rng_state_all(saved["cuda"])
        version, internal, gauss = saved["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = saved["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


class LastCheckpoint(Checkpoint):
    """``last.ckpt`` at an interval and after each validation, always between two optimiser steps."""

    def __init__(self, folder: Path, every_n_steps: int | None, val_every_n_steps: int | None):
        self.path = folder / "last.ckpt"
        self.every_n_steps, self.val_every_n_steps = every_n_steps, val_every_n_steps

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
