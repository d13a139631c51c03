"""Words of a text, each guessed from what stands before it, after it, or on both sides."""

from typing import Any

import numpy as np

from lightning_lm.data.documents import read_documents
from lightning_lm.errors import refuse
from lightning_lm.evaluation.items import Items, mean_over
from lightning_lm.evaluation.pseudo_likelihood import encode_sentence
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.rows import Row, label_ranks
from lightning_lm.evaluation.subject import Subject, draw_places
from lightning_lm.runs.protocol import build_protocol

SIDES = {"left": "left side", "right": "right side", "both": "both sides"}
FIGURES = {"accuracy": "accuracy", "reciprocal_rank": "mean of 1/rank"}
LABELS = {f"{side}_{name}": f"{of}, {label}" for side, of in SIDES.items() for name, label in FIGURES.items()}


def score_words(subject: Subject, block_size: int | None, sample: int) -> Evaluation:
    """Over ``sample`` words of the text, drawn at random, always the same ones; over all where it has fewer.

    The words are those that are one token by themselves and have a letter or a digit, so that each has a rank among
    the tokens of the vocabulary. Both sides together fill a window. A masked model guesses a mask between them; or
    between the left side and what its tokenizer puts after a text; or between what that puts before a text and the
    right side. A causal model can use the left side alone.

    Raises:
        Refused: windows don't suit the model, or there are no such words.
    """
    opened, size = subject.opened, subject.window(block_size)
    if size < 4:
        raise refuse("--block-size", size, "it leaves a word no text on both sides", "give 4 or more tokens")
    encode_sentence(opened.tokenizer, "", begins=False)  # is refused where words aren't told
    stream, width = subject.stream(word_starts=True), (size - 1) // 2
    drawn = draw_places(np.flatnonzero(single_token_words(stream.tokens, stream.word_starts, opened.tokenizer)), sample)
    if not len(drawn):
        raise refuse("data", "the text", "none of its words is a token by itself", "give a longer text")
    rows = context_rows(opened, stream.tokens, drawn, width)
    text = read_documents(subject.corpus, subject.key)
    mean = mean_over(np.repeat(text.of_row, np.diff(stream.row_ends, prepend=0))[drawn])
    values, items = {}, {}
    for side, of_side in rows.items():
        rank, equal = label_ranks(opened.model, opened.tokenizer, of_side).T
        values[f"{side}_accuracy"] = (rank == (equal + 1) / 2) / equal  # of equally likely ones any may be the guess
        values[f"{side}_reciprocal_rank"] = 1 / rank
    if mean:
        items = {name: Items(scores, mean) for name, scores in values.items()}
    facts = build_protocol(
        text.text, subject.text.separator, opened.tokenizer, opened.objective, block_size=size, stride=None
    )
    sides = "before it, all that a causal model can use" if list(rows) == ["left"] else "on a side"
    return subject.evaluation(
        block_size=size,
        stride=None,
        scope=f"words, each guessed from the {width} tokens {sides}",
        figures={name: float(scores.mean()) for name, scores in values.items()} | {"words": len(drawn)},
        labels=LABELS | {"words": "words"},
        intervals={name: item.interval for name, item in items.items() if item.interval},
        unit=text.unit,
        protocol=facts
        | {"scored": f"{len(drawn)} words of one token drawn, with {width} tokens on a side"}
        | dict.fromkeys(("first_token", "masking", "words", "bytes")),
        items=items,
    )


def single_token_words(tokens: np.ndarray, word_starts: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Bool [tokens]: whether a token is a whole word, with a letter or a digit, that isn't the text's first token."""
    vocabulary, index = np.unique(tokens, return_inverse=True)
    special = set(tokenizer.all_special_ids)
    is_word = [i not in special and any(map(str.isalnum, tokenizer.decode([i]))) for i in vocabulary.tolist()]
    starts = word_starts.astype(bool)
    whole = starts & np.append(starts[1:], True) & np.array(is_word)[index]
    whole[0] = False
    return whole


def context_rows(opened: Any, tokens: np.ndarray, places: np.ndarray, width: int) -> dict[str, list[Row]]:
    """Side → a row for each place, in which the token there is labelled, with up to ``width`` tokens on its sides."""
    tokenizer, causal, shift = opened.tokenizer, opened.objective.facts.kind == "causal", opened.objective.shift
    ids, words = encode_sentence(tokenizer, "a", begins=shift and not causal)
    of_text = [place for place, word in enumerate(words) if word is not None]
    begin, end, mask = ids[: of_text[0]], ids[of_text[-1] + 1 :], tokenizer.mask_token_id
    rows: dict[str, list[Row]] = {side: [] for side in SIDES if side == "left" or not causal}
    for at in places.tolist():
        before, after = tokens[max(0, at - width) : at].tolist(), tokens[at + 1 : at + 1 + width].tolist()
        around = {"left": (before, end), "right": (begin, after), "both": (before, after)}
        for side, of_side in rows.items():
            first, second = around[side]
            inputs = before if causal else [*first, mask, *second]
            labels = [-100] * len(inputs)
            labels[len(first) - shift] = int(tokens[at])
            of_side.append((tuple(inputs), tuple(labels)))
    return rows
