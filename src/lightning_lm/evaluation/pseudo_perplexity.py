"""Pseudo-perplexity of masked models (Salazar et al., 2020): tokens of a text, each guessed from all others."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lightning_lm.certainty.pairs import FEWEST_DOCUMENTS, over_documents
from lightning_lm.data.documents import documents
from lightning_lm.data.token_stream import tokenize
from lightning_lm.errors import refuse
from lightning_lm.evaluation.pseudo_likelihood import Row, row_nll
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.subject import Subject
from lightning_lm.models.loading import positions
from lightning_lm.runs.protocol import protocol
from lightning_lm.training.metrics import exp

LABELS = {
    "pseudo_perplexity": "pseudo-perplexity",
    "pseudo_bits_per_byte": "pseudo bits per byte",
    "tokens": "tokens scored",
}
TOKENS_AT_ONCE = 2**19  # of rows that wait for their turn


def score_pseudo(subject: Subject, block_size: int | None, sample: int) -> Evaluation:
    """Over ``sample`` of the text's tokens, drawn at random, always the same ones; over all where it has fewer.

    A token is guessed from the others of its block; special tokens are context alone. The bits per byte are the mean
    over the sample, times the text's tokens.

    Raises:
        Refused: the model isn't masked, or has too few positions; or the text has no token to score.
    """
    model, tokenizer, objective = subject.opened.model, subject.opened.tokenizer, subject.opened.objective
    if objective.facts.kind != "masked":
        raise refuse("--pseudo", sample, "causal models have a likelihood", "leave it out")
    limit = positions(model)
    block_size = block_size or (subject.run.data.block_size if subject.run else min(limit or 1024, 1024))
    if limit is not None and block_size > limit:
        raise refuse("--block-size", block_size, f"the model has only {limit} positions", "lower it")
    separator = subject.text.separator
    stream = tokenize(
        subject.corpus, subject.key, tokenizer, separator=separator, word_starts=False, cache_dir=subject.text.cache
    )
    of_text = np.flatnonzero(~np.isin(stream.tokens, tokenizer.all_special_ids))
    if not len(of_text):
        raise refuse("data", "the text", "none of its tokens can be scored", "give a longer text")
    drawn = np.sort(np.random.default_rng(0).choice(of_text, min(sample, len(of_text)), replace=False))
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    chunks = np.array_split(drawn, math.ceil(len(drawn) * block_size / TOKENS_AT_ONCE))
    bar = tqdm(chunks, desc="scoring", leave=False, disable=None)
    rows = (list(_rows(stream.tokens, chunk, block_size, tokenizer.mask_token_id)) for chunk in bar)
    nll = np.concatenate([row_nll(model, of_chunk, pad_id) for of_chunk in rows])
    text, tokens_per_byte = documents(subject.corpus, subject.key), len(of_text) / int(stream.bytes[-1])

    def figures(loss: float) -> dict[str, float]:
        return {"pseudo_perplexity": exp(loss), "pseudo_bits_per_byte": loss * tokens_per_byte / math.log(2)}

    of_document = np.repeat(text.of_row, np.diff(stream.row_ends, prepend=0))[drawn]
    sums, counts = np.bincount(of_document, nll), np.bincount(of_document)
    intervals: dict[str, Any] = {}
    if (held := counts > 0).sum() >= FEWEST_DOCUMENTS:
        mean = over_documents(sums[held], counts[held].astype(float))
        low, high = figures(mean.low), figures(mean.high)
        intervals = {name: (low[name], high[name]) for name in low}
    facts = protocol(text.text, separator, tokenizer, objective, block_size=block_size, stride=block_size)
    return subject.evaluation(
        block_size=block_size,
        stride=block_size,
        figures=figures(float(nll.mean())) | {"tokens": len(drawn)},
        labels=LABELS,
        intervals=intervals,
        unit=text.unit,
        protocol=facts | {"masking": None, "first_token": f"scored as {len(drawn)} drawn ones are, masked by itself"},
    )


def _rows(tokens: np.ndarray, drawn: np.ndarray, block_size: int, mask_id: int) -> Iterator[Row]:
    for at in drawn.tolist():
        first = at // block_size * block_size
        inputs, labels = tokens[first : first + block_size].tolist(), [-100] * min(block_size, len(tokens) - first)
        labels[at - first], inputs[at - first] = inputs[at - first], mask_id
        yield tuple(inputs), tuple(labels)
