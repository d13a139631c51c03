"""Windows and plans: every token and every sample is used as promised, whatever the numbers are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_lm.data.token_stream import TokenStream
from lightning_lm.data.windows import BatchPlan, Windows, order


def stream(n, row_lengths=None):
    """n tokens that are their own positions, in rows of the given lengths with 2 words and 7 bytes each."""
    ends = np.cumsum(row_lengths if row_lengths is not None else [n])
    rows = np.arange(1, len(ends) + 1)
    return TokenStream(
        tokens=np.arange(n, dtype=np.uint16),
        word_starts=None,
        row_ends=ends.astype(np.int64),
        words=2 * rows,
        bytes=7 * rows,
        counts={},
        key="",
    )


sizes = st.tuples(st.integers(2, 300), st.integers(2, 40))


@given(sizes)
def test_training_blocks_are_disjoint_and_with_the_tail_they_are_the_stream(case):
    n, size = case
    windows = Windows(stream(n), size, size, whole=True)
    taken = windows.take(np.arange(len(windows)))
    assert taken.valid.all()
    assert taken.tokens.ravel().tolist() == list(range(n - windows.tail))
    assert 0 <= windows.tail < size or not len(windows)


@given(sizes, st.data())
def test_evaluation_windows_score_every_token_once(case, data):
    n, size = case
    stride = data.draw(st.integers(1, size))
    windows = Windows(stream(n), size, stride)
    taken = windows.take(np.arange(len(windows)))
    scored = taken.positions[taken.scored]
    assert sorted(scored.tolist()) == list(range(n))
    assert (taken.tokens == taken.positions)[taken.valid].all()
    assert taken.valid.any(axis=1).all()


@given(sizes)
def test_causal_windows_predict_every_token_but_the_first_from_its_predecessor(case):
    from lightning_lm.objectives.clm import Clm

    n, size = case
    windows = Windows(stream(n), size, Clm().stride(size))
    batch = Clm().collate(windows.take(np.arange(len(windows))), np.uint64(0), None)
    labelled = batch["labels"] != -100
    assert sorted(batch["labels"][labelled].tolist()) == list(range(1, n))
    assert (batch["input_ids"][labelled] + 1 == batch["labels"][labelled]).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(2, 12), st.data())
def test_words_and_bytes_add_up_over_windows(lengths, size, data):
    n = max(2, sum(lengths))
    lengths = [*lengths[:-1], lengths[-1] + n - sum(lengths)]
    windows = Windows(stream(n, lengths), size, data.draw(st.integers(1, size - 1)))
    parts = [windows.text_size(np.array([i])) for i in range(len(windows))]
    assert np.allclose(np.sum(parts, axis=0), [2 * len(lengths), 7 * len(lengths)])
    assert np.allclose(np.sum(parts, axis=0), windows.text_size(np.arange(len(windows))))
    assert np.min(parts) >= 0


def test_a_window_over_half_of_a_row_counts_half_of_its_bytes():
    windows = Windows(stream(20, [10, 10]), 5, 5)
    assert [windows.text_size(np.array([i]))[1] for i in range(4)] == [3.5, 3.5, 3.5, 3.5]


plans = st.builds(BatchPlan, st.integers(1, 200), st.integers(1, 32), st.integers(1, 5), st.integers(1, 5))


@given(plans)
def test_every_sample_is_dealt_out_once_per_epoch(plan):
    micros = range(plan.steps * plan.accumulate)
    dealt = [plan.of_rank(micro, rank) for micro in micros for rank in range(plan.world_size)]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(plan.samples))


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4))
def test_a_step_holds_the_same_samples_on_any_number_of_ranks_and_micro_batches(samples, share, accumulate, ranks):
    many = BatchPlan(samples, share * accumulate * ranks, accumulate, ranks)
    one = BatchPlan(samples, many.global_batch_size, 1, 1)
    for step in range(one.steps):
        parts = [many.of_rank(step * accumulate + a, rank) for a in range(accumulate) for rank in range(ranks)]
        assert sorted(np.concatenate(parts).tolist()) == one.of_rank(step, 0).tolist()


@given(plans, st.integers(0, 50))
def test_samples_seen_is_what_the_steps_held(plan, steps):
    assert plan.samples_seen(steps) == sum(len(plan.of_step(step % plan.steps)) for step in range(steps))


def test_order_is_a_permutation_fixed_by_seed_and_epoch():
    first = order(1000, seed=1, epoch=0)
    assert sorted(first.tolist()) == list(range(1000))
    assert (first == order(1000, seed=1, epoch=0)).all()
    assert not (first == order(1000, seed=1, epoch=1)).all()
    assert not (first == order(1000, seed=0, epoch=1)).all()
