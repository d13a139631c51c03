"""What a corpus is: rows, which are read only when the token cache lacks a split, and keys, which are cheap."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Corpus:
    """Rows of text in named splits ("train", "validation", "test"), identified by their content."""

    keys: dict[str, str]  # per split a hash of its content
    rows: Callable[[str], Iterator[list[str]]]  # a split's, in batches; raises Refused for text that can't be used
    source: str  # for people
    check_unchanged: Callable[[str], None] = lambda split: None  # raises Refused where it is no longer what keys name
    begins: Callable[[str], Iterator[bool]] | None = None  # of each row whether a document begins there; None: of all
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # of splits made of files: path → content hash


@dataclass
class TextHash:
    """Names a text by its rows, whatever files they come from."""

    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, row: str) -> int:
        """Returns the row's bytes in UTF-8."""
        encoded = row.encode()
        self.digest.update(b"%d " % len(encoded) + encoded)
        return len(encoded)

    def __str__(self) -> str:
        return self.digest.hexdigest()[:32]


def content_hash(*parts: object) -> str:
    """Names what the parts identify; a corpus of one's own makes its keys of it."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
