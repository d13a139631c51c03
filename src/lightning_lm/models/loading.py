"""Tokenizers and models of the Auto classes: from a checkpoint or from a config."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lightning_lm.allocator import imports_uncollected
from lightning_lm.errors import EXPORT_AGAIN, Problem, Refused, nearest, refuse
from lightning_lm.faults import SAYS_NO_MEMORY, chain, innermost
from lightning_lm.files import export_damage
from lightning_lm.models.activations import fuse_gelu

log = logging.getLogger(__name__)
DOCUMENTED = "see the documentation of the model's config class"
UNREACHABLE = "use a local folder, or experiment=quickstart, which needs no network"


def layers(model: nn.Module) -> Sequence[nn.Module]:
    """The transformer's: the items of the ``nn.ModuleList`` that holds most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda items: sum(p.numel() for p in items.parameters()), default=[])


def load_tokenizer(name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id or folder; raises Refused where there is none that can be read."""
    place = export_of(name_or_path)
    try:
        with imports_uncollected():
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise refusal("model.tokenizer", name_or_path, "no tokenizer can be loaded", error) from error
    if vocabulary_size(tokenizer) <= len(tokenizer.all_special_ids):
        wrong = "its tokenizer has no tokens but special ones: its files are missing"
        raise refuse("model.tokenizer", name_or_path, wrong, "name a folder that has tokenizer.json or vocab files")
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that an embedding needs: a vocabulary may have gaps, so that its highest id is above its length."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def export_of(name_or_path: str) -> str:
    """Where a model lies that a name stands for: of a run's folder, its export; raises Refused for a damaged one."""
    path = Path(name_or_path).expanduser()
    if not ((path / "config.yaml").is_file() and (path / "export" / "config.json").is_file()):
        return name_or_path
    if wrong := export_damage(path):
        raise refuse("model.name_or_path", name_or_path, f"its export: {wrong}", EXPORT_AGAIN)
    return str(path / "export")


def load_config(
    name_or_path: str | None,
    model_type: str | None,
    overrides: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    pretrained: bool,
    revision: str | None = None,
) -> PretrainedConfig:
    """The model's config: that of a Hub id or folder, or a new one of ``model_type``, with ``overrides`` applied.

    A model that starts from random weights takes its vocabulary's size and its special tokens from the tokenizer.
    Raises Refused where there is no such model, or its config class doesn't know or take an override.
    """
    special, tokens = ("bos_token_id", "eos_token_id", "pad_token_id"), vocabulary_size(tokenizer)
    of_tokenizer = {} if pretrained else {"vocab_size": tokens, **{n: getattr(tokenizer, n) for n in special}}
    try:
        if name_or_path is None:
            base = AutoConfig.for_model(model_type)
        else:
            base = AutoConfig.from_pretrained(export_of(name_or_path), revision=revision, trust_remote_code=False)
    except Refused:
        raise
    except Exception as error:
        setting, value = ("model.name_or_path", name_or_path) if name_or_path else ("model.model_type", model_type)
        raise refusal(setting, value, "no model can be loaded", error) from error
    fields = sorted({*base.to_dict(), *base.attribute_map})
    unknown = [name for name in overrides if name not in fields]
    if unknown:
        wrong = f"{type(base).__name__} has no such field"
        raise Refused(*(Problem(f"model.config.{n}", overrides[n], wrong, nearest(n, fields)) for n in unknown))
    if not pretrained and overrides.get("vocab_size", tokens) < tokens:
        wrong = f"the tokenizer has {tokens} tokens"
        raise refuse("model.config.vocab_size", overrides["vocab_size"], wrong, "leave it out")
    try:
        # A new one derives fields such as the layers' kinds from what is asked for
        return type(base).from_dict({**(base.to_dict() if name_or_path else {}), **of_tokenizer, **overrides})
    except Exception as error:  # huggingface_hub's strict dataclasses raise several kinds
        raise refuse("model.config", overrides, innermost(error), DOCUMENTED) from error


def load_model(
    config: PretrainedConfig,
    auto_class: str,
    name_or_path: str | None,
    revision: str | None = None,
    *,
    objective: str,
    trained: bool = False,
) -> nn.Module:
    """A float32 model of transformers' class of this name: pretrained where ``name_or_path`` is given, else new.

    Raises Refused where the class, and so the ``objective``, lacks the architecture, or weights don't fit the config;
    with ``trained`` also where a checkpoint lacks weights, such as those of a head, which would be drawn at random.
    """
    auto = getattr(transformers, auto_class)
    if type(config) not in auto._model_mapping:
        wrong = f"{config.model_type} has no head for it in transformers ({auto_class})"
        raise refuse("objective", objective, wrong, "choose the other objective, or another model")
    if auto is transformers.AutoModelForMaskedLM and getattr(config, "is_decoder", False):
        config.is_decoder = False  # as a causal model's checkpoint has it
    if name_or_path is None:
        return fuse_gelu(_new_model(auto, config))
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what matters of it is said here
    try:
        model, info = auto.from_pretrained(
            export_of(name_or_path),
            config=config,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            trust_remote_code=False,
        )
    except (MemoryError, Refused):
        raise
    except Exception as error:
        raise refusal("model.name_or_path", name_or_path, "its weights can't be loaded", error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    for name, saved, needed in sorted(info["mismatched_keys"]):
        wrong = f"its weights don't fit: {name} is {tuple(saved)} there, and {tuple(needed)} by the config"
        remedy = "remove the model.config override, or set model.pretrained=false"
        raise refuse("model.config", name_or_path, wrong, remedy)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            wrong = f"its weights are not finite: {name}"
            raise refuse("model.name_or_path", name_or_path, wrong, "choose another checkpoint")
    if info["missing_keys"] >= {name for name, _ in model.named_parameters()}:
        wrong = "its checkpoint has none of the model's weights"
        raise refuse("model.name_or_path", name_or_path, wrong, "choose another, or set model.pretrained=false")
    if missing := ", ".join(sorted(info["missing_keys"])):
        if trained:
            wrong = f"its checkpoint lacks weights, so that figures would be those of random ones: {missing}"
            raise refuse("model.name_or_path", name_or_path, wrong, "fine-tune it first")
        log.warning("newly initialised, not from the checkpoint: %s", missing)
    return fuse_gelu(model)


def _new_model(auto: Any, config: PretrainedConfig) -> nn.Module:
    """With random weights; a config's slips show only in the model's own code."""
    try:
        model = auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:
        if SAYS_NO_MEMORY.search(str(error)):
            raise
        raise refuse("model.config", config.model_type, innermost(error), DOCUMENTED) from error
    if not layers(model):
        raise refuse("model.config", config.model_type, "the model has no layers", DOCUMENTED)
    return model


def refusal(setting: str, name_or_path: str | None, part: str, error: Exception) -> Refused:
    """The innermost cause, with the remedy that fits it."""
    place = Path(name_or_path or "").expanduser()
    reason, remedy = innermost(error), UNREACHABLE
    text = " ".join(map(str, chain(error)))
    if "trust_remote_code" in text:
        reason, remedy = "it comes with code of its own, which is never run here", "choose a model of transformers' own"
    elif "weights_only" in text:
        reason, remedy = "its pickle holds more than weights, and is not read", "save it with safetensors"
    elif isinstance(error, ImportError):
        remedy = "install the package that it names"
    elif name_or_path and place.is_dir():
        if (place / "adapter_config.json").is_file() and not (place / "config.json").is_file():
            reason, remedy = "it is an adapter without its model", "merge it into the model, and save that"
        elif (place / "config.yaml").is_file():
            reason, remedy = "it is a run without an export", "finish the run: the command that began it continues it"
        elif pointer := next((file for file in sorted(place.iterdir()) if file.is_file() and _is_pointer(file)), None):
            reason, remedy = f"{pointer.name} is a pointer of Git LFS", "fetch the files themselves with git lfs pull"
        else:
            remedy = "check the folder's files, or name one that save_pretrained has written"
    return refuse(setting, name_or_path, f"{part}: {reason}", remedy)


def _is_pointer(file: Path) -> bool:
    """Whether Git has left a note where a large file belongs (specification of Git LFS, version 1)."""
    with file.open("rb") as content:
        return content.read(42) == b"version https://git-lfs.github.com/spec/v1"


def fit_together(model: nn.Module, tokenizer: PreTrainedTokenizerBase, block_size: int) -> None:
    """Grow the embeddings to the tokenizer's size where they are too small; raises Refused for too long blocks."""
    weight, tokens = getattr(model.get_input_embeddings(), "weight", None), vocabulary_size(tokenizer)
    if weight is None:
        raise refuse("model", type(model).__name__, "it has no embedding for each token", "choose another model")
    rows = len(weight)
    if tokens > rows:
        log.warning("embeddings grow from %d to %d rows, as the tokenizer needs", rows, tokens)
        model.resize_token_embeddings(tokens)
    limit = positions(model)
    if limit is not None and block_size > limit:
        wrong = f"the model has only {limit} positions"
        raise refuse("data.block_size", block_size, wrong, "lower it, or choose another model")


def positions(model: nn.Module) -> int | None:
    """The longest sequence that a model's position table allows, in tokens; None where it has no such table."""
    size = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if size is not None and name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count from the padding index on
            return size if module.padding_idx is None else size - (module.padding_idx + 1)
    return size
