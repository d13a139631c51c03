"""How likely texts are to a causal model, and, each token guessed from all others, to a masked one."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lightning_lm.errors import refuse
from lightning_lm.models.loading import positions
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head

TOKENS_PER_BATCH = 4096
Row = tuple[tuple[int, ...], tuple[int, ...]]  # what the model gets, and its labels, −100 where there is none
LIKELIHOOD, PSEUDO, WITHIN_WORD = "log-likelihood", "pseudo-log-likelihood", "pseudo-log-likelihood within words"


def text_nll(opened: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Form → the NLL of each text in nats, float64 [texts]; over the text's own tokens, special ones are context.

    For causal models the log-likelihood, after what the tokenizer puts before a text, or else the token that begins or
    ends one. For masked models the pseudo-log-likelihood (Salazar et al., 2020), and the form that also masks what
    follows in the same word (Kauf & Ivanova, 2023). Their words are those of the pre-tokenizer.

    Raises:
        Refused: a text is too long, or the tokenizer lacks the token to begin with or doesn't tell words.
    """
    causal, tokenizer, limit = opened.objective.facts.kind == "causal", opened.tokenizer, positions(opened.model)
    rows: dict[str, list[Row]] = {form: [] for form in ([LIKELIHOOD] if causal else [PSEUDO, WITHIN_WORD])}
    counts: dict[str, list[int]] = {form: [] for form in rows}
    for text in texts:
        ids, words = encoded(tokenizer, text, causal)
        if limit is not None and len(ids) > limit:
            raise refuse("text", repr(text[:40]), f"{len(ids)} tokens exceed the model's {limit} positions", "cut it")
        for form in rows:
            of_text = list(masked_rows(ids, words, tokenizer.mask_token_id, form == WITHIN_WORD))
            of_text = [causal_row(ids, words)] if causal else of_text
            rows[form] += of_text
            counts[form].append(len(of_text))
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    nll = dict(zip(rows, np.split(row_nll(opened.model, sum(rows.values(), []), pad_id), len(rows)), strict=True))
    return {form: np.bincount(np.repeat(range(len(texts)), counts[form]), nll[form], len(texts)) for form in rows}


def encoded(tokenizer: Any, text: str, causal: bool) -> tuple[list[int], list[int | None]]:
    """A text's tokens, and the number of each one's word, None for special tokens."""
    if not tokenizer.is_fast:
        raise refuse("model", tokenizer.name_or_path, "its tokenizer doesn't tell where words begin", "name another")
    encoding = tokenizer(text, verbose=False)
    ids, words = encoding["input_ids"], encoding.word_ids()
    if causal and (not words or words[0] is not None):
        prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if prefix is None:
            raise refuse("model", tokenizer.name_or_path, "its tokenizer has no token to begin with", "name another")
        ids, words = [prefix, *ids], [None, *words]
    return ids, words


def causal_row(ids: Sequence[int], words: Sequence[int | None]) -> Row:
    return tuple(ids[:-1]), tuple(-100 if w is None else i for i, w in zip(ids[1:], words[1:], strict=True))


def masked_rows(ids: Sequence[int], words: Sequence[int | None], mask_id: int, within_word: bool) -> Iterator[Row]:
    """One row for each token of the text: masked, and with ``within_word`` what follows it in its word, too."""
    for at, word in enumerate(words):
        if word is not None:
            hidden = [i == at or (within_word and i > at and words[i] == word) for i in range(len(ids))]
            inputs = tuple(mask_id if masked else i for i, masked in zip(ids, hidden, strict=True))
            yield inputs, tuple(i if place == at else -100 for place, i in enumerate(ids))


def row_nll(model: Any, rows: Sequence[Row], pad_id: int) -> np.ndarray:
    """The NLL of each row's labels in nats, float64 [rows]; equal rows are computed once, so they tie to the bit."""
    longest_first = sorted(dict.fromkeys(rows), key=lambda row: -len(row[0]))
    head, nll, start = find_head(model.eval()), dict.fromkeys(longest_first, 0.0), 0
    while start < len(longest_first):
        length = len(longest_first[start][0])
        batch = longest_first[start : start + max(1, TOKENS_PER_BATCH // length)]
        start += len(batch)
        gaps = [length - len(inputs) for inputs, _ in batch]
        padded = {
            "input_ids": [[*inputs, *[pad_id] * gap] for (inputs, _), gap in zip(batch, gaps, strict=True)],
            "labels": [[*labels, *[-100] * gap] for (_, labels), gap in zip(batch, gaps, strict=True)],
            "attention_mask": [[1] * (length - gap) + [0] * gap for gap in gaps],
        }
        tensors = {name: torch.tensor(values, device=model.device) for name, values in padded.items()}
        with torch.inference_mode():
            of_labels = labelled_nll(model, head, tensors, with_hits=True).of_tokens
        row_of = (tensors["labels"] != -100).nonzero()[:, 0].cpu().numpy()
        nll |= zip(batch, np.bincount(row_of, of_labels.cpu().numpy(), len(batch)).tolist(), strict=True)
    return np.array([nll[row] for row in rows])
