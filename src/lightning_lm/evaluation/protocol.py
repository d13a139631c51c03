"""How a figure was measured: what must be the same before two figures may be compared."""

from typing import Any

from lightning_lm.data.documents import Documents
from lightning_lm.data.token_stream import tokenizer_fingerprint


def protocol(
    text: Documents, split: str, separator: str, tokenizer: Any, objective: Any, *, block_size: int, stride: int
) -> dict[str, Any]:
    """Facts for JSON. ``text`` and ``tokenizer`` are hashes of what they name."""
    masking = getattr(objective, "masking", None)
    return {
        "text": text.text,
        "split": split,
        "separator": str(separator),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "objective": objective.facts.name,
        "block_size": block_size,
        "stride": stride,
        "masking": masking and {"probability": masking.probability, "whole_word": masking.whole_word},
    }
