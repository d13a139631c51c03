"""What an evaluation found, for people and as JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import stdev
from typing import Any

from lightning_lm.evaluation.items import Items
from lightning_lm.runs.protocol import as_line, describe_windows, short_hash


@dataclass
class Evaluation:
    """Figures of a model on a text; each of ``figures`` is an attribute, too: ``evaluation.perplexity``."""

    model: str
    objective: str
    data: str | None
    split: str
    block_size: int
    stride: int | None
    figures: dict[str, float]
    labels: dict[str, str]  # name of a figure → label, for people
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of figures; none on a short text
    unit: str = "document"  # over which the intervals are: document or block
    protocol: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)
    separators: int = 0  # of the scored tokens
    draws: list[float] = field(default_factory=list)  # the loss by each of several draws of the masks
    scope: str | None = None  # what was scored, where it isn't the text in windows, for people
    items: dict[str, Items] = field(default_factory=dict)  # of figures that are means over items
    trained_block_size: int | None = None  # where the model is a run's
    build_token_losses: Callable[[], Any] | None = None  # of one draw; many an evaluation has no use for the table

    @cached_property
    def token_losses(self) -> Any:
        """What each token cost; None where there are several draws, or the figures are another convention's."""
        return self.build_token_losses and self.build_token_losses()

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["figures"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        shown = {label: self.figures[name] for name, label in self.labels.items() if name in self.figures}
        text = self.data or "the run's own data"
        head = f"{self.model} on {text}, {self.split}: {self.scope or describe_windows(self.block_size, self.stride)}"
        of_labels = {self.labels[name]: bounds for name, bounds in self.intervals.items()}
        rows = []
        for label, x in shown.items():
            bounds = of_labels.get(label, ())
            digits = "," if isinstance(x, int) else f".{decimals(*bounds)}f"
            rows.append(
                f"{label:<26}{x:>16{digits}}" + f"   {' to '.join(f'{b:{digits}}' for b in bounds)}" * bool(bounds)
            )
        notes = [f"95 % intervals over {self.unit}s of this text, for this model"] if self.intervals else []
        notes += [f"of the tokens scored, {self.separators:,} are separators"] if self.separators else []
        if self.draws:
            spread = f"{stdev(self.draws):.4f} between {len(self.draws)} draws of the masks"
            notes.append(f"figures are over all draws together; standard deviation of the loss: {spread}")
        if self.trained_block_size and self.block_size > self.trained_block_size:
            notes.append(
                f"the run was trained on blocks of {self.trained_block_size} tokens, which these windows exceed;"
                f" --block-size {self.trained_block_size} keeps to them"
            )
        notes += [as_line(self.protocol)] if self.protocol else []
        return "\n".join([head, *rows, *notes])

    def as_json(self) -> str:
        names = ("model", "objective", "data", "split", "block_size", "stride")
        facts: dict[str, Any] = {name: getattr(self, name) for name in names} | self.figures
        facts |= {"intervals": self.intervals, "interval_unit": self.unit, "separators": self.separators}
        facts |= {"mask_draws": self.draws} if self.draws else {}
        facts |= {"trained_block_size": self.trained_block_size} if self.trained_block_size else {}
        facts |= {"protocol": self.protocol, "protocol_hash": short_hash(self.protocol), "made_with": self.made_with}
        return standard_json(facts)


def standard_json(facts: dict[str, Any]) -> str:
    """JSON has no word for infinity: null stands for it."""
    return json.dumps(_finite(facts), indent=2, ensure_ascii=False)


def decimals(low: float = 0.0, high: float = 0.0) -> int:
    """Decimals that an interval allows: two digits of its width; 4 where there is none."""
    width = high - low
    return max(0, 1 - math.floor(math.log10(width))) if 0 < width < math.inf else 4


def _finite(value: Any) -> Any:
    """The same for JSON, which has no word for infinity."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
