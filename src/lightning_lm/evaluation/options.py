"""The options of an evaluation, and what is wrong with them by themselves. Loads nothing heavy."""

from typing import Any

from lightning_lm.constraints import COUNT, PROBABILITY, Constraint, at_least
from lightning_lm.errors import nearest

CONSTRAINTS: dict[str, Constraint] = {
    **dict.fromkeys(("stride", "batch_size", "mask_draws", "pseudo", "words"), COUNT),
    "pairs": at_least(2),
    "mlm_probability": PROBABILITY,
    "block_size": at_least(2, " tokens"),
}
CHOICES = {"objective": ("clm", "mlm"), "convention": ("lm-eval", "hf-docs"), "task": ("blimp", "lambada")}
CHOICES["dtype"] = ("float32", "bfloat16")
MASKING = ("mlm_probability", "whole_word")
TEXT = ("separator", "documents", "prefix", "text_column", "name", "revision")
# What says how a text is scored
PLACES = ("device", "dtype", "cache_dir")
OF_TEXT = ("block_size", "stride", "objective", "batch_size", *TEXT, *PLACES, "convention", "pseudo", "words", "task")
SOURCE = ("block_size", "objective", "text_column", "name", "revision", *PLACES)
# An option that says what is scored, and which others it has use for
USES = {
    ("task", "blimp"): ("pairs", "objective"),
    ("task", "lambada"): SOURCE,
    ("lm_eval", None): ("batch_size",),
    ("pseudo", None): (*SOURCE, "separator"),
    ("words", None): (*SOURCE, "separator"),
    ("convention", "lm-eval"): SOURCE,
    ("convention", "hf-docs"): (*SOURCE, "stride", "batch_size"),
}
TYPED = {"convention": "as"}  # how the command calls it, where it differs


def wrong_options(given: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Option → what is wrong with it, and the remedy, of those that are given."""
    wrong = {}
    for name, value in given.items():
        if name in CONSTRAINTS and not CONSTRAINTS[name].holds(value):
            wrong[name] = "out of range", f"give {CONSTRAINTS[name].right}"
        elif name in CHOICES and value not in CHOICES[name]:
            wrong[name] = "no such choice", nearest(str(value), list(CHOICES[name]))
    chosen = [(name, value) for name, value in USES if name in given and value in (None, given[name])]
    for name, value in chosen[:1]:
        option = " ".join(filter(None, (f"--{TYPED.get(name, name).replace('_', '-')}", value)))
        others = {*OF_TEXT, *MASKING, "mask_draws", "nll", "pairs", "lm_eval"} & given.keys() - {
            name,
            *USES[name, value],
        }
        wrong |= dict.fromkeys(sorted(others), (f"{option} has no use for it", "leave it out"))
    if "pairs" in given and not chosen:
        wrong["pairs"] = "is for minimal pairs", "give --task blimp, too"
    return wrong
