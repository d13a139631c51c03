"""The LightningDataModule: from a corpus to batches that are pure functions of (seed, epoch, index)."""

import logging
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_lm.data import masking
from lightning_lm.data.batches import EVALUATION, TRAINING, Batches, Collator, Positions, counts
from lightning_lm.data.cache import DEFAULT_CACHE
from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.document_windows import Bounds, bounds, evaluation_windows
from lightning_lm.data.token_stream import TokenStream, count_separators, tokenize
from lightning_lm.data.windows import BatchPlan, Windows, order
from lightning_lm.errors import refuse

log = logging.getLogger(__name__)


class TextDataModule(L.LightningDataModule):
    """Token streams of a corpus, cut into blocks and dealt out to ranks.

    Args:
        corpus: rows of text in the splits "train", "validation" and, maybe, "test".
        tokenizer: a transformers tokenizer.
        collator: an objective; decides labels, masks and the windows of the evaluation.
        block_size: tokens per block.
        separator: "auto", "none" or "eos": what stands between rows.
        documents: whether the windows of the evaluation stay inside documents.
        prefix: "auto", "bos", "eos" or "none": what is put before each document then.
        global_batch_size: blocks per optimizer step over all devices; ``accumulate`` micro batches make one up.
        limits: largest number of global batches per split.
        seed: of the order and of the training masks.
        num_workers: processes that load batches; 0: the training process does.
        cache_dir: where the tokens are kept.
    """

    def __init__(  # noqa: PLR0913 (each is a setting, and most have a default)
        self,
        corpus: Corpus,
        tokenizer: Any,
        collator: Collator,
        *,
        block_size: int = 128,
        separator: str = "auto",
        documents: bool = False,
        prefix: str = "auto",
        global_batch_size: int = 8,
        accumulate: int = 1,
        limits: dict[str, int | None] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | Path = DEFAULT_CACHE,
    ):
        super().__init__()
        self.corpus, self.tokenizer, self.collator = corpus, tokenizer, collator
        self.block_size, self.separator = block_size, separator
        self.global_batch_size, self.accumulate, self.limits = global_batch_size, accumulate, limits or {}
        self.seed, self.num_workers, self.cache_dir = seed, num_workers, Path(cache_dir).expanduser()
        self.streams: dict[str, TokenStream] = {}
        self.documents, self.prefix = documents, prefix
        self.bounds: dict[str, Bounds] = {}  # of the splits that are evaluated by document

    def prepare_data(self) -> None:
        """Tokenise what the cache lacks, and open it; raises Refused where a split has nothing to train on or score."""
        starts, folder = self.collator.needs_word_starts, self.cache_dir
        for split in self.corpus.keys:
            if split not in self.streams:
                self.streams[split] = tokenize(
                    self.corpus, split, self.tokenizer, separator=self.separator, word_starts=starts, cache_dir=folder
                )
                if self.documents and split != "train":
                    self.bounds[split] = bounds(
                        self.corpus, split, self.streams[split], self.tokenizer, self.separator, self.prefix
                    )
        for split in self.streams.keys() - {"train"}:
            windows = self.windows(split)
            first = windows.take(np.arange(min(self.plan(split).samples, 64)))
            if not self.collator.labelled(first, masking.key(EVALUATION), windows.stream.word_starts).any():
                wrong = f"of its {len(windows.stream.tokens)} token(s) none is scored"
                raise refuse(f"data.{split}", self.corpus.source, wrong, "give more")
        if not len(self.windows("train")):
            tokens = len(self.streams["train"].tokens)
            raise refuse("data.block_size", self.block_size, f"the training text has only {tokens} tokens", "lower it")

    def check_apart(self) -> None:
        """Raises Refused where validation and test are the same text, and warns where one of them is the training text.

        Text is the same where its tokens are, whatever its files or splits are called. Warns also where splits share
        a file, by its content.
        """
        for one, other in combinations(self.streams, 2):
            if not np.array_equal(self.streams[one].tokens, self.streams[other].tokens):
                files, contents = self.corpus.files.get(other, {}), self.corpus.files.get(one, {}).values()
                if shared := [path for path, content in files.items() if content in contents]:
                    more = f", and so are {len(shared) - 1} more" * (len(shared) > 1)
                    seen = f"{shared[0]} is in data.{one}, too{more}"
                    log.warning("data.%s: %s: its figures say little about new text", other, seen)
                continue
            if "train" not in (one, other):
                wrong = "validation and test are the same text, and the best checkpoint is chosen by it"
                raise refuse("data.test", self.corpus.source, wrong, "give another text, or null for no test")
            split = other if one == "train" else one
            log.warning("data.%s is the training text: its figures say nothing about new text", split)

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()

    def windows(self, split: str) -> Windows:
        """Disjoint whole blocks for training; for the other splits windows that score every token once."""
        stream, size = self.streams[split], self.block_size
        if split == "train":
            return Windows(stream, size, size, whole=True)
        return evaluation_windows(stream, size, self.collator.stride(size), self.bounds.get(split))

    def plan(self, split: str, world_size: int = 1) -> BatchPlan:
        """How a split's windows become steps; cut to ``limits``."""
        samples, limit = len(self.windows(split)), self.limits.get(split)
        if limit is not None:
            samples = min(samples, limit * self.global_batch_size)
        return BatchPlan(samples, self.global_batch_size, self.accumulate, world_size)

    def labels_per_token(self) -> float:
        """By the training masks of the first epoch, over the first blocks, with a million tokens at most."""
        windows = self.windows("train")
        first = windows.take(np.arange(min(self.plan("train").samples, max(1, 2**20 // self.block_size))))
        key = masking.key(TRAINING, self.seed, 0)
        labels, blocks = counts(self.collator, first, key, windows.stream.word_starts).sum(axis=1)
        return float(labels / (blocks * self.block_size))

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Per split: what the text holds, and where each of its tokens went."""
        ledger = {}
        for split, stream in self.streams.items():
            windows = self.windows(split)
            blocks = {"block_size": self.block_size, "blocks": len(windows), "tail": windows.tail}
            ledger[split] = {**stream.counts, **blocks, "key": stream.key}
        return ledger

    def separators_scored(self, split: str) -> int:
        """How many of the tokens that evaluation scores are special ones, which stand for no text."""
        plan = self.plan(split)
        batches = self._batches(split, plan, rank=0)
        labels = (batches[0, number]["labels"] for number in range(plan.steps * plan.accumulate))
        return sum(count_separators(part, self.tokenizer) for part in labels)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def blocks_of(self, step: int) -> np.ndarray:
        """The numbers of the blocks of the training text that an optimizer step, counted from 1, has used."""
        plan = self.plan("train")
        epoch, place = divmod(step - 1, plan.steps)
        return order(plan.samples, self.seed, epoch)[plan.of_step(place)]

    def first_training_batch(self, world_size: int) -> dict[str, torch.Tensor]:
        """The first micro batch of the first of so many ranks."""
        return self._batches("train", self.plan("train", world_size), rank=0)[0, 0]

    def first_validation_batch(self) -> dict[str, torch.Tensor]:
        """Up to ``global_batch_size`` windows over the validation split, none of them padded."""
        windows = Windows(self.streams["validation"], self.block_size, self.collator.stride(self.block_size))
        whole = max(1, (len(windows.stream.tokens) - windows.size) // windows.stride + 1)
        plan = BatchPlan(min(whole, self.global_batch_size), self.global_batch_size, 1, 1)
        batch = self._batches("validation", plan, rank=0, windows=windows)[0, 0]
        if "attention_mask" in batch:  # the split is shorter than a block
            length = int(batch["attention_mask"].sum())
            batch = {name: batch[name][:, :length] for name in ("input_ids", "labels")}
        return batch

    def _batches(self, split: str, plan: BatchPlan, rank: int, windows: Windows | None = None) -> Batches:
        seed, pad_id = self.seed if split == "train" else None, self.tokenizer.pad_token_id
        return Batches(windows or self.windows(split), self.collator, plan, rank, seed, 0 if pad_id is None else pad_id)

    def _loader(self, split: str) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None, "a loader is of a Trainer's processes"
        plan = self.plan(split, trainer.world_size)
        return DataLoader(
            self._batches(split, plan, trainer.global_rank),
            batch_size=None,  # an item is a whole micro batch
            sampler=Positions(plan, lambda: trainer.global_step if split == "train" else 0),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # of its own, so that starting an epoch takes nothing from the global one
        )
