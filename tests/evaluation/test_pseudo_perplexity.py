"""Pseudo-perplexity against a plain loop: one token masked at a time, in float64; its sample and its interval."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_text
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.evaluation.scoring import evaluate

BLOCK = 16


@pytest.fixture(scope="module")
def scored_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents."""
    folder = tmp_path_factory.mktemp("pseudo")
    texts = [write_text(folder / "draft.txt", lines=2, seed=n).read_text() for n in range(12)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / "text.jsonl"


@pytest.mark.parametrize("shift", [0, 1])
def test_all_tokens_are_guessed_from_all_others_of_their_block(shift, scored_text: Path, tiny_bert, shifted_bert):
    place = shifted_bert if shift else tiny_bert
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(place).double(), AutoTokenizer.from_pretrained(place)
    texts = [json.loads(line)["text"] for line in scored_text.read_text().splitlines()]
    rows = [tokenizer(t)["input_ids"] for t in texts]
    ids, document = [i for row in rows for i in row], np.repeat(range(12), [len(row) for row in rows])
    of_document, count = np.zeros(12), 0
    for first in range(0, len(ids), BLOCK - shift):
        block = ids[first : first + BLOCK]
        for at, token in list(enumerate(block))[shift:]:  # shifted, no output comes before the first one
            if token not in tokenizer.all_special_ids:
                masked = [*block[:at], tokenizer.mask_token_id, *block[at + 1 :]]
                with torch.no_grad():
                    log_probabilities = model(input_ids=torch.tensor([masked])).logits[0, at - shift].log_softmax(-1)
                of_document[document[first + at]] -= log_probabilities[token].item()
                count += 1
    found = evaluate(place, str(scored_text), block_size=BLOCK, pseudo=10**6)
    assert found.figures["tokens"] == count
    assert found.pseudo_perplexity == pytest.approx(math.exp(of_document.sum() / count), rel=1e-6)
    sizes = np.array([len(t.encode()) for t in texts]) * math.log(2)
    assert found.pseudo_bits_per_byte == pytest.approx(of_document.sum() / sizes.sum(), rel=1e-6)
    low, high = found.intervals["pseudo_bits_per_byte"]
    again = [of_document[of].sum() / sizes[of].sum() for of in np.random.default_rng(5).integers(12, size=(4000, 12))]
    assert (high - low) / 2 == pytest.approx(2.201 * math.sqrt(12 / 11) * np.std(again), rel=0.05)  # t of 11
    assert low < found.pseudo_bits_per_byte < high


def test_a_sample_is_close_and_always_the_same(scored_text: Path, tiny_bert: Path):
    whole, *samples = (evaluate(tiny_bert, str(scored_text), block_size=BLOCK, pseudo=n) for n in (10**6, 200, 200))
    assert samples[0].figures == samples[1].figures and samples[0].figures["tokens"] == 200
    low, high = samples[0].intervals["pseudo_perplexity"]
    assert low < whole.pseudo_perplexity < high
    low, high = samples[0].intervals["pseudo_bits_per_byte"]
    assert low < whole.pseudo_bits_per_byte < high
    assert samples[0].protocol != whole.protocol


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("tiny_gpt2", ["--pseudo", "5"], "--pseudo=5: causal models have a likelihood; leave it out"),
        ("tiny_bert", ["--pseudo", "0"], "--pseudo=0: out of range; give 1 or more"),
        ("tiny_bert", ["--pseudo", "5", "--stride", "3"], "--stride=3: --pseudo has no use for it; leave it out"),
        ("tiny_bert", ["--pseudo", "5", "--block-size", "65"], "--block-size=65: the model has only 64 positions"),
    ],
)
def test_what_is_refused(model, arguments, told, scored_text: Path, capsys, request):
    code = cli.main(["evaluate", str(request.getfixturevalue(model)), "--data", str(scored_text), *arguments])
    assert code == 2 and told in capsys.readouterr().err


def test_the_command_tells_figures_and_protocol(scored_text: Path, tiny_bert: Path, capsys):
    assert (
        cli.main(["evaluate", str(tiny_bert), "--data", str(scored_text), "--pseudo", "50", "--block-size", "16"]) == 0
    )
    told = capsys.readouterr().out
    assert (
        "pseudo-perplexity" in told
        and "pseudo bits per byte" in told
        and "50 tokens drawn, each masked by itself" in told
    )
    assert np.isfinite(float(told.split("pseudo bits per byte")[1].split()[0]))
