"""Pseudo-perplexity of masked models (Salazar et al., 2020): tokens of a text, each guessed from all others."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lightning_lm.certainty.pairs import FEWEST_DOCUMENTS, over_documents
from lightning_lm.data.documents import read_documents
from lightning_lm.errors import refuse
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.rows import Row, row_scores
from lightning_lm.evaluation.subject import Subject, draw_places
from lightning_lm.runs.protocol import build_protocol
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
    block_size, stream = subject.window(block_size), subject.stream(word_starts=False)
    stride = objective.stride(block_size)
    of_text = ~np.isin(stream.tokens, tokenizer.all_special_ids)
    of_text[: objective.shift] = False  # no output comes before it
    if not of_text.any():
        raise refuse("data", "the text", "none of its tokens can be scored", "give a longer text")
    drawn = draw_places(np.flatnonzero(of_text), sample)
    chunks = np.array_split(drawn, math.ceil(len(drawn) * block_size / TOKENS_AT_ONCE))
    bar = tqdm(chunks, desc="scoring", leave=False, disable=None)
    rows = (list(_rows(stream.tokens, chunk, block_size, tokenizer.mask_token_id, objective.shift)) for chunk in bar)
    nll = np.concatenate([row_scores(model, tokenizer, of_chunk)[:, 0] for of_chunk in rows])
    text, loss = read_documents(subject.corpus, subject.key), float(nll.mean())
    document, count = np.repeat(text.of_row, np.diff(stream.row_ends, prepend=0)), len(text.bytes)
    sums, scored = np.bincount(document[drawn], nll, count), np.bincount(document[drawn], minlength=count)
    sizes, in_bits = np.bincount(document[of_text], minlength=count), text.bytes * math.log(2)
    # What each document is likely to cost: its tokens at the mean loss, and by how much its drawn ones are off it
    totals = loss * sizes + len(document[of_text]) / len(drawn) * (sums - loss * scored)
    intervals: dict[str, Any] = {}
    if (held := scored > 0).sum() >= FEWEST_DOCUMENTS:
        mean, by_byte = over_documents(sums[held], scored[held]), over_documents(totals, in_bits)
        intervals["pseudo_perplexity"] = exp(mean.low), exp(mean.high)
        intervals["pseudo_bits_per_byte"] = by_byte.low, by_byte.high
    separator = subject.text.separator
    facts = build_protocol(text.text, separator, tokenizer, objective, block_size=block_size, stride=stride)
    return subject.evaluation(
        block_size=block_size,
        stride=stride,
        figures={"pseudo_perplexity": exp(loss), "pseudo_bits_per_byte": totals.sum() / in_bits.sum()}
        | {"tokens": len(drawn)},
        labels=LABELS,
        intervals=intervals,
        unit=text.unit,
        protocol=facts | {"masking": None, "scored": f"{len(drawn)} tokens drawn, each masked by itself"},
    )


def _rows(tokens: np.ndarray, drawn: np.ndarray, block_size: int, mask_id: int, shift: int) -> Iterator[Row]:
    stride = block_size - shift
    for at in drawn.tolist():
        first = (at - shift) // stride * stride
        inputs, labels = tokens[first : first + block_size].tolist(), [-100] * min(block_size, len(tokens) - first)
        labels[at - first - shift], inputs[at - first] = inputs[at - first], mask_id
        yield tuple(inputs), tuple(labels)
