"""A model that continues prompts, word by word."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TextStreamer

from lightning_lm.objectives.clm import continue_prompt


class Writer(TextStreamer):
    """Hands text on as soon as its words are complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]):
        super().__init__(tokenizer, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text + "\n" * stream_end)


def write_continuation(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    write: Callable[[str], object],
    *,
    seed: int,
    **options: Any,
) -> None:
    """Hand the prompt ``ids`` and its continuation to ``write``, piece by piece, and at last a line's end.

    ``seed`` is that of the draws: nothing that was generated before has a say. ``options`` are those of
    ``continue_prompt``.
    """
    torch.manual_seed(seed)
    continue_prompt(model, tokenizer, ids, streamer=Writer(tokenizer, write), **options)
