"""Trained tokenizers: the same text gives the same vocabulary, and transformers' own classes load them."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer

from lightning_lm.data import tokenizer_training as tokenizers_module
from lightning_lm.data.corpora.corpus import Corpus
from lightning_lm.data.corpora.python_docs import python_docs_corpus
from lightning_lm.data.token_stream import tokenizer_fingerprint
from lightning_lm.data.tokenizer_training import _alphabet, train_tokenizer
from lightning_lm.errors import Refused

TRAIN = """
import sys
from pathlib import Path
from lightning_lm.data.corpora.python_docs import python_docs_corpus
from lightning_lm.data.token_stream import tokenizer_fingerprint
from lightning_lm.data.tokenizer_training import train_tokenizer
for kind in ("bpe", "wordpiece"):
    print(tokenizer_fingerprint(train_tokenizer(python_docs_corpus(), kind, 1000, Path(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("kind, usual", [("bpe", GPT2Tokenizer), ("wordpiece", BertTokenizer)])
def test_usual_classes_load_it(cache, tmp_path, kind, usual):
    trained = train_tokenizer(python_docs_corpus(), kind, 1000, cache)
    assert isinstance(trained, usual) and len(trained) == 1000
    trained.save_pretrained(tmp_path)
    text = 'The "assert" statement, naïve.\n'
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), usual.from_pretrained(tmp_path)):
        assert loaded(text)["input_ids"] == trained(text)["input_ids"]
    assert str(cache) not in (tmp_path / "tokenizer_config.json").read_text()


def test_bpe_is_like_gpt2s(cache):
    trained = train_tokenizer(python_docs_corpus(), "bpe", 1000, cache)
    assert trained.bos_token == trained.eos_token == trained.unk_token == "<|endoftext|>"
    text = " Any bytes: é 漢 😀\t\x00\n\n  x"
    assert trained.decode(trained(text)["input_ids"]) == text
    assert trained.tokenize("the the") == ["the", "Ġthe"]


def test_wordpiece_is_like_cased_berts(cache):
    trained = train_tokenizer(python_docs_corpus(), "wordpiece", 1000, cache)
    assert trained.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert trained.tokenize("The, the") == ["The", ",", "the"]
    ids = trained("The [MASK] 漢")["input_ids"]
    assert ids == [2, trained.convert_tokens_to_ids("The"), 4, 1, 3]
    added = [token.content for token in trained.added_tokens_decoder.values()]
    assert sorted(added) == sorted(trained.all_special_tokens) and len(added) == 5  # no "##a" found in plain text


def test_same_text_same_vocabulary(tmp_path, cache):
    told = subprocess.check_output([sys.executable, "-c", TRAIN, str(tmp_path)], text=True).split()
    docs = python_docs_corpus()
    assert told == [tokenizer_fingerprint(train_tokenizer(docs, kind, 1000, cache)) for kind in ("bpe", "wordpiece")]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_without_a_terminal_no_bar_is_drawn(kind, tmp_path, capfd):
    train_tokenizer(python_docs_corpus(), kind, 1000, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_trained_once(cache):
    docs = python_docs_corpus()
    train_tokenizer(docs, "bpe", 1000, cache)
    unread = Corpus(docs.keys, lambda split: 1 / 0, docs.source)
    assert len(train_tokenizer(unread, "bpe", 1000, cache)) == 1000
    with pytest.raises(ZeroDivisionError):
        train_tokenizer(unread, "bpe", 1001, cache)


@pytest.mark.parametrize("kind, size, line", [("bpe", 256, "too small; give 257"), ("wordpiece", 5, "too small; give")])
def test_too_small(cache, kind, size, line):
    with pytest.raises(Refused, match=f"model.vocab_size={size}: {line}"):
        train_tokenizer(python_docs_corpus(), kind, size, cache)


def test_too_small_for_the_alphabet(tmp_path):
    corpus = Corpus({"train": "a"}, lambda split: iter([["abc, x.\n"]]), "a test")
    with pytest.raises(Refused, match="model.vocab_size=14: too small for the 6 characters .* give 15 or more"):
        train_tokenizer(corpus, "wordpiece", 14, tmp_path)  # five special ones, a b c x , . and ##a ##b ##c ##x
    assert len(train_tokenizer(corpus, "wordpiece", 15, tmp_path)) == 15


def test_the_alphabet_is_the_most_frequent_characters(monkeypatch):
    text = ["ccc bb\n", "é\u0301 漢b\n", "c a😀😀 \x00a\n"]  # BERT's normaliser drops \x00 and turns "\n" into a space
    corpus = Corpus({"train": "a"}, lambda split: iter([text[:2], text[2:]]), "a test")
    backend = BertTokenizer(do_lower_case=False).backend_tokenizer
    for size, expected in [(1, "c"), (2, "bc"), (3, "abc"), (4, "abc😀"), (5, "abcé😀")]:
        monkeypatch.setattr(tokenizers_module, "ALPHABET", size)
        assert _alphabet(corpus, backend) == sorted(expected)
