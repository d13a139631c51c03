"""From the typed configuration and its parts to what trains them: module, callbacks, loggers, Lightning's Trainer."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from lightning_lm import config as schema
from lightning_lm.build import PROFILED_STEPS, Parts, accelerator, table
from lightning_lm.callbacks import Budget, Heap, Interrupts, LastCheckpoint, Randomness, Samples
from lightning_lm.checkpoint import AtomicCheckpointIO
from lightning_lm.module import LanguageModel
from lightning_lm.optim import build_optimizer, build_scheduler
from lightning_lm.sharding import ShardedLanguageModel, ShardedStrategy
from lightning_lm.telemetry import Telemetry
from lightning_lm.tracking import RunFolderLogger, wandb_logger

PATIENCE = timedelta(hours=1)  # of a process that waits for the others
TIMED_STEPS = 10_000  # resolution of a schedule that follows the clock


def build_module(cfg: schema.Config, parts: Parts, budget: Budget) -> LanguageModel:
    wanted, schedule = cfg.optimizer, cfg.scheduler
    muon = isinstance(wanted, schema.MuonConfig)
    timed = cfg.trainer.max_minutes is not None

    def configure(model: nn.Module):
        optimizer = build_optimizer(
            model,
            table(wanted),
            lr=wanted.adamw_lr if muon else wanted.lr,
            weight_decay=wanted.weight_decay,
            betas=tuple(wanted.betas),
            eps=wanted.eps,
            fused=cfg.hardware.precision != "16-mixed",  # there gradients must be unscaled before they are clipped
            **({"muon_lr": wanted.lr, "momentum": wanted.momentum} if muon else {}),
        )
        scheduler = build_scheduler(
            optimizer,
            schedule.name,
            warmup=schedule.warmup,
            decay=schedule.decay,
            total_steps=TIMED_STEPS if timed else parts.max_steps,
            progress=(lambda: budget.progress) if timed else None,
        )
        return optimizer, scheduler

    kind = ShardedLanguageModel if cfg.hardware.strategy == "fsdp" else LanguageModel
    return kind(parts.model, parts.objective, configure, cfg.hardware.compile)


def build_callbacks(cfg: schema.Config, parts: Parts, run: Path) -> tuple[list[L.Callback], Telemetry, Budget]:
    trainer, checkpoints = cfg.trainer, run / "checkpoints"
    telemetry = Telemetry(parts.data.plan("train"), cfg.data.block_size, trainer.log_every_n_steps)
    budget = Budget(telemetry, parts.max_steps, trainer.max_minutes)
    callbacks: list[L.Callback] = [TQDMProgressBar(refresh_rate=10), Randomness(cfg.seed), budget, telemetry]
    callbacks.append(Samples(run, parts.tokenizer, cfg.seed))
    if trainer.patience is not None:
        callbacks.append(EarlyStopping("val/loss", patience=trainer.patience, check_on_train_epoch_end=False))
    if (run / "trial.json").exists():  # a sweep's study has put it there
        from lightning_lm.pruning import Pruning  # Optuna: only now

        callbacks.append(Pruning(run / "trial.json"))
    best = ModelCheckpoint(
        checkpoints, "best", monitor="val/loss", enable_version_counter=False, save_on_train_epoch_end=False
    )
    last = LastCheckpoint(checkpoints, trainer.checkpoint_every_n_steps, trainer.val_every_n_steps)
    callbacks += [best, last, Interrupts()]
    if accelerator(cfg.hardware) == "cpu":
        callbacks.append(Heap())
    return callbacks, telemetry, budget


def build_loggers(cfg: schema.Config, settings: dict[str, Any], run: Path, run_id: str) -> list[Any]:
    loggers: list[Any] = [RunFolderLogger(run)]
    if cfg.logger.name == "wandb":
        wanted = cfg.logger
        match cfg.data:
            case schema.HubDataConfig():
                data = cfg.data.name or cfg.data.path
            case schema.TextDataConfig():
                data = "text"
            case _:
                data = "python_docs"
        tags = [Path(cfg.model.name_or_path or cfg.model.model_type).name, Path(data).name]
        loggers.append(
            wandb_logger(
                run,
                run_id,
                project=wanted.project,
                entity=wanted.entity,
                name=cfg.name if run.name == cfg.name else f"{cfg.name}-{run.name}",
                group=wanted.group or cfg.name,
                tags=[*wanted.tags, cfg.objective.name, *tags],
                config=settings,
            )
        )
    return loggers


def build_strategy(hardware: schema.HardwareConfig) -> Strategy | str:
    """How processes share the work; one is slow to prepare its data only as long as the others wait for it."""
    if hardware.strategy == "auto" and hardware.devices * hardware.nodes == 1:
        return "auto"
    if hardware.strategy == "fsdp":
        return ShardedStrategy(hardware.devices * hardware.nodes, timeout=PATIENCE)
    return DDPStrategy(timeout=PATIENCE)


def build_trainer(cfg: schema.Config, parts: Parts, run: Path, callbacks: list[Any], loggers: list[Any]) -> L.Trainer:
    trainer, hardware = cfg.trainer, cfg.hardware
    accumulate = parts.data.accumulate
    by_step = trainer.val_every_n_steps
    torch.backends.cuda.matmul.allow_tf32 = hardware.tf32
    profiler = next(c.clock for c in callbacks if isinstance(c, Telemetry))
    if trainer.profiler:
        steps = torch.profiler.schedule(wait=2, warmup=2, active=PROFILED_STEPS - 4)
        profiler = PyTorchProfiler(run / "profile", "trace", schedule=steps, export_to_chrome=True)
    return L.Trainer(
        default_root_dir=run,
        accelerator=accelerator(hardware),
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=build_strategy(hardware),
        precision=hardware.precision,
        max_epochs=-1,
        max_steps=-1 if parts.max_steps == sys.maxsize else parts.max_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=trainer.gradient_clip,
        val_check_interval=by_step * accumulate if by_step else None,
        check_val_every_n_epoch=None if by_step else 1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module deals out the batches
        enable_model_summary=False,
        log_every_n_steps=1,  # Telemetry keeps the interval; this only silences a warning about short epochs
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        profiler=profiler,
    )
