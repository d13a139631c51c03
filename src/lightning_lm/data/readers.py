"""Rows of text in local files: lines, or the records of JSON lines, CSV and Parquet; and hashes of their content."""

import codecs
import csv
import glob
import gzip
import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lightning_lm.errors import Problem, Refused, nearest, refuse
from lightning_lm.files import replacing

csv.field_size_limit(sys.maxsize)  # a field may hold a whole document; the module's own limit is 128 KiB
UNREADABLE = (ValueError, csv.Error, OSError, EOFError, zlib.error)  # Arrow's and JSON's errors are ValueErrors
SETTLED = 2_000_000_000  # ns after which a file's time of change tells it from what was there before


def expand(split: str, patterns: Iterable[str], problems: list[Problem]) -> list[Path]:
    """The files that paths and globs name, each glob's sorted; what names none goes to ``problems``."""
    paths: list[Path] = []
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        if glob.has_magic(path) and not os.path.exists(path):
            matching = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]
            wrong, remedy = None if matching else "no file matches", "check the pattern"
            paths += matching
        elif os.path.isdir(path):
            wrong, remedy = "a folder", f"name its files, such as '{os.path.join(pattern, '*.txt')}'"
        elif not os.path.isfile(path):
            wrong, remedy = "no such file", "check the path"
        else:
            wrong, remedy = None if os.access(path, os.R_OK) else "no permission to read it", "check its permissions"
            paths.append(Path(path))
        if wrong:
            problems.append(Problem(f"data.{split}", pattern, wrong, remedy))
    return paths


def fingerprints(
    files: dict[str, list[Path]], column: str, cache_dir: Path, *, verify: bool = False
) -> dict[str, list[str]]:
    """Per split its files' content hashes, remembered by path, size and time of change; with ``verify`` taken anew.

    Raises Refused with all files that are empty, not UTF-8, or whose first record has no text in ``column``.
    """
    memory = cache_dir / "files.json"
    try:
        remembered = json.loads(memory.read_text())
    except (OSError, ValueError):
        remembered = {}
    known = {} if verify else remembered
    problems: list[Problem] = []
    fresh: dict[str, str] = {}
    hashes: dict[str, list[str]] = {}
    for split, paths in files.items():
        hashes[split] = []
        for path in paths:
            size, changed = state(path)
            entry = f"{path.resolve()}|{size}|{changed}|{_reader(path)[0]}|{column}"
            try:
                digest = known.get(entry) or fresh.get(entry) or examine(split, path, column)
            except Refused as refused:
                problems += refused.problems
                continue
            hashes[split].append(digest)
            if entry not in known and time.time_ns() - changed > SETTLED:
                fresh[entry] = digest
    if problems:
        raise Refused(*problems)
    if fresh:
        _remember(memory, remembered | fresh)
    return hashes


def state(path: Path) -> tuple[int, int]:
    """A file's size in bytes and its time of change in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def records(split: str, path: Path, column: str) -> Iterator[str]:
    """A file's rows, one after the other; raises Refused where it can't go on."""
    try:
        _, read = _reader(path)
        yield from checked(read(path, column), str(path), column)
    except UNREADABLE as error:
        raise refuse(f"data.{split}", path, f"can't be read: {error}", "correct the file, or leave it out") from error


def checked(rows: Iterable[object], where: str, column: str) -> Iterator[str]:
    """The rows, every one of them text; raises Refused at the first that is not."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str):
            kind = "null" if row is None else f"no text but of type {type(row).__name__}"
            remedy = "leave such rows out" if row is None else "choose a column of text"
            raise refuse("data.text_column", column, f"row {number} of {where} is {kind}", remedy)
        yield row


def batched(rows: Iterable[str], most: int = 4000, characters: int = 2**14) -> Iterator[list[str]]:
    """Lists of rows, each ended by whichever limit it reaches first: so few that their tokens fit a core's cache."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row)
        if len(batch) >= most or size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def examine(split: str, path: Path, column: str) -> str:
    """Read a file once for its hash and for what can be wrong with it, for which it raises Refused."""
    hashed_name, read = _reader(path)
    digest, decoder, done = hashlib.sha256(hashed_name.encode()), codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with _open(path, "rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
                if read is not read_parquet:
                    pending = len(decoder.getstate()[0])
                    decoder.decode(chunk)
                done += len(chunk)
        pending = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        wrong = f"not UTF-8 at byte {done - pending + error.start}"
        raise refuse(f"data.{split}", path, wrong, "convert it, as with iconv -t utf-8") from error
    except UNREADABLE as error:
        raise refuse(f"data.{split}", path, f"can't be read: {error}", "correct the file, or leave it out") from error
    if not any(row.strip() for row in records(split, path, column)):
        raise refuse(f"data.{split}", path, "an empty file", "give one with text, or leave it out")
    return digest.hexdigest()


def _remember(memory: Path, entries: dict[str, str]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(memory) as scratch:
            scratch.write_text(json.dumps(entries))
    except OSError as error:
        wrong = f"can't be written ({error.strerror})"
        raise refuse("data.cache_dir", memory.parent, wrong, "make room, or choose another folder") from error


def _reader(path: Path) -> "tuple[str, Reader]":
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return READERS.get(suffix.lower(), LINES)


def _open(path: Path, mode: str, **options) -> Any:
    return gzip.open(path, mode, **options) if path.suffix == ".gz" else open(path, mode, **options)


def read_lines(path: Path, column: str) -> Iterator[str]:
    """Lines as ``datasets`` has them: every kind of line break becomes "\\n", and nothing else ends a line."""
    with _open(path, "rt", encoding="utf-8") as file:
        yield from file


def read_json_lines(path: Path, column: str) -> Iterator[object]:
    with _open(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                yield _field(path, json.loads(line), column, number)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error.msg}") from error


def read_json(path: Path, column: str) -> Iterator[object]:
    with _open(path, "rt", encoding="utf-8-sig") as file:
        if not file.read(256).lstrip().startswith("["):
            yield from read_json_lines(path, column)
            return
        file.seek(0)
        for number, record in enumerate(json.load(file), 1):
            yield _field(path, record, column, number)


def _field(path: Path, record: object, column: str, number: int) -> object:
    if not isinstance(record, dict):
        raise ValueError(f"record {number} is no object with named fields")
    if number == 1:
        _column_index(path, column, list(record))
    value = record.get(column)
    if isinstance(value, str):
        value.encode()  # JSON can spell half a surrogate pair, which is no text
    return value


def read_csv(path: Path, column: str) -> Iterator[object]:
    with _open(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, None)
        if header is None:
            return
        place = _column_index(path, column, header)
        for record in filter(None, reader):
            if len(record) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(record)} fields, the header {len(header)}")
            yield record[place]


def read_parquet(path: Path, column: str) -> Iterator[object]:
    with pq.ParquetFile(path) as file:
        _column_index(path, column, file.schema_arrow.names)
        for batch in file.iter_batches(1000, columns=[column]):
            yield from batch.column(0).to_pylist()


def _column_index(path: Path, column: str, columns: list[str]) -> int:
    if column not in columns:
        wrong = f"{path} has the columns {', '.join(columns)}"
        raise refuse("data.text_column", column, wrong, nearest(column, columns))
    return columns.index(column)


Reader = Callable[[Path, str], Iterator[object]]
# Suffix → the name by which a file's hash knows its reader, and the reader. Cached tokens, and runs to be gone on with,
# hang on the hash: a name stays as it is, whatever its reader is called.
READERS: dict[str, tuple[str, Reader]] = {
    ".jsonl": ("_json_lines", read_json_lines),
    ".json": ("_json", read_json),
    ".csv": ("_csv", read_csv),
    ".parquet": ("_parquet", read_parquet),
}
LINES: tuple[str, Reader] = ("_lines", read_lines)  # of every other file
