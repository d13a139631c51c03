"""Parity with lm-evaluation-harness: its rule as a plain loop in float64, and its own code where it is installed."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.evaluation.lm_eval import denominators, detokenized, figures, page_nll, rolling_windows

PAGES = [
    ' = A river = \n \n The river \'s light , found in 1 @,@ 200 houses ( old and " new " ) . \n \n'
    " = = Stone = = \n the king \n",
    " = House = \n \n" + " a stone and a river ; the garden @-@ road : evening ! \n" * 12,
    "it",
]


def loop(model, tokenizer, text: str, length: int) -> float:
    """The sum of NLL: chunks of ``length`` predictions, each with as long an input as there is."""
    ids, total = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]], 0.0
    for chunk in range(1, len(ids), length):
        scored = range(chunk, min(chunk + length, len(ids)))
        begin = max(0, scored[-1] - length)
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids[begin : scored[-1]]])).logits[0].log_softmax(-1)
        total -= sum(log_probs[i - 1 - begin, ids[i]].item() for i in scored)
    return total


@pytest.mark.parametrize("length", [7, 64])
def test_pages_by_its_rule(tiny_gpt2: Path, length: int):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    texts = [detokenized(page) for page in PAGES]
    nll, tokens = page_nll(model, tokenizer, texts, length)
    assert tokens.tolist() == [len(tokenizer(text)["input_ids"]) for text in texts]
    assert nll.tolist() == pytest.approx([loop(model.double(), tokenizer, text, length) for text in texts], rel=1e-6)
    sizes = denominators(PAGES)
    assert sizes["words"].tolist() == [len(re.split(r"\s+", page)) for page in PAGES]
    found = figures(nll.sum(), sizes["words"].sum(), sizes["bytes"].sum())
    assert found["byte_perplexity"] == pytest.approx(2 ** found["bits_per_byte"])


def test_its_own_code_says_the_same(tiny_gpt2: Path):
    utils = pytest.importorskip("lm_eval.utils")
    folder = Path(utils.__file__).parent / "tasks" / "wikitext"  # its package imports what only other tasks need
    task = runpy.run_path(str(folder / "preprocess_wikitext.py"))
    shared = ROOT.parent / "shared" / "wikitext-2" / "wiki.valid.tokens"
    whole = [shared.read_text(encoding="utf-8")] if shared.exists() else []
    for page in PAGES + whole:
        assert detokenized(page) == task["wikitext_detokenizer"]({"page": page})
    for tokens in (1, 6, 7, 8, 14, 15, 40):
        ids = list(range(100, 100 + tokens))
        theirs = list(utils.get_rolling_token_windows(ids, prefix_token=0, max_seq_len=7, context_len=1))
        ours = [([0, *ids][begin : end - 1], [0, *ids][first:end]) for begin, first, end in rolling_windows(tokens, 7)]
        assert ours == theirs
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_gpt2), AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    nll, _ = page_nll(model, tokenizer, [detokenized(page) for page in PAGES], 64)
    results = [task["process_results"]({"page": page}, (-x,)) for page, x in zip(PAGES, nll, strict=True)]
    expected = {}
    for name, finish in (
        ("word_perplexity", math.exp),
        ("byte_perplexity", math.exp),
        ("bits_per_byte", lambda x: x / math.log(2)),
    ):
        likelihoods, sizes = zip(*(result[name] for result in results), strict=True)
        expected[name] = finish(-sum(likelihoods) / sum(sizes))
    sums = {name: size.sum() for name, size in denominators(PAGES).items()}
    assert figures(nll.sum(), sums["words"], sums["bytes"]) == pytest.approx(expected, rel=1e-9)


def test_the_command(tiny_gpt2: Path, tmp_path: Path, capsys):
    """Articles of a WikiText file are its pages."""
    pages = [f" \n = House {n} = \n \n" + " a stone , and a river ; \n" * (3 + n % 4) for n in range(12)]
    (tmp_path / "wiki.txt").write_text("".join(pages))
    model = ["evaluate", str(tiny_gpt2), "--as", "lm-eval"]
    assert cli.main([*model, "--data", str(tmp_path / "wiki.txt"), "--json", str(tmp_path / "a.json")]) == 0
    found, shown = json.loads((tmp_path / "a.json").read_text()), capsys.readouterr().out
    # the blank row before a heading ends the page before it
    texts = "".join(pages).split(" \n = House")[1:]
    texts = [" = House" + text + " \n" * (n < 11) for n, text in enumerate(texts)]
    texts[0] = " \n" + texts[0]
    nll, tokens = page_nll(
        AutoModelForCausalLM.from_pretrained(tiny_gpt2),
        AutoTokenizer.from_pretrained(tiny_gpt2),
        [detokenized(text) for text in texts],
        64,
    )
    sums = {name: size.sum() for name, size in denominators(texts).items()}
    assert {name: found[name] for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")} == pytest.approx(
        figures(nll.sum(), sums["words"], sums["bytes"]), rel=1e-6
    )
    assert (found["tokens"], found["pages"], found["block_size"]) == (tokens.sum(), 12, 64)
    for name, (low, high) in found["intervals"].items():
        assert low < found[name] < high
    assert f"protocol {found['protocol_hash']}: " in shown and "documents each by itself, a page, detokenised" in shown


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (["GPT2", "--stride", "5"], "--stride=5: --as lm-eval has no use for it"),
        (["GPT2", "--block-size", "65"], "the model has only 64 positions"),
        (["BERT"], "it scores causal models alone"),
    ],
)
def test_refused(tiny_gpt2: Path, tiny_bert: Path, tmp_path: Path, capsys, typed: list[str], problem: str):
    (tmp_path / "a.txt").write_text("the river\n")
    places = {"GPT2": str(tiny_gpt2), "BERT": str(tiny_bert)}
    words = [places.get(word, word) for word in typed]
    assert cli.main(["evaluate", *words, "--as", "lm-eval", "--data", str(tmp_path / "a.txt")]) == 2
    assert problem in capsys.readouterr().err
