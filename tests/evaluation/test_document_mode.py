"""Each document by itself, against loops over documents in float64."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_records
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.data.document_windows import prefix_token
from lightning_lm.errors import Refused
from lightning_lm.evaluation.scoring import evaluate

BLOCK = 16


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents of 1 to 4 lines."""
    return write_records(tmp_path_factory.mktemp("documents"), [1 + n % 4 for n in range(12)])


def texts_of(records: Path) -> list[str]:
    return [json.loads(line)["text"] for line in records.open()]


def loop(model, ids: list[int], stride: int) -> float:
    """The NLL of all but the first of these tokens, each with the window that first holds it before it."""
    total, done = 0.0, 1
    for begin in range(0, len(ids), stride):
        part = torch.tensor(ids[begin : begin + BLOCK])
        with torch.no_grad():
            log_probs = model(input_ids=part[None]).logits[0].log_softmax(-1)
        total -= sum(log_probs[i - 1 - begin, ids[i]].item() for i in range(done, begin + len(part)))
        done = begin + len(part)
        if done == len(ids):
            break
    return total


@pytest.mark.parametrize("separator", ["auto", "eos"])
@pytest.mark.parametrize("stride", [15, 6])
def test_documents_equal_the_loop(tiny_gpt2: Path, records: Path, stride: int, separator: str):
    """End tokens between documents belong to none of them."""
    options = {"block_size": BLOCK, "stride": stride, "separator": separator, "documents": True}
    found = evaluate(tiny_gpt2, str(records), **options)
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).double()
    texts = texts_of(records)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    nll = [loop(model, [tokenizer.bos_token_id, *of], stride) for of in ids]
    assert found.tokens == sum(map(len, ids)) and found.separators == 0
    assert found.loss == pytest.approx(sum(nll) / found.tokens, rel=1e-6)
    size, words = (
        sum(map(count, texts)) for count in (lambda t: len(t.encode()), lambda t: len(t.split()) + t.count("\n"))
    )
    assert found.bits_per_byte == pytest.approx(sum(nll) / size / math.log(2), rel=1e-6)
    assert found.word_perplexity == pytest.approx(math.exp(sum(nll) / words), rel=1e-6)
    assert found.token_losses.by_document()[0].tolist() == pytest.approx(nll, rel=1e-5)
    assert found.protocol["documents"] == "each by itself" and found.protocol["first_token"].startswith("scored, after")
    assert "bits_per_byte" in found.intervals


def test_without_a_prefix_the_first_tokens_are_not_scored(tiny_gpt2: Path, records: Path):
    found = evaluate(tiny_gpt2, str(records), block_size=BLOCK, documents=True, prefix="none")
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).double()
    ids = [tokenizer(text)["input_ids"] for text in texts_of(records)]
    assert found.tokens == sum(map(len, ids)) - 12
    assert found.loss == pytest.approx(sum(loop(model, of, BLOCK - 1) for of in ids) / found.tokens, rel=1e-6)
    assert "bits_per_byte" not in found.figures and "bits_per_byte" not in found.intervals


def test_masks_are_those_of_the_stream(tiny_bert: Path, records: Path):
    """A masked token stays masked; only what stands around it is less."""
    stream, documents = (evaluate(tiny_bert, str(records), documents=mode, block_size=64) for mode in (False, True))
    assert (np.isnan(stream.token_losses.nll) == np.isnan(documents.token_losses.nll)).all()
    assert stream.loss != documents.loss and documents.protocol["first_token"] is None


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (["--prefix", "bos"], "--prefix=bos: nothing stands before a stream; give --documents, too"),
        (["--documents", "--as", "lm-eval"], "--as lm-eval has no use for it"),
    ],
)
def test_refused(tiny_gpt2: Path, records: Path, capsys, typed: list[str], problem: str):
    assert cli.main(["evaluate", str(tiny_gpt2), *typed, "--data", str(records)]) == 2
    assert problem in capsys.readouterr().err


def test_a_token_that_there_is_not(tiny_bert: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    with pytest.raises(Refused, match="data.prefix=bos: the tokenizer has no such token"):
        prefix_token(tokenizer, "bos")
    assert prefix_token(tokenizer, "none") is None
    tokenizer.eos_token = "[SEP]"
    assert prefix_token(tokenizer, "auto") == tokenizer.sep_token_id
