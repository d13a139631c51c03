"""Blocks: fixed-size windows on a token stream, and how they are dealt out to steps, micro batches and ranks."""

import math
from dataclasses import dataclass

import numpy as np

from lightning_lm.data.token_stream import TokenStream


@dataclass(frozen=True)
class WindowBatch:
    """Some windows, all [n, size]: tokens (int64), positions in the stream, which of them exist, which are scored."""

    tokens: np.ndarray
    positions: np.ndarray
    valid: np.ndarray
    scored: np.ndarray

    def where(self, chosen: np.ndarray) -> "WindowBatch":
        """Those of the windows that are chosen, bool [n]."""
        return WindowBatch(self.tokens[chosen], self.positions[chosen], self.valid[chosen], self.scored[chosen])


@dataclass(frozen=True)
class Windows:
    """A view of ``stream``: window i covers the tokens [i·stride, i·stride + size).

    With ``whole`` only complete windows count (training: disjoint blocks and a tail). Otherwise the last window may
    reach past the end, where it is padded, and each window scores the tokens that no earlier one has covered, so that
    every token is scored exactly once.
    """

    stream: TokenStream
    size: int
    stride: int
    whole: bool = False

    def __len__(self) -> int:
        tokens = len(self.stream.tokens)
        if self.whole:
            return max(0, (tokens - self.size) // self.stride + 1)
        return 1 + math.ceil(max(0, tokens - self.size) / self.stride)

    @property
    def tail(self) -> int:
        """Tokens at the stream's end that belong to no window."""
        covered = (len(self) - 1) * self.stride + self.size if len(self) else 0
        return max(0, len(self.stream.tokens) - covered)

    def take(self, indices: np.ndarray) -> WindowBatch:
        """The windows with these indices, [n]."""
        tokens = self.stream.tokens
        positions = self.begin(indices)[:, None] + np.arange(self.size)
        valid = positions < self._end(indices)[:, None]
        ids = tokens[np.minimum(positions, len(tokens) - 1)].astype(np.int64)
        return WindowBatch(ids, positions, valid, valid & (positions >= self._first_scored(indices)[:, None]))

    def text_size(self, indices: np.ndarray) -> tuple[float, float]:
        """Words and bytes of the tokens that these windows score; within a row they are spread over its tokens."""
        first = self._first_scored(indices)
        last = np.minimum(self.begin(indices) + self.size, self._end(indices))
        counts = (self.stream.words, self.stream.bytes)
        words, size = (self._before(last, count) - self._before(first, count) for count in counts)
        return float(words.sum()), float(size.sum())

    def context(self) -> np.ndarray:
        """How many tokens stand before each token of the stream in the window that scores it, [tokens]."""
        every, tokens = np.arange(len(self)), np.arange(len(self.stream.tokens))
        begin = self.begin(every)
        ends = np.minimum(begin + self.size, self._end(every))
        return tokens - begin[np.minimum(np.searchsorted(ends, tokens, side="right"), len(every) - 1)]

    def begin(self, indices: np.ndarray) -> np.ndarray:
        """Where in the stream these windows begin, [n]."""
        return indices * self.stride

    def _end(self, indices: np.ndarray) -> np.ndarray:
        """Where the tokens end that these windows may hold, [n]."""
        return np.full(len(indices), len(self.stream.tokens))

    def _before(self, positions: np.ndarray, cumulative: np.ndarray) -> np.ndarray:
        """How much of a cumulative count per row lies before each token position."""
        ends = self.stream.row_ends
        row = np.searchsorted(ends, positions, side="right")  # rows that end at or before the position
        inside = np.minimum(row, len(ends) - 1)
        begin, value = (np.where(row > 0, x[row - 1], 0) for x in (ends, cumulative))
        share = (positions - begin) / np.maximum(ends[inside] - begin, 1)
        return np.where(positions == 0, 0.0, value + share * (cumulative[inside] - value))

    def _first_scored(self, indices: np.ndarray) -> np.ndarray:
        return np.where(indices == 0, 0, (indices - 1) * self.stride + self.size)


@dataclass(frozen=True)
class BatchPlan:
    """How ``samples`` windows become optimizer steps of ``global_batch_size``, each of ``accumulate`` micro batches.

    The last step of an epoch may have fewer samples; they are spread over all ranks and micro batches, so that every
    rank takes part in every step.
    """

    samples: int
    global_batch_size: int
    accumulate: int
    world_size: int

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(self.samples / self.global_batch_size)

    def samples_seen(self, steps: int) -> int:
        """Samples that so many optimizer steps have used, over epochs."""
        epochs, rest = divmod(steps, self.steps)
        return epochs * self.samples + rest * self.global_batch_size

    def of_step(self, step: int) -> np.ndarray:
        """Places in the epoch's order that belong to a step, [≤ global_batch_size]."""
        first = step * self.global_batch_size
        return np.arange(first, min(first + self.global_batch_size, self.samples))

    def of_rank(self, micro: int, rank: int) -> np.ndarray:
        """Places in the epoch's order that belong to a rank's micro batch; the last step may leave it empty."""
        step, part = divmod(micro, self.accumulate)
        return np.array_split(self.of_step(step), self.accumulate * self.world_size)[part * self.world_size + rank]


def order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's shuffled order, a pure function of its arguments, [samples]."""
    return np.random.default_rng([seed, epoch]).permutation(samples)
