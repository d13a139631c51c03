"""Tokenizers and models of the Auto classes: from a checkpoint or from a config."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

from lightning_lm.errors import Problem, Refused, nearest, refuse
from lightning_lm.memory import imports_uncollected
from lightning_lm.objectives import Objective

log = logging.getLogger(__name__)

UNREACHABLE = "use a local folder, or experiment=quickstart, which needs no network"


def layers(model: nn.Module) -> Sequence[nn.Module]:
    """The transformer's: the items of the ``nn.ModuleList`` that holds most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda items: sum(p.numel() for p in items.parameters()), default=[])


def load_tokenizer(name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id or folder.

    Raises:
        Refused: there is none, or none that can be read.
    """
    try:
        with imports_uncollected():
            return AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refuse("model.tokenizer", name_or_path, f"no tokenizer found ({_first(error)})", UNREACHABLE) from error


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

    Raises:
        Refused: no such model, or an override that its config class doesn't know or take.
    """
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    of_tokenizer = {} if pretrained else {"vocab_size": len(tokenizer), **{n: getattr(tokenizer, n) for n in special}}
    try:
        if name_or_path is not None:
            known = AutoConfig.from_pretrained(name_or_path, revision=revision)
        else:
            known = AutoConfig.for_model(model_type)
    except (OSError, ValueError, KeyError) as error:
        setting, value = ("model.name_or_path", name_or_path) if name_or_path else ("model.model_type", model_type)
        raise refuse(setting, value, f"no model found ({_first(error)})", UNREACHABLE) from error
    fields = sorted({*known.to_dict(), *known.attribute_map})
    unknown = [name for name in overrides if name not in fields]
    if unknown:
        where = f"{type(known).__name__} has no such field"
        raise Refused(*(Problem(f"model.config.{n}", overrides[n], where, nearest(n, fields)) for n in unknown))
    if not pretrained and overrides.get("vocab_size", len(tokenizer)) < len(tokenizer):
        wrong = f"the tokenizer has {len(tokenizer)} tokens"
        raise refuse("model.config.vocab_size", overrides["vocab_size"], wrong, "leave it out")
    try:
        # A new one derives fields such as the layers' kinds from what is asked for
        return type(known).from_dict({**(known.to_dict() if name_or_path else {}), **of_tokenizer, **overrides})
    except Exception as error:  # huggingface_hub's strict dataclasses raise several kinds
        wrong = _first(error.__cause__ or error)
        raise refuse("model.config", overrides, wrong, "see the config class's documentation") from error


def load_model(
    config: PretrainedConfig, objective: Objective, name_or_path: str | None, revision: str | None = None
) -> nn.Module:
    """A float32 model of the objective's Auto class: pretrained where ``name_or_path`` is given, else new.

    Raises:
        Refused: the architecture can't do the objective, or the weights don't fit the config.
    """
    auto = getattr(transformers, objective.auto_class)
    if type(config) not in auto._model_mapping:
        wrong = f"{config.model_type} has no head for it in transformers ({objective.auto_class})"
        raise refuse("objective", objective.name, wrong, "choose the other objective, or another model")
    if name_or_path is None:
        return fuse_gelu(auto.from_config(config, dtype=torch.float32))
    try:
        model, info = auto.from_pretrained(
            name_or_path, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise refuse("model.name_or_path", name_or_path, f"no weights found ({_first(error)})", UNREACHABLE) from error
    except RuntimeError as error:  # how transformers reports tensors of other shapes
        remedy = "remove the model.config override, or set model.pretrained=false"
        raise refuse("model.config", name_or_path, f"its weights don't fit ({_first(error)})", remedy) from error
    if info["missing_keys"]:
        log.warning("newly initialised, not from the checkpoint: %s", ", ".join(sorted(info["missing_keys"])))
    return fuse_gelu(model)


def fuse_gelu(model: nn.Module) -> nn.Module:
    """Let one operator compute what transformers writes as a formula: GELU's tanh approximation, as in GPT-2.

    The formula keeps half a dozen tensors of the feed-forward layer's width for the backward pass, the operator one.
    """
    formulas = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, formulas):
                setattr(module, name, nn.GELU("tanh"))
    return model


def fit_together(model: nn.Module, tokenizer: PreTrainedTokenizerBase, objective: Objective, block_size: int) -> None:
    """Grow the embeddings to the tokenizer's size where they are too small; check what can't be mended.

    Raises:
        Refused: blocks longer than the model's positions, no mask token, or a "causal" model that sees the future.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        log.warning("embeddings grow from %d to %d rows, as the tokenizer needs", rows, len(tokenizer))
        model.resize_token_embeddings(len(tokenizer))
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        positions -= _position_offset(model)
        if block_size > positions:
            wrong = f"the model has only {positions} positions"
            raise refuse("data.block_size", block_size, wrong, "lower it, or choose another model")
    if objective.name == "mlm" and tokenizer.mask_token_id is None:
        raise refuse("objective", "mlm", "the tokenizer has no mask token", "choose another model.tokenizer")
    if objective.name == "clm" and _sees_the_future(model):
        wrong = f"{model.config.model_type} looks at the tokens that it should predict"
        raise refuse("objective", "clm", wrong, "set model.config.is_decoder=true, or objective=mlm")


def _position_offset(model: nn.Module) -> int:
    """Rows of the position table that no token uses: RoBERTa and its kin count from the padding index on."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


@torch.no_grad()
def _sees_the_future(model: nn.Module) -> bool:
    """Whether outputs change when a later token does, on a short probe."""
    training = model.training
    model.eval()
    ids = torch.arange(8).repeat(2, 1) % model.get_input_embeddings().num_embeddings
    ids[1, -1] = 0
    first, second = model(input_ids=ids).logits[:, :-1]
    model.train(training)
    return not torch.allclose(first, second, atol=1e-4)


def _first(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
