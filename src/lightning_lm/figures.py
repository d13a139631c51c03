"""The table of all figures that a run reports. A figure that isn't in it is nowhere shown, and the log says so once.

``training/metrics.py`` computes the evaluated ones, ``training/telemetry.py`` those of training.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A figure's name in ``metrics.csv`` and ``summary.json``, and what is known of it.

    Attributes:
        name: of an evaluated figure without its split; it is logged as ``val/NAME`` and ``test/NAME``.
        label: for people.
        lower_is_better: None where neither is.
        shown: whether the tables for people have it.
    """

    name: str
    label: str
    lower_is_better: bool | None = None
    shown: bool = True


EVALUATED = (
    Figure("loss", "loss (nats per token)", lower_is_better=True),
    Figure("perplexity", "perplexity", lower_is_better=True),
    Figure("accuracy", "accuracy", lower_is_better=False),
    Figure("bits_per_byte", "bits per byte", lower_is_better=True),
    Figure("word_perplexity", "word perplexity", lower_is_better=True),
    Figure("tokens", "tokens scored", shown=False),
    Figure("masked_loss", "masked loss", lower_is_better=True),  # of objective=hybrid, beside the causal one
    Figure("masked_accuracy", "masked-token accuracy", lower_is_better=False),
    # a new figure goes here: docs/extending.md
)
TRAINING = (  # names of the figures that are logged between evaluations
    "epoch",
    "tokens_seen",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "data_wait",
    "peak_memory_gb",
    "model_flops_utilization",
    "train/loss",
    "train/perplexity",
    # a new figure of training goes here: docs/extending.md
)
SPLITS = {"val": "validation", "test": "test"}  # prefix of a figure → the split, as people call it
COLUMNS = ["step", *TRAINING, *(f"{split}/{figure.name}" for split in SPLITS for figure in EVALUATED)]


def labels(perplexity: str) -> dict[str, str]:
    """Name of each figure that people are shown → its label; ``perplexity`` is what the objective calls its own.

    Those of which a lower value is better come first.
    """
    shown = sorted((figure for figure in EVALUATED if figure.shown), key=lambda figure: not figure.lower_is_better)
    return {figure.name: perplexity if figure.name == "perplexity" else figure.label for figure in shown}
