"""Where text comes from: the Hugging Face Hub, local files, or the reference text that CPython carries.

Rows are read only when the token cache lacks a split; the keys alone are cheap.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """Rows of text in named splits ("train", "validation", "test"), identified by their content.

    Attributes:
        keys: per split a hash of its content.
        rows: from a split to batches of its rows; raises Refused for text that can't be used.
        source: for people.
    """

    keys: dict[str, str]
    rows: Callable[[str], Iterator[list[str]]]
    source: str


def content_hash(*parts: object) -> str:
    """Names what the parts identify; a corpus of one's own makes its keys of it."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
