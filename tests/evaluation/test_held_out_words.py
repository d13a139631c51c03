"""Held-out words against plain loops: one word and side at a time, in float64; their sample, ties and intervals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_records
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.evaluation.scoring import evaluate

BLOCK, WIDTH = 16, 7
KINDS = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM, "shifted": AutoModelForMaskedLM}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents."""
    return write_records(tmp_path_factory.mktemp("words"), [1 + n % 2 for n in range(12)])


@pytest.fixture(scope="module")
def places(tiny_gpt2: Path, tiny_bert: Path, shifted_bert: Path) -> dict[str, Path]:
    return {"clm": tiny_gpt2, "mlm": tiny_bert, "shifted": shifted_bert}


def words_of(tokenizer, records: Path) -> tuple[list[int], list[int], list[int]]:
    """All tokens; the places of those that are a word by themselves; and the document of each place."""
    ids, at, document = [], [], []
    for number, line in enumerate(records.open()):
        encoding = tokenizer(json.loads(line)["text"])
        numbers = encoding.word_ids()
        for place, (token, word) in enumerate(zip(encoding["input_ids"], numbers, strict=True)):
            letters = any(sign.isalnum() for sign in tokenizer.decode([token]))
            if word is not None and numbers.count(word) == 1 and letters and len(ids) + place > 0:
                at.append(len(ids) + place)
                document.append(number)
        ids += encoding["input_ids"]
    return ids, at, document


def sides(tokenizer, ids: list[int], at: int, objective: str) -> dict[str, tuple[list[int], int]]:
    """What the model gets, and which of its outputs is for the word."""
    before, after, mask = ids[max(0, at - WIDTH) : at], ids[at + 1 : at + 1 + WIDTH], tokenizer.mask_token_id
    if objective == "clm":
        return {"left": (before, len(before) - 1)}
    return {
        "left": ([*before, mask, tokenizer.sep_token_id], len(before)),
        "right": ([tokenizer.cls_token_id, mask, *after], 1),
        "both": ([*before, mask, *after], len(before)),
    }


@pytest.mark.parametrize("objective", KINDS)
def test_by_a_plain_loop(objective: str, places, records: Path):
    model, tokenizer = (auto.from_pretrained(places[objective]) for auto in (KINDS[objective], AutoTokenizer))
    ids, at, document = words_of(tokenizer, records)
    assert 50 < len(at) < len(ids)
    ranks: dict[str, list[int]] = {}
    for place in at:
        for side, (inputs, output) in sides(tokenizer, ids, place, objective).items():
            with torch.no_grad():
                output -= objective == "shifted"
                logits = model.double()(input_ids=torch.tensor([inputs])).logits[0, output]
            ranks.setdefault(side, []).append(1 + int((logits > logits[ids[place]]).sum()))
    found = evaluate(places[objective], str(records), block_size=BLOCK, words=10**6)
    assert found.words == len(at)
    assert set(found.figures) == {"words"} | {f"{s}_{n}" for s in ranks for n in ("accuracy", "reciprocal_rank")}
    for side, of_side in ranks.items():
        right, inverse = np.equal(of_side, 1).astype(float), 1 / np.array(of_side)
        assert found.figures[f"{side}_accuracy"] == pytest.approx(right.mean())
        assert found.figures[f"{side}_reciprocal_rank"] == pytest.approx(inverse.mean(), rel=1e-4)
        sums, sizes = np.bincount(document, inverse), np.bincount(document)
        draws = np.random.default_rng(5).integers(12, size=(4000, 12))  # another bootstrap over documents
        error = np.std([sums[of].sum() / sizes[of].sum() for of in draws]) * math.sqrt(12 / 11)
        low, high = found.intervals[f"{side}_reciprocal_rank"]
        assert (high - low) / 2 == pytest.approx(2.201 * error, rel=0.1)  # t of 11 degrees of freedom


def test_the_sample_is_the_same_for_both_kinds(places, records: Path, tiny_bert: Path, tmp_path: Path):
    """So that their difference can be paired: here the causal model is BERT with another attention mask."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = AutoModelForCausalLM.from_pretrained(tiny_bert, is_decoder=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    one, other = (evaluate(place, str(records), block_size=BLOCK, words=40) for place in (tmp_path, tiny_bert))
    differing = {name for name in one.protocol if one.protocol[name] != other.protocol[name]}
    assert (one.words, other.words, differing) == (40, 40, {"objective"})
    ids, at, _ = words_of(tokenizer, records)
    drawn = np.sort(np.random.default_rng(0).choice(at, 40, replace=False))
    right = []
    for place in drawn:
        with torch.no_grad():
            logits = model.double()(input_ids=torch.tensor([ids[max(0, place - WIDTH) : place]])).logits[0, -1]
        right.append(float(logits.argmax() == ids[place]))
    assert one.items["left_accuracy"].values.tolist() == right


def test_a_constant_model_guesses_by_chance(records: Path, tiny_bert: Path, tmp_path: Path):
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(tiny_bert), AutoTokenizer.from_pretrained(tiny_bert)
    for weight in model.parameters():
        weight.data.zero_()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = evaluate(tmp_path, str(records), block_size=BLOCK, words=20)
    size = model.config.vocab_size
    for side in ("left", "right", "both"):
        assert found.figures[f"{side}_accuracy"] == pytest.approx(1 / size)
        assert found.figures[f"{side}_reciprocal_rank"] == pytest.approx(2 / (size + 1))


def test_what_people_are_told(places, records: Path, capsys):
    typed = ["--data", str(records), "--words", "60", "--block-size", "16"]
    assert cli.main(["evaluate", str(places["clm"]), *typed]) == 0
    told = capsys.readouterr().out
    assert "words, each guessed from the 7 tokens before it, all that a causal model can use" in told
    assert "left side, accuracy" in told and "right side" not in told
    assert "60 words of one token drawn, with 7 tokens on a side" in told
    assert cli.main(["evaluate", str(places["mlm"]), *typed]) == 0
    told = capsys.readouterr().out
    assert all(f"{side}, mean of 1/rank" in told for side in ("left side", "right side", "both sides"))
    assert "95 % intervals over documents of this text" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--words", "0"], "--words=0: out of range; give 1 or more"),
        (["--words", "5", "--stride", "3"], "--stride=3: --words has no use for it; leave it out"),
        (["--words", "5", "--block-size", "3"], "--block-size=3: it leaves a word no text on both sides"),
        (["--words", "5", "--block-size", "65"], "--block-size=65: the model has only 64 positions"),
    ],
)
def test_what_is_refused(arguments: list[str], told: str, places, records: Path, capsys):
    assert cli.main(["evaluate", str(places["mlm"]), "--data", str(records), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_text_without_words(places, tmp_path: Path, capsys):
    (tmp_path / "signs.txt").write_text(". , ; .\n" * 20)
    assert cli.main(["evaluate", str(places["mlm"]), "--data", str(tmp_path / "signs.txt"), "--words", "5"]) == 2
    assert "none of its words is a token by itself; give a longer text" in capsys.readouterr().err
