"""Checkpoints from which a run goes on exactly: when they are written, whole or not at all, and how they are read."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from lightning_lm.config.schema import TrainerConfig
from lightning_lm.errors import refuse
from lightning_lm.faults import first_line
from lightning_lm.files import linked, remove, replacing, zip_damage
from lightning_lm.interrupts import Interrupted, interrupts
from lightning_lm.logs import rank
from lightning_lm.training.agreement import Agreement
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import stepped

log = logging.getLogger(__name__)
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
EXTEND, EXTEND_BEST = "extend.ckpt", "extend_best.ckpt"  # what a later end goes on from: last and best at that step


class LastCheckpoint(Checkpoint):
    """``last.ckpt`` at intervals, after each validation, and when a signal asks to stop: between two optimizer steps.

    A validation that a signal cuts off is done again, whole, when the run goes on. Of several ranks all stop at the
    same place, a step or a batch after one of them has got the signal: one alone would leave the others waiting. Of the
    interval in minutes, the first rank's clock decides.

    The one of the step ``extend_step`` is also kept under another name, with the best one of that time.
    """

    def __init__(self, folder: Path, settings: TrainerConfig, extend_step: int, agreement: Agreement):
        self.path, self.settings, self.extend_step = folder / LAST, settings, extend_step
        self.agreement = agreement
        self.saved = time.monotonic()  # when the last checkpoint was written, or this process began
        self.validation_pending = False  # when the checkpoint was written

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        self.saved = time.monotonic()
        checkpoint["accumulate"] = trainer.accumulate_grad_batches
        checkpoint["validation_pending"] = self.validation_pending

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: LanguageModel, checkpoint: dict[str, Any]) -> None:
        """Lightning counts micro batches; on another number of devices a step has another number of them."""
        before, now = checkpoint["accumulate"], trainer.accumulate_grad_batches
        self.validation_pending = checkpoint.get("validation_pending", False)
        for name in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
            for counts in map(checkpoint["loops"]["fit_loop"][name].get, ("current", "total")):
                if self.validation_pending and "val_loop" in name:
                    counts.update(dict.fromkeys(counts, 0))
                more = counts["ready"] // before * (now - before)
                counts.update({key: count + more for key, count in counts.items()})  # the last may be uncompleted

    def on_train_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        interrupts.install()  # Lightning has handlers of its own
        self.agreement.begin(trainer)
        if self.path.exists():  # a kill may have come between the two names
            self._name_for_extending(trainer)
        if self.validation_pending:
            self.validation_pending = False
            validation = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating = True
            validation.run()
            trainer.training = True
            validation._has_run = False  # as where a run goes on from the checkpoint that this has written

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: LanguageModel, optimizer: Optimizer) -> None:
        """From the first step on there is something to save."""
        interrupts.deferred = bool(interrupts.signals)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LanguageModel, outputs, batch, batch_idx: int) -> None:
        if not stepped(trainer, batch_idx):
            return
        ends_epoch = batch_idx + 1 == trainer.num_training_batches
        step, settings = trainer.global_step, self.settings
        validates = settings.val_every_n_steps and step % settings.val_every_n_steps == 0
        if ends_epoch or validates or trainer.should_stop:
            return  # a save before a validation would skip it on resume
        minutes = settings.checkpoint_every_n_minutes
        due = trainer.is_global_zero and minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        if due:
            self.saved = time.monotonic()  # the answer comes a step later: asked once
        stops, due = map(int, self.agreement.largest_before(interrupts.received, due))
        every = settings.checkpoint_every_n_steps
        if stops or due or step == self.extend_step or (every and step % every == 0):
            self._save(trainer)
        if stops:
            raise Interrupted(stops)

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: LanguageModel, *batch: Any) -> None:
        if trainer.state.fn != "fit" or not interrupts.deferred:
            return
        if number := int(self.agreement.largest_before(interrupts.received, False)[0]):
            for callback in trainer.callbacks:
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)  # it takes the average out again
            self.validation_pending = True
            trainer.save_checkpoint(self.path, weights_only=False)
            raise Interrupted(number)

    def on_validation_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer)
            if interrupts.deferred and (number := int(self.agreement.largest_now(interrupts.received, False)[0])):
                raise Interrupted(number)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._name_for_extending(trainer)

    def _name_for_extending(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self.extend_step and trainer.is_global_zero:
            name_also(self.path.parent, {BEST: EXTEND_BEST, LAST: EXTEND})

    def on_train_end(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        interrupts.deferred = False

    def on_test_start(self, trainer: L.Trainer, pl_module: LanguageModel) -> None:
        interrupts.install()


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that were done when a checkpoint was written."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``, of the validation with the lowest loss, wherever the run folder lies now."""

    def __init__(self, folder: Path):
        super().__init__(
            folder, "best", monitor="val/loss", enable_version_counter=False, save_on_train_epoch_end=False
        )

    @property
    def state_key(self) -> str:
        """As the checkpoints of older runs have it."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning compares absolute paths, and forgets the best where the folder was moved."""
        if not (Path(self.dirpath) / "best.ckpt").exists():
            return  # the next validation is the best that there is
        here = {path: str(Path(self.dirpath) / Path(path).name) for path in state_dict["best_k_models"]}
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here.get(state_dict[name], "") for name in paths}
        best = {here[path]: score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes next to the target and renames, so that a kill or a power cut leaves the old file or the new one.

    Lightning's own goes through the system's temporary folder, which may lie on another file system. What was
    ``last.ckpt`` stays as ``previous.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            with scratch.open("wb") as file:
                torch.save(checkpoint, file)
            if path.name == LAST and path.exists():
                path.replace(path.with_name(PREVIOUS))


def to_go_on_from(run: Path) -> Path | None:
    """The checkpoint that a run goes on from: the last whole one; None where there is none at all.

    Raises:
        Refused: all that there are, or the best one, are damaged.
    """
    folder = run / "checkpoints"
    there = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    damages = {}
    for path in there:
        if not (wrong := checkpoint_damage(path)):
            break
        damages[path] = wrong
    else:
        if there:
            wrong = "; ".join(f"{path.name}: {wrong}" for path, wrong in damages.items())
            raise refuse("run_dir", run, f"no checkpoint is whole ({wrong})", "begin again in another run_dir")
        return None
    for damaged, wrong in damages.items():
        log.warning("%s: %s; the run goes on from %s, the one before", damaged, wrong, path.name)
        if rank() == 0:  # the next save would move the damaged file over previous.ckpt
            damaged.replace(damaged.with_suffix(".damaged"))
    check_best(run)
    return path


def name_also(folder: Path, names: dict[str, str]) -> None:
    """Give checkpoints another name, too, in this order; where one isn't there, what has that name goes."""
    for source, target in names.items():
        if (folder / source).exists():
            linked(folder / source, folder / target)
        else:
            remove(folder / target)


def checkpoint_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; also where its records are whole, and torch can't read what lists them."""
    try:
        return zip_damage(checkpoint) or (step_of(checkpoint) < 0 and "it has no step") or None
    except Exception as error:
        return f"it can't be read: {first_line(error)}"


def check_best(run: Path) -> None:
    """Raises Refused where ``best.ckpt`` is damaged: it must not be exported."""
    best = run / "checkpoints" / BEST
    if best.exists() and (wrong := checkpoint_damage(best)):
        remedy = "delete that file: of the validations from here on the best is exported"
        raise refuse("run_dir", run, f"checkpoints/{BEST}: {wrong}", remedy)


def load_weights(model: nn.Module, path: Path) -> dict[str, Any]:
    """Put the weights of a checkpoint of ``LanguageModel`` into its model; returns the checkpoint."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = {n.removeprefix("model."): v for n, v in checkpoint["state_dict"].items() if n.startswith("model.")}
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)
    return checkpoint
