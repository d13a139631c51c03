"""Where documents begin, against texts that were laid out by hand, and WikiText's own number of articles."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.corpora.python_docs import python_docs_corpus
from lightning_lm.data.corpora.text_files import text_corpus
from lightning_lm.data.documents import read_documents


def files(folder: Path, *names: str, **cuts: float) -> Corpus:
    cuts = {"validation_percent": None, "test_percent": None} | cuts
    return text_corpus({"train": [str(folder / name) for name in names]}, cache_dir=folder / "cache", **cuts)


def test_a_file_of_lines_is_a_document_and_a_record_is_one(tmp_path: Path):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"\nfile {number}\nsecond line\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"record {n}é"}) + "\n" for n in range(5)))
    corpus = files(tmp_path, "[0-5].txt", "a.jsonl")
    found = read_documents(corpus, "train")
    assert found.unit == "document"
    assert found.of_row.tolist() == [n for n in range(6) for _ in range(3)] + [6, 7, 8, 9, 10]
    assert found.beginnings == [f"file {n}" for n in range(6)] + [f"record {n}é" for n in range(5)]
    sizes = [len(f"\nfile {n}\nsecond line\n") for n in range(6)]
    assert found.bytes.tolist() == sizes + [len("record 0é".encode())] * 5


def test_the_rows_that_validation_gets_begin_documents_where_they_did(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a line\n" * 10)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"record {n}"}) + "\n" for n in range(10)))
    found = read_documents(files(tmp_path, "a.txt", "a.jsonl", validation_percent=60), "validation")
    assert (found.of_row.tolist(), found.unit) == ([0, 0, *range(1, 11)], "document")


def test_few_documents_fall_into_blocks_of_rows(tmp_path: Path):
    (tmp_path / "a.txt").write_text("".join(f"line {n:04}\n" for n in range(2000)))
    found = read_documents(files(tmp_path, "a.txt"), "train")
    assert (found.unit, found.bytes.sum(), len(found.bytes)) == ("block", 20_000, 10)
    assert found.of_row[204] == 0 and found.of_row[205] == 1  # the first line that begins behind byte 2048
    assert found.beginnings[1] == "line 0205"


def test_the_text_is_named_by_its_rows_alone(tmp_path: Path):
    (tmp_path / "whole.txt").write_text("one\ntwo\n")
    (tmp_path / "first.txt").write_text("one\n")
    (tmp_path / "second.txt").write_text("two\n")
    (tmp_path / "other.txt").write_text("on\netwo\n")
    names = [("whole.txt",), ("first.txt", "second.txt"), ("other.txt",)]
    whole, parts, other = (read_documents(files(tmp_path, *several), "train").text for several in names)
    assert whole == parts != other


def test_topics_of_python_are_documents():
    from pydoc_data.topics import topics

    found = read_documents(python_docs_corpus(), "train")
    whole = [text.encode() for text in topics.values()]
    assert found.unit == "document" and set(found.bytes) <= {len(text) for text in whole}
    assert found.bytes.sum() == sum(map(len, whole)) - sum(
        read_documents(python_docs_corpus(), split).bytes.sum() for split in ("validation", "test")
    )


@pytest.mark.parametrize(("name", "articles"), [("wiki.valid.tokens", 60), ("wiki.test.tokens", 60)])
def test_articles_of_wikitext(name: str, articles: int, tmp_path: Path):
    folder = ROOT.parent / "shared" / "wikitext-2"
    if not (folder / name).exists():
        pytest.skip(f"no {folder / name}")
    (tmp_path / "a.txt").write_bytes((folder / name).read_bytes())
    found = read_documents(files(tmp_path, "a.txt"), "train")
    assert (found.unit, len(found.bytes)) == ("document", articles)
    assert all(beginning.startswith("= ") and beginning.endswith(" =") for beginning in found.beginnings)
    assert found.bytes.sum() == (folder / name).stat().st_size
