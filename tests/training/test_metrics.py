"""One metric, whose figures do not depend on how tokens were batched."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lm.training.metrics import TokenNLL


@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=60), st.data())
def test_figures_equal_float64_means_over_any_batches(values, data):
    cut = data.draw(st.integers(0, len(values)))
    metric = TokenNLL()
    for part, words, size in ((values[:cut], 3.0, 10.0), (values[cut:], 4.0, 11.0)):
        nll = torch.tensor(part, dtype=torch.float64)
        metric.update(nll.sum(), len(part), (nll > 5).sum(), words, size)
    figures, mean = metric.compute(), np.mean(np.array(values, dtype=np.float64))
    assert math.isclose(figures["loss"], mean, rel_tol=1e-12, abs_tol=1e-300)
    assert math.isclose(figures["perplexity"], np.exp(mean), rel_tol=1e-9)
    assert math.isclose(figures["bits_per_byte"], np.sum(values) / 21 / np.log(2), rel_tol=1e-9, abs_tol=1e-300)
    assert math.isclose(figures["word_perplexity"], np.exp(np.sum(values) / 7), rel_tol=1e-9)
    assert figures["accuracy"] == np.mean([v > 5 for v in values])


def test_small_sums_are_not_lost_beside_a_large_one():
    metric = TokenNLL()
    metric.update(torch.tensor(1e9, dtype=torch.float64), 10**9)
    for _ in range(1000):
        metric.update(torch.tensor(1e-3), 1)  # float32 would not see these beside 1e9
    assert math.isclose(
        metric.compute()["loss"], (1e9 + 1000 * float(torch.tensor(1e-3))) / (10**9 + 1000), rel_tol=1e-12
    )


def test_an_infinite_perplexity_is_told_as_such():
    metric = TokenNLL()
    metric.update(torch.tensor(1000.0), 1)
    assert metric.compute()["perplexity"] == math.inf
