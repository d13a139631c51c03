"""What can be told from the settings alone, before anything heavy is imported: values that can't work."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lightning_lm.config import Accelerator, Config, HubDataConfig, MlmConfig, MuonConfig, Strategy, TextDataConfig
from lightning_lm.errors import Problem, Refused, nearest
from lightning_lm.rules import RULES, share_or_steps

PRECISIONS = ["32-true", "bf16-mixed", "bf16-true", "16-mixed"]
MASK = "<mask>"  # in prompts; see lightning_lm.objectives.mlm
REPOSITORY = re.compile(r"([A-Za-z0-9_.-]+/)?(?![-.])(?!.*(--|\.\.))[A-Za-z0-9_.-]{1,96}(?<![-.])")


def check(cfg: Config) -> None:
    """Raises Refused with every problem of these settings."""
    if found := problems(cfg):
        raise Refused(*found)


def problems(cfg: Config) -> list[Problem]:
    parts = (single, names, run, model, data, prompts, groups, scheduler, batch)
    return list(chain.from_iterable(part(cfg) for part in parts))


def single(cfg: Config) -> Iterator[Problem]:
    for setting, (right, remedy) in RULES.items():
        axis, _, key = setting.rpartition(".")
        value = getattr(getattr(cfg, axis) if axis else cfg, key, None)
        if value is not None and not right(value):
            yield Problem(setting, value, "out of range", f"give {remedy}")


def names(cfg: Config) -> Iterator[Problem]:
    objective = "mlm" if isinstance(cfg.objective, MlmConfig) else "clm"
    optimizer = "muon" if isinstance(cfg.optimizer, MuonConfig) else "adamw"
    for axis, own in (("objective", objective), ("optimizer", optimizer)):
        if (name := getattr(cfg, axis).name) != own:
            yield Problem(f"{axis}.name", name, f"this is the name of {own}", f"write {axis}={name} to choose another")
    if cfg.hardware.precision not in PRECISIONS:
        remedy = nearest(cfg.hardware.precision, PRECISIONS)
        yield Problem("hardware.precision", cfg.hardware.precision, "no such precision", remedy)
    elif cfg.hardware.precision == "16-mixed" and cfg.hardware.accelerator is Accelerator.cpu:
        yield Problem("hardware.precision", "16-mixed", "needs a GPU", "give bf16-mixed or 32-true on a CPU")
    if cfg.hardware.strategy is Strategy.fsdp and cfg.hardware.precision == "16-mixed":
        yield Problem("hardware.precision", "16-mixed", "FSDP2 scales no losses", "give bf16-mixed or 32-true")
    if cfg.hardware.strategy is Strategy.fsdp and cfg.hardware.compile:
        remedy = "leave it out, or give hardware.strategy=ddp"
        yield Problem("hardware.compile", "true", "not tried with hardware.strategy=fsdp", remedy)
    if cfg.logger.name not in ("wandb", "none"):
        yield Problem("logger.name", cfg.logger.name, "no such logger", "choose logger=wandb or logger=none")
    elif cfg.logger.name == "wandb" and not re.fullmatch(r"[^/\\#?%:]+", cfg.logger.project):
        yield Problem("logger.project", repr(cfg.logger.project), "W&B can't take it", r"give one without / \ # ? % :")
    if cfg.trainer.push_to_hub is not None and not REPOSITORY.fullmatch(cfg.trainer.push_to_hub):
        wrong = "no name for a repository"
        yield Problem("trainer.push_to_hub", repr(cfg.trainer.push_to_hub), wrong, "write NAME or USER/NAME")


def run(cfg: Config) -> Iterator[Problem]:
    required = {"name": cfg.name, "run_dir": cfg.run_dir, "data.cache_dir": cfg.data.cache_dir}
    for setting, value in required.items():
        if not value.strip():
            yield Problem(setting, repr(value), "empty", "give one, or leave it out for the default")
        elif setting != "name" and Path(value).expanduser().is_file():
            yield Problem(setting, value, "a file", "give a folder")


def model(cfg: Config) -> Iterator[Problem]:
    m = cfg.model
    for setting, place in (("model.name_or_path", m.name_or_path), ("model.tokenizer", m.tokenizer)):
        local = place is not None and (place.startswith((".", "/", "~")) or place.count("/") > 1)
        if local and not Path(place).expanduser().is_dir():
            yield Problem(setting, place, "no such folder", "check the path, or give an id of the Hub")
        if place is not None and not local and not REPOSITORY.fullmatch(place):
            yield Problem(setting, repr(place), "neither a path nor an id of the Hub", "write ORG/NAME or a path")
    if m.name_or_path is None and m.pretrained:
        remedy = "give model.name_or_path, or model.pretrained=false for random weights"
        yield Problem("model.pretrained", "true", "there is no model to load weights from", remedy)
    if m.name_or_path is None and not m.model_type:
        remedy = "give model.name_or_path, or an architecture such as model.model_type=gpt2"
        yield Problem("model.model_type", "null", "nothing says which architecture to build", remedy)
    if m.name_or_path is None and m.tokenizer is None:
        yield Problem("model.tokenizer", "null", "nothing says which tokenizer", "give an id, a folder, or train")
    if m.name_or_path is not None and m.tokenizer == "train" and m.pretrained:
        remedy = "add model.pretrained=false, or leave model.tokenizer out"
        yield Problem("model.tokenizer", "train", "pretrained weights belong to their own tokenizer", remedy)
    smallest = 6 if isinstance(cfg.objective, MlmConfig) else 257  # special tokens and a letter; all bytes and the end
    if m.tokenizer == "train" and m.vocab_size < smallest:
        remedy = f"give {smallest} or more; 4000 to 50000 is usual"
        yield Problem("model.vocab_size", m.vocab_size, "smaller than the alphabet", remedy)


def data(cfg: Config) -> Iterator[Problem]:
    if isinstance(cfg.data, HubDataConfig):
        yield from hub(cfg.data)
    elif isinstance(cfg.data, TextDataConfig):
        yield from text(cfg.data)


def hub(d: HubDataConfig) -> Iterator[Problem]:
    if not (d.path and d.path.strip()):
        yield Problem("data.path", d.path or "null", "no dataset", "give an id of the Hub, such as Salesforce/wikitext")
    for key in sorted({"train", "validation"} - set(d.splits)):
        yield Problem("data.splits", d.splits, f"has no {key}", f"add {key}: NAME_OF_A_SPLIT")
    for key, name in d.splits.items():
        if key not in ("train", "validation", "test"):
            yield Problem(f"data.splits.{key}", name, "no part of a run", nearest(key, ["train", "validation", "test"]))
        elif key != "train" and name == d.splits.get("train"):
            remedy = "name another, or slices such as train[:95%] and train[95%:]"
            yield Problem(f"data.splits.{key}", name, "the same as data.splits.train", remedy)


def text(d: TextDataConfig) -> Iterator[Problem]:
    for split in ("train", "validation", "test"):
        given = getattr(d, split)
        paths = given if isinstance(given, list) else [given]
        if given is not None and not (paths and all(isinstance(path, str) and path.strip() for path in paths)):
            yield Problem(f"data.{split}", repr(given), "no path", "give a path, a glob, or a list of them")
        if given is not None and getattr(d, f"{split}_percent", None) is not None:
            wrong = f"data.{split}_percent would cut the same split from the training rows"
            yield Problem(f"data.{split}", given, wrong, "leave out one of the two")
    if d.train is None:
        yield Problem("data.train", "null", "no text to train on", "give a path or a glob, as data.train='my/*.txt'")
    if d.validation is None and d.validation_percent is None:
        remedy = "give a path, or data.validation_percent=5 to cut it from the training rows"
        yield Problem("data.validation", "null", "no text to validate on", remedy)
    percents = [p for p in (d.validation_percent, d.test_percent) if p is not None and 0 < p < 100]
    if sum(percents) >= 100:
        wrong = f"with data.validation_percent={d.validation_percent} nothing is left to train on"
        yield Problem("data.test_percent", d.test_percent, wrong, "lower one of the two")


def prompts(cfg: Config) -> Iterator[Problem]:
    if "" in cfg.objective.prompts:
        yield Problem("objective.prompts", cfg.objective.prompts, "an empty prompt", "give it words, or leave it out")
    prompts = cfg.objective.prompts if isinstance(cfg.objective, MlmConfig) else []
    if bare := [prompt for prompt in prompts if MASK not in prompt]:
        remedy = f"write {MASK} where the model shall fill in, whatever the tokenizer's mask token"
        yield Problem("objective.prompts", bare, "nothing to fill in", remedy)


def groups(cfg: Config) -> Iterator[Problem]:
    known = ["adamw", "muon"] if isinstance(cfg.optimizer, MuonConfig) else ["adamw"]
    if not cfg.optimizer.groups:
        yield Problem("optimizer.groups", "[]", "no parameter would be trained", "leave it out, or give a row")
    for i, row in enumerate(cfg.optimizer.groups):
        setting = f"optimizer.groups[{i}]"
        if row.optimizer not in known:
            remedy = "choose optimizer=muon" if row.optimizer == "muon" else f"choose from {', '.join(known)}"
            yield Problem(f"{setting}.optimizer", row.optimizer, "this table can't name it", remedy)
        elif row.optimizer == "muon" and row.ndim != 2:
            yield Problem(f"{setting}.ndim", row.ndim, "Muon is for matrices only", "give ndim: 2")
        try:
            re.compile(row.pattern)
        except re.error as error:
            yield Problem(f"{setting}.pattern", row.pattern, f"no regular expression ({error})", "correct it")


def scheduler(cfg: Config) -> Iterator[Problem]:
    s, steps = cfg.scheduler, cfg.trainer.max_steps
    for key, value in (("warmup", s.warmup), ("decay", s.decay)):
        if steps is not None and share_or_steps(value) and 1 <= steps < value:
            remedy = f"give {steps} steps at most, or a share such as 0.1"
            yield Problem(f"scheduler.{key}", value, f"longer than the run of {steps} steps", remedy)
        if cfg.trainer.max_minutes is not None and value >= 1:
            wrong = "steps mean nothing to a schedule that follows the clock (trainer.max_minutes)"
            yield Problem(f"scheduler.{key}", value, wrong, "give a share such as 0.1")
    if s.name == "wsd" and max(s.warmup, s.decay) < 1 < s.warmup + s.decay:
        wrong = f"together with scheduler.warmup={s.warmup} longer than the run"
        yield Problem("scheduler.decay", s.decay, wrong, "lower one of the two")


def batch(cfg: Config) -> Iterator[Problem]:
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


def multiples(size: int, step: int) -> str:
    """The multiples of ``step`` around ``size``, for people."""
    lower = size // step * step
    return f"{lower} or {lower + step}" if lower else str(step)
