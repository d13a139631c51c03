"""From a batch to the negative log-likelihood of its labelled tokens."""

import functools
import inspect

import torch.nn.functional as F
from torch import Tensor, nn


def labelled_nll(model: nn.Module, batch: dict[str, Tensor], with_hits: bool = False) -> tuple[Tensor, Tensor | None]:
    """Negative log-likelihood of the labelled tokens.

    Args:
        model: of an Auto class, returning ``logits`` [n, t, vocabulary].
        batch: ``input_ids`` and ``labels`` int64 [n, t], labels aligned with the outputs and −100 where there is
            none; ``attention_mask`` where the batch has padding.
        with_hits: also tell where the likeliest token was the right one.

    Returns:
        NLL in nats, float32 [labels], and the hits, bool [labels], or None.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if _has_cache(type(model)):
        inputs["use_cache"] = False  # keys and values are for generating
    wanted = batch["labels"] != -100
    logits, labels = model(**inputs).logits[wanted].float(), batch["labels"][wanted]
    nll = F.cross_entropy(logits, labels, reduction="none")
    return nll, logits.argmax(-1) == labels if with_hits else None


@functools.cache
def _has_cache(architecture: type[nn.Module]) -> bool:
    return "use_cache" in inspect.signature(architecture.forward).parameters
