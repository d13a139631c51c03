"""A tokenizer trained on the corpus itself."""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.trainers import WordPieceTrainer

from lightning_lm.data.cache import build_once
from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.errors import refuse
from lightning_lm.interrupts import waiting_for
from lightning_lm.logs import has_bars

log = logging.getLogger(__name__)
FORMAT = 1  # of the cache; a change of how tokenizers are trained needs the next number
LONGEST = 10_000  # characters of a word
ALPHABET = 1000  # characters that a WordPiece vocabulary has at most, as in BERT's own


def train_tokenizer(corpus: Corpus, kind: str, vocab_size: int, cache_dir: Path, show_progress: bool = True) -> Any:
    """A transformers tokenizer learnt from the training split, from the cache where it has it.

    ``kind`` is "bpe", byte-level like GPT-2's (Radford et al., 2019), or "wordpiece", cased like BERT's (Devlin et al.,
    2019). The same corpus gives the same vocabulary; a small one may give fewer than ``vocab_size`` tokens. Raises
    Refused where the vocabulary has no room for the bytes or characters that it has to begin with.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer

    least = 257 if kind == "bpe" else 6  # all bytes and the end; the special tokens and a letter
    if vocab_size < least:
        raise refuse("model.vocab_size", vocab_size, "too small", f"give {least} or more, such as 8000")
    parts = [FORMAT, corpus.keys["train"], kind, vocab_size]
    folder = cache_dir / "tokenizers" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    show_progress = show_progress and has_bars()  # elsewhere a bar leaves empty lines

    def build(temporary: Path) -> None:
        log.info("training a %s tokenizer with %d tokens on %s", kind, vocab_size, corpus.source)
        if kind == "bpe":
            untrained, options = GPT2Tokenizer(), {"show_progress": show_progress}
            trained = waiting_for(lambda: untrained.train_new_from_iterator(_rows(corpus), vocab_size, **options))
        else:
            trained = waiting_for(lambda: _wordpiece(corpus, vocab_size, show_progress))
        corpus.check_unchanged("train")
        trained.save_pretrained(temporary)

    build_once(folder, build)
    return AutoTokenizer.from_pretrained(folder)


def _rows(corpus: Corpus) -> Iterator[list[str]]:
    """The training rows, very long words cut: the time that they take grows with the square of their length."""
    warned = False
    for batch in corpus.rows("train"):
        rows = [piece for text in batch for piece in _cut(text)]
        if len(rows) > len(batch) and not warned:
            log.warning("words of more than %s characters are cut for the tokenizer's training", f"{LONGEST:,}")
            warned = True
        yield rows


def _cut(text: str) -> list[str]:
    if len(text) <= LONGEST or max(map(len, text.split()), default=0) <= LONGEST:
        return [text]
    return re.findall(rf"\S{{1,{LONGEST}}}\s*|\s+", text)


def _wordpiece(corpus: Corpus, vocab_size: int, show_progress: bool) -> Any:
    """WordPiece whose alphabet is fixed before training: the library numbers "##x" in the order of a hash table."""
    from transformers import BertTokenizer

    untrained = BertTokenizer(do_lower_case=False)
    special, backend = list(untrained.convert_ids_to_tokens(list(range(len(untrained))))), untrained.backend_tokenizer
    alphabet = _alphabet(corpus, backend)
    inside = ["##" + c for c in alphabet if len(_words("a" + c, backend)) == 1]
    least = len(special) + len(alphabet) + len(inside)
    if vocab_size < least:
        wrong = f"too small for the {len(alphabet)} characters of the training text"
        raise refuse("model.vocab_size", vocab_size, wrong, f"give {least} or more, such as 8000")
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + inside,  # these are numbered in this order
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=show_progress,
    )
    backend.train_from_iterator(_rows(corpus), trainer)
    return BertTokenizer(vocab=json.loads(backend.to_str())["model"]["vocab"], do_lower_case=False)


def _alphabet(corpus: Corpus, backend: Tokenizer) -> list[str]:
    """The most frequent characters that the normaliser leaves as they are, sorted."""
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for rows in corpus.rows("train"):
        codes = np.bincount(np.frombuffer("".join(rows).encode("utf-32-le"), np.uint32))
        counts[: len(codes)] += codes
    frequent = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    unchanged = [c for c in map(chr, frequent) if _words(c, backend) == [c]]
    return sorted(unchanged[:ALPHABET])


def _words(text: str, backend: Tokenizer) -> list[str]:
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]
