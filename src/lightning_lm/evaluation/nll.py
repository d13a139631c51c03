"""What each token of a text cost a model, as a table that Parquet keeps."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_lm.data.documents import Documents
from lightning_lm.data.token_stream import TokenStream
from lightning_lm.errors import refuse
from lightning_lm.files import replacing

COLUMNS = {"document": pa.int32(), "position": pa.int64(), "token": pa.dictionary(pa.int32(), pa.string())}
COLUMNS |= {"nll": pa.float64()}


@dataclass(frozen=True)
class TokenLosses:
    """Every token of a text, and what it cost.

    Attributes:
        table: of Arrow, with the columns ``document`` (its number, from 0), ``position`` (in the stream of all tokens),
            ``token`` (as the tokenizer spells it) and ``nll`` (in nats; null where it was not scored).
        facts: ``protocol``; ``unit`` (document or block); of each document ``bytes`` and ``beginnings``.
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
    stream: TokenStream, documents: Documents, nll: np.ndarray, tokenizer: Any, protocol: dict[str, Any]
) -> TokenLosses:
    """``nll`` is float64 [tokens], NaN where a token was not scored."""
    vocabulary, index = np.unique(stream.tokens, return_inverse=True)
    pieces = pa.array(tokenizer.convert_ids_to_tokens(vocabulary.tolist()), pa.string())
    columns = [
        pa.array(np.repeat(documents.of_row, np.diff(stream.row_ends, prepend=0)).astype(np.int32)),
        pa.array(np.arange(len(nll))),
        pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pieces),
        pa.array(nll, from_pandas=True),
    ]
    sizes = documents.bytes.tolist()
    facts = {"protocol": protocol, "unit": documents.unit, "bytes": sizes, "beginnings": documents.beginnings}
    return TokenLosses(pa.table(columns, pa.schema(COLUMNS)), facts)


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
