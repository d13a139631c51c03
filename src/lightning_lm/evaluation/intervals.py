"""How far a model's figures would move on another text of the same kind."""

import math

import numpy as np

from lightning_lm.certainty.pairs import FEWEST_DOCUMENTS, over_documents
from lightning_lm.data.documents import Documents
from lightning_lm.data.token_stream import TokenStream
from lightning_lm.training.metrics import exp


def bootstrap_intervals(
    stream: TokenStream, documents: Documents, of_tokens: np.ndarray, whole_text: bool
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each figure that is a ratio of sums; none of them where there are too few documents.

    Args:
        of_tokens: as ``score`` fills it.
        whole_text: whether there are figures per byte and per word.
    """
    document = np.repeat(documents.of_row, np.diff(stream.row_ends, prepend=0))
    sums, hits = (np.bincount(document, row, len(documents.bytes)) for row in np.nansum(of_tokens, axis=0))
    scored = (~np.isnan(of_tokens[:, 0])).sum(axis=0)
    sizes = {"tokens": np.bincount(document, scored, len(documents.bytes))}
    held = sizes["tokens"] > 0
    if held.sum() < FEWEST_DOCUMENTS:
        return {}
    if whole_text:
        sizes["words"] = np.bincount(documents.of_row, np.diff(stream.words, prepend=0))
        sizes["bytes"] = documents.bytes * math.log(2)
    bounds = {}
    for name, size in sizes.items():
        estimate = over_documents(sums[held], size[held])
        bounds[name] = estimate.low, estimate.high
    figures = {"loss": bounds["tokens"], "perplexity": (exp(bounds["tokens"][0]), exp(bounds["tokens"][1]))}
    right = over_documents(hits[held], sizes["tokens"][held])
    figures["accuracy"] = max(0.0, right.low), min(1.0, right.high)
    if whole_text:
        figures |= {"bits_per_byte": bounds["bytes"], "word_perplexity": tuple(map(exp, bounds["words"]))}
    return figures
