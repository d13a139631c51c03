"""What people see while a run trains: bars on a terminal; elsewhere, and in ``train.log``, a line per log interval."""

import logging
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from lightning_lm.logs import has_bars
from lightning_lm.runs.numbers import duration
from lightning_lm.training.control import Budget
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import Telemetry, stepped

log = logging.getLogger(__name__)
SECONDS = 0.5  # between two drawings of a bar
NARROWEST = 8  # columns of a bar that tells something


class Progress(Callback):
    """Shows the whole run; each validation and the test have a bar of their own, below.

    With tqdm, for transformers and datasets draw theirs with it, too: all share the terminal, and the log's lines go
    above them. Lightning's own bars, on tqdm or rich, count an epoch's batches and know no run.
    """

    def __init__(self, telemetry: Telemetry, budget: Budget):
        self.telemetry, self.budget = telemetry, budget
        self.bars: list[tqdm] = []  # open ones, the run's first
        self._began = (0.0, 0.0)  # when this process's training began, and the run's progress then

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._began = time.monotonic(), self.budget.progress
        if trainer.global_step:
            log.info("continuing at %s", self._place(trainer, " of "))
        self.bars = [RunBar(self, trainer, pl_module)]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LanguageModel, outputs, batch, batch_idx: int) -> None:
        if stepped(trainer, batch_idx):
            self.bars[0].update()
            if self.telemetry.row_step == trainer.global_step:
                log.info("%s", " · ".join(self.parts(trainer, pl_module)), extra={"file_only": has_bars()})

    def on_validation_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._open("validation", trainer, trainer.num_val_batches)

    def on_test_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._open("test", trainer, trainer.num_test_batches)

    def _open(self, name: str, trainer: L.Trainer, batches: list) -> None:
        shape = "{desc} {n_fmt}/{total_fmt} batches · {remaining} left  {bar}"
        self.bars.append(tqdm(desc=name, total=sum(batches), leave=False, bar_format=shape, **drawing(trainer)))

    def on_validation_batch_end(self, *args: Any) -> None:
        self.bars[-1].update()

    def on_test_batch_end(self, *args: Any) -> None:
        self.bars[-1].update()

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self.bars.pop().close()

    def on_test_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._close()

    def on_train_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        self._close()
        for stop in trainer.early_stopping_callbacks:
            if stop.wait_count >= stop.patience:
                log.info("stopped early: %s did not improve in %d validations", stop.monitor, stop.wait_count)

    def on_exception(self, trainer: L.Trainer, pl_module: LanguageModel, exception: BaseException) -> None:
        self._close()  # what is said of it begins a line of its own

    def _close(self) -> None:
        while self.bars:
            self.bars.pop().close()

    def _place(self, trainer: L.Trainer, between: str) -> str:
        last = self.budget.max_steps
        return f"step {trainer.global_step}" + (f"{between}{last}" if last < sys.maxsize else "")

    def parts(self, trainer: L.Trainer, pl_module: LanguageModel) -> list[str]:
        """Place, loss, learning rate, tokens per second, time spent and time left, as far as they are known."""
        telemetry, (since, at) = self.telemetry, self._began
        loss, rate, speed = telemetry.loss_now(pl_module), telemetry.learning_rate, telemetry.tokens_per_second
        parts = [self._place(trainer, "/")]
        parts += [] if loss is None else [f"loss {loss:.3f}"]
        parts += [] if rate is None else [f"lr {rate:.3g}"]
        parts += [] if speed is None else [f"{speed:,.0f} tokens/s"]
        parts += [duration(telemetry.seconds)]
        if (done := self.budget.progress - at) > 1e-6:  # at first, ranks with a time budget know of none
            remaining = (time.monotonic() - since) / done * (1 - self.budget.progress)
            parts.append(f"{'≤' * bool(trainer.early_stopping_callbacks)}{duration(remaining)} left")
        return parts


def drawing(trainer: L.Trainer) -> dict[str, Any]:
    """How a bar is drawn: by time, as wide as the terminal is, by the first process, and not where there is none."""
    hidden = not (trainer.is_global_zero and has_bars())
    return {"miniters": 1, "mininterval": SECONDS, "dynamic_ncols": True, "disable": hidden}


class RunBar(tqdm):
    """The run's bar. It asks for its text only when it is drawn: on a GPU, to read a loss is to wait for it."""

    def __init__(self, progress: Progress, trainer: L.Trainer, module: LanguageModel):
        self.progress, self.run = progress, (trainer, module)
        super().__init__(total=1, **drawing(trainer))

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm draws: the text, and the bar where there is room."""
        state, parts = super().format_dict, self.progress.parts(*self.run)
        columns = state["ncols"] or 80
        while len(text := " · ".join(parts)) > columns and len(parts) > 2:
            parts.pop(-2)  # place and time left stay
        shape = "{text}  {bar}" if columns - len(text) > NARROWEST + 2 else "{text}"
        return {**state, "n": self.progress.budget.progress, "text": text, "bar_format": shape}
