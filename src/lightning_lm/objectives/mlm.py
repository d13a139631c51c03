"""Masked language modelling: outputs predict the tokens that were corrupted (Devlin et al., 2019).

It is the output at the token's own position, or, shifted by one, the output before it, as a causal model has it: masked
next-token prediction (Charpentier & Samuel, 2024, "GPT or BERT: why not both?").
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_lm.data.masking import Masking, word_heads
from lightning_lm.data.windows import WindowBatch
from lightning_lm.errors import Problem, Refused
from lightning_lm.models.loading import positions
from lightning_lm.objectives.facts import MLM, PLACEHOLDER, ObjectiveFacts
from lightning_lm.objectives.objective import Objective, shortened


@dataclass
class Mlm(Objective):
    masking: Masking
    prompts: list[str] = field(default_factory=list)
    facts: ObjectiveFacts = MLM
    shift: int = 0
    text_metrics = False

    @property
    def needs_word_starts(self) -> bool:
        return self.masking.whole_word

    def stride(self, block_size: int) -> int:
        return block_size - self.shift

    def labelled(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        return np.roll(self._chosen(windows, key, word_starts), -self.shift, axis=1)

    def _chosen(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        """Bool [n, t]: the tokens to be predicted. Shifted, no output comes before a window's first one."""
        units = windows.positions
        if self.masking.whole_word:
            assert word_starts is not None, "the stream was tokenised without them"
            units = word_heads(word_starts, np.minimum(units, len(word_starts) - 1))
        chosen = self.masking.chosen(windows.tokens, units, key) & windows.scored
        chosen[:, : self.shift] = False
        return chosen

    def collate(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        chosen = self._chosen(windows, key, word_starts)
        corrupted = self.masking.corrupt(windows.tokens, windows.positions, chosen, key)
        labels = np.where(chosen, windows.tokens, -100)
        return {"input_ids": corrupted, "labels": np.roll(labels, -self.shift, axis=1)}

    def for_overlapping_windows(self) -> Objective:
        return OverlappingMlm(self.masking, shift=self.shift)

    def check_prompts(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        encode_masked(model, tokenizer, self.prompts, self.shift)

    def preview(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
        """Each prompt with, at its placeholders, the three likeliest tokens and their probabilities."""
        texts = []
        for prompt, ids in zip(self.prompts, encode_masked(model, tokenizer, self.prompts, self.shift), strict=True):
            for row in guesses(model, tokenizer, ids, 3, self.shift):
                guess = " | ".join(f"{token.strip()} {probability:.0%}" for token, probability in row)
                prompt = prompt.replace(PLACEHOLDER, f"[{guess}]", 1)
            texts.append(prompt)
        return texts


class OverlappingMlm(Mlm):
    """For windows that overlap: masks a chosen token in every window that holds it, and scores it in one.

    A token that an earlier window has scored must not stand uncovered in the next.
    """

    def collate(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        arrays = super().collate(replace(windows, scored=windows.valid), key, word_starts)
        scored = np.roll(windows.scored, -self.shift, axis=1)
        return {**arrays, "labels": np.where(scored, arrays["labels"], -100)}


def encode_masked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], shift: int = 0
) -> list[torch.Tensor]:
    """The texts' tokens, int64 [t] each; ``<mask>`` stands for the tokenizer's mask token, which may be used as well.

    Raises Refused for all texts that have no mask or are too long; where outputs are shifted, also for a mask at first.
    """
    encoded, problems, limit = [], [], positions(model)
    for text in texts:
        inputs = tokenizer(text.replace(PLACEHOLDER, tokenizer.mask_token), return_tensors="pt", verbose=False)
        encoded.append(ids := inputs["input_ids"][0])
        if not (ids == tokenizer.mask_token_id).any():
            problems.append(Problem("text", repr(shortened(text)), "nothing to fill in", f"write {PLACEHOLDER} there"))
        if (ids[:shift] == tokenizer.mask_token_id).any():
            problems.append(
                Problem("text", repr(shortened(text)), "nothing comes before the mask", "begin with a word")
            )
        if limit is not None and len(ids) > limit:
            wrong = f"its {len(ids)} tokens exceed the model's {limit} positions"
            problems.append(Problem("text", repr(shortened(text)), wrong, "shorten it"))
    if problems:
        raise Refused(*problems)
    return encoded


@torch.no_grad()
def guesses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, top_k: int, shift: int = 0
) -> list[list[tuple[str, float]]]:
    """For each mask in ``ids`` [t] the ``top_k`` likeliest tokens and their probabilities, the others being masked.

    ``shift`` is the objective's: by how many positions the output comes before the mask.
    """
    tokens = ids[None].to(model.device)
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
    masks = (tokens[0] == tokenizer.mask_token_id).nonzero()[:, 0]
    top = logits[masks - shift].float().softmax(-1).topk(min(top_k, len(tokenizer)))
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [[(str(tokenizer.decode([i])), p) for i, p in zip(*row, strict=True)] for row in rows]
