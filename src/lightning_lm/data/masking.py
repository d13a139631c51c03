"""Which tokens a masked language model has to guess: a pure function of a key and of positions in the token stream.

Random bits come from hashing counters, not from a generator's state, so the same position under the same key always
gets the same mask, whichever process, batch or restart asks. The hash is SplitMix64's finaliser (Steele, Lea & Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014), applied twice.
"""

from dataclasses import dataclass

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int) -> np.uint64:
    """One 64-bit key from several non-negative integers, such as (seed, epoch, purpose)."""
    value = np.zeros(1, dtype=np.uint64)  # arrays wrap round on overflow without a warning
    for part in parts:
        value = _mix(value + GAMMA + np.uint64(part))
    return value[0]


def random_bits(stream_key: np.uint64, counters: np.ndarray) -> np.ndarray:
    """64 random bits per counter, uint64 of the counters' shape."""
    return _mix(_mix(counters.astype(np.uint64) * GAMMA + stream_key))


def uniform(stream_key: np.uint64, counters: np.ndarray) -> np.ndarray:
    """Float64 numbers in [0, 1) of the counters' shape."""
    return (random_bits(stream_key, counters) >> np.uint64(11)) * 2.0**-53


def word_heads(word_starts: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """For each position the one where its word begins, [n, t]; the word may have begun before the row does."""
    heads = np.where(word_starts[positions], positions, -1)
    first = positions[:, 0].copy()
    while (inside := (word_starts[first] == 0) & (first > 0)).any():
        first -= inside
    heads[:, 0] = first
    return np.maximum.accumulate(heads, axis=1)


@dataclass(frozen=True)
class Masking:
    """BERT's recipe (Devlin et al., 2019): of the chosen tokens 80 % are masked, 10 % replaced, 10 % stay."""

    probability: float
    whole_word: bool
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]

    def chosen(self, tokens: np.ndarray, units: np.ndarray, stream_key: np.uint64) -> np.ndarray:
        """Bool [n, t]: which tokens are to be predicted. ``units`` are positions, or those of words' first tokens."""
        special = np.zeros(self.vocab_size, dtype=bool)
        special[list(self.special_ids)] = True
        return (uniform(stream_key, units) < self.probability) & ~special[tokens]

    def corrupt(self, tokens: np.ndarray, positions: np.ndarray, chosen: np.ndarray, stream_key: np.uint64):
        """The model's input, int64 [n, t]: ``tokens`` with the chosen ones masked, replaced or kept."""
        bits = random_bits(stream_key ^ GAMMA, positions[chosen])
        action = (bits >> np.uint64(32)).astype(np.float64) * 2.0**-32
        replacement = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(self.vocab_size)) >> np.uint64(32)
        unmasked = np.where(action < 0.9, replacement.astype(np.int64), tokens[chosen])
        corrupted = tokens.copy()
        corrupted[chosen] = np.where(action < 0.8, self.mask_id, unmasked)
        return corrupted
