"""Local files as a corpus."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning_lm.data.cache import DEFAULT_CACHE
from lightning_lm.data.corpora.corpus import Corpus, content_hash
from lightning_lm.data.readers import batched, examine, expand, fingerprints, has_lines, records, state
from lightning_lm.errors import Problem, Refused, refuse


def text_corpus(
    files: dict[str, list[str]],
    *,
    text_column: str = "text",
    validation_percent: float | None = None,
    test_percent: float | None = None,
    cache_dir: str | Path = DEFAULT_CACHE,
    verify: bool = False,
) -> Corpus:
    """Local files, also compressed: a row is a line with its break, or a record's ``text_column``.

    Raises Refused with everything that is wrong with the files, all at once.

    Args:
        files: per split paths and globs, read in this order, each glob sorted.
        validation_percent: this share of the training rows, cut from their end, becomes the validation split.
        test_percent: likewise, and behind the validation rows.
        cache_dir: keeps the files' hashes, under their size and time of change, so that a second start reads no text.
        verify: read every byte at each start, and once more after tokenising, whatever size and time of change tell.
    """
    problems: list[Problem] = []
    paths = {split: expand(split, patterns, problems) for split, patterns in files.items()}
    if problems:
        raise Refused(*problems)
    if text_column != "text" and all(has_lines(split, path) for split in files for path in paths[split]):
        raise refuse("data.text_column", text_column, "the files have lines, and no columns", "leave it out")
    seen = {split: [state(path) for path in paths[split]] for split in files}
    hashes = fingerprints(paths, text_column, Path(cache_dir).expanduser(), verify=verify)
    percents = {"validation": validation_percent, "test": test_percent}
    cuts = {split: percent for split, percent in percents.items() if percent is not None}
    keys = {split: content_hash("files", text_column, hashes[split]) for split in files}
    if cuts:
        keys |= {split: content_hash("cut", keys["train"], split, sorted(cuts.items())) for split in ("train", *cuts)}
    total = cache(lambda: sum(1 for _ in _all(paths["train"], "train", text_column)))

    def of_split(split: str, read: Callable[[list[Path], str, str], Iterator[Any]]) -> Iterator[Any]:
        if split in files and not (cuts and split == "train"):
            return read(paths[split], split, text_column)
        return islice(read(paths["train"], "train", text_column), *_bounds(total(), cuts)[split])

    def rows(split: str) -> Iterator[list[str]]:
        return batched(of_split(split, _all))

    def begins(split: str) -> Iterator[bool]:
        return of_split(split, _begins)

    def check_unchanged(split: str) -> None:
        source = split if split in files else "train"
        for path, before, digest in zip(paths[source], seen[source], hashes[source], strict=True):
            if not path.exists() or state(path) != before or (verify and examine(source, path, text_column) != digest):
                remedy = "start again once nothing writes to it"
                raise refuse(f"data.{source}", path, "it has changed since it was first read", remedy)

    contents = {split: dict(zip(map(str, paths[split]), hashes[split], strict=True)) for split in files}
    return Corpus(keys, rows, ", ".join(chain.from_iterable(files.values())), check_unchanged, begins, contents)


def _bounds(total: int, cuts: dict[str, float]) -> dict[str, tuple[int, int]]:
    """First row, and the one after the last, of the training rows and of what is cut from their end."""
    bounds, end = {}, total
    for split in sorted(cuts):  # from the end: the test rows, then those for validation before them
        first = max(0, end - max(1, round(total * cuts[split] / 100)))
        bounds[split], end = (first, end), first
    return {**bounds, "train": (0, end)}


def _begins(paths: list[Path], split: str, column: str) -> Iterator[bool]:
    """Of each row whether it begins a document: a file of lines is one, and so is each record of another file."""
    for path in paths:
        whole = has_lines(split, path)
        yield from (number == 0 or not whole for number, _ in enumerate(records(split, path, column)))


def _all(paths: list[Path], split: str, column: str) -> Iterator[str]:
    return chain.from_iterable(records(split, path, column) for path in paths)
