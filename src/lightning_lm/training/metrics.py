"""The one metric: sums over tokens, from which every reported figure is a ratio."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class TokenNLL(Metric):
    """Sums of negative log-likelihood, tokens, right guesses, words and bytes in float64, synchronised by addition.

    ``compute`` gives ``loss`` (nats per token), ``perplexity`` = exp(loss), ``accuracy`` where hits were given,
    ``tokens``, those that were scored, and, where the text's size was given, ``bits_per_byte`` = NLL / (bytes · ln 2)
    and ``word_perplexity`` = exp(NLL / words), a word being a whitespace-separated piece or a line's end, as is usual
    for WikiText (Merity et al., 2016).
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("nll", "tokens", "hits", "words", "bytes"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> nn.Module:
        """Follows its module to another device, but not to another precision, such as that of bf16-true."""
        super()._apply(fn, exclude_state)
        for name in self._defaults:
            self._defaults[name] = self._defaults[name].double()
            setattr(self, name, getattr(self, name).double())
        return self

    def update(self, nll: Tensor, tokens: int, hits: Tensor | None = None, words: float = 0, bytes: float = 0) -> None:
        """Add a batch: its tokens' summed NLL in nats, their number and hits, and the words and bytes they spell."""
        self.nll += nll
        self.tokens += tokens
        if hits is not None:
            self.hits += hits
        self.words += words
        self.bytes += bytes

    def compute(self) -> dict[str, float]:
        nll, tokens, hits, words, size = (float(x) for x in (self.nll, self.tokens, self.hits, self.words, self.bytes))
        if not tokens:
            return {}
        figures = {"loss": nll / tokens, "perplexity": exp(nll / tokens), "accuracy": hits / tokens, "tokens": tokens}
        if size:
            figures |= {"bits_per_byte": nll / (size * math.log(2)), "word_perplexity": exp(nll / words)}
        return figures


def exp(x: float) -> float:
    """exp(x), infinite where a float can't hold it."""
    return math.exp(x) if x < 709 else math.inf
