"""Settings of the axis ``callbacks``: what may be added to a run, what is wrong with its settings, how it is built.

``callbacks=ema`` adds one, ``callbacks=[ema,mine]`` several. What every run has lives in ``lightning_lm.training``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lightning_lm.constraints import Constraint, Settings, setting

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

DECAY = Constraint(lambda value: 0 < value < 1, "a number between 0 and 1, such as 0.999")


@dataclass
class CallbackConfig(Settings, ABC):
    sharded: ClassVar[bool] = True  # whether it works under hardware.strategy=fsdp

    @abstractmethod
    def build(self) -> "Callback":
        """The callback; Lightning calls its hooks with the trainer and the ``LanguageModel``."""


@dataclass
class EmaConfig(CallbackConfig):
    """An exponential moving average of the weights: it is validated, kept as the best checkpoint, and exported."""

    decay: float = setting(0.999, DECAY)  # share of the average that stays, at each optimizer step

    sharded = False

    def build(self) -> "Callback":
        from lightning.pytorch.callbacks import EMAWeightAveraging

        # Buffers are no weights: BERT's hold the numbers of positions, which have no average
        return EMAWeightAveraging(decay=self.decay, use_buffers=False)


CALLBACKS: dict[str, type[CallbackConfig]] = {
    "ema": EmaConfig,
    # a new callback goes here: docs/extending.md
}
