"""Rows are what ``datasets`` yields; what can't be read is refused, with the setting and the place."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_lm.data import readers as files_module
from lightning_lm.data.corpora.corpus import Corpus, TextHash, content_hash
from lightning_lm.data.corpora.python_docs import python_docs_corpus
from lightning_lm.data.corpora.text_files import text_corpus
from lightning_lm.errors import Refused

WIKITEXT = Path(__file__).parents[3] / "shared" / "wikitext-2"


def corpus(folder: Path, files: dict | None = None, column="text", validation=None, test=None) -> Corpus:
    return text_corpus(
        files or {"train": [str(folder / "a.txt")]},
        text_column=column,
        validation_percent=validation,
        test_percent=test,
        cache_dir=folder / "cache",
    )


def rows(corpus: Corpus, split: str = "train") -> list[str]:
    return [row for batch in corpus.rows(split) for row in batch]


def refusal(call, *args, **kwargs) -> list[str]:
    with pytest.raises(Refused) as caught:
        call(*args, **kwargs)
    return str(caught.value).splitlines()


def datasets_rows(folder: Path, file: Path) -> list[str]:
    cache = str(folder / "datasets")
    return load_dataset("text", data_files=str(file), keep_linebreaks=True, split="train", cache_dir=cache)["text"][:]


def settle(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (1e9, 1e9))


# ------------------------------------------------------------------------------------------------------- what is read

BREAKS = "a\nb\r\nc\rd\x0be\x0cf\x85g\u2028h\x1ci\n\n \n\tj\r\n\r\nk\ufeff\x00l"


def test_lines_are_those_of_datasets(tmp_path):
    (tmp_path / "a.txt").write_bytes(BREAKS.encode())
    assert rows(corpus(tmp_path)) == datasets_rows(tmp_path, tmp_path / "a.txt")
    assert rows(corpus(tmp_path))[:5] == ["a\n", "b\n", "c\n", "d\x0be\x0cf\x85g\u2028h\x1ci\n", "\n"]


@pytest.mark.skipif(not WIKITEXT.exists(), reason="no WikiText-2 here")
@pytest.mark.parametrize("name, words", [("wiki.valid.tokens", 217_646), ("wiki.test.tokens", 245_569)])
def test_wikitext_lines_and_words(tmp_path, name, words):
    file = WIKITEXT / name
    found = rows(corpus(tmp_path, {"train": [str(file)]}))
    assert found == datasets_rows(tmp_path, file)
    assert sum(len(row.split()) + row.count("\n") for row in found) == words


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("ab é\n\r\u2028\x1c漢😀"), min_size=1).filter(str.strip))
def test_rows_put_together_are_the_text(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = rows(corpus(tmp_path))
    assert "".join(found) == text.replace("\r\n", "\n").replace("\r", "\n")
    assert all("\n" not in row[:-1] and row for row in found)
    assert all(row.endswith("\n") for row in found[:-1])


@given(st.lists(st.text(max_size=9)), st.integers(1, 5), st.integers(1, 20))
def test_batches_lose_nothing(texts, most, characters):
    batches = list(files_module.batched(texts, most, characters))
    assert [row for batch in batches for row in batch] == texts
    assert all(0 < len(batch) <= most and sum(map(len, batch[:-1])) < characters for batch in batches)


RECORDS = ["first\nline", "", 'é, "quoted"', "123"]


def write_records(path: Path, texts=RECORDS, column="text"):
    records = [{"id": i, column: text} for i, text in enumerate(texts)]
    if "csv" in path.name:
        quoted = ('"' + t.replace('"', '""') + '"' for t in texts)
        data = f"id,{column}\r\n" + "".join(f"{i},{t}\r\n" for i, t in enumerate(quoted))
    elif path.name.endswith(".json"):
        data = json.dumps(records, indent=1)
    else:
        data = "\n".join(map(json.dumps, records))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(data.encode()))
    else:
        path.write_text(data, newline="")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_records(tmp_path, name):
    write_records(tmp_path / name)
    assert rows(corpus(tmp_path, {"train": [str(tmp_path / name)]})) == RECORDS


def test_globs_are_sorted_and_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(name + "\n")
    (tmp_path / "z[1].md").write_text("z\n")
    files = {"train": ["~/*.txt", "~/z[1].md"]}
    assert rows(corpus(tmp_path, files)) == ["a\n", "b\n", "c\n", "z\n"]


@given(st.integers(3, 60), st.floats(0.5, 60), st.floats(0.5, 39))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut_splits_are_the_file_in_order(tmp_path, count, validation, test):
    lines = [f"{i}\n" for i in range(count)]
    (tmp_path / "a.txt").write_text("".join(lines))
    cut = corpus(tmp_path, validation=validation, test=test)
    assert rows(cut, "train") + rows(cut, "validation") + rows(cut, "test") == lines
    assert len(rows(cut, "test")) == max(1, round(count * test / 100))
    assert len(set(cut.keys.values())) == 3


def test_python_docs():
    from pydoc_data.topics import topics

    docs = python_docs_corpus()
    texts = {split: "".join(rows(docs, split)) for split in ("train", "validation", "test")}
    total = sum(map(len, topics.values()))
    assert sum(map(len, texts.values())) == total
    assert len(texts["train"]) > 0.8 * total and min(map(len, texts.values())) > 0.02 * total
    for topic in topics.values():
        assert sum(topic in text for text in texts.values()) == 1
    assert docs.keys == python_docs_corpus().keys and len(set(docs.keys.values())) == 3
    assert all(row.endswith("\n") and row.count("\n") == 1 for row in rows(docs))


# --------------------------------------------------------------------------------------------------------------- keys


def test_keys_follow_content_and_cut(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n")
    first = corpus(tmp_path).keys["train"]
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    assert corpus(tmp_path, {"train": [str(tmp_path / "b.txt")]}).keys["train"] == first
    (tmp_path / "b.txt").rename(tmp_path / "b.csv")  # the same bytes, read otherwise
    assert corpus(tmp_path, {"train": [str(tmp_path / "b.csv")]}, column="one").keys["train"] != first
    assert corpus(tmp_path, validation=50).keys["train"] != first
    assert corpus(tmp_path, validation=40).keys != corpus(tmp_path, validation=50).keys
    file.write_text("one\ntoo\n")
    assert corpus(tmp_path).keys["train"] != first


def test_warm_start_reads_no_text(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    settle(tmp_path / "a.txt")
    first = corpus(tmp_path).keys
    opened = []
    for name in ("open_bytes", "open_text"):
        original = getattr(files_module, name)
        monkeypatch.setattr(files_module, name, lambda path, f=original, **kw: opened.append(path) or f(path, **kw))
    assert corpus(tmp_path).keys == first and not opened
    (tmp_path / "a.txt").write_text("one\ntoo\n")  # as long as before, and too fresh to be remembered
    assert corpus(tmp_path).keys != first and opened
    before = len(opened)
    corpus(tmp_path)
    assert len(opened) > before


# ----------------------------------------------------------------------------------------------------------- refusals

CONTENT = {
    "empty.txt": (b"", "data.train={}: an empty file"),
    "blank.txt": (b" \n\t\n", "data.train={}: an empty file"),
    "latin.txt": (("x" * 2**20 + "Köln").encode("latin-1"), f"data.train={{}}: not UTF-8 at byte {2**20 + 1}"),
    "cut.txt": ("naïve é".encode()[:-1], "data.train={}: not UTF-8 at byte 7"),
    "column.jsonl": (b'{"id": 1, "txt": "a"}', "data.text_column=text: {} has the columns id, txt; did you mean txt?"),
    "column.csv": (b"id,body\n1,a\n", "data.text_column=text: {} has the columns id, body"),
    "header.csv": (b"id,text\n", "data.train={}: an empty file"),
    "number.jsonl": (b'{"text": 3}', "data.text_column=text: row 1 of {} is no text but of type int"),
    "null.jsonl": (b'{"text": null}', "data.train={}: an empty file"),
    "lines.ndj": (
        b'{"text": "a"}\n',
        "data.train={}: it looks like JSON, and its name doesn't say so",
    ),
    "paper.pdf": (b"%PDF-1.7 ...", "data.train={}: it is no text of a known kind; give txt, md, csv"),
    "broken.jsonl.zst": (b"\x28\xb5\x2f\xfdxx", "data.train={}: can't be read: "),
    "broken.tokens.xz": (b"plain", "data.train={}: can't be read: "),
    "broken.tokens.gz": (b"plain", "data.train={}: can't be read: "),
    "broken.txt.xz": (b"plain", "data.train={}: can't be read: "),
    "broken.jsonl": (b'{"text": "a', "data.train={}: can't be read: line 1 is not JSON"),
    "list.jsonl": (b'["a"]', "data.train={}: can't be read: record 1 is no object"),
    "broken.json": (b'[{"text": "a"},', "data.train={}: can't be read: Expecting value"),
    "half.jsonl": (b'{"text": "\\ud800"}', "data.train={}: can't be read: 'utf-8' codec can't encode"),
    "broken.csv": (b'id,text\n1,"a\n', "data.train={}: can't be read: unexpected end of data"),
    "fields.csv": (b"id,text\n1,a,b\n", "data.train={}: can't be read: line 2 has 3 fields, the header 2"),
    "broken.parquet": (b"PAR1 not really", "data.train={}: can't be read: "),
    "broken.txt.gz": (b"plain", "data.train={}: can't be read: Not a gzipped file"),
}


@pytest.mark.parametrize("name", CONTENT)
def test_content_that_is_refused(tmp_path, name):
    data, line = CONTENT[name]
    (tmp_path / name).write_bytes(data)
    told = refusal(corpus, tmp_path, {"train": [str(tmp_path / name)]})
    assert len(told) == 1 and told[0].startswith(line.format(tmp_path / name))


@pytest.mark.parametrize("values, line", [([b"a"], "row 1 of {} is no text"), ([1], "row 1 of {} is no text")])
def test_parquet_values_that_are_refused(tmp_path, values, line):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": values}), file)
    told = refusal(lambda: rows(corpus(tmp_path, {"train": [str(file)]})))
    assert told[0].startswith("data.text_column=text: " + line.format(file))


def test_rows_without_text_are_left_out_and_counted(tmp_path, caplog):
    write_records(tmp_path / "a.jsonl", ["fine", None, "too", None])
    assert rows(corpus(tmp_path, {"train": [str(tmp_path / "a.jsonl")]})) == ["fine", "too"]
    assert f"{tmp_path}/a.jsonl: 2 rows without text (null) are left out" in caplog.text


def test_everything_wrong_with_the_files_at_once(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    os.mkfifo(pipe := tmp_path / "pipe")
    files = {
        "train": [str(tmp_path / "nope.txt"), str(tmp_path)],
        "validation": ["*.nothing"],
        "test": ["x", str(pipe)],
    }
    told = refusal(corpus, tmp_path, files)
    assert [line.partition(";")[0] for line in told] == [
        f"data.train={tmp_path}/nope.txt: no such file",
        f"data.train={tmp_path}: a folder",
        "data.validation=*.nothing: no file matches",
        "data.test=x: no such file",
        f"data.test={pipe}: a pipe or a device, which can't be read twice",
    ]
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.txt").write_bytes(b"")
    assert len(refusal(corpus, tmp_path, {"train": [str(tmp_path / "*.txt")]})) == 2


def test_keys_stay_as_they_are():
    """Another key would tokenise each cached text again, and no run could be gone on with."""
    assert content_hash("files", "text", ["ab", 1]) == "00d6309333a5469e6c29f9aef8dd5b4b"
    text = TextHash()
    assert text.add("a b\n") + text.add("é") == 6
    assert str(text) == "0a0114fd4bb45424c8db3d8943f59e20"
