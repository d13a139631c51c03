"""Text becomes tokens once: a memory-mapped stream that blocks are views of."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from lightning_lm.allocator import imports_uncollected
from lightning_lm.data.cache import build_once
from lightning_lm.data.corpora.corpus import Corpus, TextHash
from lightning_lm.errors import refuse

log = logging.getLogger(__name__)
FORMAT = 1  # of the cache; a change of what is stored needs the next number
SPACES = np.array([chr(code).isspace() for code in range(0x3002)])  # no character beyond is white space


@dataclass(frozen=True)
class EncodedRows:
    """Some rows of text, and the tokenizer's answer."""

    texts: list[str]
    lengths: np.ndarray  # [rows] int64, tokens of each row
    ids: Iterable[list[int]]  # of each row
    words: Iterable[list[int | None]] | None  # numbers of the words that tokens belong to, None for special tokens


@dataclass(frozen=True)
class TokenStream:
    """A split's tokens, row after row, and how much text they stand for.

    ``counts`` has rows, empty_rows (nothing but white space), words (without line breaks), line_ends, bytes, tokens,
    and separators, those of the tokens that stand for no text.
    """

    tokens: np.ndarray  # [n] uint16 or uint32, a view of a memory-mapped Arrow column
    word_starts: np.ndarray | None  # [n] uint8, 1 where a token begins a word or is special; None unless asked for
    row_ends: np.ndarray  # [rows] int64, tokens before the end of each row
    words: np.ndarray  # [rows] int64, cumulative: pieces between white space, and one for each line break
    bytes: np.ndarray  # [rows] int64, cumulative: bytes of UTF-8
    counts: dict[str, int]
    key: str  # names the cache entry
    text: str | None = None  # a hash of all rows; None where an older version cached them


def tokenize(
    corpus: Corpus, split: str, tokenizer: Any, *, separator: str, word_starts: bool, cache_dir: Path
) -> TokenStream:
    """The split's tokens, from the cache where it has them; every row is tokenised by itself, however long it is.

    As separator, "auto" adds what ``tokenizer(row)`` adds to each row, "none" nothing, "eos" the end token between rows
    that have text. With ``word_starts`` it is noted where words begin, as the tokenizer's pre-tokenizer takes them.
    Raises Refused for a split without a token, or a tokenizer without the end token or the words that are asked for.
    """
    end = end_token(tokenizer) if separator == "eos" else None
    parts = [FORMAT, corpus.keys[split], tokenizer_fingerprint(tokenizer), separator, end, word_starts]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    folder = cache_dir / "tokens" / key

    def build(temporary: Path) -> None:
        log.info("tokenising %s of %s", split, corpus.source)
        special = separator == "auto"
        text = TextHash()
        batches = _encoded(_hashed(corpus.rows(split), text), tokenizer, special, word_starts)
        added = tokenizer.num_special_tokens_to_add() if special else 0
        dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32
        bar = tqdm(desc=f"tokenising {split}", unit="B", unit_scale=True, leave=False, disable=None)
        with bar, imports_uncollected():
            rows = _write_tokens(temporary, batches, dtype, added, end, bar.update)
        corpus.check_unchanged(split)
        if not rows["tokens"].any():
            raise refuse(f"data.{split}", corpus.source, "there is no text in this split", "give it some")
        _store(temporary, rows, dtype, word_starts)
        (temporary / "text").write_text(str(text))

    build_once(folder, build)
    return _open(folder, key)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of everything that decides which tokens a text becomes; where the tokenizer was loaded from does not."""
    if tokenizer.is_fast:
        # What comes before is the version, and the truncation and padding that the last call has left behind
        written = tokenizer.backend_tokenizer.to_str().rpartition('"added_tokens":')[2]
        state: Any = hashlib.sha256(written.encode()).hexdigest()  # JSON in JSON would take as long as writing it did
    else:
        switches = {name: value for name, value in tokenizer.init_kwargs.items() if isinstance(value, bool)}
        state = [type(tokenizer).__name__, tokenizer.get_vocab(), switches]
    parts = [state, tokenizer.special_tokens_map, getattr(tokenizer, "split_special_tokens", False)]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def _hashed(batches: Iterator[list[str]], text: TextHash) -> Iterator[list[str]]:
    for rows in batches:
        for row in rows:
            text.add(row)
        yield rows


def begin_token(tokenizer: Any) -> int | None:
    """The token that begins a text, or else the one that ends it; None where there is neither."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def count_separators(tokens: np.ndarray, tokenizer: Any) -> int:
    """How many of some tokens are special ones, which stand for no text.

    That for unknown text does stand for some, unless it begins or ends a text, too, as GPT-2's.
    """
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    ids = [number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id or number in ends]
    return int(np.isin(tokens, ids).sum())


def end_token(tokenizer: Any) -> int:
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return token
    raise refuse("data.separator", "eos", "the tokenizer has no end token", "use data.separator=auto or none")


def _encoded(batches: Iterator[list[str]], tokenizer: Any, special: bool, word_starts: bool) -> Iterator[EncodedRows]:
    if not tokenizer.is_fast:
        if word_starts:
            wrong = "this tokenizer does not tell where words begin"
            raise refuse("objective.whole_word", True, wrong, "choose another model.tokenizer, or set it to false")
        for texts in batches:
            ids = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
            yield EncodedRows(texts, np.array([len(row) for row in ids]), ids, None)
        return
    tokenizer("")  # a call without options switches truncation and padding off
    backend = tokenizer.backend_tokenizer
    encode = backend.encode_batch if word_starts else backend.encode_batch_fast  # the fast one knows no words
    for texts, rows in _ahead(partial(encode, add_special_tokens=special), batches):
        words = (row.word_ids for row in rows) if word_starts else None
        yield EncodedRows(texts, np.array([len(row) for row in rows]), (row.ids for row in rows), words)


def _ahead(encode: Callable[[list[str]], Any], batches: Iterator[list[str]]) -> Iterator[tuple[list[str], Any]]:
    """Batches with their encodings; the next ones are encoded, two at once, while the caller works on the last."""
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[tuple[list[str], Any]] = deque()
        for texts in batches:
            waiting.append((texts, pool.submit(encode, texts)))
            if len(waiting) > 3:  # enough that no core waits
                texts, encoding = waiting.popleft()
                yield texts, encoding.result()
        yield from ((texts, encoding.result()) for texts, encoding in waiting)


def _write_tokens(
    folder: Path, batches: Iterator[EncodedRows], dtype: type, added: int, end: int | None, advance: Callable
) -> dict[str, np.ndarray]:
    """Append the tokens to the file ``ids``, and where words begin to the file ``starts``.

    Of each row ``added`` tokens stand for no text; before every row with text but the first, the token ``end`` is put.
    ``advance`` gets the number of bytes that were worked on. Returns for each row, [rows] int64: ``tokens``,
    ``separators`` (those of them that stand for no text), ``words``, ``line_ends`` and ``bytes``.
    """
    counts: dict[str, list[np.ndarray]] = {name: [] for name in ("tokens", "separators", "words", "line_ends", "bytes")}
    text_came = False
    with (folder / "ids").open("wb") as ids_file, (folder / "starts").open("wb") as starts_file:
        for batch in batches:
            lengths = batch.lengths
            tokens: np.ndarray = np.fromiter(chain.from_iterable(batch.ids), dtype, lengths.sum())
            starts = None if batch.words is None else _word_starts(batch.words, lengths)
            text_sizes, separators = _measure(batch.texts), np.full(len(batch.texts), added)
            if end is not None:
                separators = (lengths > 0) & (text_sizes["words"] > 0)
                if not text_came and separators.any():
                    text_came, separators[separators.argmax()] = True, False
                places = (np.cumsum(lengths) - lengths)[separators]
                tokens, lengths = np.insert(tokens, places, end), lengths + separators
                starts = None if starts is None else np.insert(starts, places, True)
            tokens.tofile(ids_file)
            if starts is not None:
                starts.tofile(starts_file)
            for name, values in (text_sizes | {"tokens": lengths, "separators": separators}).items():
                counts[name].append(values)
            advance(int(text_sizes["bytes"].sum()))
    return {name: np.concatenate([np.zeros(0, np.int64), *values]) for name, values in counts.items()}


def _measure(texts: list[str]) -> dict[str, np.ndarray]:
    """Of each text: ``len(text.split())``, its line feeds, and its bytes in UTF-8."""
    characters = np.frombuffer(" ".join(["", *texts]).encode("utf-32-le"), np.uint32)
    space = SPACES.take(characters, mode="clip")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(lengths + 1)

    def count(selected: np.ndarray) -> np.ndarray:
        return np.diff(np.searchsorted(np.flatnonzero(selected), ends), prepend=0)

    longer = (2**7, 2**11, 2**16) if characters.max() >= 2**7 else ()  # from which a character takes a byte more
    return {
        "words": count(space[:-1] & ~space[1:]),
        "line_ends": count(characters == ord("\n")),
        "bytes": lengths + sum(count(characters >= first) for first in longer),
    }


def _word_starts(words: Iterable[list[int | None]], lengths: np.ndarray) -> np.ndarray:
    """Bool [tokens]: whether a token is the first of a word in its row, or belongs to none."""
    numbers = np.fromiter(chain.from_iterable(words), float, lengths.sum())  # None becomes NaN, which equals nothing
    starts = np.ones(len(numbers) + 1, bool)
    starts[1:-1] = numbers[1:] != numbers[:-1]
    starts[np.cumsum(lengths)] = True  # the rows' ends: the next one's first token
    return starts[:-1]


def _store(folder: Path, rows: dict[str, np.ndarray], dtype: type, word_starts: bool) -> None:
    """Turn the raw files into Arrow files of one batch, so that each column is a single buffer."""
    columns = {"tokens": np.memmap(folder / "ids", dtype, "r")}
    if word_starts:
        columns["word_starts"] = np.memmap(folder / "starts", np.uint8, "r")
    ends = {"row_ends": rows["tokens"], "words": rows["words"] + rows["line_ends"], "bytes": rows["bytes"]}
    ends = {name: np.cumsum(values) for name, values in ends.items()}
    for name, arrays in {"tokens": columns, "rows": ends}.items():
        batch = pa.RecordBatch.from_pydict({column: _arrow(values) for column, values in arrays.items()})
        with pa.ipc.new_file(str(folder / f"{name}.arrow"), batch.schema) as writer:
            writer.write_batch(batch)
    counts = {name: int(values.sum()) for name, values in rows.items()}
    counts |= {"rows": len(rows["words"]), "empty_rows": int((rows["words"] == 0).sum())}
    (folder / "counts.json").write_text(json.dumps(counts))
    for raw in ("ids", "starts"):
        (folder / raw).unlink()


# What ``pa.array`` and ``to_numpy`` do, but those import pandas, which takes a quarter of a second.
def _arrow(values: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _numpy(column: pa.Array) -> np.ndarray:
    return np.frombuffer(column.buffers()[1], str(column.type), len(column))


def _open(folder: Path, key: str) -> TokenStream:
    arrays: dict[str, Any] = {"word_starts": None}
    for name in ("tokens", "rows"):
        batch = pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).get_batch(0)
        arrays |= {name: _numpy(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    counts, text = json.loads((folder / "counts.json").read_text()), folder / "text"
    return TokenStream(**arrays, counts=counts, key=key, text=text.read_text() if text.exists() else None)
