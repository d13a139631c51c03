"""Text that changes between its first reading and the last is noticed; no cache holds another text than it names."""

import os

import pytest

from lightning_lm.data.corpora.text_files import text_corpus
from lightning_lm.data.tokenizer_training import train_tokenizer
from lightning_lm.errors import Refused

LINES = "the house by the river was old\n" * 500


def grown(path):
    with path.open("a") as file:
        file.write("one line more\n")


def other_bytes(path):
    """The same size at the same time."""
    before = path.stat()
    path.write_text(LINES.replace("old", "new"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "verify", "noticed"),
    [
        (grown, False, True),
        (os.remove, False, True),
        (other_bytes, True, True),
        (other_bytes, False, False),
        (lambda path: None, True, False),
    ],
    ids=["grown", "gone", "other bytes, verified", "other bytes", "none"],
)
def test_a_file_that_changes_while_it_is_read(change, verify, noticed, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(LINES)
    corpus = text_corpus({"train": [str(path)]}, cache_dir=tmp_path / "cache", verify=verify)
    change(path)
    if noticed:
        with pytest.raises(Refused, match=f"data.train={path}: it has changed since it was first read; start again"):
            corpus.check_unchanged("train")
    else:
        corpus.check_unchanged("train")


def test_nothing_of_it_stays_in_the_cache(tmp_path):
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text(LINES)
    corpus = text_corpus({"train": [str(path)]}, cache_dir=cache)
    grown(path)
    with pytest.raises(Refused, match="has changed"):
        train_tokenizer(corpus, "bpe", 300, cache)
    assert [entry.name for entry in cache.rglob("*") if entry.is_dir()] == ["tokenizers"]


def test_verifying_finds_what_size_and_time_hide(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(LINES)
    os.utime(path, (1e9, 1e9))
    first, hidden = (text_corpus({"train": [str(path)]}, cache_dir=tmp_path).keys for _ in range(2))
    other_bytes(path)
    assert first == hidden == text_corpus({"train": [str(path)]}, cache_dir=tmp_path).keys
    assert text_corpus({"train": [str(path)]}, cache_dir=tmp_path, verify=True).keys != first
