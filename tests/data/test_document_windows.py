"""Windows inside documents: every token is predicted once, from its own document alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_lm.data.document_windows import Bounds, DocumentWindows
from lightning_lm.data.token_stream import TokenStream
from lightning_lm.objectives.clm import Clm

PREFIX = 60_000


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(2, 12), st.booleans(), st.data())
def test_every_token_is_predicted_once_from_its_own_document(lengths, size, prefixed, data):
    lengths = [*lengths, 1]
    ends = np.cumsum(lengths)
    starts, rows = ends - lengths, np.arange(1, len(lengths) + 1)
    separated = np.array([data.draw(st.booleans()) if n and length > 1 else 0 for n, length in enumerate(lengths)])
    stream = TokenStream(np.arange(ends[-1], dtype=np.uint16), None, ends, 2 * rows, 7 * rows, {}, "")
    within = Bounds(starts + separated, ends, PREFIX if prefixed else None)
    windows = DocumentWindows(stream, size, data.draw(st.integers(1, size - 1)), bounds=within)
    taken = windows.take(np.arange(len(windows)))
    batch = Clm().collate(taken, np.uint64(0), None)
    labelled = batch["labels"] != -100
    firsts = (starts + separated)[(starts + separated) < ends]
    skipped = set(starts[separated == 1]) | (set() if prefixed else set(firsts))
    assert sorted(batch["labels"][labelled].tolist()) == sorted(set(range(ends[-1])) - skipped)
    before, after = batch["input_ids"][labelled], batch["labels"][labelled]
    begins = np.isin(after, firsts)
    assert (before[begins] == PREFIX).all() and (before[~begins] + 1 == after[~begins]).all()
    document = np.searchsorted(ends, taken.positions, side="right")
    for row, valid in zip(document, taken.valid & (taken.tokens != PREFIX), strict=True):
        assert len(set(row[valid])) == 1
    sizes = [windows.text_size(np.array([n])) for n in range(len(windows))]
    assert np.allclose(np.sum(sizes, axis=0), [2 * len(lengths), 7 * len(lengths)] if prefixed else 0)
