"""Tokenizers and models of the Auto classes: from a checkpoint or from a config."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from lightning_lm.allocator import imports_uncollected
from lightning_lm.errors import Problem, Refused, nearest, refuse
from lightning_lm.models.activations import fuse_gelu

log = logging.getLogger(__name__)
UNREACHABLE = "use a local folder, or experiment=quickstart, which needs no network"


def layers(model: nn.Module) -> Sequence[nn.Module]:
    """The transformer's: the items of the ``nn.ModuleList`` that holds most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda items: sum(p.numel() for p in items.parameters()), default=[])


def load_tokenizer(name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id or folder; raises Refused where there is none that can be read."""
    try:
        with imports_uncollected():
            return AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = f"no tokenizer found ({_first_line(error)})"
        raise refuse("model.tokenizer", name_or_path, wrong, UNREACHABLE) from error


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
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    of_tokenizer = {} if pretrained else {"vocab_size": len(tokenizer), **{n: getattr(tokenizer, n) for n in special}}
    try:
        new = name_or_path is None
        base = AutoConfig.for_model(model_type) if new else AutoConfig.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        setting, value = ("model.name_or_path", name_or_path) if name_or_path else ("model.model_type", model_type)
        raise refuse(setting, value, f"no model found ({_first_line(error)})", UNREACHABLE) from error
    fields = sorted({*base.to_dict(), *base.attribute_map})
    unknown = [name for name in overrides if name not in fields]
    if unknown:
        wrong = f"{type(base).__name__} has no such field"
        raise Refused(*(Problem(f"model.config.{n}", overrides[n], wrong, nearest(n, fields)) for n in unknown))
    if not pretrained and overrides.get("vocab_size", len(tokenizer)) < len(tokenizer):
        wrong = f"the tokenizer has {len(tokenizer)} tokens"
        raise refuse("model.config.vocab_size", overrides["vocab_size"], wrong, "leave it out")
    try:
        # A new one derives fields such as the layers' kinds from what is asked for
        return type(base).from_dict({**(base.to_dict() if name_or_path else {}), **of_tokenizer, **overrides})
    except Exception as error:  # huggingface_hub's strict dataclasses raise several kinds
        wrong = _first_line(error.__cause__ or error)
        raise refuse("model.config", overrides, wrong, "see the config class's documentation") from error


def load_model(
    config: PretrainedConfig, auto_class: str, name_or_path: str | None, revision: str | None = None, *, objective: str
) -> nn.Module:
    """A float32 model of transformers' class of this name: pretrained where ``name_or_path`` is given, else new.

    Raises Refused where the class, and so the ``objective``, lacks the architecture, or weights don't fit the config.
    """
    auto = getattr(transformers, auto_class)
    if type(config) not in auto._model_mapping:
        wrong = f"{config.model_type} has no head for it in transformers ({auto_class})"
        raise refuse("objective", objective, wrong, "choose the other objective, or another model")
    if name_or_path is None:
        return fuse_gelu(auto.from_config(config, dtype=torch.float32))
    try:
        model, info = auto.from_pretrained(
            name_or_path, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        wrong = f"no weights found ({_first_line(error)})"
        raise refuse("model.name_or_path", name_or_path, wrong, UNREACHABLE) from error
    except RuntimeError as error:  # how transformers reports tensors of other shapes
        remedy = "remove the model.config override, or set model.pretrained=false"
        raise refuse("model.config", name_or_path, f"its weights don't fit ({_first_line(error)})", remedy) from error
    if info["missing_keys"]:
        log.warning("newly initialised, not from the checkpoint: %s", ", ".join(sorted(info["missing_keys"])))
    return fuse_gelu(model)


def fit_together(model: nn.Module, tokenizer: PreTrainedTokenizerBase, block_size: int) -> None:
    """Grow the embeddings to the tokenizer's size where they are too small; raises Refused for too long blocks."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        log.warning("embeddings grow from %d to %d rows, as the tokenizer needs", rows, len(tokenizer))
        model.resize_token_embeddings(len(tokenizer))
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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
