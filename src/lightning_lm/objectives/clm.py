"""Causal language modelling: each output predicts the next token (Radford et al., 2019)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_lm.data.blocks import Taken


@dataclass
class Clm:
    prompts: list[str] = field(default_factory=list)
    preview_tokens: int = 40

    name = "clm"
    auto_class = "AutoModelForCausalLM"
    perplexity_label = "perplexity"
    text_metrics = True

    def stride(self, block_size: int) -> int:
        return block_size - 1  # a window's first token is only context

    def labelled(self, taken: Taken, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        labelled = np.zeros_like(taken.scored)
        labelled[:, :-1] = taken.scored[:, 1:]
        return labelled

    def collate(self, taken: Taken, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        following = np.roll(taken.tokens, -1, axis=1)
        return {
            "input_ids": taken.tokens,
            "labels": np.where(self.labelled(taken, key, word_starts), following, -100),
        }

    def preview(self, model: nn.Module, tokenizer: Any, seed: int) -> list[str]:
        with torch.random.fork_rng():  # sampling must not move the generators that dropout uses
            torch.manual_seed(seed)
            return [continuation(model, tokenizer, prompt, self.preview_tokens) for prompt in self.prompts]


def continuation(model: nn.Module, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    """The prompt and ``new_tokens`` sampled after it (top-k 50, temperature 0.8)."""
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    ids = inputs["input_ids"]
    positions = getattr(model.config, "max_position_embeddings", None) or ids.shape[1] + new_tokens
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=min(new_tokens, positions - ids.shape[1]),
        do_sample=True,
        top_k=50,
        temperature=0.8,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    return tokenizer.decode(out[0], skip_special_tokens=True)
