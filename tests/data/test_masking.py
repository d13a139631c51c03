"""Masks are pure functions with the statistics of independent draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lm.data.masking import Masking, key, random_bits, uniform, word_heads

N = 200_000
POSITIONS = np.arange(N)[None]
MASK, VOCABULARY = 4, 1000


def masking(probability=0.15, whole_word=False):
    return Masking(probability, whole_word, MASK, VOCABULARY, special_ids=(0, 1, 2, 3, 4))


def tokens(n=N):
    return np.random.default_rng(0).integers(5, VOCABULARY, (1, n))


def within(observed, expected, n, sigmas=5):
    """Whether a share of n draws lies where chance alone would put it."""
    return abs(observed - expected) < sigmas * np.sqrt(expected * (1 - expected) / n)


def test_uniform_is_uniform():
    u = uniform(key(1, 2), POSITIONS)[0]
    observed, _ = np.histogram(u, bins=100, range=(0, 1))
    chi2 = ((observed - N / 100) ** 2 / (N / 100)).sum()
    assert 99 - 5 * np.sqrt(2 * 99) < chi2 < 99 + 5 * np.sqrt(2 * 99)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: uniform(key(1, 2), POSITIONS + 1)[0], id="the next position"),
        pytest.param(lambda: uniform(key(1, 3), POSITIONS)[0], id="the next epoch"),
        pytest.param(lambda: uniform(key(2, 2), POSITIONS)[0], id="the next seed"),
        pytest.param(lambda: uniform(key(2, 1), POSITIONS)[0], id="seed and epoch exchanged"),
        pytest.param(lambda: uniform(key(1, 2), POSITIONS + 128)[0], id="the same place in the next block"),
    ],
)
def test_draws_are_uncorrelated(other):
    correlation = np.corrcoef(uniform(key(1, 2), POSITIONS)[0], other())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(N)


def test_each_bit_is_fair_and_changes_with_any_bit_of_the_counter():
    bits = random_bits(key(7), np.arange(20_000))
    ones = np.array([((bits >> np.uint64(i)) & np.uint64(1)).mean() for i in range(64)])
    assert all(within(share, 0.5, 20_000) for share in ones)
    for i in range(40):
        flipped = random_bits(key(7), np.arange(2_000) ^ (1 << i)) ^ random_bits(key(7), np.arange(2_000))
        share = np.unpackbits(flipped.view(np.uint8)).mean()
        assert within(share, 0.5, 2_000 * 64)


def test_shares_of_chosen_masked_replaced_and_kept_tokens():
    ids = tokens()
    chosen = masking().chosen(ids, POSITIONS, key(0))
    assert within(chosen.mean(), 0.15, N)
    corrupted = masking().corrupt(ids, POSITIONS, chosen, key(0))
    assert (corrupted[~chosen] == ids[~chosen]).all()
    n = chosen.sum()
    masked = (corrupted == MASK)[chosen]
    kept = (corrupted == ids)[chosen]
    assert within(masked.mean(), 0.8 + 0.1 / VOCABULARY, n)
    assert within(kept.mean(), 0.1 + 0.1 / VOCABULARY, n)
    replaced = corrupted[chosen & (corrupted != MASK) & (corrupted != ids)]
    assert abs(replaced.mean() - (VOCABULARY - 1) / 2) < 5 * VOCABULARY / np.sqrt(12 * len(replaced))


def test_what_happens_to_a_token_does_not_depend_on_its_being_chosen_early():
    ids = tokens()
    few = masking(0.05).chosen(ids, POSITIONS, key(0))
    corrupted = masking(0.05).corrupt(ids, POSITIONS, few, key(0))
    assert within((corrupted == MASK)[few].mean(), 0.8 + 0.1 / VOCABULARY, few.sum())


def test_special_tokens_are_never_chosen():
    ids = np.random.default_rng(1).integers(0, 10, (1, N))
    chosen = masking(0.5).chosen(ids, POSITIONS, key(3))
    assert not chosen[ids < 5].any() and chosen[ids >= 5].any()


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def bits(stream_key: int, counter: int) -> int:
    return mix(mix((counter * 0x9E3779B97F4A7C15 + stream_key) % 2**64))


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=60), st.integers(0, 2**40), st.integers(0, 2**31))
def test_masks_are_those_of_plain_arithmetic_token_by_token(ids, start, seed):
    stream_key, units = key(1, seed, 3), [start + i - i % 3 for i in range(len(ids))]  # words of three tokens
    chosen, expected = [], []
    for i, (token, unit) in enumerate(zip(ids, units, strict=True)):
        chosen.append(token > 4 and (bits(int(stream_key), unit) >> 11) < 0.4 * 2**53)
        draw = bits(int(stream_key) ^ 0x9E3779B97F4A7C15, start + i)
        action, replacement = (draw >> 32) / 2**32, (draw % 2**32) * VOCABULARY >> 32
        new = MASK if action < 0.8 else replacement if action < 0.9 else token
        expected.append(new if chosen[i] else token)
    rows, positions = np.array([ids]), start + np.arange(len(ids))[None]
    found = masking(0.4).chosen(rows, np.array([units]), stream_key)
    assert found[0].tolist() == chosen
    assert masking(0.4).corrupt(rows, positions, found, stream_key)[0].tolist() == expected


@given(st.data())
def test_a_mask_depends_on_positions_alone_not_on_how_they_are_batched(data):
    start = data.draw(st.integers(0, 2**40))
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 50))
    positions = start + np.arange(rows * columns)
    together = uniform(key(5, 6), positions.reshape(rows, columns))
    assert (together.ravel() == np.array([uniform(key(5, 6), np.array([p]))[0] for p in positions])).all()


@given(st.lists(st.booleans(), min_size=2, max_size=200), st.data())
def test_word_heads_match_a_walk_backwards(starts, data):
    starts = np.array([True, *starts[1:]])
    size = data.draw(st.integers(1, len(starts)))
    begin = data.draw(st.integers(0, len(starts) - size))
    positions = np.arange(begin, begin + size)[None]
    expected = []
    for position in positions[0]:
        while not starts[position]:
            position -= 1
        expected.append(position)
    assert word_heads(starts, positions)[0].tolist() == expected
