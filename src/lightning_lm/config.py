"""The schema under ``conf/``: every setting, its type and its default.

The dataclasses are registered with Hydra, so that an unknown key or a wrong type is refused with its path. They are
also what the rest of the code sees: ``typed(cfg)`` turns the composed ``DictConfig`` into a ``Config`` object.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_lm.errors import Problem, Refused, nearest, refuse

# ------------------------------------------------------------------------------------------------------------- model


@dataclass
class ModelConfig:
    name_or_path: str | None = None  # Hub id or folder; null: a new model of `model_type`
    model_type: str | None = None  # transformers' name of the architecture, used where name_or_path is null
    revision: str | None = None  # branch, tag or commit of a Hub id
    pretrained: bool = True  # true: from_pretrained, false: from_config (random weights)
    tokenizer: str | None = None  # Hub id, folder, or `train`; null: the one that belongs to name_or_path
    vocab_size: int = 8000  # of a trained tokenizer
    config: dict[str, Any] = field(default_factory=dict)  # fields of the model's config class


# -------------------------------------------------------------------------------------------------------------- data


class Separator(StrEnum):
    auto = "auto"  # what tokenizer(row) adds
    none = "none"
    eos = "eos"  # one end token between documents


@dataclass
class DataConfig:
    block_size: int = 128  # tokens
    separator: Separator = Separator.auto
    cache_dir: str = "~/.cache/lightning-lm"


@dataclass
class HubDataConfig(DataConfig):
    path: str | None = None  # dataset id or folder; has no default
    name: str | None = None  # configuration of the dataset
    revision: str | None = None  # a commit's 40 hex digits pin it
    text_column: str = "text"
    splits: dict[str, str] = field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )


@dataclass
class TextDataConfig(DataConfig):
    train: Any = None  # a path or glob, or a list of them
    validation: Any = None
    test: Any = None
    text_column: str = "text"  # of json lines, csv and parquet
    validation_percent: float | None = None  # cut from the end of the training rows where there are no files
    test_percent: float | None = None


@dataclass
class PythonDocsDataConfig(DataConfig):
    pass


# --------------------------------------------------------------------------------------------------------- objective


@dataclass
class ObjectiveConfig:
    name: str = MISSING
    prompts: list[str] = field(default_factory=list)  # continued, or filled in, after each validation


@dataclass
class ClmConfig(ObjectiveConfig):
    name: str = "clm"
    preview_tokens: int = 40


@dataclass
class MlmConfig(ObjectiveConfig):
    name: str = "mlm"
    mlm_probability: float = 0.15
    whole_word: bool = False


# -------------------------------------------------------------------------------------------- optimizer and scheduler


@dataclass
class GroupConfig:
    """One row of the ordered table that sorts parameters: the first row that fits a parameter takes it."""

    pattern: str = ".*"  # regular expression, searched in the parameter's name
    ndim: int | None = None  # number of dimensions, where it matters
    decay: bool = True  # whether weight_decay applies
    optimizer: str = "adamw"


@dataclass
class AdamWConfig:
    name: str = "adamw"
    lr: float = 2e-5
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    groups: list[GroupConfig] = field(default_factory=list)


@dataclass
class MuonConfig(AdamWConfig):
    name: str = "muon"
    lr: float = 0.02  # of the matrices
    adamw_lr: float = 3e-3  # of the rest
    momentum: float = 0.95


class SchedulerName(StrEnum):
    linear = "linear"
    cosine = "cosine"
    constant = "constant"
    wsd = "wsd"


@dataclass
class SchedulerConfig:
    name: SchedulerName = SchedulerName.linear
    warmup: float = 0.0  # below 1: share of the run; from 1: optimiser steps
    decay: float = 0.2  # wsd: share of the run, or steps, in which the rate falls to zero


# ----------------------------------------------------------------------------------------------- trainer and hardware


@dataclass
class TrainerConfig:
    # How long: the first limit that is reached ends the run; none named: 3 epochs.
    max_epochs: int | None = None
    max_steps: int | None = None  # optimiser steps
    max_tokens: int | None = None
    max_minutes: float | None = None
    global_batch_size: int = 8  # blocks per optimiser step, over all devices
    gradient_clip: float | None = 1.0  # largest total norm; null: none
    val_every_n_steps: int | None = None  # null: once an epoch
    checkpoint_every_n_steps: int | None = 200  # besides the one after each validation
    log_every_n_steps: int = 10
    patience: int | None = None  # validations without improvement before an early stop
    limit_train_batches: int | None = None  # global batches; the epoch is cut to its first blocks
    limit_val_batches: int | None = None
    limit_test_batches: int | None = None
    profiler: bool = False  # writes a trace of a few steps to the run folder
    push_to_hub: str | None = None  # repository that the finished model goes to


class Accelerator(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Strategy(StrEnum):
    auto = "auto"
    ddp = "ddp"  # every device holds the whole model
    fsdp = "fsdp"  # fully sharded (FSDP2): every device holds its share of weights, gradients and optimizer state


@dataclass
class HardwareConfig:
    accelerator: Accelerator = Accelerator.auto
    devices: int = 1  # per node
    nodes: int = 1
    strategy: Strategy = Strategy.auto  # auto: ddp where there are several devices
    precision: str = "32-true"
    compile: bool = False  # the transformer's layers, by torch.compile
    tf32: bool = False  # GPU: float32 products in TensorFloat-32, with 10 bits of mantissa
    micro_batch_size: int | None = None  # blocks per device and pass; null: the device's whole share
    num_workers: int = 0
    gradient_checkpointing: bool = False


# ------------------------------------------------------------------------------------------------------------ tracking


@dataclass
class LoggerConfig:
    name: str = "wandb"
    project: str = "lightning-lm"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class Config:
    name: str = MISSING
    run_dir: str = MISSING
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: Any = MISSING
    objective: Any = MISSING
    optimizer: Any = MISSING
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def register() -> None:
    """Put the schemas where the ``defaults`` lists of ``conf/`` find them."""
    # Hydra copies the store for each group that --help lists; it copies what it takes from the store anyway
    ConfigStore.__deepcopy__ = lambda store, memo: store
    store = ConfigStore.instance()
    root = OmegaConf.structured(Config)
    OmegaConf.set_struct(root.model.config, False)  # any field of the model's config class, without Hydra's `+`
    store.store(name="schema", node=root)
    store.store(group="data", name="schema_hub", node=HubDataConfig)
    store.store(group="data", name="schema_text", node=TextDataConfig)
    store.store(group="data", name="schema_python_docs", node=PythonDocsDataConfig)
    store.store(group="objective", name="schema_clm", node=ClmConfig)
    store.store(group="objective", name="schema_mlm", node=MlmConfig)
    store.store(group="optimizer", name="schema_adamw", node=AdamWConfig)
    store.store(group="optimizer", name="schema_muon", node=MuonConfig)


def extra(cfg: DictConfig, above: str = "") -> Iterator[Problem]:
    """The keys that no schema knows: Hydra's ``+`` puts them in."""
    known = [row.name for row in fields(OmegaConf.get_type(cfg))]
    for key in cfg:
        if key not in known:
            yield Problem(above + key, cfg[key], "no such setting", nearest(key, known))
        elif not OmegaConf.is_missing(cfg, key) and is_dataclass(OmegaConf.get_type(cfg, key)):
            yield from extra(cfg[key], f"{above}{key}.")


def typed(cfg: DictConfig) -> Config:
    """The composed configuration as nested dataclass instances, all interpolations resolved.

    Raises:
        Refused: an unknown key, a value without a default that is not given, or an interpolation that leads nowhere.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        config = OmegaConf.to_object(cfg) if not missing else None
    except OmegaConfBaseException as error:
        node = OmegaConf.to_container(cfg, resolve=False)
        for part in (error.full_key or "").split("."):
            node = node.get(part) if isinstance(node, dict) else node
        raise refuse(error.full_key, node, str(error).splitlines()[0], "correct it or what it refers to") from None
    found = [Problem(key, "???", "has no default", f"give it: {key}=VALUE") for key in missing]
    if found := [*extra(cfg), *found]:
        raise Refused(*found)
    return config
