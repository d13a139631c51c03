"""What an objective is: labels and masks for the data, prompts for the model, and which models it suits."""

from abc import abstractmethod
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_lm.data.batches import Collator
from lightning_lm.objectives.facts import ObjectiveFacts


class Objective(Collator):
    """Answers what the data module (``Collator``), the training and the command line ask."""

    facts: ObjectiveFacts
    text_metrics: ClassVar[bool]  # whether bits per byte and word perplexity exist
    shift: ClassVar[int] = 0  # by how many positions an output comes before the token that it predicts
    prompts: list[str]  # texts that the model continues, or fills in, after each validation

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
