"""Masked language modelling: outputs at corrupted positions predict the original token (Devlin et al., 2019)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_lm.data.blocks import Taken
from lightning_lm.data.masks import Masking, word_heads

PLACEHOLDER = "<mask>"  # in prompts, whatever the tokenizer's own mask token is


@dataclass
class Mlm:
    masking: Masking
    prompts: list[str] = field(default_factory=list)

    name = "mlm"
    auto_class = "AutoModelForMaskedLM"
    perplexity_label = "masked-token perplexity"
    text_metrics = False

    def stride(self, block_size: int) -> int:
        return block_size

    def labelled(self, taken: Taken, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        units = taken.positions
        if self.masking.whole_word:
            units = word_heads(word_starts, np.minimum(units, len(word_starts) - 1))
        return self.masking.chosen(taken.tokens, units, key) & taken.scored

    def collate(self, taken: Taken, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        labelled = self.labelled(taken, key, word_starts)
        return {
            "input_ids": self.masking.corrupt(taken.tokens, taken.positions, labelled, key),
            "labels": np.where(labelled, taken.tokens, -100),
        }

    def preview(self, model: nn.Module, tokenizer: Any, seed: int) -> list[str]:
        return [filled(model, tokenizer, prompt) for prompt in self.prompts]


def filled(model: nn.Module, tokenizer: Any, prompt: str, top_k: int = 3) -> str:
    """The prompt with, at each placeholder, the ``top_k`` likeliest tokens and their probabilities."""
    inputs = tokenizer(prompt.replace(PLACEHOLDER, tokenizer.mask_token), return_tensors="pt").to(model.device)
    with torch.no_grad():
        logits = model(**inputs).logits[0][inputs["input_ids"][0] == tokenizer.mask_token_id]
    text = prompt
    for row in logits.float().softmax(-1):
        top = row.topk(top_k)
        words = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        guess = " | ".join(f"{tokenizer.decode([i]).strip()} {p:.0%}" for i, p in words)
        text = text.replace(PLACEHOLDER, f"[{guess}]", 1)
    return text
