"""What is wrong with a whole configuration, as far as its settings tell. Imports nothing heavy.

What concerns one axis is said by the axis itself (``problems()``); what crosses axes is said here.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_lm.config.schema import AXES, Config, OnNonfinite, Strategy, tokenizer_kind
from lightning_lm.constraints import Settings, is_share_or_steps, unsatisfied, walk
from lightning_lm.data.schema import Prefix
from lightning_lm.errors import Problem, Refused, nearest
from lightning_lm.logs import CREDENTIALS
from lightning_lm.models.schema import TRAIN


def check(cfg: Config) -> None:
    """Raises Refused with every problem of these settings; where a type is wrong, with these alone."""
    if mistyped := list(type_problems(cfg)):
        raise Refused(*mistyped)
    if all_problems := problems(cfg):
        raise Refused(*all_problems)


def problems(cfg: Config) -> list[Problem]:
    parts: list[Settings] = [cfg.model, cfg.data, cfg.objective, cfg.optimizer, cfg.scheduler, *cfg.callbacks.values()]
    common = (part.problems() for part in (cfg.hardware, cfg.logger, cfg.trainer))
    of_axes = (part.problems() for part in parts)
    crossing = [
        vocabulary_problems,
        schedule_problems,
        callback_problems,
        batch_problems,
        nonfinite_problems,
        document_problems,
        attention_problems,
        hybrid_problems,
        carried_state_problems,
    ]
    general = [unsatisfied(cfg), option_name_problems(cfg), *common, folder_problems(cfg), secret_problems(cfg)]
    return list(chain(*general, *of_axes, *(part(cfg) for part in crossing)))


def type_problems(cfg: Config) -> Iterator[Problem]:
    """Of each axis the first value of a wrong type; Hydra lets none pass, but in Python any can be set."""
    for row in fields(cfg):
        part = getattr(cfg, row.name)
        try:
            if is_dataclass(part):
                OmegaConf.structured(part)
        except OmegaConfBaseException as error:
            name = f"{row.name}.{error.full_key}"
            yield Problem(name, getattr(error, "value", part), str(error).splitlines()[0], "give another value")


def option_name_problems(cfg: Config) -> Iterator[Problem]:
    """An option's name is no way to choose another one, unless both have the same settings."""
    for axis in ("objective", "optimizer", "scheduler"):
        part, table = getattr(cfg, axis), AXES[axis]
        fitting = [name for name, kind in table.items() if kind is type(part)]
        if not fitting or part.name in fitting:
            continue
        if part.name in table:
            remedy = f"write {axis}={part.name} to choose another"
            yield Problem(f"{axis}.name", part.name, f"this is the name of {fitting[0]}", remedy)
        else:
            yield Problem(f"{axis}.name", part.name, "no such choice", nearest(part.name, list(table)))


def folder_problems(cfg: Config) -> Iterator[Problem]:
    required = {"name": cfg.name, "run_dir": cfg.run_dir, "data.cache_dir": cfg.data.cache_dir}
    for name, value in required.items():
        if not value.strip():
            yield Problem(name, repr(value), "empty", "give one, or leave it out for the default")
        elif name == "name" and (".." in Path(value).parts or Path(value).is_absolute()):
            yield Problem(name, value, "leads out of the folder outputs", "give a plain name, or run_dir=FOLDER")
        elif name != "name" and Path(value).expanduser().is_file():
            yield Problem(name, value, "a file", "give a folder")


def secret_problems(cfg: Config) -> Iterator[Problem]:
    """A password in a URL would stand in config.yaml, in W&B and on the model card."""
    for name, _, value in walk(cfg):
        parts = value if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else [value]
        for text in parts:
            if isinstance(text, str) and (shown := CREDENTIALS.sub("…", text)) != text:
                yield Problem(name, shown, "holds a password or token", "leave it out; log in, or use the environment")


def vocabulary_problems(cfg: Config) -> Iterator[Problem]:
    smallest = tokenizer_kind(cfg).smallest
    if cfg.model.tokenizer == TRAIN and cfg.model.vocab_size < smallest:
        remedy = f"give {smallest} or more; 4000 to 50000 is usual"
        yield Problem("model.vocab_size", cfg.model.vocab_size, "smaller than the alphabet", remedy)


def schedule_problems(cfg: Config) -> Iterator[Problem]:
    """Phases of the schedule must fit into a duration that is known already."""
    steps = cfg.trainer.max_steps
    for key, value in cfg.scheduler.phases.items():
        if steps is not None and is_share_or_steps(value) and 1 <= steps < value:
            remedy = f"give {steps} steps at most, or a share such as 0.1"
            yield Problem(f"scheduler.{key}", value, f"longer than the run of {steps} steps", remedy)
        if cfg.trainer.max_minutes is not None and value >= 1:
            wrong = "steps mean nothing to a schedule that follows the clock (trainer.max_minutes)"
            yield Problem(f"scheduler.{key}", value, wrong, "give a share such as 0.1")


def callback_problems(cfg: Config) -> Iterator[Problem]:
    if cfg.hardware.strategy == Strategy.fsdp:
        for name, part in cfg.callbacks.items():
            if not part.sharded:
                wrong = "it needs the whole model, of which under hardware.strategy=fsdp each device has a share"
                yield Problem("callbacks", name, wrong, "leave it out, or give hardware.strategy=ddp")


def nonfinite_problems(cfg: Config) -> Iterator[Problem]:
    if cfg.trainer.on_nonfinite == OnNonfinite.skip:
        if cfg.hardware.precision == "16-mixed":
            wrong = "under hardware.precision=16-mixed the scaling of the loss does that already"
            yield Problem("trainer.on_nonfinite", "skip", wrong, "leave it out, or give bf16-mixed")
        if cfg.hardware.strategy == Strategy.fsdp:
            remedy = "leave it out, or give hardware.strategy=ddp"
            yield Problem("trainer.on_nonfinite", "skip", "not tried with hardware.strategy=fsdp", remedy)


def carried_state_problems(cfg: Config) -> Iterator[Problem]:
    place = cfg.model.name_or_path if cfg.model.pretrained else None
    if cfg.optimizer.carry_state and not (place and (Path(place).expanduser() / "config.yaml").is_file()):
        wrong = "the weights that training begins with are no run's"
        yield Problem("optimizer.carry_state", True, wrong, "name a run by model.name_or_path, or leave it out")
    if cfg.optimizer.carry_state and cfg.hardware.strategy == Strategy.fsdp:
        remedy = "leave it out, or give hardware.strategy=ddp"
        yield Problem("optimizer.carry_state", True, "not tried with hardware.strategy=fsdp", remedy)


def hybrid_problems(cfg: Config) -> Iterator[Problem]:
    """Of kinds of passes that a device may have or not have in a step, and that change the model's attention."""
    if not cfg.objective.uniform and cfg.hardware.strategy == Strategy.fsdp:
        wrong = f"all devices must do the same passes, which objective={cfg.objective.name} doesn't"
        yield Problem("hardware.strategy", "fsdp", wrong, "give ddp")
    if not cfg.objective.uniform and cfg.hardware.compile == "step":
        wrong = f"each step of objective={cfg.objective.name} has other shapes, and each shape a graph of its own"
        yield Problem("hardware.compile", "step", wrong, "give true or false")
    if not cfg.objective.uniform and cfg.hardware.gradient_checkpointing:
        wrong = f"layers would be computed again with an attention that objective={cfg.objective.name} has changed"
        yield Problem("hardware.gradient_checkpointing", True, wrong, "leave it out")


def attention_problems(cfg: Config) -> Iterator[Problem]:
    if cfg.objective.facts.kind == "masked" and cfg.model.config.get("is_decoder"):
        remedy = "leave it out, or give another objective"
        yield Problem("model.config.is_decoder", True, "a masked model looks at both sides of a token", remedy)


def document_problems(cfg: Config) -> Iterator[Problem]:
    if cfg.data.prefix != Prefix.auto and not cfg.data.documents:
        wrong = "nothing uses it without data.documents=true"
        yield Problem("data.prefix", cfg.data.prefix.value, wrong, "leave it out")


def batch_problems(cfg: Config) -> Iterator[Problem]:
    """Global batch = devices × nodes × micro batch × accumulation, all of them whole numbers."""
    size, devices, nodes = cfg.trainer.global_batch_size, cfg.hardware.devices, cfg.hardware.nodes
    micro, world = cfg.hardware.micro_batch_size, devices * nodes
    if min(size, devices, nodes, micro or 1) < 1 or micro == 0:
        return
    if size % world:
        wrong = f"does not divide over {devices} devices × {nodes} nodes"
        yield Problem("trainer.global_batch_size", size, wrong, f"give {multiples(size, world)}")
    elif micro is not None and (size // world) % micro:
        share = size // world
        fitting = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        wrong = f"a device's share of the global batch is {size} / ({devices} × {nodes}) = {share}"
        remedy = f"give one of {fitting}, or trainer.global_batch_size={multiples(size, world * micro)}"
        yield Problem("hardware.micro_batch_size", micro, wrong, remedy)
    elif cfg.hardware.cuda_graphs and micro not in (None, size):
        wrong = "under hardware.cuda_graphs each pass overwrites the gradients of the one before"
        yield Problem("hardware.micro_batch_size", micro, wrong, f"leave it out, or give {size}")


def multiples(size: int, step: int) -> str:
    """The multiples of ``step`` around ``size``, for people."""
    lower = size // step * step
    return f"{lower} or {lower + step}" if lower else str(step)
