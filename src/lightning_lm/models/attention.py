"""Attention without a mask, for training batches: their blocks are full, so that none hides any padding."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_lm.models.output_head import NO_INPUTS, OutputHead, forward_to_head

UNMASKED = "sdpa_unmasked"  # transformers looks for padding and packed texts, but not under a name that it doesn't know
AttentionInterface.register(UNMASKED, sdpa_attention_forward)


@contextmanager
def unmasked(model: nn.Module) -> Iterator[None]:
    """Within, transformers makes no masks; a model that is causal stays so."""
    implementation = model.config._attn_implementation
    model.config._attn_implementation = UNMASKED
    try:
        yield
    finally:
        model.config._attn_implementation = implementation


@contextmanager
def on_both_sides(model: nn.Module) -> Iterator[None]:
    """Within, the tokens of a causal model look at those behind them, too, as far as transformers can do that."""
    config, modules = model.config.get_text_config(), [m for m in model.modules() if getattr(m, "is_causal", False)]
    of_config = vars(config).get("is_causal")
    for part in (config, *modules):
        part.is_causal = False
    try:
        yield
    finally:
        for module in modules:
            module.is_causal = True
        if of_config is None:
            del config.is_causal  # an export would have it, and be causal under any class
        else:
            config.is_causal = of_config


def needs_no_mask(model: nn.Module, head: OutputHead, batch: dict[str, Tensor]) -> bool:
    """Whether the model's outputs for the first block of a training batch are the same to the bit without masks.

    They are not where attention looks no further than a window that is shorter than the block.
    """
    row = {name: x[:1] for name, x in batch.items() if name not in NO_INPUTS}
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation != "sdpa" or row.keys() & {"attention_mask", "position_ids"}:
        return False
    everywhere, training = torch.arange(row["input_ids"].numel(), device=row["input_ids"].device), model.training
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            expected = forward_to_head(model.eval(), head, row, everywhere)
            with unmasked(model):
                outputs = forward_to_head(model, head, row, everywhere)
        except Exception:  # what the model's own code raises where it has no such attention
            return False
        finally:
            model.train(training)
    return all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True) if a is not None and b is not None)
