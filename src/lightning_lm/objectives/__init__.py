"""What makes causal and masked language modelling differ, and nothing else. One file each, one shared protocol."""

from typing import Any, Protocol

import numpy as np
from torch import nn

from lightning_lm.data.blocks import Taken


class Objective(Protocol):
    """What the data module, the module and the callbacks ask of an objective.

    A key is a 64-bit number that fixes all randomness of an epoch (``lightning_lm.data.masks.key``).
    """

    name: str
    auto_class: str  # of transformers, by name
    perplexity_label: str  # what "perplexity" means here, for readers
    text_metrics: bool  # whether bits per byte and word perplexity exist
    prompts: list[str]

    def stride(self, block_size: int) -> int:
        """By how much evaluation windows advance, so that every token is scored once."""
        ...

    def labelled(self, taken: Taken, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        """Bool [n, t]: the positions whose output is scored."""
        ...

    def collate(self, taken: Taken, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        """``input_ids`` and ``labels``, int64 [n, t]: ``labels[i, t]`` is what output t predicts, or −100."""
        ...

    def preview(self, model: nn.Module, tokenizer: Any, seed: int) -> list[str]:
        """What the model makes of each prompt."""
        ...
