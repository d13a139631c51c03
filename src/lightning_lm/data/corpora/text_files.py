"""Local files as a corpus."""

from collections.abc import Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path

from lightning_lm.data.cache import DEFAULT_CACHE
from lightning_lm.data.corpora.corpus import Corpus, content_hash
from lightning_lm.data.readers import batched, expand, fingerprints, records
from lightning_lm.errors import Problem, Refused


def text_corpus(
    files: dict[str, list[str]],
    *,
    text_column: str = "text",
    validation_percent: float | None = None,
    test_percent: float | None = None,
    cache_dir: str | Path = DEFAULT_CACHE,
) -> Corpus:
    """Local files: a row is a line with its break, or a record's ``text_column`` (json lines, csv, parquet; also .gz).

    Raises Refused with everything that is wrong with the files, all at once.

    Args:
        files: per split paths and globs, read in this order, each glob sorted.
        validation_percent: this share of the training rows, cut from their end, becomes the validation split.
        test_percent: likewise, and behind the validation rows.
        cache_dir: keeps the files' hashes, under their size and time of change, so that a second start reads no text.
    """
    problems: list[Problem] = []
    paths = {split: expand(split, patterns, problems) for split, patterns in files.items()}
    if problems:
        raise Refused(*problems)
    hashes = fingerprints(paths, text_column, Path(cache_dir).expanduser())
    percents = {"validation": validation_percent, "test": test_percent}
    cuts = {split: percent for split, percent in percents.items() if percent is not None}
    keys = {split: content_hash("files", text_column, hashes[split]) for split in files}
    if cuts:
        keys |= {split: content_hash("cut", keys["train"], split, sorted(cuts.items())) for split in ("train", *cuts)}
    total = cache(lambda: sum(1 for _ in _all(paths["train"], "train", text_column)))

    def rows(split: str) -> Iterator[list[str]]:
        if split in files and not (cuts and split == "train"):
            return batched(_all(paths[split], split, text_column))
        first, last = _bounds(total(), cuts)[split]
        return batched(islice(_all(paths["train"], "train", text_column), first, last))

    return Corpus(keys, rows, ", ".join(chain.from_iterable(files.values())))


def _bounds(total: int, cuts: dict[str, float]) -> dict[str, tuple[int, int]]:
    """First row, and the one after the last, of the training rows and of what is cut from their end."""
    bounds, end = {}, total
    for split in sorted(cuts):  # from the end: the test rows, then those for validation before them
        first = max(0, end - max(1, round(total * cuts[split] / 100)))
        bounds[split], end = (first, end), first
    return {**bounds, "train": (0, end)}


def _all(paths: list[Path], split: str, column: str) -> Iterator[str]:
    return chain.from_iterable(records(split, path, column) for path in paths)
