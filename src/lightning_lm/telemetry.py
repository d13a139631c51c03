"""The figures of training: loss, speed, memory and waiting at an interval, and what the summary needs."""

import logging
import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_lm.data.blocks import Plan
from lightning_lm.errors import Diverged
from lightning_lm.metrics import exp
from lightning_lm.module import LanguageModel
from lightning_lm.speed import WaitClock, flops_per_token, peak_flops, peak_memory, wait_for
from lightning_lm.tracking import RunFolderLogger

log = logging.getLogger(__name__)

WARM_UP_STEPS = 5  # left out of tokens per second


def stepped(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this micro batch completed an optimiser step; every step has the same number of them."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Telemetry(Callback):
    """Logs training figures at an interval, and keeps what the summary needs: time, speed, the latest validation.

    ``data_wait`` is the share of the time in training steps that went by before the batch was there.
    """

    def __init__(self, plan: Plan, block_size: int, every_n_steps: int):
        self.plan, self.block_size, self.every_n_steps = plan, block_size, every_n_steps
        self.state = {"seconds": 0.0, "figures": {}}
        self.state |= {"measured_tokens": 0, "measured_seconds": 0.0, "measured_wait": 0.0}
        self.clock = WaitClock()  # the trainer's profiler
        self.waits = True  # whether the clock counts them
        self.peak_memory = 0.0  # GB, of this process in training and its validations
        self._flops_per_token: float | None = None  # where the device's peak is known
        self._peak_flops: float | None = None
        self._started = time.monotonic()
        self._training_seconds = 0.0  # since this process began, without validation and checkpoints
        self._training_wait = 0.0  # of these
        self._resumed_at: float | None = None
        self._timed = 0  # of this process
        self._logged = (0, 0.0, 0.0)  # tokens, training seconds and those of them spent waiting, at the last log
        self._waited = 0.0  # on the clock after the last step

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

    @property
    def speed(self) -> dict[str, float | None]:
        """For the summary, without the first steps of each process."""
        seconds = self.state["measured_seconds"]
        wait = self.state["measured_wait"] / seconds if seconds and self.waits else None
        rate = self.tokens_per_second
        return {
            "tokens_per_second": rate,
            "data_wait": wait,
            "peak_memory_gb": self.peak_memory,
            "model_flops_utilization": rate and self._utilization(rate),
        }

    def _utilization(self, tokens_per_second: float) -> float | None:
        return tokens_per_second * self._flops_per_token / self._peak_flops if self._peak_flops else None

    def state_dict(self) -> dict[str, Any]:
        return {**self.state, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict
        self._started = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunFolderLogger) and trainer.is_global_zero:
                logger.table.rewind(trainer.global_step)
        self._logged = (self.tokens_seen(trainer.global_step), 0.0, 0.0)
        self.waits = trainer.profiler is self.clock  # and not the one that writes a trace

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: LanguageModel, batch: Any, batch_idx: int) -> None:
        if self._flops_per_token is None and pl_module.device.type == "cuda":
            self._flops_per_token = flops_per_token(pl_module.model, pl_module.head, batch)
            torch.cuda.reset_peak_memory_stats(pl_module.device)
            tf32 = torch.backends.cuda.matmul.allow_tf32
            peak = peak_flops(torch.cuda.get_device_name(pl_module.device), trainer.precision, tf32)
            self._peak_flops = peak and peak * trainer.world_size
        if self._resumed_at is None:
            self._resumed_at, self._waited = time.monotonic(), self.clock.seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LanguageModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not stepped(trainer, batch_idx):
            return
        step = trainer.global_step
        logs = step % self.every_n_steps == 0 or trainer.should_stop
        if logs or self._timed == WARM_UP_STEPS - 1:
            wait_for(pl_module.device)
        self._count()
        self._timed += 1
        if self._timed > WARM_UP_STEPS:
            self.state["measured_tokens"] += self.tokens_seen(step) - self.tokens_seen(step - 1)
        if logs:
            self._log(trainer, pl_module, step)

    def _count(self) -> None:
        """Add the time since the last call to that of training, and to what is measured after the first steps."""
        now = time.monotonic()
        spent, self._resumed_at = now - self._resumed_at, now
        waited, self._waited = self.clock.seconds - self._waited, self.clock.seconds
        self._training_seconds += spent
        self._training_wait += waited
        if self._timed >= WARM_UP_STEPS:
            self.state["measured_seconds"] += spent
            self.state["measured_wait"] += waited

    def _pause(self, device: torch.device) -> None:
        """Stop the clock of training until the next batch; what a GPU still has to do belongs to the steps."""
        if self._resumed_at is not None:
            wait_for(device)
            self._count()
            self._resumed_at = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        self._pause(pl_module.device)

    def _log(self, trainer: L.Trainer, pl_module: LanguageModel, step: int) -> None:
        loss = pl_module.train_nll.compute().get("loss")  # there is none where no token was labelled
        pl_module.train_nll.reset()
        if loss is None:
            return
        self._check(trainer, "training", loss)
        now = (self.tokens_seen(step), self._training_seconds, self._training_wait)
        tokens, seconds, wait = (a - b for a, b in zip(now, self._logged, strict=True))
        self._logged, rate = now, tokens / max(seconds, 1e-9)
        self.peak_memory = peak_memory(pl_module.device) / 1e9
        utilization = self._utilization(rate)
        figures = {
            "train/loss": loss,
            "train/perplexity": exp(loss),
            "learning_rate": trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0],
            "gradient_norm": float(pl_module.gradient_norm),
            "tokens_seen": now[0],
            "epoch": step / self.plan.steps,
            "tokens_per_second": rate,
            **({"data_wait": wait / max(seconds, 1e-9)} if self.waits else {}),
            "peak_memory_gb": self.peak_memory,
            **({} if utilization is None else {"model_flops_utilization": utilization}),
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        # As a tensor of the CPU: Lightning would put a number on the GPU, and read it back after each batch
        pl_module.log("train/loss", torch.tensor(loss), prog_bar=True, logger=False)

    def on_validation_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._pause(pl_module.device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self.peak_memory = peak_memory(pl_module.device) / 1e9
        figures = self.state["figures"] = pl_module.figures  # the best checkpoint tells its own
        self._check(trainer, "validation", figures["val/loss"])
        self._log_evaluation(trainer, figures)
        names = {"val/perplexity": pl_module.objective.perplexity_label}
        told = {names.get(name, name.removeprefix("val/")): value for name, value in figures.items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in told.items() if name != "tokens")
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
