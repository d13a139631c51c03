"""Rows of text in local files: lines, or the records of JSON, CSV, Parquet and Arrow; and hashes of their content."""

import codecs
import csv
import glob
import hashlib
import json
import logging
import lzma
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_lm.data.formats import KNOWN, doubt, format_of, open_bytes, open_text
from lightning_lm.errors import Problem, Refused, nearest, refuse
from lightning_lm.files import replacing

log = logging.getLogger(__name__)
csv.field_size_limit(sys.maxsize)  # a field may hold a whole document; the module's own limit is 128 KiB
# Arrow's errors and JSON's are ValueErrors
UNREADABLE = (ValueError, csv.Error, OSError, EOFError, zlib.error, lzma.LZMAError)
SETTLED = 2_000_000_000  # ns after which a file's time of change tells it from what was there before


def expand(split: str, patterns: Iterable[str], problems: list[Problem]) -> list[Path]:
    """The files that paths and globs name, each glob's sorted; what names none goes to ``problems``."""
    paths: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if glob.has_magic(str(path)) and not path.exists():
            matching = [file for name in sorted(glob.glob(str(path), recursive=True)) if (file := Path(name)).is_file()]
            wrong, remedy = None if matching else "no file matches", "check the pattern"
            paths += matching
        elif path.is_dir():
            wrong, remedy = "a folder", f"name its files, such as '{Path(pattern) / '*.txt'}'"
        elif path.exists() and not path.is_file():
            wrong, remedy = "a pipe or a device, which can't be read twice", "write its text to a file"
        elif not path.is_file():
            wrong, remedy = "no such file", "check the path"
        else:
            wrong, remedy = None if os.access(path, os.R_OK) else "no permission to read it", "check its permissions"
            paths.append(path)
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
    doubts: dict[str, Path] = {}
    hashes: dict[str, list[str]] = {}
    for split, paths in files.items():
        hashes[split] = []
        for path in paths:
            size, changed = state(path)
            try:
                entry = f"{path.resolve()}|{size}|{changed}|{_reader(split, path)[0]}|{column}"
                digest = known.get(entry) or fresh.get(entry) or examine(split, path, column)
                if entry not in remembered and has_lines(split, path) and (said := doubt(path)):
                    doubts.setdefault(said, path)
            except Refused as refused:
                problems += refused.problems
                continue
            hashes[split].append(digest)
            if entry not in known and time.time_ns() - changed > SETTLED:
                fresh[entry] = digest
    if problems:
        raise Refused(*problems)
    for said, path in doubts.items():
        log.warning("%s: %s", path, said)
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
        _, read = _reader(split, path)
        yield from checked(read(path, column), str(path), column)
    except UNREADABLE as error:
        raise refuse(f"data.{split}", path, f"can't be read: {error}", "correct the file, or leave it out") from error


def checked(rows: Iterable[object], where: str, column: str) -> Iterator[str]:
    """The rows that are there, every one of them text; raises Refused at the first that is something else."""
    missing = 0
    for number, row in enumerate(rows, 1):
        if row is None:
            missing += 1
        elif isinstance(row, str):
            yield row
        else:
            kind = f"no text but of type {type(row).__name__}"
            raise refuse("data.text_column", column, f"row {number} of {where} is {kind}", "choose a column of text")
    if missing:
        log.warning("%s: %s rows without text (null) are left out", where, f"{missing:,}")


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
    hashed_name, read = _reader(split, path)
    digest, decoder, done = hashlib.sha256(hashed_name.encode()), codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with open_bytes(path) as file:
            while chunk := file.read(2**20):
                if not done and chunk.startswith(codecs.BOM_UTF8):
                    digest.update(b"without")  # older versions kept the mark, so their tokens differ
                digest.update(chunk)
                if read not in (read_parquet, read_arrow):
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


def _reader(split: str, path: Path) -> "tuple[str, Reader]":
    try:
        return READERS[format_of(path)]
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise refuse(f"data.{split}", path, f"can't be read: {error}", "correct the file, or leave it out") from error
    except ValueError as error:
        raise refuse(f"data.{split}", path, str(error), f"give {KNOWN}, with the suffix that says which") from error


def has_lines(split: str, path: Path) -> bool:
    return _reader(split, path)[1] is read_lines


def read_lines(path: Path, column: str) -> Iterator[str]:
    """Lines as ``datasets`` has them: every kind of line break becomes "\\n", and nothing else ends a line."""
    with open_text(path) as file:
        yield from file


def read_json_lines(path: Path, column: str) -> Iterator[object]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                yield _field(path, json.loads(line), column, number)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error.msg}") from error


def read_json(path: Path, column: str) -> Iterator[object]:
    with open_text(path) as file:
        content = file.read()
    if not content[:256].lstrip().startswith("["):
        yield from read_json_lines(path, column)
        return
    for number, record in enumerate(json.loads(content), 1):
        yield _field(path, record, column, number)


def _field(path: Path, record: object, column: str, number: int) -> object:
    if not isinstance(record, dict):
        raise ValueError(f"record {number} is no object with named fields")
    names = [column] if column in record else column.split(".")
    if number == 1:
        _column_index(path, column, list(record), names[0])
    value: object = record
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str):
        value.encode()  # JSON can spell half a surrogate pair, which is no text
    return value


def read_csv(path: Path, column: str, delimiter: str = ",") -> Iterator[object]:
    with open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        header = next(reader, None)
        if header is None:
            return
        if len(header) == 1 and delimiter not in header[0] and (other := re.search("[;,|\t]", header[0])):
            raise ValueError(f"its header has {other[0]!r} where {delimiter!r} separates columns")
        place = _column_index(path, column, header)
        for record in filter(None, reader):
            if len(record) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(record)} fields, the header {len(header)}")
            yield record[place]


def read_parquet(path: Path, column: str) -> Iterator[object]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        top = column if column in names else column.split(".")[0]
        _column_index(path, column, names, top)
        for batch in file.iter_batches(1000, columns=[column]):
            yield from _within(batch.column(0).to_pylist(), column, top)


def read_arrow(path: Path, column: str) -> Iterator[object]:
    """A file of Arrow's, or a stream as ``datasets`` keeps them."""
    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        top = column if column in reader.schema.names else column.split(".")[0]
        place = _column_index(path, column, reader.schema.names, top)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield from _within(batch.column(place).to_pylist(), column, top)


def _within(values: list[Any], column: str, top: str) -> Iterator[object]:
    """What stands at a dotted place within the values of a column."""
    for value in values:
        for name in column.removeprefix(top).split(".")[1:]:
            value = value.get(name) if isinstance(value, dict) else None
        yield value


def _column_index(path: Path, column: str, columns: list[str], top: str | None = None) -> int:
    name = top or column
    if name not in columns:
        wrong = f"{path} has the columns {', '.join(columns)}"
        raise refuse("data.text_column", column, wrong, nearest(column, columns))
    if columns.count(name) > 1:
        raise refuse("data.text_column", column, f"{path} has several columns of this name", "rename them")
    return columns.index(name)


Reader = Callable[[Path, str], Iterator[object]]
# Format → the name by which a file's hash knows its reader, and the reader. Cached tokens, and runs to be gone on with,
# hang on the hash: a name stays as it is, whatever its reader is called.
READERS: dict[str, tuple[str, Reader]] = {
    "json lines": ("_json_lines", read_json_lines),
    "json": ("_json", read_json),
    "csv": ("_csv", read_csv),
    "tsv": ("_tsv", partial(read_csv, delimiter="\t")),
    "parquet": ("_parquet", read_parquet),
    "arrow": ("_arrow", read_arrow),
    "lines": ("_lines", read_lines),
}
