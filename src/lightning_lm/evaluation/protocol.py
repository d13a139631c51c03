"""How a figure was measured: what must be the same before two figures may be compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lm.data.documents import Documents
from lightning_lm.data.token_stream import TokenStream, tokenizer_fingerprint
from lightning_lm.files import checksums
from lightning_lm.runs.folder import environment


def protocol(
    text: Documents, separator: str, tokenizer: Any, objective: Any, *, block_size: int, stride: int
) -> dict[str, Any]:
    """Facts for JSON. ``text`` and ``tokenizer`` are hashes of what they name."""
    masking = getattr(objective, "masking", None)
    return {
        "text": text.text,
        "separator": str(separator),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "objective": objective.facts.name,
        "documents": "one stream",
        "block_size": block_size,
        "stride": stride,
        "first_token": "not scored" if objective.shift else None,
        "masking": masking and {"probability": masking.probability, "whole_word": masking.whole_word, "draws": 1},
        "words": "pieces between white space, and line ends",
        "bytes": "of the text in UTF-8",
        "dtype": "float32",
    }


def short_hash(protocol: dict[str, Any]) -> str:
    """Equal for figures that were measured in the same way, on the same text."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def as_line(protocol: dict[str, Any]) -> str:
    """For people: the hash, and what isn't plain from the command."""
    how = [f"text {protocol['text'][:8]}, tokenizer {protocol['tokenizer'][:8]}", f"separator {protocol['separator']}"]
    how.append(protocol["documents"])
    if protocol["first_token"]:
        how.append(f"first token {protocol['first_token']}")
    if masking := protocol["masking"]:
        how.append(f"{masking['probability']:.0%} of the {'words' if masking['whole_word'] else 'tokens'} masked")
    return f"protocol {short_hash(protocol)}: {', '.join([*how, protocol['dtype']])}"


def made_with(model: Any, place: str) -> dict[str, Any]:
    """What a figure belongs to and can be made again with: the model's hash or revision, the commit, the versions."""
    folder = Path(place)
    weights = {name: crc for name, crc in checksums(folder).items() if name.endswith((".safetensors", ".bin"))}
    here = environment()
    return {
        "model": short_hash(weights) if folder.is_dir() else getattr(model.config, "_commit_hash", None),
        "commit": here["commit"],
        "uncommitted": bool(here["uncommitted"]),
        "versions": here["versions"],
    }


def separators_scored(stream: TokenStream, nll: np.ndarray, tokenizer: Any) -> int:
    """How many of the scored tokens are special ones, which stand for no text."""
    return int(np.isin(stream.tokens[~np.isnan(nll)], tokenizer.all_special_ids).sum())
