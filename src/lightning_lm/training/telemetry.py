"""The figures of training: loss, speed, memory and waiting at an interval, and what the summary needs."""

import logging
import math
import textwrap
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from lightning_lm.data.windows import BatchPlan
from lightning_lm.errors import Diverged
from lightning_lm.logs import columns
from lightning_lm.models.flops import flops_per_token, peak_flops
from lightning_lm.runs.tracking import RunFolderLogger
from lightning_lm.training.metrics import exp
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.throughput import StepTimer, WaitClock, peak_memory, synchronize

log = logging.getLogger(__name__)


def stepped(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this micro batch completed an optimizer step; every step has the same number of them."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Telemetry(Callback):
    """Logs training figures at an interval, and keeps what the summary needs: time, speed, the latest validation."""

    def __init__(self, plan: BatchPlan, block_size: int, every_n_steps: int):
        self.plan, self.block_size, self.every_n_steps = plan, block_size, every_n_steps
        self.clock = WaitClock()  # the trainer's profiler, unless that writes a trace
        self.timer = StepTimer(self.clock)
        self.figures: dict[str, float] = {}  # of the latest validation; a checkpoint keeps them, the best one its own
        self.peak_memory = 0.0  # GB, of this process in training and its validations
        self._clock_runs = True
        self.learning_rate: float | None = None  # that the latest step used
        self.row_step, self.row_loss = -1, math.nan  # of the last row in metrics.csv that this process wrote
        self.tokens_per_second: float | None = None  # likewise
        self._unlogged: list[float] | None = None  # NLL and tokens of the steps since the last row, of all ranks
        self._started, self._seconds_before = time.monotonic(), 0.0  # of this process; in the ones before it
        self._logged = (0, 0.0, 0.0)  # tokens, seconds in training steps and those spent waiting, at the last log
        self._flops_per_token: float | None = None  # where the device's peak is known
        self._peak_flops: float | None = None

    def tokens_seen(self, steps: int) -> int:
        return self.plan.samples_seen(steps) * self.block_size

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, over all its processes."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def speed(self) -> dict[str, float | None]:
        """For the summary, without the first steps of each process."""
        rate = self.timer.per_second("measured_tokens")
        return {
            "tokens_per_second": rate,
            "data_wait": self.timer.per_second("measured_wait") if self._clock_runs else None,
            "peak_memory_gb": self.peak_memory,
            "model_flops_utilization": rate and self._utilization(rate),
        }

    def _utilization(self, tokens_per_second: float) -> float | None:
        return tokens_per_second * self._flops_per_token / self._peak_flops if self._peak_flops else None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "figures": self.figures, **self.timer.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._started, self._seconds_before = time.monotonic(), state_dict["seconds"]
        self.figures = state_dict["figures"]
        self.timer.measured = {name: state_dict[name] for name in self.timer.measured}

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunFolderLogger):
                logger.go_on_from(trainer.global_step, self.every_n_steps)
        if self._unlogged is not None and trainer.is_global_zero:
            nll, tokens = self._unlogged
            pl_module.train_nll.update(torch.tensor(nll, dtype=torch.float64, device=pl_module.device), int(tokens))
        self._logged = (self.tokens_seen(trainer.global_step), 0.0, 0.0)
        self._clock_runs = trainer.profiler is self.clock

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: LanguageModel, batch: Any, batch_idx: int) -> None:
        if self._flops_per_token is None and pl_module.device.type == "cuda":
            self._flops_per_token = flops_per_token(pl_module.model, pl_module.head, batch)
            torch.cuda.reset_peak_memory_stats(pl_module.device)
            tf32 = torch.backends.cuda.matmul.allow_tf32
            peak = peak_flops(torch.cuda.get_device_name(pl_module.device), trainer.precision, tf32)
            self._peak_flops = peak and peak * trainer.world_size
        self.timer.resume()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: LanguageModel, optimizer: Optimizer) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LanguageModel, outputs, batch, batch_idx: int) -> None:
        if not stepped(trainer, batch_idx):
            return
        step = trainer.global_step
        logs = step % self.every_n_steps == 0 or trainer.should_stop
        if logs or self.timer.warms_up_next:
            synchronize(pl_module.device)
        self.timer.end_step(self.tokens_seen(step) - self.tokens_seen(step - 1))
        if logs:
            self._log_training(trainer, pl_module, step)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        """The row that is logged next counts all labels since the last one, whatever lies between."""
        self.timer.pause(pl_module.device)
        sums = torch.stack([pl_module.train_nll.nll, pl_module.train_nll.tokens])
        checkpoint["unlogged"] = trainer.strategy.reduce(sums, reduce_op="sum").tolist()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        self._unlogged = checkpoint.get("unlogged")  # runs from before it was kept have none

    def _log_training(self, trainer: L.Trainer, pl_module: LanguageModel, step: int) -> None:
        loss = pl_module.train_nll.compute().get("loss")  # there is none where no token was labelled
        pl_module.train_nll.reset()
        if loss is None:
            return
        self._check(trainer, "training", loss)
        now = (self.tokens_seen(step), self.timer.seconds, self.timer.waiting)
        tokens, seconds, waiting = (a - b for a, b in zip(now, self._logged, strict=True))
        self._logged, rate = now, tokens / max(seconds, 1e-9)
        self.peak_memory = peak_memory(pl_module.device) / 1e9
        utilization = self._utilization(rate)
        figures = {
            "train/loss": loss,
            "train/perplexity": exp(loss),
            "learning_rate": self.learning_rate,
            "gradient_norm": float(pl_module.gradient_norm),
            "tokens_seen": now[0],
            "epoch": step / self.plan.steps,
            "tokens_per_second": rate,
            **({"data_wait": waiting / max(seconds, 1e-9)} if self._clock_runs else {}),
            "peak_memory_gb": self.peak_memory,
            **({} if utilization is None else {"model_flops_utilization": utilization}),
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        self.row_step, self.row_loss, self.tokens_per_second = step, loss, rate

    def loss_now(self, pl_module: LanguageModel) -> float | None:
        """Mean over this process's tokens since the last row, right after it the row's; waits for a GPU to be there."""
        sums = pl_module.train_nll
        if tokens := float(sums.tokens):
            return float(sums.nll) / tokens
        return None if self.row_step < 0 else self.row_loss

    def _check(self, trainer: L.Trainer, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            rate = trainer.lr_scheduler_configs[0].scheduler.base_lrs[0]
            raise Diverged("optimizer.lr", rate, f"the {kind} loss is {loss} at step {trainer.global_step}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self.timer.pause(pl_module.device)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        """Before the samples: no text can be drawn from logits that are no numbers. The module reuses these sums."""
        self._check(trainer, "validation", pl_module.eval_nll[0].compute()["loss"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self.peak_memory = peak_memory(pl_module.device) / 1e9
        self.figures = pl_module.figures
        self._log_evaluation(trainer, self.figures)
        shown = {name.removeprefix("val/"): value for name, value in self.figures.items() if name != "val/tokens"}
        labels = {"perplexity": pl_module.objective.facts.perplexity_label}
        texts = [
            f"{labels.get(name, name.replace('_', ' '))} {value:{'.4g' if abs(value) < 1e4 else ',.0f'}}"
            for name, value in shown.items()
        ]
        line = f"validation at step {trainer.global_step}: {', '.join(texts)}"
        log.info("%s", textwrap.fill(line, columns(), subsequent_indent="    "))

    def on_test_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._log_evaluation(trainer, pl_module.figures)

    def _log_evaluation(self, trainer: L.Trainer, figures: dict[str, float]) -> None:
        step = trainer.global_step
        place = {"tokens_seen": self.tokens_seen(step), "epoch": step / self.plan.steps}
        for logger in trainer.loggers:
            logger.log_metrics({**place, **figures}, step=step)
