"""Rows of tokens, of whatever lengths, and how well a model guesses those that are labelled."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import OutputHead, find_head, forward_to_head

TOKENS_PER_BATCH = 4096
Row = tuple[tuple[int, ...], tuple[int, ...]]  # what the model gets, and its labels, −100 where there is none


def row_scores(model: Any, tokenizer: Any, rows: Sequence[Row]) -> np.ndarray:
    """The NLL of each row's labels in nats, and how many of them are the likeliest token, float64 [rows, 2]."""

    def sums(head: OutputHead, batch: dict[str, Tensor]) -> np.ndarray:
        scored = labelled_nll(model, head, batch, with_hits=True)
        row_of = (batch["labels"] != -100).nonzero()[:, 0].cpu().numpy()
        of_labels = (scored.of_tokens.cpu().numpy(), scored.hits.cpu().numpy())
        return np.stack([np.bincount(row_of, values, len(batch["labels"])) for values in of_labels], axis=1)

    return _by_batch(model, tokenizer, rows, sums)


def label_ranks(model: Any, tokenizer: Any, rows: Sequence[Row]) -> np.ndarray:
    """The rank of each row's label, of which it has one, and how many tokens are as likely, float64 [rows, 2].

    The likeliest token has rank 1, and each of n that are equally likely the mean of the n ranks that they share.
    """

    def ranks(head: OutputHead, batch: dict[str, Tensor]) -> np.ndarray:
        labels = batch["labels"].flatten()
        where = (labels != -100).nonzero()[:, 0]
        hidden, logits = forward_to_head(model, head, batch, where)
        logits = head.logits(hidden) if logits is None else logits.float()
        of_label = logits.gather(1, labels[where, None])
        equal = (logits == of_label).sum(1)
        return torch.stack([(logits > of_label).sum(1) + (equal + 1) / 2, equal], dim=1).cpu().double().numpy()

    return _by_batch(model, tokenizer, rows, ranks)


def _by_batch(
    model: Any, tokenizer: Any, rows: Sequence[Row], score: Callable[[OutputHead, dict[str, Tensor]], np.ndarray]
) -> np.ndarray:
    """What ``score`` says of each row, float64 [rows, 2]; equal rows are computed once, so they tie to the bit."""
    head, scores = find_head(model.eval()), {}
    for batch, tensors in _batches(dict.fromkeys(rows), tokenizer, model.device):
        with torch.inference_mode():
            scores |= zip(batch, score(head, tensors), strict=True)
    return np.array([scores[row] for row in rows]).reshape(-1, 2)


def _batches(rows: dict[Row, None], tokenizer: Any, device: Any) -> Iterator[tuple[list[Row], dict[str, Tensor]]]:
    """The longest rows first, padded at their ends."""
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    longest_first, start = sorted(rows, key=lambda row: -len(row[0])), 0
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
        yield batch, {name: torch.tensor(values, device=device) for name, values in padded.items()}
