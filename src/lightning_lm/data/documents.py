"""Which document each row of a split belongs to, and what names the text as a whole."""

import re
from dataclasses import dataclass
from itertools import chain

import numpy as np

from lightning_lm.data.corpora.corpus import Corpus, TextHash

HEADING = re.compile(r" = [^=](.*[^=])? = \n?")  # of an article of WikiText; those of its sections have more signs
FEWEST = 10  # documents; where there are fewer, blocks are the better sample of the text
BLOCK = 2048  # bytes, from the start of a block's first row to that of the next block's, or more
SHOWN = 60  # characters of a document's beginning


@dataclass(frozen=True)
class Documents:
    """The parts of a text that are sampled together. They don't depend on any tokenizer.

    A document is a WikiText article, a topic of ``python_docs``, a file of lines, or a record of another file or of the
    Hub. A text of fewer than 10 documents falls into blocks instead: rows that follow one another, about 2048 bytes.
    """

    of_row: np.ndarray  # [rows] int64, the number of the document, from 0
    bytes: np.ndarray  # [documents] int64, in UTF-8
    beginnings: list[str]  # [documents], the first words of each
    unit: str  # "document" or "block"
    text: str  # a hash of all rows, whatever files they come from


def read_documents(corpus: Corpus, split: str, fewest: int = FEWEST) -> Documents:
    """Reads the split's rows once. With fewer than so many documents they are blocks."""
    text, sizes, headings, starts = TextHash(), [], [], []
    blank, waiting = True, False  # a heading stands between blank rows
    for row in chain.from_iterable(corpus.rows(split)):
        sizes.append(text.add(row))
        starts.append(row.strip()[:SHOWN])
        if waiting and not row.strip():
            headings.append(len(sizes) - 2)
        waiting = blank and HEADING.fullmatch(row) is not None
        blank = not row.strip()
    bytes_of_row = np.array(sizes, np.int64)
    begins = np.zeros(len(sizes), bool)
    if headings:
        begins[headings] = True
    else:
        begins[:] = True if corpus.begins is None else np.fromiter(corpus.begins(split), bool, len(sizes))
    begins[0] |= any(starts[: begins.argmax()])  # the split begins within a document
    of_row, unit = np.maximum(np.cumsum(begins) - 1, 0), "document"
    if of_row[-1] + 1 < fewest:
        ends = np.cumsum(bytes_of_row)
        of_row = np.unique((ends - bytes_of_row) // BLOCK, return_inverse=True)[1]
        unit = "block"
    first_words = {n: start for n, start in zip(reversed(of_row.tolist()), reversed(starts), strict=True) if start}
    size_of = np.bincount(of_row, bytes_of_row).astype(np.int64)
    beginnings = [first_words.get(number, "") for number in range(len(size_of))]
    return Documents(of_row, size_of, beginnings, unit, str(text))
