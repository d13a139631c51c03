"""The perplexity of transformers' documentation, page "Perplexity of fixed-length models", by its loop."""

from itertools import chain
from typing import Any

import numpy as np

from lightning_lm.data.corpora.corpus import TextHash
from lightning_lm.data.token_stream import TokenStream
from lightning_lm.data.windows import Windows
from lightning_lm.errors import refuse
from lightning_lm.evaluation.perplexity import score
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.subject import Subject
from lightning_lm.models.loading import positions
from lightning_lm.runs.protocol import build_protocol
from lightning_lm.training.metrics import exp

LABELS = {
    "perplexity": "perplexity",
    "counted": "tokens, as it counts",
    "exact_perplexity": "perplexity, exact",
    "tokens": "tokens scored",
}
STRIDE = 512  # where none is given, as on the page
PROTOCOL = {
    "convention": "transformers' documentation",
    "separator": "blank lines",
    "words": None,
    "bytes": None,
}


def score_as_docs(subject: Subject, block_size: int | None, stride: int | None, batch_size: int | None) -> Evaluation:
    """Rows joined by blank lines, tokenised as one text, in windows as long as the model allows.

    The page weighs the mean loss of each window by its labels less one, since the first label of a window is dropped.
    But after the first window nothing is dropped where windows overlap. ``exact_perplexity`` has the true weights.

    Raises:
        Refused: the model isn't causal, or the windows leave tokens out.
    """
    model, tokenizer, objective = subject.opened.model, subject.opened.tokenizer, subject.opened.objective
    if objective.facts.kind != "causal":
        raise refuse("--as", "hf-docs", "it scores causal models alone", "leave it out")
    if (longest := block_size or positions(model)) is None:
        raise refuse("--as", "hf-docs", "the model has no longest input", "give --block-size")
    length = subject.window(longest)
    stride = min(STRIDE, length) if stride is None else stride
    if stride > length:
        raise refuse("--stride", stride, "tokens would be left out", f"give 1 to {length}")
    text, rows = TextHash(), list(chain.from_iterable(subject.corpus.rows(subject.key)))
    for row in rows:
        text.add(row)
    stream = joined(rows, tokenizer)
    of_tokens = np.full((1, 2, len(stream.tokens)), np.nan)
    over = Windows(stream, length, stride)
    figures = score(model, tokenizer, objective, over, batch_size=batch_size, of_tokens=of_tokens)
    windows = {"block_size": length, "stride": stride}
    loss, counted = docs_loss(of_tokens[0, 0], length, stride)
    return subject.evaluation(
        **windows,
        figures={"perplexity": exp(loss), "counted": counted}
        | {"exact_perplexity": figures["perplexity"], "tokens": figures["tokens"]},
        labels=LABELS,
        protocol=build_protocol(str(text), "none", tokenizer, objective, **windows) | PROTOCOL,
    )


def joined(rows: list[str], tokenizer: Any) -> TokenStream:
    """One text of all rows; those without text are empty, as in the Hub's WikiText."""
    text = "\n\n".join(row if row.strip() else "" for row in rows)
    tokens = np.array(tokenizer(text, verbose=False)["input_ids"])
    words, size = len(text.split()) + text.count("\n"), len(text.encode())
    return TokenStream(tokens, None, np.array([len(tokens)]), np.array([words]), np.array([size]), {}, "")


def docs_loss(nll: np.ndarray, length: int, stride: int) -> tuple[float, int]:
    """The mean NLL as the page has it, and the tokens that it divides by.

    Args:
        nll: float64 [tokens] in nats, NaN where a token was not scored.
    """
    total, counted = 0.0, 0
    for labels in np.split(nll, range(length, len(nll), stride)):  # of a window: tokens that none before has held
        scored = labels[~np.isnan(labels)]
        if len(scored):
            total += scored.mean() * (len(labels) - 1)
            counted += len(labels) - 1
    return total / counted, counted
