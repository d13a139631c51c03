"""Evaluation windows that stay inside documents."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.documents import read_documents
from lightning_lm.data.token_stream import TokenStream, begin_token, end_token
from lightning_lm.data.windows import WindowBatch, Windows
from lightning_lm.errors import refuse


@dataclass(frozen=True)
class Bounds:
    """Where each document lies in a token stream, and the token that is put before it.

    An end token that separates a document from the one before belongs to neither.
    """

    starts: np.ndarray  # [documents] int64
    ends: np.ndarray  # [documents] int64
    prefix: int | None  # None: nothing is put there


def bounds(corpus: Corpus, split: str, stream: TokenStream, tokenizer: Any, separator: str, prefix: str) -> Bounds:
    """Those of a split, of which all rows are read; ``separator`` is the one that it was tokenised with.

    ``prefix``: "auto" is the token that begins a text, or else the one that ends it; "bos", "eos" or "none".

    Raises:
        Refused: the tokenizer has no such token.
    """
    of_row = read_documents(corpus, split, fewest=1).of_row
    ends = stream.row_ends[np.flatnonzero(np.diff(of_row, append=of_row[-1] + 1))]
    starts = np.concatenate([[0], ends[:-1]])
    if separator == "eos":
        separated = (starts > 0) & (starts < ends)
        starts[separated] += stream.tokens[starts[separated]] == end_token(tokenizer)
    return Bounds(starts, ends, prefix_token(tokenizer, prefix))


def prefix_token(tokenizer: Any, prefix: str) -> int | None:
    known = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "auto": begin_token(tokenizer)}
    if prefix != "none" and known[prefix] is None:
        raise refuse("data.prefix", prefix, "the tokenizer has no such token", "give another, or none")
    return known.get(prefix)


@dataclass(frozen=True, kw_only=True)
class DocumentWindows(Windows):
    """As ``Windows`` within each document, where the prefix stands before its first token.

    Without a prefix there is no size of the text, since the first token of each document may not be scored.
    """

    bounds: Bounds

    @cached_property
    def _before_document(self) -> np.ndarray:
        """How many windows come before each document, and how many there are, [documents + 1]."""
        lengths = self.bounds.ends - self.bounds.starts
        beyond = np.maximum(0, lengths + self._prefixed - self.size)
        return np.concatenate([[0], np.cumsum(np.where(lengths > 0, 1 - -beyond // self.stride, 0))])

    @property
    def _prefixed(self) -> int:
        return int(self.bounds.prefix is not None)

    def __len__(self) -> int:
        return int(self._before_document[-1])

    @property
    def tail(self) -> int:
        return 0

    def take(self, indices: np.ndarray) -> WindowBatch:
        batch = super().take(indices)
        before = batch.positions < self.bounds.starts[self._document(indices)][:, None]
        batch.tokens[before] = self.bounds.prefix or 0
        return WindowBatch(batch.tokens, batch.positions, batch.valid, batch.scored & ~before)

    def text_size(self, indices: np.ndarray) -> tuple[float, float]:
        return super().text_size(indices) if self._prefixed else (0.0, 0.0)

    def begin(self, indices: np.ndarray) -> np.ndarray:
        document = self._document(indices)
        within = indices - self._before_document[document]
        return self.bounds.starts[document] - self._prefixed + within * self.stride

    def _end(self, indices: np.ndarray) -> np.ndarray:
        return self.bounds.ends[self._document(indices)]

    def _first_scored(self, indices: np.ndarray) -> np.ndarray:
        """Of a document's first window, from the end of the document before: so each byte of the text is counted."""
        document = self._document(indices)
        first = indices == self._before_document[document]
        return np.where(first, np.append(0, self.bounds.ends)[document], self.begin(indices) + self.size - self.stride)

    def _document(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._before_document, indices, side="right") - 1


def evaluation_windows(stream: TokenStream, size: int, stride: int, within: Bounds | None) -> Windows:
    """Over the whole stream, or within documents."""
    return Windows(stream, size, stride) if within is None else DocumentWindows(stream, size, stride, bounds=within)
