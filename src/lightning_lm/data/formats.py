"""What a text file is, by its name and its first bytes; and its bytes, whatever compresses them."""

import bz2
import codecs
import gzip
import io
import lzma
import re
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

# Compression → first bytes (gzip: RFC 1952; bzip2; xz: .xz format 1.2; zstd: RFC 8878), and suffixes
COMPRESSIONS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "gzip": (b"\x1f\x8b", (".gz", ".gzip")),
    "bz2": (b"BZh", (".bz2",)),
    "xz": (b"\xfd7zXZ\x00", (".xz",)),
    "zstd": (b"\x28\xb5\x2f\xfd", (".zst", ".zstd")),
}
FORMATS = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "lines",
    ".text": "lines",
    ".md": "lines",
    ".tokens": "lines",  # as WikiText's files have it
    ".raw": "lines",
}
KNOWN = "txt, md, csv, tsv, json, jsonl, parquet or arrow, also compressed by gz, bz2, xz or zst"
# PDF; ZIP and what is one, such as docx; old Office; RTF
BINARY = (b"%PDF", b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"{\\rtf")
RECORDS = re.compile(rb"""\s*\[?\s*\{\s*"[^"]*"\s*:""")  # how JSON lines and lists of objects begin
HEAD = 4096  # bytes that are looked at


def compression(path: Path) -> str | None:
    """By the first bytes, else by the suffix."""
    with path.open("rb") as file:
        head = file.read(10)
    for kind, (magic, _) in COMPRESSIONS.items():
        if head.startswith(magic) and (kind != "bz2" or head[4:] == b"1AY&SY"):  # text may begin with BZh
            return kind
    return next((kind for kind, (_, suffixes) in COMPRESSIONS.items() if path.suffix.lower() in suffixes), None)


def open_bytes(path: Path) -> BinaryIO:
    """The decompressed content."""
    openers: dict[str | None, Any] = {None: open, "gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    kind = compression(path)
    if kind == "zstd":
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))  # type: ignore[arg-type]
    return openers[kind](path, "rb")


def open_text(path: Path, encoding: str = "utf-8-sig", newline: str | None = None) -> io.TextIOWrapper:
    """The decompressed text, without a byte-order mark."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline=newline)


def format_of(path: Path) -> str:
    """One of the values of ``FORMATS``: by the suffix, or where that is none of them, by the first bytes.

    Raises ValueError for what is no text, or looks like records under a name that doesn't say so.
    """
    by_suffix = FORMATS.get(_suffix(path))
    if by_suffix not in (None, "lines"):
        return by_suffix
    with open_bytes(path) as file:
        head = file.read(HEAD)
    if by_suffix is None and head.startswith(b"PAR1"):
        return "parquet"
    if by_suffix is None and head.startswith(b"ARROW1"):
        return "arrow"
    if head.startswith(BINARY) or (by_suffix is None and b"\0" in head):
        raise ValueError("it is no text of a known kind")
    if head.count(0) > len(head) / 5 and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is full of NUL bytes, as UTF-16 and what is no text are")
    if by_suffix is None and RECORDS.match(head):
        raise ValueError("it looks like JSON, and its name doesn't say so")
    return "lines"


def doubt(path: Path) -> str | None:
    """What speaks against a file that is read as lines of text; None where nothing does."""
    with open_bytes(path) as file:
        if RECORDS.match(file.read(HEAD)):
            return "its lines are taken as text, and look like JSON; name it .jsonl to read its records"
    if _suffix(path) not in FORMATS:
        return "its name has no known suffix, and its lines are taken as text"
    return None


def _suffix(path: Path) -> str:
    """In lower case, without that of a compression."""
    compressed = {suffix for _, suffixes in COMPRESSIONS.values() for suffix in suffixes}
    return (path.with_suffix("") if path.suffix.lower() in compressed else path).suffix.lower()
