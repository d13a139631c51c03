"""What the data module asks of whoever decides on labels and masks; ``lightning_lm.objectives`` has the answers."""

from typing import Protocol

import numpy as np

from lightning_lm.data.windows import WindowBatch


class Collator(Protocol):
    """Turns windows of tokens into a model's inputs and labels.

    A key is a 64-bit number that fixes all randomness of an epoch (``lightning_lm.data.masking.key``).
    """

    @property
    def needs_word_starts(self) -> bool:
        """Whether the token stream must know where words begin."""
        ...

    def stride(self, block_size: int) -> int:
        """By how much evaluation windows advance, so that every token is scored once."""
        ...

    def labelled(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        """Bool [n, t]: the positions whose output is scored."""
        ...

    def collate(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        """``labels`` int64 [n, t], where ``labels[i, t]`` is what output t predicts, or −100, and the model's inputs.

        ``input_ids`` int64 [n, t] is one of them; others are arguments of the model's ``forward``, under their names.
        Padded positions (not ``windows.valid``) are masked by the data module, unless there is an ``attention_mask``.
        """
        ...
