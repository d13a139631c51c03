"""What an objective is: labels and masks for the data, prompts for the model, and which models it suits."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_lm.data.batches import Collator
from lightning_lm.data.windows import WindowBatch
from lightning_lm.objectives.facts import ObjectiveFacts


class Objective(Collator):
    """Answers what the data module (``Collator``), the training and the command line ask."""

    facts: ObjectiveFacts
    text_metrics: ClassVar[bool]  # whether bits per byte and word perplexity exist
    shift: int = 0  # by how many positions an output comes before the token that it predicts
    prompts: list[str]  # texts that the model continues, or fills in, after each validation

    @property
    def parts(self) -> "Sequence[Objective]":
        return (self,)

    def split(self, windows: WindowBatch, key: np.uint64) -> list[WindowBatch]:
        return [windows]

    def weights(self, labels: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        return np.ones(1)

    def attention(self, model: nn.Module, kind: int) -> AbstractContextManager[None]:
        """Within, the model looks where the part of this number allows it to."""
        return nullcontext()

    def passes(self, model: nn.Module, batch: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The parts of a batch by number, each to be computed while the model looks where the part allows it to."""
        for part in (batch, *batch.get("others", ())):
            kind = part.get("kind", 0)
            with self.attention(model, kind):
                yield kind, part

    @property
    def needs_word_starts(self) -> bool:
        return False

    def for_overlapping_windows(self) -> "Objective":
        """The objective where windows overlap, as in an evaluation with a stride."""
        return self

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises Refused for a model that can't do the objective."""

    @abstractmethod
    def check_prompts(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises Refused for prompts that the model can't take."""

    @abstractmethod
    def preview(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
        """What the model makes of each prompt."""


def shortened(text: str, length: int = 40) -> str:
    """A text as messages quote it."""
    return text if len(text) <= length else text[: length - 1] + "…"
