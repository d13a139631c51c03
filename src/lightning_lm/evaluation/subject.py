"""A model and a text by their names, at hand to be scored."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lm.config.schema import Config
from lightning_lm.data.schema import DataConfig, TextDataConfig
from lightning_lm.errors import Refused, nearest, refuse
from lightning_lm.figures import SPLITS
from lightning_lm.inference.sources import OpenedModel, as_typed, data_config, locate, open_model
from lightning_lm.runs.folder import read_json_file

if TYPE_CHECKING:  # what is refused by its name is refused before torch is loaded
    import numpy as np

    from lightning_lm.data.corpora.corpus import Corpus
    from lightning_lm.data.token_stream import TokenStream
    from lightning_lm.evaluation.result import Evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What is scored, and what it was called."""

    model: str
    run: Config | None  # where the model is a run's
    opened: OpenedModel
    data: str | None
    split: str
    text: DataConfig
    corpus: "Corpus"
    key: str  # the corpus's name for the split

    def window(self, size: int | None) -> int:
        """The tokens of a window: the size that was asked for, or the run's, or the model's up to 1024.

        Raises:
            Refused: the model has fewer positions.
        """
        from lightning_lm.models.loading import positions

        limit = positions(self.opened.model)
        if size is None:
            size = self.run.data.block_size if self.run else min(limit or 1024, 1024)
        if limit is not None and size > limit:
            raise refuse("--block-size", size, f"the model has only {limit} positions", "lower it")
        return size

    def stream(self, word_starts: bool) -> "TokenStream":
        """The tokens of the split, with where words begin, or without."""
        from lightning_lm.data.token_stream import tokenize

        separator, cache = self.text.separator, self.text.cache
        tokenizer = self.opened.tokenizer
        return tokenize(self.corpus, self.key, tokenizer, separator=separator, word_starts=word_starts, cache_dir=cache)

    def evaluation(self, **result: Any) -> "Evaluation":
        """The result that has these parts."""
        from lightning_lm.evaluation.result import Evaluation
        from lightning_lm.runs.protocol import made_with

        prefix = next((prefix for prefix, split in SPLITS.items() if split == self.split), None)
        scored = (read_json_file(Path(self.model).expanduser() / "summary.json") or {}).get(f"{prefix}/protocol")
        if self.data is None and scored and scored["text"] != result["protocol"]["text"]:
            log.warning("%s: its %s text has changed since the run was scored", self.model, self.split)
        names = self.model, self.opened.objective.facts.name, self.data, self.split
        result["protocol"]["dtype"] = str(self.opened.model.dtype).removeprefix("torch.")
        result |= {"trained_block_size": self.run and self.run.data.block_size}
        return Evaluation(*names, made_with=made_with(self.opened.place), **result)


@contextmanager
def opened_subject(
    model: str, data: str | None, split: str, objective: str | None, model_options: dict[str, Any], **text_options: Any
) -> Iterator[Subject]:
    """Within it, too, what is refused is told to someone who typed arguments; they are those of ``evaluate``.

    Raises:
        Refused: there is no such model or text.
    """
    _, run = locate(model)
    text = data_config(data, split, run and run.data, **text_options)
    key = "train" if data and isinstance(text, TextDataConfig) else split  # of local files any name serves
    try:
        local = text.build() if text.dataset is None else None  # what isn't there is told before torch is loaded
        opened = open_model(model, objective, strict=False, dataset=text.dataset, **model_options)
        corpus = local or text.build()
        if key not in corpus.keys:
            raise refuse("--split", key, "the data has no such split", nearest(key, list(corpus.keys)))
        yield Subject(model, run, opened, data, split, text, corpus, key)
    except Refused as error:
        raise (as_typed(error, key) if data else error) from None


def draw_places(places: "np.ndarray", most: int) -> "np.ndarray":
    """So many of the places, in their order: always the same ones."""
    import numpy as np

    return np.sort(np.random.default_rng(0).choice(places, min(most, len(places)), replace=False))
