"""Some blocks are causal, the others masked (Charpentier & Samuel, 2024, "GPT or BERT: why not both?").

A masked token is predicted by the output before it, so that one head serves both kinds. Of which kind a block is
depends on the seed, the epoch and the block alone.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from lightning_lm.data.masking import key as key_of
from lightning_lm.data.masking import uniform
from lightning_lm.data.windows import WindowBatch
from lightning_lm.errors import refuse
from lightning_lm.models.attention import on_both_sides
from lightning_lm.objectives.clm import Clm, sees_the_future
from lightning_lm.objectives.facts import HYBRID, ObjectiveFacts
from lightning_lm.objectives.objective import Objective

KIND = 1  # of what is drawn under an epoch's key, beside its masks


@dataclass(kw_only=True)
class Hybrid(Clm):
    """Its own part is the causal one: what comes of a model at the end is a causal model, which can do more."""

    masked: Objective  # the part that is masked next-token prediction
    ratio: float  # of the blocks that are masked
    weigh: str  # "blocks" or "labels": by which share of a step a part's mean loss counts
    facts: ObjectiveFacts = HYBRID

    @property
    def parts(self) -> Sequence[Objective]:
        return (self, self.masked)

    @property
    def needs_word_starts(self) -> bool:
        return self.masked.needs_word_starts

    def split(self, windows: WindowBatch, key: np.uint64) -> list[WindowBatch]:
        masked = uniform(key_of(int(key), KIND), windows.positions[:, 0]) < self.ratio
        return [windows.where(~masked), windows.where(masked)]

    def weights(self, labels: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        counts = labels if self.weigh == "labels" else blocks
        return counts / max(1, counts.sum())

    def attention(self, model: nn.Module, kind: int) -> AbstractContextManager[None]:
        return on_both_sides(model) if self.parts[kind] is self.masked else nullcontext()

    def for_overlapping_windows(self) -> Objective:
        return Clm()

    def check_model(self, model: PreTrainedModel) -> None:
        super().check_model(model)
        with on_both_sides(model):
            able = sees_the_future(model)
        if not able:
            wrong = f"{model.config.model_type} can't look at what follows a token"
            raise refuse("objective", self.facts.name, wrong, "choose another model, or objective=clm")
