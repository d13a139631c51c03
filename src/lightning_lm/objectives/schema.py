"""Settings of the axis ``objective``: what is wrong with them, and how each is built. Loads nothing heavy."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from lightning_lm.constraints import COUNT, PROBABILITY, Settings, setting
from lightning_lm.errors import Problem, refuse
from lightning_lm.objectives.facts import CLM, MLM, PLACEHOLDER, ObjectiveFacts

if TYPE_CHECKING:
    from lightning_lm.objectives.objective import Objective


@dataclass
class ObjectiveConfig(Settings, ABC):
    name: str = MISSING
    prompts: list[str] = setting([])  # continued, or filled in, after each validation
    facts: ClassVar[ObjectiveFacts]

    def problems(self) -> Iterator[Problem]:
        if "" in self.prompts:
            yield Problem("objective.prompts", self.prompts, "an empty prompt", "give it words, or leave it out")

    @abstractmethod
    def build(self, tokenizer: Any) -> "Objective":
        """The objective for texts of this tokenizer; raises Refused where that lacks what it needs."""


@dataclass
class ClmConfig(ObjectiveConfig):
    name: str = "clm"
    preview_tokens: int = setting(40, COUNT)
    facts = CLM

    def build(self, tokenizer: Any) -> "Objective":
        from lightning_lm.objectives.clm import Clm

        return Clm(self.prompts, self.preview_tokens)


@dataclass
class MlmConfig(ObjectiveConfig):
    name: str = "mlm"
    mlm_probability: float = setting(0.15, PROBABILITY)
    whole_word: bool = False
    facts = MLM

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if bare := [prompt for prompt in self.prompts if PLACEHOLDER not in prompt]:
            remedy = f"write {PLACEHOLDER} where the model shall fill in, whatever the tokenizer's mask token"
            yield Problem("objective.prompts", bare, "nothing to fill in", remedy)

    def build(self, tokenizer: Any) -> "Objective":
        from lightning_lm.data.masking import Masking
        from lightning_lm.objectives.mlm import Mlm

        if tokenizer.mask_token_id is None:
            raise refuse("objective", self.name, "the tokenizer has no mask token", "choose another model.tokenizer")
        size, special = max(tokenizer.get_vocab().values()) + 1, tuple(tokenizer.all_special_ids)
        masking = Masking(self.mlm_probability, self.whole_word, tokenizer.mask_token_id, size, special)
        return Mlm(masking, self.prompts)


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "clm": ClmConfig,
    "mlm": MlmConfig,
    # a new objective goes here: docs/extending.md
}
