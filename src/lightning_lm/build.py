"""From the typed configuration to data and model: what is checked before a run touches its folder."""

import math
import os
import re
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from lightning_lm import config as schema
from lightning_lm.data.corpus import Corpus, hub_corpus, python_docs_corpus, text_corpus
from lightning_lm.data.masks import Masking
from lightning_lm.data.module import TextDataModule
from lightning_lm.data.tokenizers import train_tokenizer
from lightning_lm.errors import Refused, refuse
from lightning_lm.inference import encode_masked, encode_prompts
from lightning_lm.memory import keep_freed_blocks
from lightning_lm.model import fit_together, layers, load_config, load_model, load_tokenizer
from lightning_lm.objectives import Objective
from lightning_lm.objectives.clm import Clm
from lightning_lm.objectives.mlm import Mlm
from lightning_lm.optim import Row, share_or_steps, sort_parameters

DEFAULT_EPOCHS = 3  # where no duration is named
PROFILED_STEPS = 10  # that a trace takes, with those before it


@dataclass
class Parts:
    """Everything a run is made of, before it touches its folder."""

    tokenizer: Any
    objective: Objective
    data: TextDataModule
    model: nn.Module
    max_steps: int  # optimiser steps; sys.maxsize where only the clock ends the run


def build(cfg: schema.Config) -> Parts:
    """Data and model for a configuration.

    Raises:
        Refused: something that it asks for can't be had.
    """
    if accelerator(cfg.hardware) == "cpu":
        keep_freed_blocks()
        if cfg.hardware.devices > 1:  # each process would take all cores, or, under torchrun, a single one
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            torch.set_num_threads(max(1, cores // cfg.hardware.devices))
    corpus = build_corpus(cfg.data)
    tokenizer = build_tokenizer(cfg, corpus)
    objective = build_objective(cfg.objective, tokenizer)
    data = build_data(cfg, corpus, tokenizer, objective)
    data.prepare_data()
    L.seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg, tokenizer, objective)
    max_steps = total_steps(cfg.trainer, data)
    check_parts(cfg, tokenizer, model, max_steps)
    return Parts(tokenizer, objective, data, model, max_steps)


def check_parts(cfg: schema.Config, tokenizer: Any, model: nn.Module, max_steps: int) -> None:
    """Refuses what can be told only now: prompts, rows for parameters, and phases longer than the run."""
    encode = encode_masked if cfg.objective.name == "mlm" else partial(encode_prompts, new_tokens=1)
    try:
        encode(model, tokenizer, cfg.objective.prompts)
    except Refused as error:
        raise Refused(*(replace(p, setting="objective.prompts") for p in error.problems)) from error
    try:
        sort_parameters(model, table(cfg.optimizer))
    except ValueError as error:
        raise refuse("optimizer.groups", "…", str(error), "end the table with {decay: true}") from error
    schedule = cfg.scheduler
    phases = [schedule.warmup] + [schedule.decay] * (schedule.name == "wsd")
    steps = sum(share_or_steps(phase, max_steps) for phase in phases)
    if cfg.trainer.max_minutes is None and steps > max(max_steps, 1):
        wrong = f"warmup and decay take {steps} of the run's {max_steps} steps"
        raise refuse("scheduler.warmup", schedule.warmup, wrong, "shorten them, or the run is too short")
    if cfg.trainer.profiler and max_steps < PROFILED_STEPS:
        raise refuse("trainer.profiler", True, f"the run has only {max_steps} steps", f"give it {PROFILED_STEPS}")


def accelerator(hardware: schema.HardwareConfig) -> str:
    """ "gpu" or "cpu"; refuses what this machine doesn't have or can't do."""
    gpus = torch.cuda.device_count()
    if hardware.accelerator == "gpu" and not gpus:
        raise refuse("hardware.accelerator", "gpu", "torch sees no CUDA device", "use hardware=cpu")
    kind = "gpu" if gpus and hardware.accelerator != "cpu" else "cpu"
    if kind == "gpu" and hardware.devices > gpus:
        raise refuse("hardware.devices", hardware.devices, f"torch sees {gpus} CUDA device(s)", "lower it")
    if kind == "cpu" and hardware.precision == "16-mixed":
        raise refuse("hardware.precision", "16-mixed", "needs a GPU", "use bf16-mixed or 32-true")
    if kind == "gpu" and "bf16" in hardware.precision and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise refuse("hardware.precision", hardware.precision, "this GPU has no bfloat16", "use 16-mixed or 32-true")
    return kind


def build_corpus(data: schema.DataConfig) -> Corpus:
    cache = Path(data.cache_dir).expanduser()
    match data:
        case schema.HubDataConfig():
            return hub_corpus(data.path, data.name, data.revision, data.text_column, data.splits)
        case schema.TextDataConfig():
            named = {"train": data.train, "validation": data.validation, "test": data.test}
            files = {split: [p] if isinstance(p, str) else list(p) for split, p in named.items() if p}
            return text_corpus(
                files,
                text_column=data.text_column,
                validation_percent=data.validation_percent,
                test_percent=data.test_percent,
                cache_dir=cache,
            )
        case schema.PythonDocsDataConfig():
            return python_docs_corpus()
    raise TypeError(f"no corpus for {type(data).__name__}")


def build_tokenizer(cfg: schema.Config, corpus: Corpus) -> Any:
    if cfg.model.tokenizer == "train":
        kind = "wordpiece" if cfg.objective.name == "mlm" else "bpe"
        return train_tokenizer(corpus, kind, cfg.model.vocab_size, Path(cfg.data.cache_dir).expanduser())
    if cfg.model.tokenizer is not None:
        return load_tokenizer(cfg.model.tokenizer)
    return load_tokenizer(cfg.model.name_or_path, cfg.model.revision)


def build_objective(objective: schema.ObjectiveConfig, tokenizer: Any) -> Objective:
    match objective:
        case schema.ClmConfig():
            return Clm(objective.prompts, objective.preview_tokens)
        case schema.MlmConfig():
            if tokenizer.mask_token_id is None:
                raise refuse("objective", "mlm", "the tokenizer has no mask token", "choose another model.tokenizer")
            masking = Masking(
                objective.mlm_probability,
                objective.whole_word,
                tokenizer.mask_token_id,
                max(tokenizer.get_vocab().values()) + 1,
                tuple(tokenizer.all_special_ids),
            )
            return Mlm(masking, objective.prompts)
    raise TypeError(f"no objective for {type(objective).__name__}")


def build_data(cfg: schema.Config, corpus: Corpus, tokenizer: Any, objective: Objective) -> TextDataModule:
    trainer, hardware = cfg.trainer, cfg.hardware
    share = trainer.global_batch_size // (hardware.devices * hardware.nodes)
    return TextDataModule(
        corpus,
        tokenizer,
        objective,
        block_size=cfg.data.block_size,
        separator=cfg.data.separator,
        global_batch_size=trainer.global_batch_size,
        accumulate=share // (hardware.micro_batch_size or share),
        limits={
            "train": trainer.limit_train_batches,
            "validation": trainer.limit_val_batches,
            "test": trainer.limit_test_batches,
        },
        seed=cfg.seed,
        num_workers=hardware.num_workers,
        cache_dir=Path(cfg.data.cache_dir).expanduser(),
    )


def build_model(cfg: schema.Config, tokenizer: Any, objective: Objective) -> nn.Module:
    wanted = cfg.model
    config = load_config(
        wanted.name_or_path,
        wanted.model_type,
        wanted.config,
        tokenizer,
        pretrained=wanted.pretrained,
        revision=wanted.revision,
    )
    model = load_model(config, objective, wanted.name_or_path if wanted.pretrained else None, wanted.revision)
    fit_together(model, tokenizer, objective, cfg.data.block_size)
    if cfg.hardware.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if cfg.hardware.compile:  # one graph for all: outside them are the masks, and the hooks of loss.py
        for layer in layers(model):
            layer.compile()
    return model


def total_steps(trainer: schema.TrainerConfig, data: TextDataModule) -> int:
    """Optimiser steps until the first of the named limits; ``sys.maxsize`` where only the clock ends the run."""
    plan = data.plan("train")
    limits = [trainer.max_steps] if trainer.max_steps else []
    if trainer.max_epochs:
        limits.append(trainer.max_epochs * plan.steps)
    if trainer.max_tokens:
        epochs, rest = divmod(math.ceil(trainer.max_tokens / data.block_size), plan.samples)
        limits.append(epochs * plan.steps + math.ceil(rest / plan.global_batch_size))
    if not limits and trainer.max_minutes is None:
        limits.append(DEFAULT_EPOCHS * plan.steps)
    return min(limits, default=sys.maxsize)


def table(optimizer: schema.AdamWConfig) -> list[Row]:
    return [Row(re.compile(g.pattern).pattern, g.ndim, g.decay, g.optimizer) for g in optimizer.groups]
