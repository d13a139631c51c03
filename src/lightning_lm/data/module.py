"""The LightningDataModule: from a corpus to batches that are pure functions of (seed, epoch, index)."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_lm.data import masks
from lightning_lm.data.blocks import Plan, Windows, order
from lightning_lm.data.corpus import Corpus
from lightning_lm.data.stream import TokenStream, tokenize
from lightning_lm.errors import refuse
from lightning_lm.objectives import Objective

log = logging.getLogger(__name__)

TRAINING, EVALUATION = 1, 2  # purposes of a mask's key: no evaluation mask depends on the seed


class Batches(Dataset):
    """One rank's micro batches as items. ``batches[epoch, i]`` depends on nothing else than its arguments and ``seed``.

    An item has ``input_ids`` and ``labels`` int64 [n, block_size]; ``labelled`` int64 [labels], the positions in the
    flattened batch that have a label; ``attention_mask`` where there is padding; in training (``seed`` given)
    ``num_labels``, the labels of the whole optimiser step over all ranks; in evaluation ``words`` and ``bytes``, what
    the scored tokens spell.
    """

    def __init__(self, windows: Windows, objective: Objective, plan: Plan, rank: int, seed: int | None, pad_id: int):
        self.windows, self.objective, self.plan, self.rank = windows, objective, plan, rank
        self.seed, self.pad_id = seed, pad_id
        self._order = (-1, np.empty(0, dtype=np.int64))
        self._labels = ((-1, -1), 0)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, micro = item
        places = self.plan.of_rank(micro, self.rank)
        indices = self._indices(epoch, places if len(places) else np.zeros(1, dtype=np.int64))
        taken = self.windows.take(indices)
        key = masks.key(EVALUATION) if self.seed is None else masks.key(TRAINING, self.seed, epoch)
        arrays = self.objective.collate(taken, key, self.windows.stream.word_starts)
        if not len(places):  # this rank only keeps step with the others
            arrays["labels"] = np.full_like(arrays["labels"], -100)
        if not taken.valid.all():
            arrays["input_ids"] = np.where(taken.valid, arrays["input_ids"], self.pad_id)
            arrays["attention_mask"] = taken.valid.astype(np.int64)
        arrays["labelled"] = np.flatnonzero(arrays["labels"] != -100)
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.seed is not None:
            alone = self.plan.accumulate == self.plan.world_size == 1  # the micro batch is the whole step
            labels = len(arrays["labelled"]) if alone else self._labels_of_step(epoch, micro, key)
            batch["num_labels"] = torch.tensor(max(1, labels))
        else:
            # Plain numbers: a low precision would round tensors on their way to the device.
            batch["words"], batch["bytes"] = self.windows.text_size(indices) if len(places) else (0.0, 0.0)
        return batch

    def _indices(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if self.seed is None:
            return places
        if self._order[0] != epoch:
            self._order = (epoch, order(self.plan.samples, self.seed, epoch))
        return self._order[1][places]

    def _labels_of_step(self, epoch: int, micro: int, key: np.uint64) -> int:
        step = micro // self.plan.accumulate
        if self._labels[0] != (epoch, step):
            taken = self.windows.take(self._indices(epoch, self.plan.of_step(step)))
            labelled = self.objective.labelled(taken, key, self.windows.stream.word_starts)
            self._labels = ((epoch, step), int(labelled.sum()))
        return self._labels[1]


class Positions(Sampler):
    """Yields (epoch, micro batch) from where training stands, in optimiser steps, to the end of that epoch."""

    def __init__(self, plan: Plan, steps_done: Callable[[], int]):
        self.plan, self.steps_done = plan, steps_done

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, step = divmod(self.steps_done(), self.plan.steps)
        return ((epoch, micro) for micro in range(step * self.plan.accumulate, len(self)))

    def __len__(self) -> int:
        return self.plan.steps * self.plan.accumulate


class TextDataModule(L.LightningDataModule):
    """Token streams of a corpus, cut into blocks and dealt out to ranks.

    Args:
        corpus: rows of text in the splits "train", "validation" and, maybe, "test".
        tokenizer: a transformers tokenizer.
        objective: decides labels, masks and the windows of the evaluation.
        block_size: tokens per block.
        separator: "auto", "none" or "eos": what stands between rows.
        global_batch_size: blocks per optimiser step over all devices; ``accumulate`` micro batches make one up.
        limits: largest number of global batches per split.

    Raises:
        Refused: a split is empty or has no complete block.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        objective: Objective,
        *,
        block_size: int,
        separator: str,
        global_batch_size: int,
        accumulate: int,
        limits: dict[str, int | None],
        seed: int,
        num_workers: int,
        cache_dir: Path,
    ):
        super().__init__()
        self.corpus, self.tokenizer, self.objective = corpus, tokenizer, objective
        self.block_size, self.separator = block_size, separator
        self.global_batch_size, self.accumulate, self.limits = global_batch_size, accumulate, limits
        self.seed, self.num_workers, self.cache_dir = seed, num_workers, cache_dir
        self.streams: dict[str, TokenStream] = {}

    def prepare_data(self) -> None:
        """Tokenise what the cache lacks, and open it."""
        masking = getattr(self.objective, "masking", None)
        for split in self.corpus.keys:
            if split not in self.streams:
                self.streams[split] = tokenize(
                    self.corpus,
                    split,
                    self.tokenizer,
                    separator=self.separator,
                    word_starts=bool(masking and masking.whole_word),
                    cache_dir=self.cache_dir,
                )
        for split in self.streams.keys() - {"train"}:
            if not self._scores_something(split):
                tokens = len(self.streams[split].tokens)
                raise refuse(
                    f"data.{split}", self.corpus.source, f"of its {tokens} token(s) none is scored", "give more"
                )
        if not len(self.windows("train")):
            tokens = len(self.streams["train"].tokens)
            raise refuse("data.block_size", self.block_size, f"the training text has only {tokens} tokens", "lower it")

    def _scores_something(self, split: str) -> bool:
        windows, key = self.windows(split), masks.key(EVALUATION)
        taken = windows.take(np.arange(min(len(windows), self.plan(split).samples, 64)))
        return bool(self.objective.labelled(taken, key, windows.stream.word_starts).any())

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()

    def windows(self, split: str) -> Windows:
        """Disjoint whole blocks for training; for the other splits windows that score every token once."""
        train = split == "train"
        stride = self.block_size if train else self.objective.stride(self.block_size)
        return Windows(self.streams[split], self.block_size, stride, whole=train)

    def plan(self, split: str, world_size: int = 1) -> Plan:
        """How a split's windows become steps; cut to ``limits``."""
        samples, limit = len(self.windows(split)), self.limits.get(split)
        if limit is not None:
            samples = min(samples, limit * self.global_batch_size)
        return Plan(samples, self.global_batch_size, self.accumulate, world_size)

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Per split: what the text holds, and where each of its tokens went."""
        ledger = {}
        for split, stream in self.streams.items():
            windows = self.windows(split)
            ledger[split] = {
                **stream.counts,
                "block_size": self.block_size,
                "blocks": len(windows),
                "tail": windows.tail,
                "key": stream.key,
            }
        return ledger

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        return self._loader("train", lambda: trainer.global_step)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", lambda: 0)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", lambda: 0)

    def first_validation_batch(self) -> dict[str, torch.Tensor]:
        """Up to ``global_batch_size`` windows of the validation split, none of them padded, as evaluation sees them."""
        windows = self.windows("validation")
        whole = max(1, (len(windows.stream.tokens) - windows.size) // windows.stride + 1)
        plan = Plan(min(whole, self.global_batch_size), self.global_batch_size, 1, 1)
        batch = self._batches("validation", plan, rank=0)[0, 0]
        if "attention_mask" in batch:  # the split is shorter than a block
            length = int(batch["attention_mask"].sum())
            batch = {name: batch[name][:, :length] for name in ("input_ids", "labels")}
        return batch

    def _batches(self, split: str, plan: Plan, rank: int) -> Batches:
        seed, pad_id = self.seed if split == "train" else None, self.tokenizer.pad_token_id
        return Batches(self.windows(split), self.objective, plan, rank, seed, 0 if pad_id is None else pad_id)

    def _loader(self, split: str, steps_done: Callable[[], int]) -> DataLoader:
        plan = self.plan(split, self.trainer.world_size)
        return DataLoader(
            self._batches(split, plan, self.trainer.global_rank),
            batch_size=None,  # an item is a whole micro batch
            sampler=Positions(plan, steps_done),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # of its own, so that starting an epoch takes nothing from the global one
        )
