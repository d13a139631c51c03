"""Ends a trial of a study that has fallen behind the others."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback

from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.study import STUDY_NAME, storage
from lightning_lm.training.control import Budget
from lightning_lm.training.module import LanguageModel

log = logging.getLogger(__name__)


class Pruning(Callback):
    """After each validation but the last: asynchronous successive halving on ``val/loss`` (Li et al., 2020).

    After 1, r, r², … validations, r being the reduction factor, a trial goes on if it is among the best 1/r of those
    that came as far. Validations while the learning rate warms up don't count: the rungs are at 1, r, r², … times the
    step of the first one after that. A trial that its study spares is compared, too, and goes on whatever comes out.

    Args:
        path: of the run folder's ``trial.json``.
        budget: tells how far the run is.
        warmup: the share of the run in which the rate rises.
    """

    def __init__(self, path: Path, budget: Budget, warmup: float):
        self.sweep, self.row = path.absolute().parents[1], read_json_file(path)  # the trial's place in its study
        self.budget, self.warmup = budget, warmup
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruned = state_dict["pruned"]

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        trainer.should_stop |= self.pruned  # the checkpoint was written, then the trial was cut off
        if trainer.is_global_zero:
            study = optuna.load_study(study_name=STUDY_NAME, storage=storage(self.sweep))
            self.trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[self.row["number"]]._trial_id)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if trainer.state.fn == "fit":
            behind = trainer.is_global_zero and self.behind(trainer, pl_module.figures["val/loss"])
            if trainer.strategy.broadcast(behind):
                log.info("pruned: behind the study's other trials at step %d", trainer.global_step)
                trainer.should_stop = self.pruned = True

    def behind(self, trainer: L.Trainer, loss: float) -> bool:
        """Report to the study, and ask it."""
        if self.budget.progress <= self.warmup:
            return False
        if self.trial._get_latest_trial().state.is_finished():  # someone goes on with a trial by hand
            return False
        self.trial.report(loss, trainer.global_step)
        factor, steps = self.row["reduction_factor"], self.trial._get_latest_trial().intermediate_values
        if factor is None or trainer.should_stop:
            return False
        self.trial.study.pruner = optuna.pruners.SuccessiveHalvingPruner(min(steps), factor)
        return self.trial.should_prune() and not self.row.get("spared", False)  # asked always: it notes the loss
