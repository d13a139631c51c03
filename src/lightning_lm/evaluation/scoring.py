"""A model, by its name, scored on a text, by its name."""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.schema import DataConfig, TextDataConfig
from lightning_lm.errors import Refused, nearest, refuse
from lightning_lm.evaluation.protocol import as_line, short_hash
from lightning_lm.inference.sources import OpenedModel, as_typed, data_config, locate, open_model


@dataclass
class Evaluation:
    """Figures of a model on a text; each of ``figures`` is an attribute, too: ``evaluation.perplexity``."""

    model: str
    objective: str
    data: str | None
    split: str
    block_size: int
    stride: int
    figures: dict[str, float]
    labels: dict[str, str]  # name of a figure → label, for people
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of figures; none on a short text
    unit: str = "document"  # over which the intervals are: document or block
    protocol: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)
    separators: int = 0  # of the scored tokens
    token_losses: Any = None

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["figures"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __str__(self) -> str:
        shown = {label: self.figures[name] for name, label in self.labels.items() if name in self.figures}
        text = self.data or "the run's own data"
        head = (
            f"{self.model} on {text}, {self.split}: windows of {self.block_size} tokens that advance by {self.stride}"
        )
        of_labels = {self.labels[name]: bounds for name, bounds in self.intervals.items()}
        rows = []
        for label, x in shown.items():
            low_high = " to ".join(f"{bound:.4f}" for bound in of_labels.get(label, ()))
            rows.append(f"{label:<26}{x:>16{',' if isinstance(x, int) else '.4f'}}" + f"   {low_high}" * bool(low_high))
        notes = [f"95 % intervals over {self.unit}s of this text, for this model"] if self.intervals else []
        notes += [f"of the tokens scored, {self.separators:,} are separators"] if self.separators else []
        notes += [as_line(self.protocol)] if self.protocol else []
        return "\n".join([head, *rows, *notes])

    def as_json(self) -> str:
        """Standard JSON, which has no word for infinity: null stands for it."""
        names = ("model", "objective", "data", "split", "block_size", "stride")
        facts: dict[str, Any] = {name: getattr(self, name) for name in names} | self.figures
        facts |= {"intervals": self.intervals, "interval_unit": self.unit, "separators": self.separators}
        facts |= {"protocol": self.protocol, "protocol_hash": short_hash(self.protocol), "made_with": self.made_with}
        return json.dumps(_finite(facts), indent=2, ensure_ascii=False)


def evaluate(
    model: str | os.PathLike,
    data: str | None = None,
    split: str = "test",
    *,
    block_size: int | None = None,
    stride: int | None = None,
    objective: str | None = None,
    batch_size: int | None = None,
    convention: str | None = None,
    **text_options: str | None,
) -> Evaluation:
    """Exact figures of a run's or another model on a text.

    Args:
        model: a run folder, a model folder, or an id of the Hub.
        data: a path, a glob, an option of ``conf/data``, or an id of the Hub; None: the run's own.
        split: of the data; of local files any of train, validation and test.
        block_size: tokens per window; None: the run's, or the model's up to 1024.
        stride: advance of the windows; None: as disjoint as can be.
        objective: ``clm`` or ``mlm``; None: the one that the model was trained for.
        batch_size: windows at once; None: up to 4096 tokens.
        convention: ``lm-eval`` for the figures of lm-evaluation-harness's task ``wikitext``; None: our own.
        text_options: ``separator`` between rows (None: the run's, or ``auto``); ``text_column``, ``name`` and
            ``revision`` of a data set.

    Raises:
        Refused: there is no such model or text, or they don't go together.
    """
    name = os.fspath(model)
    place, run = locate(name)
    text = data_config(data, split, run and run.data, **text_options)
    opened = open_model(name, objective, strict=False, dataset=text.dataset)
    from lightning_lm.data.documents import documents
    from lightning_lm.data.token_stream import tokenize
    from lightning_lm.evaluation.intervals import intervals
    from lightning_lm.evaluation.nll import token_losses
    from lightning_lm.evaluation.perplexity import check_windows, labels, score
    from lightning_lm.evaluation.protocol import made_with, protocol, separators_scored
    from lightning_lm.models.loading import positions

    if convention is not None:
        return _as_lm_eval(name, opened, text, data, split, block_size)
    limit = positions(opened.model)
    block_size = block_size or (run.data.block_size if run else min(limit or 1024, 1024))
    if limit is not None and block_size > limit:
        raise refuse("--block-size", block_size, f"the model has only {limit} positions", "lower it")
    stride = check_windows(opened.objective, block_size, stride)
    try:
        corpus, key = _corpus(text, data, split)
        stream = tokenize(
            corpus,
            key,
            opened.tokenizer,
            separator=text.separator,
            word_starts=opened.objective.needs_word_starts,
            cache_dir=text.cache,
        )
    except Refused as error:
        raise _as_typed(error, text, data, split) from None
    nll = np.full(len(stream.tokens), np.nan)
    figures = score(
        opened.model,
        opened.tokenizer,
        opened.objective,
        stream,
        block_size=block_size,
        stride=stride,
        batch_size=batch_size,
        nll_of=nll,
    )
    facts, parts = opened.objective.facts, documents(corpus, key)
    windows = {"block_size": block_size, "stride": stride}
    how = protocol(parts, text.separator, opened.tokenizer, opened.objective, **windows)
    return Evaluation(
        name,
        facts.name,
        data,
        split,
        block_size,
        stride,
        figures,
        labels(facts),
        intervals(stream, parts, nll, opened.objective.text_metrics),
        parts.unit,
        how,
        made_with(opened.model, place),
        separators_scored(stream, nll, opened.tokenizer),
        token_losses(stream, parts, nll, opened.tokenizer, how),
    )


def _as_lm_eval(
    name: str, opened: OpenedModel, text: DataConfig, data: str | None, split: str, block_size: int | None
) -> Evaluation:
    from lightning_lm.data.documents import documents
    from lightning_lm.evaluation import lm_eval
    from lightning_lm.evaluation.protocol import made_with, protocol

    if opened.objective.facts.kind != "causal":
        raise refuse("--as", "lm-eval", "it scores causal models alone", "leave it out")
    try:
        corpus, key = _corpus(text, data, split)
        parts = documents(corpus, key, fewest=1)
    except Refused as error:
        raise _as_typed(error, text, data, split) from None
    limit = getattr(opened.model.config, "max_position_embeddings", None) or lm_eval.DEFAULT_LENGTH
    length = block_size or limit
    if length > limit:
        raise refuse("--block-size", length, f"the model has only {limit} positions", "lower it")
    pages, windows = lm_eval.pages(corpus, key, parts), {"block_size": length, "stride": length}
    figures, intervals = lm_eval.score_pages(opened.model, opened.tokenizer, pages, length)
    how = protocol(parts, text.separator, opened.tokenizer, opened.objective, **windows) | lm_eval.PROTOCOL
    return Evaluation(
        name,
        opened.objective.facts.name,
        data,
        split,
        length,
        length,
        figures,
        lm_eval.LABELS,
        intervals,
        "page",
        how,
        made_with(opened.model, locate(name)[0]),
    )


def _corpus(text: DataConfig, data: str | None, split: str) -> tuple[Corpus, str]:
    """The text, and its name for the split; of local files any name serves."""
    corpus, key = text.build(), _key(text, data, split)
    if key not in corpus.keys:
        raise refuse("--split", key, "the data has no such split", nearest(key, list(corpus.keys)))
    return corpus, key


def _key(text: DataConfig, data: str | None, split: str) -> str:
    return "train" if data and isinstance(text, TextDataConfig) else split


def _as_typed(error: Refused, text: DataConfig, data: str | None, split: str) -> Refused:
    return as_typed(error, _key(text, data, split)) if data else error


def _finite(value: Any) -> Any:
    """The same for JSON, which has no word for infinity."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
