"""A file is known by its name and its first bytes, whatever compresses it; the oracle is what was written."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from lightning_lm.data.corpora.text_files import text_corpus
from lightning_lm.data.formats import FORMATS
from lightning_lm.errors import Refused

TEXTS = ["first", "", 'é, "quoted"', "tab\there"]
RECORDS = [{"id": number, "text": text, "a": {"b": text}} for number, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def quoted(delimiter: str) -> bytes:
    fields = [f"{n}{delimiter}" + '"' + text.replace('"', '""') + '"' for n, text in enumerate(TEXTS)]
    return "\n".join([f"id{delimiter}text", *fields, ""]).encode()


CONTENTS = {
    "jsonl": LINES,
    "ndjson": LINES,
    "json": json.dumps(RECORDS).encode(),
    "csv": quoted(","),
    "tsv": quoted("\t"),
}
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def rows(path, cache, column="text"):
    corpus = text_corpus({"train": [str(path)]}, text_column=column, cache_dir=cache)
    return [row for batch in corpus.rows("train") for row in batch]


@pytest.mark.parametrize("compressed", COMPRESS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_records(kind, compressed, tmp_path):
    path = tmp_path / f"a.{kind}{compressed}"
    path.write_bytes(COMPRESS[compressed](CONTENTS[kind]))
    assert rows(path, tmp_path) == TEXTS


@pytest.mark.parametrize("compressed", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.tokens", "a"])
def test_lines(name, compressed, tmp_path):
    (tmp_path / f"{name}{compressed}").write_bytes(COMPRESS[compressed](b"one\ntwo\n"))
    assert rows(tmp_path / f"{name}{compressed}", tmp_path) == ["one\n", "two\n"]


def test_compression_is_known_without_a_suffix(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(LINES))
    assert rows(tmp_path / "a.jsonl", tmp_path) == TEXTS


def table():
    return pa.Table.from_pylist(RECORDS)


def write_stream(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table().schema) as writer:
        writer.write_table(table())


WRITERS = {
    "a.parquet": lambda path: pq.write_table(table(), path),
    "a.bin": lambda path: pq.write_table(table(), path),
    "a.arrow": write_stream,
    "a.feather": lambda path: pa.feather.write_feather(table(), str(path)),
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.json": lambda path: path.write_bytes(json.dumps(RECORDS).encode()),
}


@pytest.mark.parametrize("column", ["text", "a.b"])
@pytest.mark.parametrize("name", WRITERS)
def test_columns_within_columns(name, column, tmp_path):
    WRITERS[name](tmp_path / name)
    assert rows(tmp_path / name, tmp_path, column) == TEXTS


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, mark in (("with.txt", b"\xef\xbb\xbf"), ("without.txt", b"")):
        (tmp_path / name).write_bytes(mark + b"one\r\ntwo\n")
    assert rows(tmp_path / "with.txt", tmp_path) == rows(tmp_path / "without.txt", tmp_path) == ["one\n", "two\n"]


def test_a_column_of_lines_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(Refused, match="data.text_column=body: the files have lines, and no columns; leave it out"):
        rows(tmp_path / "a.txt", tmp_path, "body")


LONG = json.dumps({"text": "a word " * 2000}).encode()  # longer than what is looked at


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a", LONG, "it looks like JSON"),
        ("a.data", json.dumps(RECORDS, indent=1).encode(), "it looks like JSON"),
        ("a.txt", "words".encode("utf-16-le"), "it is full of NUL bytes, as UTF-16 and what is no text are"),
        ("a.txt", "words".encode("utf-16"), "not UTF-8 at byte 0; convert it, as with iconv"),
        ("a.rtf", b"{\\rtf1 words}", "it is no text of a known kind"),
        ("a.txt", b"%PDF-1.7 words", "it is no text of a known kind"),
        ("a.csv", b"id;text\n1;a\n", "can't be read: its header has ';' where ',' separates columns"),
        ("a.tsv", b"id,text\n1,a\n", r"can't be read: its header has ',' where '\\t' separates columns"),
        ("a.csv", b"text,text\n1,a\n", "{path} has several columns of this name; rename them"),
    ],
)
def test_what_is_not_guessed(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=f": {reason}".format(path=tmp_path / name)):
        rows(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    ("names", "content", "doubt"),
    [
        (["a.txt", "b.txt"], LINES, "{}: its lines are taken as text, and look like JSON; name it .jsonl to read"),
        (["a.md"], LONG, "{}: its lines are taken as text, and look like JSON; name it .jsonl to read"),
        (["a.html", "b.htm"], b"<p>one\n", "{}: its name has no known suffix, and its lines are taken as text"),
        (["a.txt", "b.tokens"], b"one {x}\n", None),
    ],
)
def test_what_is_guessed_is_said_once(names, content, doubt, tmp_path, caplog):
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(content)
    text_corpus({"train": [str(path) for path in paths]}, cache_dir=tmp_path)
    (said,) = caplog.messages if doubt else [""]
    assert said.startswith(doubt.format(paths[0]) if doubt else "") and not (caplog.messages and not doubt)


def test_every_format_is_tried():
    tried = {f".{kind}" for kind in CONTENTS} | {".parquet", ".arrow", ".feather", ".txt"}
    assert {FORMATS[suffix] for suffix in tried} == set(FORMATS.values())
