"""How likely texts are to a causal model, and, each token guessed from all others, to a masked one."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lightning_lm.data.token_stream import begin_token
from lightning_lm.errors import refuse
from lightning_lm.evaluation.rows import Row, row_scores
from lightning_lm.models.loading import positions

LIKELIHOOD, PSEUDO, WITHIN_WORD = "log-likelihood", "pseudo-log-likelihood", "pseudo-log-likelihood within words"


def text_nll(opened: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Form → the NLL of each text in nats, float64 [texts]; over the text's own tokens, special ones are context.

    For causal models the log-likelihood, after what the tokenizer puts before a text, or else the token that begins or
    ends one. For masked models the pseudo-log-likelihood (Salazar et al., 2020), and the form that also masks what
    follows in the same word (Kauf & Ivanova, 2023). Their words are those of the pre-tokenizer.

    Raises:
        Refused: a text is too long, or the tokenizer lacks the token to begin with or doesn't tell words.
    """
    causal, shift = opened.objective.facts.kind == "causal", opened.objective.shift
    tokenizer, limit = opened.tokenizer, positions(opened.model)
    rows: dict[str, list[Row]] = {form: [] for form in ([LIKELIHOOD] if causal else [PSEUDO, WITHIN_WORD])}
    counts: dict[str, list[int]] = {form: [] for form in rows}
    for text in texts:
        ids, words = encode_sentence(tokenizer, text, causal or shift)
        if limit is not None and len(ids) > limit:
            raise refuse("text", repr(text[:40]), f"{len(ids)} tokens exceed the model's {limit} positions", "cut it")
        for form in rows:
            of_text = list(masked_rows(ids, words, tokenizer.mask_token_id, form == WITHIN_WORD, shift))
            of_text = [causal_row(ids, words)] if causal else of_text
            rows[form] += of_text
            counts[form].append(len(of_text))
    nll = row_scores(opened.model, tokenizer, sum(rows.values(), []))[:, 0]
    nll = dict(zip(rows, np.split(nll, len(rows)), strict=True))
    return {form: np.bincount(np.repeat(range(len(texts)), counts[form]), nll[form], len(texts)) for form in rows}


def encode_sentence(tokenizer: Any, text: str, begins: bool | int) -> tuple[list[int], list[int | None]]:
    """A text's tokens, and the number of each one's word, None for special tokens.

    Where it ``begins``, with one before it, so that an output comes before the text's first token.
    """
    if not tokenizer.is_fast:
        raise refuse("model", tokenizer.name_or_path, "its tokenizer doesn't tell where words begin", "name another")
    encoding = tokenizer(text, verbose=False)
    ids, words = encoding["input_ids"], encoding.word_ids()
    if begins and (not words or words[0] is not None):
        if (prefix := begin_token(tokenizer)) is None:
            raise refuse("model", tokenizer.name_or_path, "its tokenizer has no token to begin with", "name another")
        ids, words = [prefix, *ids], [None, *words]
    return ids, words


def causal_row(ids: Sequence[int], words: Sequence[int | None]) -> Row:
    return tuple(ids[:-1]), tuple(-100 if w is None else i for i, w in zip(ids[1:], words[1:], strict=True))


def masked_rows(
    ids: Sequence[int], words: Sequence[int | None], mask_id: int, within_word: bool, shift: int
) -> Iterator[Row]:
    """One row for each token of the text: masked, and with ``within_word`` what follows it in its word, too.

    ``shift`` is the objective's: by how many positions the output comes before the token.
    """
    for at, word in enumerate(words):
        if word is not None:
            hidden = [i == at or (within_word and i > at and words[i] == word) for i in range(len(ids))]
            inputs = tuple(mask_id if masked else i for i, masked in zip(ids, hidden, strict=True))
            yield inputs, tuple(ids[at] if place == at - shift else -100 for place in range(len(ids)))
