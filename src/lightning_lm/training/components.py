"""From the typed configuration to data and model: all that is checked before a run touches its folder."""

import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import nn

from lightning_lm.allocator import keep_freed_blocks
from lightning_lm.config.schema import Config, HardwareConfig, TrainerConfig, tokenizer_kind
from lightning_lm.constraints import to_steps
from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.datamodule import TextDataModule
from lightning_lm.data.tokenizer_training import train_tokenizer
from lightning_lm.errors import Refused, refuse
from lightning_lm.faults import SAYS_NO_MEMORY, innermost
from lightning_lm.models.flops import training_flops
from lightning_lm.models.loading import fit_together, layers, load_tokenizer
from lightning_lm.models.schema import TRAIN
from lightning_lm.objectives.facts import MASKED_SHIFT
from lightning_lm.objectives.objective import Objective
from lightning_lm.optim.groups import sort_parameters
from lightning_lm.training.carrying import carried_state

DEFAULT_EPOCHS = 3  # where no duration is named
PROFILED_STEPS = 10  # that a trace takes, with those before it


@dataclass(frozen=True)
class Costs:
    """What a token of training brings and takes, on average."""

    labels: float
    flops_layers: float
    flops_head: float

    def of(self, tokens: int) -> dict[str, float]:
        """The figures of the summary."""
        labels, layers, head = (tokens * x for x in (self.labels, self.flops_layers, self.flops_head))
        return {"labels_seen": round(labels), "flops_layers": layers, "flops_head": head}


@dataclass
class RunComponents:
    """Everything a run is made of, before it touches its folder."""

    tokenizer: Any
    objective: Objective
    data: TextDataModule
    model: nn.Module
    costs: "Costs"
    max_steps: int  # optimizer steps; sys.maxsize where only the clock ends the run


def build(cfg: Config) -> RunComponents:
    """Data and model for a configuration; raises Refused where something that it asks for can't be had."""
    if accelerator(cfg.hardware) == "cpu":
        keep_freed_blocks()
        if cfg.hardware.devices > 1:  # each process would take all cores, or, under torchrun, a single one
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // cfg.hardware.devices))
    corpus = cfg.data.build()
    tokenizer = build_tokenizer(cfg, corpus)
    objective = cfg.objective.build(tokenizer)
    data = build_data(cfg, corpus, tokenizer, objective)
    data.prepare_data()
    L.seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg, tokenizer, objective)
    with failing_in_one_line(cfg, 1):
        costs = build_costs(data, model)
    components = RunComponents(tokenizer, objective, data, model, costs, total_steps(cfg.trainer, data, costs))
    check_components(cfg, components)
    return components


def check_components(cfg: Config, components: RunComponents) -> None:
    """Refuses what can be told only now: prompts, rows for parameters, and phases longer than the run."""
    model, max_steps = components.model, components.max_steps
    try:
        components.objective.check_prompts(model, components.tokenizer)
    except Refused as error:
        raise Refused(*(replace(p, setting="objective.prompts") for p in error.problems)) from error
    try:
        sort_parameters(model, cfg.optimizer.groups)
    except ValueError as error:
        member = cfg.optimizer.members[0]
        row = "{decay: true}" if member == "adamw" else f"{{decay: true, optimizer: {member}}}"
        raise refuse("optimizer.groups", "…", str(error), f"end the table with {row}") from error
    if cfg.optimizer.carry_state:
        carried_state(cfg, model)
    steps = sum(to_steps(phase, max_steps) for phase in cfg.scheduler.phases.values())
    if cfg.trainer.max_minutes is None and steps > max(max_steps, 1):
        wrong = f"warmup and decay take {steps} of the run's {max_steps} steps"
        raise refuse("scheduler.warmup", cfg.scheduler.warmup, wrong, "shorten them, or the run is too short")
    if cfg.trainer.profiler and max_steps < PROFILED_STEPS:
        raise refuse("trainer.profiler", True, f"the run has only {max_steps} steps", f"give it {PROFILED_STEPS}")


def accelerator(hardware: HardwareConfig) -> str:
    """ "gpu" or "cpu"; refuses what this machine doesn't have or can't do."""
    gpus = torch.cuda.device_count()
    if hardware.accelerator == "gpu" and not gpus:
        raise refuse("hardware.accelerator", "gpu", "torch sees no CUDA device", "use hardware=cpu")
    kind = "gpu" if gpus and hardware.accelerator != "cpu" else "cpu"
    if kind == "gpu" and hardware.devices > gpus:
        raise refuse("hardware.devices", hardware.devices, f"torch sees {gpus} CUDA device(s)", "lower it")
    if kind == "cpu" and hardware.precision == "16-mixed":
        raise refuse("hardware.precision", "16-mixed", "needs a GPU", "use bf16-mixed or 32-true")
    if kind == "cpu" and hardware.cuda_graphs:
        raise refuse("hardware.cuda_graphs", True, "torch sees no CUDA device", "leave it out")
    if kind == "gpu" and "bf16" in hardware.precision and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise refuse("hardware.precision", hardware.precision, "this GPU has no bfloat16", "use 16-mixed or 32-true")
    return kind


def build_tokenizer(cfg: Config, corpus: Corpus) -> Any:
    if cfg.model.tokenizer == TRAIN:
        return train_tokenizer(corpus, tokenizer_kind(cfg), cfg.model.vocab_size, cfg.data.cache)
    if cfg.model.tokenizer is not None:
        return load_tokenizer(cfg.model.tokenizer)
    return load_tokenizer(cfg.model.name_or_path, cfg.model.revision)


def build_data(cfg: Config, corpus: Corpus, tokenizer: Any, objective: Objective) -> TextDataModule:
    trainer, hardware = cfg.trainer, cfg.hardware
    share = trainer.global_batch_size // (hardware.devices * hardware.nodes)
    return TextDataModule(
        corpus,
        tokenizer,
        objective,
        block_size=cfg.data.block_size,
        separator=cfg.data.separator,
        documents=cfg.data.documents,
        prefix=cfg.data.prefix if objective.shift else "none",
        global_batch_size=trainer.global_batch_size,
        accumulate=share // (hardware.micro_batch_size or share),
        limits={
            "train": trainer.limit_train_batches,
            "validation": trainer.limit_val_batches,
            "test": trainer.limit_test_batches,
        },
        seed=cfg.seed,
        num_workers=hardware.num_workers,
        cache_dir=cfg.data.cache,
    )


def build_model(cfg: Config, tokenizer: Any, objective: Objective) -> nn.Module:
    model = cfg.model.build(tokenizer, objective.facts.auto_class, cfg.objective.name)
    with failing_in_one_line(cfg, 1):
        fit_together(model, tokenizer, cfg.data.block_size)
        objective.check_model(model)
    shift = max((part.shift for part in objective.parts if part.facts.kind == "masked"), default=0)
    if shift or hasattr(model.config, MASKED_SHIFT):  # as another run's export has it
        setattr(model.config, MASKED_SHIFT, shift)
    if cfg.hardware.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if cfg.hardware.compile:  # one graph for all: outside them are the masks, and the hooks of output_head.py
        for layer in layers(model):
            layer.compile()
    return model


def build_costs(data: TextDataModule, model: nn.Module) -> Costs:
    labels = data.labels_per_token()
    layers, head = training_flops(model, data.block_size)
    return Costs(labels, layers, head * labels)


@contextmanager
def failing_in_one_line(cfg: Config, blocks: int) -> Iterator[None]:
    """Turns what a model raises in a pass with some blocks into ``Refused``; in code of one's own a bug stays a bug."""
    try:
        yield
    except IndexError as error:
        wrong = f"the model fails on blocks of this length, or on the highest token id ({innermost(error)})"
        raise refuse("data.block_size", cfg.data.block_size, wrong, "lower it, or choose another model") from error
    except Exception as error:
        if isinstance(error, MemoryError) or SAYS_NO_MEMORY.search(str(error)):
            size = cfg.hardware.micro_batch_size or blocks
            wrong = f"memory is short for a pass with {blocks} blocks ({innermost(error)})"
            remedy = "lower it, or set hardware.gradient_checkpointing=true"
            raise refuse("hardware.micro_batch_size", size, wrong, remedy) from error
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
        if not any(name.startswith("transformers.") for name in modules):
            raise
        wrong = f"its own code fails ({innermost(error)})"
        remedy = "correct model.config, or try another data.block_size or model"
        raise refuse("model", cfg.model.tag, wrong, remedy) from error


def total_steps(trainer: TrainerConfig, data: TextDataModule, costs: Costs) -> int:
    """Optimizer steps until the first of the named limits; ``sys.maxsize`` where only the clock ends the run."""
    plan = data.plan("train")
    limits = [trainer.max_steps] if trainer.max_steps else []
    if trainer.max_epochs:
        limits.append(trainer.max_epochs * plan.steps)
    if trainer.max_labels and not costs.labels:
        raise refuse("trainer.max_labels", trainer.max_labels, "the training text has no labels", "give a longer text")
    tokens = [trainer.max_tokens] if trainer.max_tokens else []
    tokens += [trainer.max_labels / costs.labels] if trainer.max_labels else []
    tokens += [trainer.max_flops / (costs.flops_layers + costs.flops_head)] if trainer.max_flops else []
    if tokens:
        epochs, rest = divmod(math.ceil(min(tokens) / data.block_size), plan.samples)
        limits.append(epochs * plan.steps + math.ceil(rest / plan.global_batch_size))
    if not limits and trainer.max_minutes is None:
        limits.append(DEFAULT_EPOCHS * plan.steps)
    return min(limits, default=sys.maxsize)
