"""The figures of lm-evaluation-harness's task ``wikitext`` (version 2), by its rule: each page is scored by itself."""

import math
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from lightning_lm.certainty.pairs import FEWEST_DOCUMENTS, over_documents
from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.documents import Documents, read_documents
from lightning_lm.data.token_stream import begin_token
from lightning_lm.errors import refuse
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.rows import row_scores
from lightning_lm.evaluation.subject import Subject
from lightning_lm.models.loading import positions
from lightning_lm.runs.protocol import build_protocol
from lightning_lm.training.metrics import exp

LABELS = {
    "word_perplexity": "word perplexity",
    "byte_perplexity": "byte perplexity",
    "bits_per_byte": "bits per byte",
    "tokens": "tokens scored",
    "pages": "pages",
}
DEFAULT_LENGTH = 2048  # of windows, where the model's config names none
PROTOCOL = {
    "convention": "lm-evaluation-harness, wikitext 2",
    "separator": "none",
    "documents": "each by itself, a page, detokenised",
    "first_token": "scored, after the token that begins or ends a text",
    "words": "re.split(r'\\s+') of the page as it was",
    "bytes": "of the page as it was, in UTF-8",
}
# The harness's rules, in its order; they are tried against its own code (lm_eval/tasks/wikitext/, MIT licence)
DETOKENIZING = (
    (r"s '", "s'"),
    (r"/' [0-9]/", r"/'[0-9]/"),
    (r" @([-,.])@ ", r"\1"),
    *((rf" {re.escape(sign)} ", f"{sign} ") for sign in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def score_by_page(subject: Subject, block_size: int | None) -> Evaluation:
    """The figures of a subject; windows are as long as the model allows, or as ``block_size``.

    Raises:
        Refused: the model isn't causal, its tokenizer has no token to begin with, or windows are too long for it.
    """
    model, tokenizer, objective = subject.opened.model, subject.opened.tokenizer, subject.opened.objective
    if objective.facts.kind != "causal":
        raise refuse("--as", "lm-eval", "it scores causal models alone", "leave it out")
    length = subject.window(block_size or positions(model) or DEFAULT_LENGTH)
    text, windows = read_documents(subject.corpus, subject.key, fewest=1), {"block_size": length, "stride": length}
    figures, intervals = score_pages(model, tokenizer, pages(subject.corpus, subject.key, text), length)
    facts = build_protocol(text.text, subject.text.separator, tokenizer, objective, **windows) | PROTOCOL
    return subject.evaluation(
        **windows, figures=figures, labels=LABELS, intervals=intervals, unit="page", protocol=facts
    )


def detokenized(page: str) -> str:
    """A page of WikiText as people write."""
    for pattern, replacement in DETOKENIZING:
        page = re.sub(pattern, replacement, page)
    return page


def pages(corpus: Corpus, split: str, documents: Documents) -> list[str]:
    """The rows of each document in one."""
    texts: list[list[str]] = [[] for _ in documents.bytes]
    for number, row in zip(documents.of_row.tolist(), chain.from_iterable(corpus.rows(split)), strict=True):
        texts[number].append(row)
    return ["".join(rows) for rows in texts]


def rolling_windows(tokens: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Where each window's input begins, its first scored token, and the end, in a page behind its prefix token.

    Up to ``length`` tokens are scored in each. The last window reaches back, so that its input is as long.
    """
    first = 1
    while first <= tokens:
        end = min(first + length, tokens + 1)
        yield max(0, end - 1 - length), first, end
        first = end


def page_nll(model: Any, tokenizer: Any, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The NLL of each text in nats, and its tokens, all of which are scored, float64 [texts] both.

    Before each text stands the token that begins a text, else the one that ends it.

    Raises:
        Refused: the tokenizer has neither.
    """
    if (prefix := begin_token(tokenizer)) is None:
        raise refuse("--as", "lm-eval", "the tokenizer has no token to put before a page", "evaluate without it")
    encoded = [[prefix, *tokenizer(text, verbose=False)["input_ids"]] for text in texts]
    cut = [(n, ids, window) for n, ids in enumerate(encoded) for window in rolling_windows(len(ids) - 1, length)]
    rows = [
        (tuple(ids[begin : end - 1]), (*[-100] * (first - 1 - begin), *ids[first:end]))
        for _, ids, (begin, first, end) in cut
    ]
    nll = row_scores(model, tokenizer, rows)[:, 0]
    return np.bincount([n for n, *_ in cut], nll, len(texts)), np.array([len(ids) - 1.0 for ids in encoded])


def score_pages(model: Any, tokenizer: Any, texts: list[str], length: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures, and the 95 % interval of each where there are enough pages.

    Args:
        texts: pages as WikiText has them; they are detokenised here.
        length: tokens that a window scores at most, and has as input.
    """
    nll, tokens = page_nll(model, tokenizer, [detokenized(text) for text in texts], length)
    sizes, intervals = denominators(texts), {}
    values = figures(nll.sum(), sizes["words"].sum(), sizes["bytes"].sum())
    if len(texts) >= FEWEST_DOCUMENTS:
        by_word, by_byte = (over_documents(nll, size) for size in (sizes["words"], sizes["bytes"]))
        low, high = (figures(1.0, 1 / w, 1 / b) for w, b in ((by_word.low, by_byte.low), (by_word.high, by_byte.high)))
        intervals = {name: (low[name], high[name]) for name in values}
    return values | {"tokens": int(tokens.sum()), "pages": len(texts)}, intervals


def denominators(texts: list[str]) -> dict[str, np.ndarray]:
    """Words and bytes of the pages as they are, before they are detokenised."""
    return {
        "words": np.array([float(len(re.split(r"\s+", text))) for text in texts]),
        "bytes": np.array([float(len(text.encode())) for text in texts]),
    }


def figures(nll: float, words: float, size: float) -> dict[str, float]:
    return {
        "word_perplexity": exp(nll / words),
        "byte_perplexity": exp(nll / size),
        "bits_per_byte": nll / size / math.log(2),
    }
