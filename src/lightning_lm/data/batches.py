"""A split's windows as batches: items that depend on (seed, epoch, index) and on nothing else."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from lightning_lm.data import masking
from lightning_lm.data.windows import BatchPlan, WindowBatch, Windows, order

TRAINING, EVALUATION = 1, 2  # purposes of a mask's key: no evaluation mask depends on the seed


class Collator(Protocol):
    """Turns windows of tokens into a model's inputs and labels, as each of ``lightning_lm.objectives`` does.

    A key is a 64-bit number that fixes all randomness of an epoch (``lightning_lm.data.masking.key``).
    """

    @property
    def parts(self) -> "Sequence[Collator]":
        """What collates windows: the collator itself, or those that a mixture is made of."""

    def split(self, windows: WindowBatch, key: np.uint64) -> list[WindowBatch]:
        """Which of these training windows each part collates. In evaluation each collates all."""

    def weights(self, labels: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """How each part's mean loss counts in a step where it has so many labels and blocks, float64 [parts]."""

    @property
    def needs_word_starts(self) -> bool:
        """Whether the token stream must know where words begin."""

    def stride(self, block_size: int) -> int:
        """By how much evaluation windows advance, so that every token is scored once."""

    def labelled(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        """Bool [n, t]: the positions whose output is scored."""

    def collate(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        """``labels`` int64 [n, t], where ``labels[i, t]`` is what output t predicts, or −100, and the model's inputs.

        ``input_ids`` int64 [n, t] is one of them; others are arguments of the model's ``forward``, under their names.
        Padded positions (not ``windows.valid``) are masked by the data module, unless there is an ``attention_mask``.
        """


class Batches(Dataset):
    """One rank's micro batches as items. ``batches[epoch, i]`` depends on nothing else than its arguments and ``seed``.

    An item has the collator's arrays, such as ``input_ids`` and ``labels`` int64 [n, block_size]; ``labelled`` int64
    [labels], the positions in the flattened batch that have a label; ``attention_mask`` where there is padding; in
    training (``seed`` given) ``num_labels``, the labels of the whole optimizer step over all ranks; in evaluation
    ``words`` and ``bytes``, the size of the text that the scored tokens spell. Evaluation masks differ by ``draw``.

    Of a mixture that is the first part that has windows there, and ``others`` are those of the parts after it. Each has
    the part's number, ``kind``; in training its ``num_labels`` are the part's, whose mean loss counts by ``weight``.
    """

    def __init__(
        self,
        windows: Windows,
        collator: Collator,
        plan: BatchPlan,
        rank: int,
        seed: int | None,
        pad_id: int,
        draw: int = 0,
    ):
        self.windows, self.collator, self.plan, self.rank = windows, collator, plan, rank
        self.seed, self.pad_id = seed, pad_id
        self.evaluation = masking.key(EVALUATION, draw) if draw else masking.key(EVALUATION)
        self._order = (-1, np.empty(0, dtype=np.int64))
        self._counts = ((-1, -1), np.empty((2, 0), dtype=np.int64))

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, micro = item
        places = self.plan.of_rank(micro, self.rank)
        indices = self._indices(epoch, places if len(places) else np.zeros(1, dtype=np.int64))
        windows = self.windows.take(indices)
        key = self.evaluation if self.seed is None else masking.key(TRAINING, self.seed, epoch)
        parts, scored, training = self.collator.parts, bool(len(places)), self.seed is not None
        of_parts = self.collator.split(windows, key) if training else [windows] * len(parts)
        batches = [
            self._collated(part, of_part, key, scored) | {"kind": kind}
            for kind, (part, of_part) in enumerate(zip(parts, of_parts, strict=True))
            if len(of_part.tokens)
        ]
        # Plain numbers: a low precision would round tensors on their way to the device.
        if training:
            alone = self.plan.accumulate == self.plan.world_size == len(parts) == 1  # the micro batch is the whole step
            of_micro_batch = np.array([[len(batches[0]["labelled"])], [len(places)]])
            labels, blocks = of_micro_batch if alone else self._counts_of_step(epoch, micro, key)
            weights = self.collator.weights(labels, blocks)
            for batch in batches:
                batch["num_labels"] = torch.tensor(max(1, int(labels[batch["kind"]])))
                batch["weight"] = float(weights[batch["kind"]])
        else:
            batches[0]["words"], batches[0]["bytes"] = self.windows.text_size(indices) if scored else (0.0, 0.0)
        return {**batches[0], "others": batches[1:]}

    def _collated(self, collator: Collator, windows: WindowBatch, key: np.uint64, scored: bool) -> dict[str, Any]:
        arrays = collator.collate(windows, key, self.windows.stream.word_starts)
        if not scored:  # this rank only keeps step with the others
            arrays["labels"] = np.full_like(arrays["labels"], -100)
        if not windows.valid.all():
            arrays["input_ids"] = np.where(windows.valid, arrays["input_ids"], self.pad_id)
            arrays.setdefault("attention_mask", windows.valid.astype(np.int64))
        arrays["labelled"] = np.flatnonzero(arrays["labels"] != -100)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _indices(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if self.seed is None:
            return places
        if self._order[0] != epoch:
            self._order = (epoch, order(self.plan.samples, self.seed, epoch))
        return self._order[1][places]

    def _counts_of_step(self, epoch: int, micro: int, key: np.uint64) -> np.ndarray:
        step = micro // self.plan.accumulate
        if self._counts[0] != (epoch, step):
            windows = self.windows.take(self._indices(epoch, self.plan.of_step(step)))
            self._counts = ((epoch, step), counts(self.collator, windows, key, self.windows.stream.word_starts))
        return self._counts[1]


def counts(collator: Collator, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
    """Of training windows the labels of each part of the collator, and its windows, int64 [2, parts]."""
    pairs = zip(collator.parts, collator.split(windows, key), strict=True)
    return np.array([(part.labelled(of, key, word_starts).sum(), len(of.tokens)) for part, of in pairs]).T


class Positions(Sampler):
    """Yields (epoch, micro batch) from where training stands, in optimizer steps, to the end of that epoch."""

    def __init__(self, plan: BatchPlan, steps_done: Callable[[], int]):
        self.plan, self.steps_done = plan, steps_done

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, step = divmod(self.steps_done(), self.plan.steps)
        return ((epoch, micro) for micro in range(step * self.plan.accumulate, len(self)))

    def __len__(self) -> int:
        return self.plan.steps * self.plan.accumulate
