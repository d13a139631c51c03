"""A causal and a masked model, or recipe, side by side: paired by item, over seeds, and never by their losses."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import write_exported_run
from scipy import stats
from test_minimal_pairs import pairs  # noqa: F401 (a fixture)
from tiny import WORDS, write_records
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from lightning_lm import cli
from lightning_lm.certainty.pairs import Estimate
from lightning_lm.evaluation.findings import Finding, finding
from lightning_lm.evaluation.items import Items, mean_over
from lightning_lm.evaluation.minimal_pairs import score_pairs
from lightning_lm.evaluation.pair import Benchmarks, PairComparison, compare_pair, spent_before
from lightning_lm.evaluation.scoring import evaluate

KINDS = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM}
BY_FORM = "minimal pairs, percent right by log-likelihood | "
FORMS = ("pseudo-log-likelihood", "pseudo-log-likelihood within words")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_bert: Path) -> Path:
    """Three seeds of BERT as a causal and as a masked model, and their text of thirty documents."""
    folder = tmp_path_factory.mktemp("pair")
    text = write_records(folder, [1] * 30)
    for objective, kind in KINDS.items():
        for seed in range(3):
            run = write_exported_run(folder / f"{objective}-{seed}", tiny_bert, objective, text, f"seed={seed}")
            model = kind.from_pretrained(tiny_bert, is_decoder=objective == "clm")
            torch.manual_seed(seed)
            for weight in model.parameters():
                weight.data += 0.1 * torch.randn_like(weight)
            model.save_pretrained(run / "export")
            figures = {"status": "finished", "parameters": 100, "labels_seen": 50 + seed}
            (run / "summary.json").write_text(json.dumps(figures))
    return folder


@pytest.fixture(scope="module")
def passages(runs: Path) -> Path:
    texts = [f"{WORDS[n]} {WORDS[n + 1]} {WORDS[2 * n]}" for n in range(12)]
    (runs / "passages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return runs / "passages.jsonl"


def found_by(comparison, test: str, part: str) -> Finding:
    (of,) = [of for of in comparison.findings if (of.test, of.part) == (test, part)]
    return of


def test_two_models_are_paired_by_item(runs: Path, pairs: Path, passages: Path):  # noqa: F811
    places = [str(runs / f"{objective}-0") for objective in KINDS]
    found = compare_pair(*places, Benchmarks(blimp=str(pairs), words=200, lambada=str(passages)))
    a, b = (score_pairs(place, str(pairs)) for place in places)
    draw = np.random.default_rng(1)  # a plain bootstrap within paradigms, both models on the same pairs
    for form in FORMS:
        of = found_by(found, BY_FORM + form, "mean over paradigms")
        gain = 100 * (b.right[form] - a.right["log-likelihood"])
        parts = [gain[a.paradigms == name] for name in ("one", "two", "three")]
        assert of.difference.value == pytest.approx(np.mean([part.mean() for part in parts]))
        again = [np.mean([draw.choice(part, len(part)).mean() for part in parts]) for _ in range(3000)]
        assert of.difference.high - of.difference.low == pytest.approx(2 * 2.09 * np.std(again), rel=0.15)
        assert of.values == ([a.accuracy("log-likelihood").value], [b.accuracy(form).value])
    words = [evaluate(place, words=200) for place in places]
    of = found_by(found, "held-out words", "left side, mean of 1/rank")
    assert [value for (value,) in of.values] == pytest.approx([one.left_reciprocal_rank for one in words])
    assert of.difference.value == pytest.approx(words[1].left_reciprocal_rank - words[0].left_reciprocal_rank)
    alone = found_by(found, "held-out words", "both sides, accuracy")
    assert alone.values == ([], [words[1].both_accuracy]) and alone.difference is None and alone.better is None
    assert found_by(found, "last words", "accuracy").difference is not None
    bits = found_by(found, "the text", "bits per byte")
    assert bits.values == ([evaluate(places[0]).bits_per_byte], []) and bits.difference is None
    told = str(found)
    assert "pseudo bits per byte" in told and "nats per token" not in told and "val/loss" not in told
    assert "parameters                 100           100  equal" in told and "seeds would give other models" in told


@pytest.fixture(scope="module")
def scored(runs: Path, pairs: Path):  # noqa: F811
    """Of each side's seeds the minimal pairs."""
    return [[score_pairs(str(runs / f"{name}-{seed}"), str(pairs)) for seed in range(3)] for name in KINDS]


@pytest.fixture(scope="module")
def recipes(runs: Path, pairs: Path) -> PairComparison:  # noqa: F811
    groups = [str(runs / f"{name}-?") for name in KINDS]
    return compare_pair(*groups, Benchmarks(blimp=str(pairs), split="validation"), recipes=True)


@pytest.mark.parametrize("paired", [False, True])
def test_two_recipes_are_compared_over_their_seeds(recipes: PairComparison, scored, paired: bool):
    rights = [[of.right[form] for of in side] for form, side in zip(("log-likelihood", FORMS[0]), scored, strict=True)]
    parts = [scored[0][0].paradigms == name for name in ("one", "two", "three")]
    a, b = ([100 * np.mean([right[part].mean() for part in parts]) for right in side] for side in rights)
    of = found_by(recipes, BY_FORM + FORMS[0], "mean over paradigms")
    assert of.values == (pytest.approx(a), pytest.approx(b))
    variances = [np.var(side, ddof=1) / 3 for side in (a, b)]
    error, freedom = math.sqrt(sum(variances)), sum(variances) ** 2 / sum(v**2 / 2 for v in variances)  # Welch, 1947
    if paired:
        sides = [
            [of.items[form, None] for of in side]
            for form, side in zip(("log-likelihood", FORMS[0]), scored, strict=True)
        ]
        of = finding("t", "p", sides, recipes=True, paired=True)
        error, freedom = np.std(np.subtract(b, a), ddof=1) / math.sqrt(3), 2
    half = stats.t.ppf(0.975, freedom) * error
    assert of.difference.value == pytest.approx(np.mean(b) - np.mean(a))
    assert (of.difference.high - of.difference.low) / 2 == pytest.approx(half)
    gain = 100 * (np.mean(rights[1], axis=0) - np.mean(rights[0], axis=0))  # the same pairs in all runs
    draw = np.random.default_rng(1)
    again = [np.mean([draw.choice(gain[part], part.sum()).mean() for part in parts]) for _ in range(3000)]
    assert of.over_items.high - of.over_items.low == pytest.approx(2 * 2.09 * np.std(again), rel=0.15)


def test_what_is_said_of_recipes(recipes: PairComparison):
    assert recipes.costs == {"parameters": (100, 100), "labels_seen": (51, 51)}
    assert recipes.seeds == ([0, 1, 2], [0, 1, 2])
    told = str(recipes)
    assert "clm-?: clm, seeds 0, 1, 2" in told and "with other items" in told
    assert "Welch's t-test over the seeds" in told and "A paired t-test" in str(replace(recipes, paired=True))
    assert len(found_by(recipes, "the text", "pseudo bits per byte").values[1]) == 3


def test_trained_weights_that_a_side_began_with_are_told(runs: Path, tmp_path: Path):
    later = tmp_path / "later"
    later.mkdir()
    settings = (runs / "mlm-0" / "config.yaml").read_text()
    settings = settings.replace("pretrained: false", "pretrained: true").replace(
        "name_or_path: null", "name_or_path: b"
    )
    (later / "config.yaml").write_text(settings)
    (note,) = spent_before([[str(runs / "clm-0")], [str(later)]])
    assert note == "B began with the weights of b; what these cost is not counted."


def test_a_lead_must_hold_for_other_seeds_and_other_items():
    ahead, unsure = Estimate(2.0, 1.0, 3.0, 0.01), Estimate(2.0, -1.0, 5.0, 0.2)
    assert Finding("t", "p", ([1.0], [3.0]), difference=ahead).better == "B"
    assert Finding("t", "p", ([1.0] * 2, [3.0] * 2), difference=ahead, over_items=unsure).better is None
    assert Finding("t", "p", ([1.0] * 2, [3.0] * 2), difference=unsure, over_items=ahead).better is None
    behind = Finding("t", "p", ([3.0] * 2, [1.0] * 2), difference=Estimate(-2.0, -3.0, -1.0, 0.01))
    assert behind.better == "A" and behind.cells()[-1] == "A"


def test_seeds_without_a_spread_tell_nothing():
    """Three seeds of which none has anything right, against three of which all have all right."""
    mean = mean_over(np.arange(20))
    nothing, all_right = (Items(np.full(20, value), mean) for value in (0.0, 1.0))
    of = finding("t", "p", [[nothing] * 3, [all_right] * 3], recipes=True, paired=False)
    assert math.isnan(of.difference.low) and of.better is None and of.cells()[-1] == "can't tell"
    assert finding("t", "p", [[nothing], [all_right]], recipes=False, paired=False).intervals == ((), ())


def test_a_model_is_no_better_than_itself(runs: Path, pairs: Path, capsys):  # noqa: F811
    typed = [
        "compare",
        str(runs / "mlm-0"),
        str(runs / "mlm-0"),
        "--blimp",
        str(pairs),
        "--pairs",
        "4",
        "--words",
        "90",
    ]
    assert cli.main([*typed, "--json", str(runs / "found.json")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "+0.0" in line or "+0 " in line]
    found = json.loads((runs / "found.json").read_text())
    differences = [of["difference"] for of in found["findings"] if of["difference"]]
    assert len(rows) == len(differences) == 6 + 2 * 3, "each form against itself, over all and two fields"
    assert all(row.endswith("1.000  can't tell") for row in rows)
    assert all(of["value"] == 0 and of["p_value"] == 1 for of in differences) and found["question"] == "pair"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("clm-0 mlm-0", "give --words or --blimp, which compare what both can do"),
        ("--recipes clm-? mlm-?", "give --words or --blimp, which compare what both can do"),
        ("clm-0 mlm-0 --pairs 5", "--pairs=5: is for minimal pairs; give --blimp, too"),
        ("clm-0 mlm-0 --words 0", "--words=0: out of range"),
        ("a.parquet mlm-0 --words 5", "losses tell nothing about what a model can do; name a run or a model"),
        ("clm-0 ./gone --words 5", "no such folder"),
        ("clm-0 mlm-0 --blimp text.jsonl --words 5", "a pair lacks sentence_good"),
        ("clm-0 mlm-0 --words 5", "held-out words: too few documents to tell chance from a difference"),
        ("--recipes clm-0 mlm-? --words 5", "1 finished run(s); two seeds a side are the least"),
        ("--recipes --paired clm-? mlm-[01] --words 5", "A has the seeds 0, 1, 2, B 0, 1"),
        ("--recipes clm-? [cm]lm-? --words 5", "its runs differ in "),
        (
            "GPT2 mlm-0 --data text.jsonl --words 50",
            "asked another thing than A (held-out words: block size, tokenizer)",
        ),
    ],
)
def test_what_is_refused(typed: str, told: str, runs: Path, tiny_gpt2: Path, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert cli.main(["compare", *typed.replace("GPT2", str(tiny_gpt2)).split()]) == 2
    assert told in capsys.readouterr().err
