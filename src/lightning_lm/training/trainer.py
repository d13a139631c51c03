"""From the typed configuration to what trains a run's components: module, callbacks, loggers, Lightning's Trainer."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from lightning_lm.config.composition import as_settings
from lightning_lm.config.schema import Config, HardwareConfig
from lightning_lm.optim.groups import build_optimizer, with_state
from lightning_lm.optim.schema import build_scheduler
from lightning_lm.runs.tracking import RunFolderLogger, display_name, wandb_logger
from lightning_lm.training.agreement import Agreement
from lightning_lm.training.carrying import carried_state
from lightning_lm.training.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpointIO
from lightning_lm.training.components import PROFILED_STEPS, RunComponents, accelerator
from lightning_lm.training.control import Budget, KeepFreedMemory, StepSeed
from lightning_lm.training.fsdp import ShardedLanguageModel, ShardedStrategy
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.nonfinite import NonFinite
from lightning_lm.training.progress import Progress
from lightning_lm.training.samples import PromptSamples
from lightning_lm.training.telemetry import Telemetry

TIMED_STEPS = 10_000  # resolution of a schedule that follows the clock


@dataclass
class Callbacks:
    """What watches and steers a run; two of them are asked by others."""

    all: list[L.Callback]
    telemetry: Telemetry
    budget: Budget


def build_callbacks(cfg: Config, components: RunComponents, run: Path) -> Callbacks:
    """What every run has, and what the axis ``callbacks`` adds: called in this order, checkpoints last."""
    trainer, checkpoints = cfg.trainer, run / "checkpoints"
    telemetry = Telemetry(components.data.plan("train"), cfg.data.block_size, trainer.log_every_n_steps)
    patience = cfg.hardware.hang_timeout
    budget = Budget(telemetry, components.max_steps, trainer.max_minutes, Agreement(patience))
    callbacks: list[L.Callback] = [StepSeed(cfg.seed), budget, telemetry, Progress(telemetry, budget)]
    if cfg.hardware.precision != "16-mixed":  # there, gradients without numbers are part of scaling the loss
        nonfinite = NonFinite(components.data, trainer.on_nonfinite == "skip", trainer.log_every_n_steps)
        callbacks.insert(2, nonfinite)  # before Telemetry, which would tell less of it
    callbacks.append(PromptSamples(run, components.tokenizer, cfg.seed))
    callbacks += [part.build() for part in cfg.callbacks.values()]
    if trainer.patience is not None:
        callbacks.append(EarlyStopping("val/loss", patience=trainer.patience, check_on_train_epoch_end=False))
    if (run / "trial.json").exists():  # a sweep's study has put it there
        from lightning_lm.training.pruning import Pruning  # Optuna: only now

        warmup = cfg.scheduler.warmup
        share = warmup if warmup < 1 else warmup / components.max_steps
        callbacks.append(Pruning(run / "trial.json", budget, share))
    steady = cfg.scheduler.steady_steps(components.max_steps) if trainer.max_minutes is None else 0
    extend_step, every = min(steady, components.max_steps - 1), trainer.val_every_n_steps
    if every and extend_step % every and extend_step % telemetry.plan.steps == 0:
        extend_step -= 1  # at an epoch's end nothing is saved but by a validation; an earlier step serves as well
    last = LastCheckpoint(checkpoints, trainer, extend_step, Agreement(patience))
    callbacks += [BestCheckpoint(checkpoints), last]
    if accelerator(cfg.hardware) == "cpu":
        callbacks.append(KeepFreedMemory())
    return Callbacks(callbacks, telemetry, budget)


def build_module(cfg: Config, components: RunComponents, budget: Budget) -> LanguageModel:
    timed = cfg.trainer.max_minutes is not None

    def configure(model: nn.Module):
        # In 16-mixed, gradients must be unscaled before they are clipped, which torch's fused optimizers don't allow
        optimizer = build_optimizer(model, cfg.optimizer, fused=cfg.hardware.precision != "16-mixed")
        if cfg.optimizer.carry_state:
            optimizer.load_state_dict(with_state(optimizer.state_dict(), carried_state(cfg, model)))
        total_steps = TIMED_STEPS if timed else components.max_steps
        progress = (lambda: budget.progress) if timed else None
        return optimizer, build_scheduler(optimizer, cfg.scheduler, total_steps, progress)

    kind = ShardedLanguageModel if cfg.hardware.strategy == "fsdp" else LanguageModel
    skips, exact = cfg.trainer.on_nonfinite == "skip", cfg.trainer.exact_gradient_norm
    share = components.costs.labels if cfg.hardware.cuda_graphs else None
    return kind(components.model, components.objective, configure, cfg.hardware.graphs, skips, exact, share)


def build_loggers(cfg: Config, run: Path, run_id: str, killed: bool = False) -> list[Any]:
    if cfg.logger.name == "tensorboard":
        return [RunFolderLogger(run), TensorBoardLogger(run, name="tensorboard", version="", default_hp_metric=False)]
    if cfg.logger.name != "wandb":
        return [RunFolderLogger(run)]
    logger, environ = cfg.logger, os.environ
    tags = logger.tags or environ.get("WANDB_TAGS", "").split(",")
    dashboard = wandb_logger(
        run,
        run_id,
        project=logger.project_in_effect,
        entity=logger.entity or environ.get("WANDB_ENTITY"),
        name=environ.get("WANDB_NAME") or display_name(cfg.name, run),
        group=logger.group or environ.get("WANDB_RUN_GROUP") or cfg.name,
        tags=[*tags, cfg.objective.name, cfg.model.tag, cfg.data.tag],
        config=as_settings(cfg),
        require_online=logger.require_online,
    )
    return [RunFolderLogger(run, dashboard if killed else None), dashboard]


def build_strategy(hardware: HardwareConfig) -> Strategy | str:
    """How processes share the work, and how long they wait for one of them."""
    patience = timedelta(seconds=hardware.hang_timeout)
    if hardware.strategy == "auto" and hardware.devices * hardware.nodes == 1:
        return "auto"
    if hardware.strategy == "fsdp":
        return ShardedStrategy(hardware.devices * hardware.nodes, timeout=patience)
    return DDPStrategy(timeout=patience, broadcast_buffers=False)  # no model's buffers change while it trains


def build_trainer(cfg: Config, components: RunComponents, run: Path, callbacks: Callbacks, loggers: list) -> L.Trainer:
    trainer, hardware = cfg.trainer, cfg.hardware
    accumulate = components.data.accumulate
    by_step = trainer.val_every_n_steps
    torch.backends.cuda.matmul.allow_tf32 = hardware.tf32
    profiler = callbacks.telemetry.clock
    if trainer.profiler:
        steps = torch.profiler.schedule(wait=2, warmup=2, active=PROFILED_STEPS - 4)
        profiler = PyTorchProfiler(run / "profile", "trace", schedule=steps, export_to_chrome=True)
    made = L.Trainer(
        default_root_dir=run,
        accelerator=accelerator(hardware),
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=build_strategy(hardware),
        precision=hardware.precision,
        max_epochs=-1,
        max_steps=-1,  # Budget ends the run
        accumulate_grad_batches=accumulate,
        gradient_clip_val=trainer.gradient_clip,
        val_check_interval=by_step * accumulate if by_step else None,
        check_val_every_n_epoch=None if by_step else 1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module deals out the batches
        enable_model_summary=False,
        enable_progress_bar=False,  # Progress has its own
        log_every_n_steps=1,  # Telemetry keeps the interval; this only silences a warning about short epochs
        logger=loggers,
        callbacks=callbacks.all,
        plugins=[WholeCheckpointIO()],
        profiler=profiler,
    )
    # It asks before each batch, and waits for the answer, whether the first rank got SIGTERM: LastCheckpoint knows that
    made.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return made
