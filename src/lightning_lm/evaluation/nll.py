"""What each token of a text cost a model, as a table that Parquet keeps."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_lm.data.documents import Documents
from lightning_lm.data.windows import Windows
from lightning_lm.errors import refuse
from lightning_lm.files import replacing

COLUMNS = {"document": pa.int32(), "position": pa.int64(), "token": pa.dictionary(pa.int32(), pa.string())}
COLUMNS |= {"nll": pa.float64()}
PASSAGE = 64  # tokens
EXTREMES = 5  # passages that are shown of either end
FEWEST = 8  # scored tokens, so that a passage's mean tells something


@dataclass(frozen=True)
class TokenLosses:
    """Every token of a text, and what it cost.

    Attributes:
        table: of Arrow, with the columns ``document`` (its number, from 0), ``position`` (in the stream of all tokens),
            ``token`` (as the tokenizer spells it) and ``nll`` (in nats; null where it was not scored).
        facts: ``protocol``; ``unit`` (document or block); of each document ``bytes`` and ``beginnings``; ``profile``.
    """

    table: pa.Table
    facts: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write all or nothing; ``facts`` become the metadata ``lightning_lm`` of the table."""
        table = self.table.replace_schema_metadata({"lightning_lm": json.dumps(self.facts)})
        with replacing(path) as scratch:
            pq.write_table(table, scratch, compression="zstd")

    def by_document(self) -> tuple[np.ndarray, np.ndarray]:
        """The summed NLL of each document, and how many of its tokens were scored, float64 [documents] both."""
        nll, document = self.nll, self.table["document"].to_numpy()
        scored, count = ~np.isnan(nll), len(self.facts["bytes"])
        of_scored = document[scored]
        return np.bincount(of_scored, nll[scored], count), np.bincount(of_scored, minlength=count).astype(float)

    @property
    def nll(self) -> np.ndarray:
        """Float64 [tokens], NaN where a token was not scored."""
        return self.table["nll"].to_numpy()


def token_losses(
    windows: Windows, documents: Documents, nll: np.ndarray, tokenizer: Any, protocol: dict[str, Any]
) -> TokenLosses:
    """``nll`` is float64 [tokens], NaN where a token of the windows' stream was not scored."""
    stream = windows.stream
    vocabulary, index, occurrences = np.unique(stream.tokens, return_inverse=True, return_counts=True)
    document = np.repeat(documents.of_row, np.diff(stream.row_ends, prepend=0))
    pieces = pa.array(tokenizer.convert_ids_to_tokens(vocabulary.tolist()), pa.string())
    columns = [
        pa.array(document.astype(np.int32)),
        pa.array(np.arange(len(nll))),
        pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pieces),
        pa.array(nll, from_pandas=True),
    ]
    facts = {"protocol": protocol, "unit": documents.unit, "bytes": documents.bytes.tolist()}
    profile = {"context": by_size(nll, windows.context(), 2), "occurrences": by_size(nll, occurrences[index], 4)}
    profile |= extreme_passages(nll, document, stream.tokens, tokenizer)
    facts |= {"beginnings": documents.beginnings, "profile": profile}
    return TokenLosses(pa.table(columns, pa.schema(COLUMNS)), facts)


def by_size(nll: np.ndarray, size: np.ndarray, base: int) -> list[tuple[str, int, float]]:
    """Of each range of sizes, from one power of ``base`` to the next: its name, the tokens scored, their mean loss."""
    scored, edges = ~np.isnan(nll), base ** np.arange(62 // base)
    level = np.searchsorted(edges, size[scored], side="right")  # 0 has a range of its own
    counts, sums = np.bincount(level), np.bincount(level, nll[scored])
    ranges = ["0", *(f"{a} to {b - 1}" if b - a > 1 else f"{a}" for a, b in pairwise(edges))]
    return [(ranges[n], int(counts[n]), sums[n] / counts[n]) for n in np.flatnonzero(counts)]


def extreme_passages(nll: np.ndarray, document: np.ndarray, tokens: np.ndarray, tokenizer: Any) -> dict[str, Any]:
    """The ``hardest`` and the ``easiest`` passages of documents: mean loss and text of each."""
    begins = np.flatnonzero(np.diff(document, prepend=-1))
    within = np.arange(len(tokens)) - np.repeat(begins, np.diff(begins, append=len(tokens)))
    starts = np.flatnonzero(within % PASSAGE == 0)
    scored = np.add.reduceat(~np.isnan(nll), starts)
    means = np.add.reduceat(np.nan_to_num(nll), starts) / np.maximum(scored, 1)
    ranked = [n for n in np.argsort(-means) if scored[n] >= FEWEST]
    ends = np.append(starts[1:], len(tokens))
    passages = [(float(means[n]), tokenizer.decode(tokens[starts[n] : ends[n]])) for n in ranked]
    return {"hardest": passages[:EXTREMES], "easiest": passages[: -EXTREMES - 1 : -1]}


def read_token_losses(path: Path) -> TokenLosses:
    """What ``TokenLosses.write`` wrote.

    Raises:
        Refused: the file is another one, or damaged.
    """
    try:
        table = pq.read_table(path)
        return TokenLosses(table.select(list(COLUMNS)), json.loads(table.schema.metadata[b"lightning_lm"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        wrong = f"no table of token losses ({str(error).splitlines()[0]})"
        raise refuse("file", path, wrong, "write one with lightning-lm evaluate --nll FILE") from error
