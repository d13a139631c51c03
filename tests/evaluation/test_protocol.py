"""What stands beside a figure: its interval, and how it was measured."""

import importlib.metadata
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import write_gpt2, write_records
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from lightning_lm import cli
from lightning_lm.evaluation.scoring import evaluate
from lightning_lm.runs.protocol import short_hash


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty documents."""
    return write_records(tmp_path_factory.mktemp("protocol"), [3 + n % 5 for n in range(30)])


def test_intervals_are_over_documents(records: Path, tiny_gpt2: Path):
    found = evaluate(tiny_gpt2, str(records), block_size=32)
    sums, tokens = found.token_losses.by_document()
    rows = [json.loads(line)["text"] for line in records.open()]
    words, size = (
        [count(row) for row in rows] for count in (lambda r: len(r.split()) + r.count("\n"), lambda r: len(r.encode()))
    )
    draw = np.random.default_rng(5)  # another bootstrap, as a plain loop
    again = [draw.integers(30, size=30) for _ in range(4000)]
    for name, sizes, figure in (
        ("loss", tokens, lambda x: x),
        ("bits_per_byte", np.array(size), lambda x: x / math.log(2)),
        ("word_perplexity", np.array(words), math.exp),
    ):
        error = np.std([sums[numbers].sum() / sizes[numbers].sum() for numbers in again]) * math.sqrt(30 / 29)
        value, (low, high) = sums.sum() / sizes.sum(), found.intervals[name]
        assert low == pytest.approx(figure(value - 2.045 * error), rel=0.005)  # t of 29 degrees of freedom
        assert high == pytest.approx(figure(value + 2.045 * error), rel=0.005)
        assert low < getattr(found, name) < high
    assert found.intervals["perplexity"] == pytest.approx(tuple(map(math.exp, found.intervals["loss"])))


def test_the_protocol_names_what_was_done_and_nothing_else(
    records: Path, tiny_gpt2: Path, tiny_bert: Path, tmp_path: Path
):
    found = evaluate(tiny_gpt2, str(records), block_size=32)
    same = evaluate(tiny_gpt2, str(records), split="validation", block_size=32, batch_size=3)
    assert short_hash(found.protocol) == short_hash(same.protocol)
    others = [
        evaluate(tiny_gpt2, str(records), block_size=16),
        evaluate(tiny_gpt2, str(records), block_size=32, stride=5),
        evaluate(tiny_gpt2, str(records), block_size=32, separator="eos"),
        evaluate(write_gpt2(tmp_path / "other", records), str(records), block_size=32),
        evaluate(tiny_bert, str(records), block_size=32),
    ]
    assert len({short_hash(of.protocol) for of in [found, *others]}) == 6
    eos = others[2]
    assert eos.separators == 29 and "of the tokens scored, 29 are separators" in str(eos)
    assert found.separators == 0 and "separators" not in str(found)
    assert "95 % intervals over documents of this text" in str(found)
    assert "15% of the tokens masked" in str(others[4]) and others[4].intervals.keys() == {
        "loss",
        "perplexity",
        "accuracy",
    }


def test_tokens_for_unknown_words_are_no_separators(tiny_gpt2: Path, tmp_path: Path):
    """By hand: four rows of two words, one of them unknown, with what ends a text between them."""
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "known": 2}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    model = shutil.copytree(tiny_gpt2, tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(model)
    (tmp_path / "text.txt").write_text("known other\n" * 4)
    found = {s: evaluate(model, str(tmp_path / "text.txt"), separator=s, block_size=8) for s in ("eos", "none")}
    assert found["eos"].tokens == 10 and found["eos"].separators == 3
    assert found["none"].tokens == 7 and found["none"].separators == 0


def test_the_interval_of_accuracy(records: Path, tiny_gpt2: Path):
    """From the documents' own figures, each of which is scored by itself."""
    found = evaluate(tiny_gpt2, str(records), block_size=32, documents=True)
    low, high = found.intervals["accuracy"]
    assert 0 <= low < found.accuracy < high <= 1
    alone = []
    for line in records.open():
        (records.parent / "one.jsonl").write_text(line)
        one = evaluate(tiny_gpt2, str(records.parent / "one.jsonl"), block_size=32, documents=True)
        alone.append((one.accuracy * one.tokens, one.tokens))
    hits, tokens = np.array(alone).T
    assert hits.sum() / tokens.sum() == pytest.approx(found.accuracy)
    draw = np.random.default_rng(5)
    ratios = [hits[of].sum() / tokens[of].sum() for of in (draw.integers(30, size=30) for _ in range(4000))]
    assert high - low == pytest.approx(2 * 2.045 * np.std(ratios) * math.sqrt(30 / 29), rel=0.05)


def test_masks_are_drawn_again(records: Path, tiny_bert: Path, capsys):
    one = evaluate(tiny_bert, str(records), block_size=32)
    many = evaluate(tiny_bert, str(records), block_size=32, mask_draws=5)
    assert many.draws[0] == pytest.approx(one.loss) and len(set(many.draws)) == 5
    assert min(many.draws) < many.loss < max(many.draws) and many.tokens > 4 * one.tokens
    assert json.loads(many.as_json())["mask_draws"] == many.draws
    assert "standard deviation of the loss" in str(many) and "15% of the tokens masked in 5 draws" in str(many)
    half = evaluate(tiny_bert, str(records), block_size=32, masking={"mlm_probability": 0.5, "whole_word": True})
    assert half.tokens > 2.5 * one.tokens and "50% of the words masked" in str(half)


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (["--mask-draws", "5"], "--mask-draws=5: a causal model has no masks"),
        (["--mlm-probability", "0.3"], "--mlm-probability=0.3: a causal model has no masks"),
        (["--no-whole-word"], "--whole-word=False: a causal model has no masks"),
        (["--mlm-probability", "15"], "--mlm-probability=15.0: out of range"),
        (["--mask-draws", "5", "--nll", "x.parquet"], "--nll=x.parquet: it holds one draw of the masks"),
    ],
)
def test_refused_masks(records: Path, tiny_gpt2: Path, capsys, typed: list[str], problem: str):
    assert cli.main(["evaluate", str(tiny_gpt2), "--data", str(records), *typed]) == 2
    assert problem in capsys.readouterr().err


def test_a_short_text_has_no_intervals(tiny_gpt2: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("the river\nthe stone\n")
    found = evaluate(tiny_gpt2, str(tmp_path / "a.txt"))
    assert found.intervals == {} and "interval" not in str(found)


def test_what_was_used_is_named(records: Path, tiny_gpt2: Path, tiny_bert: Path, tmp_path: Path):
    shutil.copytree(tiny_gpt2, tmp_path / "copy")
    places = (tiny_gpt2, tmp_path / "copy", tiny_bert)
    one, copy, other = (evaluate(place, str(records), block_size=32) for place in places)
    assert one.made_with == copy.made_with and one.made_with["model"] != other.made_with["model"]
    assert one.made_with["versions"]["torch"] == importlib.metadata.version("torch")
    assert json.loads(one.as_json())["made_with"] == one.made_with
