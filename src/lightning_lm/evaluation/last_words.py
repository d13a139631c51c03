"""The last words of passages, as LAMBADA has them (Paperno et al., 2016), each guessed from all that comes before."""

from itertools import chain
from typing import Any

import numpy as np

from lightning_lm.data.documents import read_documents
from lightning_lm.errors import refuse
from lightning_lm.evaluation.items import Items, mean_over
from lightning_lm.evaluation.pseudo_likelihood import LIKELIHOOD, WITHIN_WORD, causal_row, encode_sentence, masked_rows
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.rows import Row, row_scores
from lightning_lm.evaluation.subject import Subject
from lightning_lm.runs.protocol import build_protocol
from lightning_lm.training.metrics import exp

LABELS = {"accuracy": "accuracy", "perplexity": "perplexity of a last word", "passages": "passages"}


def score_last_words(subject: Subject, block_size: int | None) -> Evaluation:
    """Of a causal model by the rule of lm-evaluation-harness's task ``lambada_openai``, version 1.

    A last word is what stands behind the last space. It is right where each of its tokens is the likeliest one after
    the true ones before it. A masked model gets as many masks as the word has tokens, which it fills from the left:
    its tokens are scored as those of a pseudo-likelihood within words (Kauf & Ivanova, 2023).

    Raises:
        Refused: a passage has no last word, or one that is longer than the model's input.
    """
    model, tokenizer, objective = subject.opened.model, subject.opened.tokenizer, subject.opened.objective
    causal, size = objective.facts.kind == "causal", subject.window(block_size)
    texts = list(chain.from_iterable(subject.corpus.rows(subject.key)))
    of_passage = [last_word_rows(tokenizer, text, size, causal, objective.shift) for text in texts]
    scores = row_scores(model, tokenizer, list(chain.from_iterable(of_passage)))
    passage = np.repeat(range(len(texts)), list(map(len, of_passage)))
    nll, hits = (np.bincount(passage, column) for column in scores.T)
    tokens = [sum(label != -100 for _, labels in rows for label in labels) for rows in of_passage]
    right, mean = (hits == tokens).astype(float), mean_over(np.arange(len(texts)))
    items = {"accuracy": Items(right, mean)} if mean else {}
    intervals = {name: item.interval for name, item in items.items() if item.interval}
    if mean:
        cost = mean(nll)
        intervals["perplexity"] = exp(cost.low), exp(cost.high)
    text, form = read_documents(subject.corpus, subject.key).text, LIKELIHOOD if causal else WITHIN_WORD
    facts = build_protocol(text, "none", tokenizer, objective, block_size=size, stride=None)
    return subject.evaluation(
        block_size=size,
        stride=None,
        scope=f"the last words of {len(texts):,} passages",
        figures={"accuracy": float(right.mean()), "perplexity": exp(float(nll.mean())), "passages": len(texts)},
        labels=LABELS,
        intervals=intervals,
        unit="passage",
        protocol=facts
        | {"documents": "each by itself, a passage", "scored": f"the last word of each, {form}"}
        | dict.fromkeys(("first_token", "masking", "words", "bytes")),
        items=items,
    )


def last_word_rows(tokenizer: Any, text: str, size: int, causal: bool, shift: int) -> list[Row]:
    """What the model gets of a passage, at most ``size`` tokens from its end, in which the last word is labelled.

    What the tokenizer puts before a text is kept; what it puts after one is there for a masked model alone.
    """
    context, _, word = text.rpartition(" ")
    if not context.strip() or word != word.rstrip() or not word:
        raise refuse("--data", repr(text[-40:]), "a passage without a last word", "end each by a space and a word")
    ids, words = encode_sentence(tokenizer, text, begins=False)
    before = sum(word is not None for word in encode_sentence(tokenizer, context.rstrip(), begins=False)[1])
    places = [place for place, word in enumerate(words) if word is not None][before:]
    end = places[-1] + 1 if causal else len(ids)
    begin = max(0, end - size - causal)  # a causal model doesn't get the last token
    if places[0] < begin + shift:
        raise refuse("--block-size", size, f"{word!r} has more tokens", "raise it, or leave out its passage")
    of_word = [0 if place in places else None for place in range(begin, end)]
    inputs = ids[begin:end]
    masked = masked_rows(inputs, of_word, tokenizer.mask_token_id, True, shift)
    return [causal_row(inputs, of_word)] if causal else list(masked)
