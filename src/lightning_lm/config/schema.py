"""The whole configuration: what of it is common to all runs, and the tables of options that the axes own.

Library code takes these dataclasses, never a ``DictConfig``; ``Config()`` has working defaults. What an axis lets users
set, and checks, stands in the ``schema.py`` of its own package.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from lightning_lm.callbacks.schema import CALLBACKS, CallbackConfig
from lightning_lm.constraints import COUNT, REPOSITORY, SEED, Constraint, Settings, at_least, positive, setting
from lightning_lm.data.schema import CORPORA, DataConfig, HubDataConfig
from lightning_lm.errors import Problem, nearest
from lightning_lm.models.schema import MODELS, ModelConfig, TokenizerKind
from lightning_lm.objectives.schema import OBJECTIVES, ClmConfig, ObjectiveConfig
from lightning_lm.optim.schema import OPTIMIZERS, SCHEDULERS, AdamWConfig, OptimizerConfig, SchedulerConfig

MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")  # of W&B, in WANDB_MODE
PRECISIONS = ["32-true", "bf16-mixed", "bf16-true", "16-mixed"]

# Axis → its options. A new option is a class with ``problems()`` and ``build()``, a row in its axis's table, and a file
# in ``conf/``: docs/extending.md shows one of each.
AXES: dict[str, dict[str, type]] = {
    "model": MODELS,
    "data": CORPORA,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
    "callbacks": CALLBACKS,
}


class OnNonfinite(StrEnum):
    stop = "stop"
    skip = "skip"


@dataclass
class TrainerConfig(Settings):
    # How long: the first limit that is reached ends the run; none named: 3 epochs.
    max_epochs: int | None = setting(None, COUNT, may_grow=True)
    max_steps: int | None = setting(None, COUNT, may_grow=True)  # optimizer steps
    max_tokens: int | None = setting(None, COUNT, may_grow=True)
    # Tokens that the loss is over: of masked models the chosen ones
    max_labels: int | None = setting(None, COUNT, may_grow=True)
    # Of the layers and the head, backwards twice as many as forwards
    max_flops: float | None = setting(None, positive(", such as 1e15"), may_grow=True)
    max_minutes: float | None = setting(None, positive(""))
    global_batch_size: int = setting(8, COUNT)  # blocks per optimizer step, over all devices
    gradient_clip: float | None = setting(1.0, positive(", or null for no clipping"))  # largest total norm
    exact_gradient_norm: bool = setting(
        True, before=False
    )  # right to 1e-6; false: summed in float32, as older runs did
    # what to do with a step whose gradients are NaN or infinite; a run that stopped for it may go on with skip
    on_nonfinite: OnNonfinite = setting(OnNonfinite.stop, may_change=True)
    val_every_n_steps: int | None = setting(None, COUNT)  # null: once an epoch
    checkpoint_every_n_steps: int | None = setting(200, COUNT)  # besides the one after each validation
    checkpoint_every_n_minutes: float | None = setting(10, positive(", such as 10"), may_change=True)
    # of a sweep's jobs that have ended: what only serves to go on, such as the optimizer's state
    keep_checkpoints: bool = setting(False, may_change=True)
    log_every_n_steps: int = setting(10, COUNT)
    patience: int | None = setting(None, COUNT)  # validations without improvement before an early stop
    limit_train_batches: int | None = setting(None, COUNT)  # global batches; the epoch is cut to its first blocks
    limit_val_batches: int | None = setting(None, COUNT)
    limit_test_batches: int | None = setting(None, COUNT)
    profiler: bool = False  # writes a trace of a few steps to the run folder
    push_to_hub: str | None = setting(None, may_change=True)  # repository that the finished model goes to

    def problems(self) -> Iterator[Problem]:
        if self.push_to_hub is not None and not REPOSITORY.fullmatch(self.push_to_hub):
            wrong = "no name for a repository"
            yield Problem("trainer.push_to_hub", repr(self.push_to_hub), wrong, "write NAME or USER/NAME")


class Accelerator(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Strategy(StrEnum):
    auto = "auto"
    ddp = "ddp"  # every device holds the whole model
    fsdp = "fsdp"  # fully sharded (FSDP2): every device holds its share of weights, gradients and optimizer state


@dataclass
class HardwareConfig(Settings):
    accelerator: Accelerator = Accelerator.auto
    devices: int = setting(1, COUNT, may_change=True)  # per node
    nodes: int = setting(1, COUNT, may_change=True)
    strategy: Strategy = setting(Strategy.auto, may_change=True)  # auto: ddp where there are several devices
    precision: str = "32-true"
    # by torch.compile: true: the transformer's layers, and the loss; step: on one device, both as one graph
    compile: bool | str = setting(
        False, Constraint(lambda value: value in (True, False, "step"), "true, false or step")
    )
    cuda_graphs: bool = False  # GPU: the kernels of compile=step are recorded, and started together; for small batches
    tf32: bool = False  # GPU: float32 products in TensorFloat-32, with 10 bits of mantissa
    micro_batch_size: int | None = setting(
        None, COUNT, may_change=True
    )  # blocks per device and pass; null: all of them
    num_workers: int = setting(0, at_least(0), may_change=True)
    # how long ranks wait for another, in seconds
    hang_timeout: float = setting(600, positive(", such as 600"), may_change=True)
    restarts: int = setting(0, at_least(0), may_change=True)  # how often processes that died are started again
    gradient_checkpointing: bool = False

    @property
    def graphs(self) -> bool | str:
        """What is compiled, as ``compile`` says it; several devices take the layers, so that gradients can overlap."""
        several = self.devices * self.nodes > 1 or self.strategy == Strategy.fsdp
        return True if self.compile == "step" and several else self.compile

    def problems(self) -> Iterator[Problem]:
        if self.precision not in PRECISIONS:
            remedy = nearest(self.precision, PRECISIONS)
            yield Problem("hardware.precision", self.precision, "no such precision", remedy)
        elif self.precision == "16-mixed" and self.accelerator == Accelerator.cpu:
            yield Problem("hardware.precision", "16-mixed", "needs a GPU", "give bf16-mixed or 32-true on a CPU")
        if self.strategy == Strategy.fsdp and self.precision == "16-mixed":
            yield Problem("hardware.precision", "16-mixed", "FSDP2 scales no losses", "give bf16-mixed or 32-true")
        if self.cuda_graphs and self.graphs != "step":
            wrong = "needs hardware.compile=step on one device, without fsdp"
            yield Problem("hardware.cuda_graphs", True, wrong, "give these, or leave it out")
        if self.cuda_graphs and self.accelerator == Accelerator.cpu:
            yield Problem("hardware.cuda_graphs", True, "needs a GPU", "leave it out")


@dataclass
class LoggerConfig(Settings):
    name: str = setting("wandb", may_change=True)
    project: str = setting("lightning-lm", may_change=True)
    entity: str | None = setting(None, may_change=True)
    group: str | None = setting(None, may_change=True)
    tags: list[str] = setting([], may_change=True)
    require_online: bool = setting(False, may_change=True)  # end where W&B's server can't be reached

    @property
    def project_in_effect(self) -> str:
        """W&B's own variables hold where a setting has its default."""
        of_environment = os.environ.get("WANDB_PROJECT") if self.project == LoggerConfig().project else None
        return of_environment or self.project

    def problems(self) -> Iterator[Problem]:
        if self.name not in ("wandb", "tensorboard", "none"):
            yield Problem("logger.name", self.name, "no such logger", "choose logger=wandb, tensorboard or none")
        elif self.name == "tensorboard" and find_spec("tensorboard") is None:
            remedy = "pip install -c constraints.txt -e '.[tensorboard]'"
            yield Problem("logger", self.name, "TensorBoard isn't installed", remedy)
        elif self.name == "wandb":
            if not re.fullmatch(r"[^/\\#?%:]+", project := self.project_in_effect):
                origin = "logger.project" if project == self.project else "WANDB_PROJECT"
                yield Problem(origin, repr(project), "W&B can't take it", r"give one without / \ # ? % :")
            if (mode := os.environ.get("WANDB_MODE") or MODES[0]) not in MODES:
                yield Problem("WANDB_MODE", mode, "no such mode", nearest(mode, list(MODES)))


def wikitext2() -> DataConfig:
    return HubDataConfig(path="Salesforce/wikitext", name="wikitext-2-raw-v1")


def new_run_dir() -> str:
    return f"outputs/run/{datetime.now():%F_%H-%M-%S}"


@dataclass
class Config(Settings):
    """A run. Without arguments: GPT-2 fine-tuned on WikiText-2, as ``python train.py`` does."""

    name: str = setting("run", may_change=True)
    run_dir: str = field(default_factory=new_run_dir, metadata={"may_change": True})
    seed: int = setting(0, SEED)
    model: ModelConfig = field(default_factory=lambda: ModelConfig("gpt2"))
    data: DataConfig = field(default_factory=wikitext2)
    objective: ObjectiveConfig = field(default_factory=ClmConfig)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: dict[str, CallbackConfig] = field(default_factory=dict)


def chosen(config: Config) -> dict[str, Any]:
    """Axis → the option whose class it has; of ``callbacks`` the list of them."""
    options: dict[str, Any] = {}
    for axis, table in AXES.items():
        part = getattr(config, axis)
        if axis == "callbacks":
            options[axis] = list(part)
        else:
            fitting = [option for option, kind in table.items() if kind is type(part)]
            name = getattr(part, "name", None)
            options[axis] = name if name in fitting else next(iter(fitting), None)
    return options


def tokenizer_kind(config: Config) -> TokenizerKind:
    """Of a tokenizer that learns its vocabulary from the corpus."""
    return TokenizerKind(config.model.tokenizer_kind or config.objective.facts.tokenizer_kind)


def may_change() -> set[str]:
    """Of all options the settings that don't decide the outcome: a run may go on with another value of these."""
    return those_with(lambda row: row.metadata.get("may_change", False))


def with_before() -> set[str]:
    """Of all options the settings that have come later, and whose default isn't what the code did before."""
    return those_with(lambda row: "before" in row.metadata)


def those_with(mark: Callable[[Field], bool]) -> set[str]:
    """Of all options the settings whose fields have a mark."""
    kinds: dict[str, list[type]] = {"trainer": [TrainerConfig], "hardware": [HardwareConfig], "logger": [LoggerConfig]}
    for axis, table in AXES.items():
        kinds |= {f"callbacks.{n}": [k] for n, k in table.items()} if axis == "callbacks" else {axis: [*table.values()]}
    settings = {row.name for row in fields(Config) if mark(row)}
    for axis, classes in kinds.items():
        rows = [row for kind in classes for row in fields(kind)]
        settings |= {f"{axis}.{row.name}" for row in rows if mark(row)}
        settings |= {axis} if rows and all(map(mark, rows)) else set()
    return settings
