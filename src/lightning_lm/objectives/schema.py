"""Settings of the axis ``objective``: what is wrong with them, and how each is built. Loads nothing heavy."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from lightning_lm.constraints import COUNT, PROBABILITY, SHARE, Settings, setting
from lightning_lm.errors import Problem, refuse
from lightning_lm.objectives.facts import CLM, HYBRID, MLM, PLACEHOLDER, ObjectiveFacts

if TYPE_CHECKING:
    from lightning_lm.objectives.objective import Objective


@dataclass
class ObjectiveConfig(Settings, ABC):
    name: str = MISSING
    prompts: list[str] = setting([])  # continued, or filled in, after each validation
    facts: ClassVar[ObjectiveFacts]
    uniform: ClassVar[bool] = True  # whether each pass through the model is of the same kind

    @property
    def uses(self) -> "dict[str, ObjectiveConfig]":
        """Objective → the settings with which a model that was trained by these serves for it."""
        return {self.name: self}

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
    shift: bool = False  # predict a masked token by the output before it, as a causal model does
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
        return Mlm(masking, self.prompts, shift=int(self.shift))


class Weigh(StrEnum):
    blocks = "blocks"
    labels = "labels"


@dataclass
class HybridConfig(ClmConfig):
    """Causal and masked next-token prediction by one model (Charpentier & Samuel, 2024); prompts are continued."""

    name: str = "hybrid"
    ratio: float = setting(0.5, SHARE)  # of the blocks that are masked
    weigh: Weigh = Weigh.blocks  # a kind's mean loss counts by its share of the step's blocks, or of its labels
    mlm_probability: float = setting(0.15, PROBABILITY)
    whole_word: bool = False
    facts = HYBRID
    uniform = False

    def masked(self, name: str) -> MlmConfig:
        return MlmConfig(name, [], self.mlm_probability, self.whole_word, shift=True)

    @property
    def uses(self) -> dict[str, ObjectiveConfig]:
        return {self.name: self, CLM.name: ClmConfig(), MLM.name: self.masked(MLM.name)}

    def build(self, tokenizer: Any) -> "Objective":
        from lightning_lm.objectives.hybrid import Hybrid

        masked = self.masked(self.name).build(tokenizer)
        return Hybrid(self.prompts, self.preview_tokens, masked=masked, ratio=self.ratio, weigh=self.weigh)


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "clm": ClmConfig,
    "mlm": MlmConfig,
    "hybrid": HybridConfig,
    # a new objective goes here: docs/extending.md
}
