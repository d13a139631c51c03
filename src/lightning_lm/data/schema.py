"""Settings of the axis ``data``: corpora, what is wrong with their settings, how each is built. Loads nothing heavy."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lm.constraints import PERCENT, Settings, at_least, setting
from lightning_lm.data.cache import DEFAULT_CACHE
from lightning_lm.errors import Problem, nearest

if TYPE_CHECKING:
    from lightning_lm.data.corpora.corpus import Corpus

SPLITS = ("train", "validation", "test")


class Separator(StrEnum):
    auto = "auto"  # what tokenizer(row) adds
    none = "none"
    eos = "eos"  # one end token between documents


class Prefix(StrEnum):
    auto = "auto"  # bos, or else eos
    bos = "bos"
    eos = "eos"
    none = "none"  # the first token of a document is then not scored


@dataclass
class DataConfig(Settings, ABC):
    block_size: int = setting(128, at_least(2, " tokens"))
    separator: Separator = Separator.auto
    documents: bool = False  # windows of validation and test stay inside documents
    prefix: Prefix = Prefix.auto  # what a causal model then sees before each document
    cache_dir: str = setting(DEFAULT_CACHE, may_change=True)

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir).expanduser()

    @property
    @abstractmethod
    def tag(self) -> str:
        """What a dashboard calls the text."""

    @property
    def dataset(self) -> str | None:
        """The data set's id on the Hub, or its folder; None where there is none."""
        return None

    @abstractmethod
    def build(self) -> "Corpus":
        """The corpus; raises Refused where the text isn't there, or can't be used."""


@dataclass
class HubDataConfig(DataConfig):
    path: str | None = None  # dataset id or folder; has no default
    name: str | None = None  # configuration of the dataset
    revision: str | None = None  # a commit's 40 hex digits pin it
    text_column: str = "text"
    splits: dict[str, str | None] = setting({split: split for split in SPLITS})  # null: the run has no such split

    @property
    def tag(self) -> str:
        return Path(self.name or self.path or "").name

    @property
    def dataset(self) -> str | None:
        return self.path

    def problems(self) -> Iterator[Problem]:
        if not (self.path and self.path.strip()):
            remedy = "give an id of the Hub, such as Salesforce/wikitext"
            yield Problem("data.path", self.path or "null", "no dataset", remedy)
        given = {split: name for split, name in self.splits.items() if name is not None}
        for split in sorted({"train", "validation"} - set(given)):
            yield Problem("data.splits", self.splits, f"has no {split}", f"add {split}: NAME_OF_A_SPLIT")
        for split, name in given.items():
            if split not in SPLITS:
                yield Problem(f"data.splits.{split}", name, "no part of a run", nearest(split, list(SPLITS)))
            elif split != "train" and name == self.splits.get("train"):
                remedy = "name another, or slices such as train[:95%] and train[95%:]"
                yield Problem(f"data.splits.{split}", name, "the same as data.splits.train", remedy)

    def build(self) -> "Corpus":
        from lightning_lm.data.corpora.hub import hub_corpus

        splits = {split: name for split, name in self.splits.items() if name is not None}
        return hub_corpus(self.path or "", self.name, self.revision, self.text_column, splits)


@dataclass
class TextDataConfig(DataConfig):
    train: Any = None  # a path or glob, or a list of them
    validation: Any = None
    test: Any = None
    text_column: str = "text"  # of json lines, csv and parquet
    verify: bool = setting(False, may_change=True)  # read every byte at each start, not only size and time of change
    validation_percent: float | None = setting(None, PERCENT)  # of the training rows, cut from their end
    test_percent: float | None = setting(None, PERCENT)
    tag = "text"

    def problems(self) -> Iterator[Problem]:
        for split in SPLITS:
            given = getattr(self, split)
            paths = given if isinstance(given, list) else [given]
            if given is not None and not (paths and all(isinstance(path, str) and path.strip() for path in paths)):
                yield Problem(f"data.{split}", repr(given), "no path", "give a path, a glob, or a list of them")
            if given is not None and getattr(self, f"{split}_percent", None) is not None:
                wrong = f"data.{split}_percent would cut the same split from the training rows"
                yield Problem(f"data.{split}", given, wrong, "leave out one of the two")
        if self.train is None:
            remedy = "give a path or a glob, as data.train='my/*.txt'"
            yield Problem("data.train", "null", "no text to train on", remedy)
        if self.validation is None and self.validation_percent is None:
            remedy = "give a path, or data.validation_percent=5 to cut it from the training rows"
            yield Problem("data.validation", "null", "no text to validate on", remedy)
        percents = [p for p in (self.validation_percent, self.test_percent) if p is not None and PERCENT.holds(p)]
        if sum(percents) >= 100:
            wrong = f"with data.validation_percent={self.validation_percent} nothing is left to train on"
            yield Problem("data.test_percent", self.test_percent, wrong, "lower one of the two")

    def build(self) -> "Corpus":
        from lightning_lm.data.corpora.text_files import text_corpus

        named = {split: getattr(self, split) for split in SPLITS}
        return text_corpus(
            {split: [paths] if isinstance(paths, str) else list(paths) for split, paths in named.items() if paths},
            text_column=self.text_column,
            validation_percent=self.validation_percent,
            test_percent=self.test_percent,
            cache_dir=self.cache,
            verify=self.verify,
        )


@dataclass
class PythonDocsDataConfig(DataConfig):
    tag = "python_docs"

    def build(self) -> "Corpus":
        from lightning_lm.data.corpora.python_docs import python_docs_corpus

        return python_docs_corpus()


CORPORA: dict[str, type[DataConfig]] = {
    "hub": HubDataConfig,
    "text": TextDataConfig,
    "python_docs": PythonDocsDataConfig,
    # a new corpus goes here: docs/extending.md
}
