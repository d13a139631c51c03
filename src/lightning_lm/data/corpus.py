"""Where text comes from: the Hugging Face Hub, local files, or the reference text that CPython carries.

Rows are read only when the token cache lacks a split; the keys alone are cheap.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning_lm.data.files import batched, checked, expand, fingerprints, records
from lightning_lm.errors import Problem, Refused, nearest, refuse


@dataclass(frozen=True)
class Corpus:
    """Rows of text in named splits ("train", "validation", "test"), identified by their content.

    Attributes:
        keys: per split a hash of its content.
        rows: from a split to batches of its rows; raises Refused for text that can't be used.
        source: for people.
    """

    keys: dict[str, str]
    rows: Callable[[str], Iterator[list[str]]]
    source: str


def text_corpus(
    files: dict[str, list[str]],
    *,
    text_column: str = "text",
    validation_percent: float | None,
    test_percent: float | None,
    cache_dir: Path,
) -> Corpus:
    """Local files: a row is a line with its break, or a record's ``text_column`` (json lines, csv, parquet; also .gz).

    Args:
        files: per split paths and globs, read in this order, each glob sorted.
        validation_percent: this share of the training rows, cut from their end, becomes the validation split.
        test_percent: likewise, and behind the validation rows.
        cache_dir: keeps the files' hashes, under their size and time of change, so that a second start reads no text.

    Raises:
        Refused: everything that is wrong with the files, all at once.
    """
    problems: list[Problem] = []
    paths = {split: expand(split, patterns, problems) for split, patterns in files.items()}
    if problems:
        raise Refused(*problems)
    hashes = fingerprints(paths, text_column, cache_dir)
    cuts = {"validation": validation_percent, "test": test_percent}
    cuts = {split: percent for split, percent in cuts.items() if percent is not None}
    keys = {split: _hash("files", text_column, hashes[split]) for split in files}
    whole = keys["train"]
    keys |= {split: _hash("cut", whole, split, sorted(cuts.items())) for split in (["train", *cuts] if cuts else [])}

    @cache
    def total() -> int:
        return sum(1 for _ in _all(paths["train"], "train", text_column))

    def rows(split: str) -> Iterator[list[str]]:
        if split in files and not (cuts and split == "train"):
            return batched(_all(paths[split], split, text_column))
        first, last = _bounds(total(), cuts)[split]
        return batched(islice(_all(paths["train"], "train", text_column), first, last))

    return Corpus(keys, rows, ", ".join(chain.from_iterable(files.values())))


def hub_corpus(path: str, name: str | None, revision: str | None, text_column: str, splits: dict[str, str]) -> Corpus:
    """A dataset of the Hub, or of a local folder; ``splits`` names for each of ours one of the dataset's, or a slice.

    With a commit's 40 hex digits as ``revision``, a start whose tokens are cached asks neither Hub nor disk.

    Raises:
        Refused: no such dataset, configuration, split or column, or no way to reach the Hub.
    """

    @cache
    def loaded() -> dict[str, Any]:
        return _load(path, name, revision, text_column, splits)

    def rows(split: str) -> Iterator[list[str]]:
        batches = loaded()[split].select_columns(text_column).with_format("arrow").iter(1000)
        texts = chain.from_iterable(batch[text_column].to_pylist() for batch in batches)
        return batched(checked(texts, f"the split {splits[split]} of {path}", text_column))

    pinned = revision and re.fullmatch("[0-9a-f]{40}", revision) and not Path(path).exists()
    identity = {ours: revision if pinned else loaded()[ours]._fingerprint for ours in splits}
    keys = {ours: _hash("hub", path, name, text_column, theirs, identity[ours]) for ours, theirs in splits.items()}
    return Corpus(keys, rows, " ".join(filter(None, (path, name))) + (f"@{revision}" if revision else ""))


def python_docs_corpus() -> Corpus:
    """The English reference text in ``pydoc_data.topics``: a row is a line, a document a topic, sorted by name.

    A topic is as a whole in one split: in the order of their names' hashes, those that begin in the first 5 % of the
    text are for the test, those of the next 5 % for validation. The text depends on the version of Python.

    Raises:
        Refused: this Python comes without its documentation.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        wrong = "this Python comes without pydoc_data.topics"
        raise refuse("data", "python_docs", wrong, "use data=text data.train=FILE") from error
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    before, total = 0, sum(map(len, topics.values()))
    for topic in sorted(topics, key=lambda topic: hashlib.sha256(topic.encode()).digest()):
        share = before / total
        parts["test" if share < 0.05 else "validation" if share < 0.1 else "train"].append(topic)
        before += len(topics[topic])
    texts = {split: [topics[topic] for topic in sorted(chosen)] for split, chosen in parts.items()}

    def rows(split: str) -> Iterator[list[str]]:
        return batched(chain.from_iterable(map(io.StringIO, texts[split])))

    return Corpus({split: _hash(text) for split, text in texts.items()}, rows, "pydoc_data.topics")


def _bounds(total: int, cuts: dict[str, float]) -> dict[str, tuple[int, int]]:
    """First row, and the one after the last, of the training rows and of what is cut from their end."""
    bounds, end = {}, total
    for split in sorted(cuts):  # from the end: the test rows, then those for validation before them
        first = max(0, end - max(1, round(total * cuts[split] / 100)))
        bounds[split], end = (first, end), first
    return {**bounds, "train": (0, end)}


def _all(paths: list[Path], split: str, column: str) -> Iterator[str]:
    return chain.from_iterable(records(split, path, column) for path in paths)


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _load(path: str, name: str | None, revision: str | None, column: str, splits: dict[str, str]) -> dict[str, Any]:
    """The dataset's splits under our names."""
    every = _load_dataset(path, name, revision)
    problems, found = [], {}
    for ours, theirs in splits.items():
        if theirs not in every and re.split(r"[\[+]", theirs)[0] not in every:
            wrong = f"the dataset has the splits {', '.join(every)}"
            problems.append(Problem(f"data.splits.{ours}", theirs, wrong, nearest(theirs, list(every))))
            continue
        found[ours] = every[theirs] if theirs in every else _load_dataset(path, name, revision, theirs)
        columns = found[ours].column_names
        if column not in columns:
            wrong = f"the split {theirs} of {path} has the columns {', '.join(columns)}"
            problems.append(Problem("data.text_column", column, wrong, nearest(column, columns)))
    if problems:
        raise Refused(*dict.fromkeys(problems))
    return found


def _load_dataset(path: str, name: str | None, revision: str | None, split: str | None = None) -> Any:
    """``datasets.load_dataset``, with whatever is wrong with the names as a refusal."""
    from datasets import exceptions, load_dataset
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import httpx  # whichever of its versions is in use

    try:
        return load_dataset(path, name, revision=revision, split=split)
    except (ConnectionError, httpx.TransportError, LocalEntryNotFoundError) as error:
        wrong = "the Hugging Face Hub can't be reached and the dataset isn't in the local cache"
        remedy = "use local files with data=text data.train=… or try experiment=quickstart"
        raise refuse("data.path", path, wrong, remedy) from error
    except (exceptions.DatasetsError, OSError) as error:  # the Hub's own errors are OSErrors
        about_revision = str(error).startswith("Revision")
        setting, value = ("data.revision", revision) if about_revision else ("data.path", path)
        raise refuse(setting, value, str(error), "check it against the dataset's page") from error
    except ValueError as error:
        valid = re.search(r"(?:Available: |configs: )\[(.*?)\]", str(error))
        if valid is None:
            setting, value = ("data.splits", split) if split else ("data.path", path)
            raise refuse(setting, value, str(error), "correct it") from error
        names = re.findall(r"'(.*?)'", valid[1])
        wrong = f"the dataset has the configurations {', '.join(names)}"
        remedy = nearest(name, names) if name else "name one of them"
        raise refuse("data.name", name or "null", wrong, remedy) from error
