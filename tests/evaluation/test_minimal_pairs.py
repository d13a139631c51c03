"""Minimal pairs: what is counted as right, over which means, with which interval, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import WORDS
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.arguments import check_arguments, parser
from lightning_lm.certainty.pairs import over_strata
from lightning_lm.evaluation.minimal_pairs import score_pairs

BLIMP = ROOT.parent / "shared" / "blimp"
needs_blimp = pytest.mark.skipif(not BLIMP.is_dir(), reason="BLiMP isn't here")


def test_a_model_of_both_kinds_may_be_asked_for_either():
    check_arguments(
        parser().parse_args(["evaluate", "RUN", "--task", "blimp", "--data", "FOLDER", "--objective", "mlm"])
    )


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three paradigms of two fields; the last one's sentences are each other's anagrams."""
    folder, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for paradigm, field, count in (("one", "syntax", 12), ("two", "syntax", 4), ("three", "semantics", 6)):
        lines = []
        for _ in range(count):
            words = draw.choice(WORDS, 5)
            good, bad = (
                " ".join(words),
                " ".join(words[[0, 4, 3, 2, 1]] if paradigm == "three" else draw.choice(WORDS, 5)),
            )
            lines.append(json.dumps({"sentence_good": good, "sentence_bad": bad, "field": field, "UID": paradigm}))
        (folder / f"{paradigm}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_likelier_sentence_is_the_model_s(pairs: Path, tiny_gpt2: Path, capsys):
    """By transformers' own loss, sentence by sentence."""
    code, stdout, _ = call(capsys, "evaluate", tiny_gpt2, "--task", "blimp", "--data", pairs, "--json", "-")
    found = json.loads(stdout)["accuracy"]["log-likelihood"]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_gpt2).double(),
        AutoTokenizer.from_pretrained(tiny_gpt2),
    )
    by_paradigm = {}
    for paradigm in ("one", "two", "three"):
        right = []
        for line in (pairs / f"{paradigm}.jsonl").read_text().splitlines():
            nll = []
            for side in ("good", "bad"):
                ids = torch.tensor(
                    [[tokenizer.eos_token_id, *tokenizer(json.loads(line)[f"sentence_{side}"])["input_ids"]]]
                )
                nll.append(model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1))
            right.append(float(nll[0] < nll[1]))
        by_paradigm[paradigm] = 100 * np.mean(right)
    assert code == 0 and found["paradigms"] == pytest.approx(by_paradigm)
    assert found["mean"]["value"] == pytest.approx(np.mean(list(by_paradigm.values()))), "not over all pairs"
    assert found["fields"]["syntax"]["value"] == pytest.approx((by_paradigm["one"] + by_paradigm["two"]) / 2)
    assert found["fields"]["semantics"]["value"] == pytest.approx(by_paradigm["three"])


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForMaskedLM])
def test_a_constant_model_has_half_of_them_right(kind, pairs: Path, tiny_gpt2: Path, tiny_bert: Path, tmp_path: Path):
    place = tiny_gpt2 if kind is AutoModelForCausalLM else tiny_bert
    model = kind.from_pretrained(place)
    for weight in model.parameters():
        weight.data.zero_()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(place).save_pretrained(tmp_path)
    found = score_pairs(str(tmp_path), str(pairs / "three.jsonl"))
    assert all(set(right) == {0.5} for right in found.right.values()), "their sentences have the same tokens"
    assert found.accuracy(next(iter(found.right))).value == 50.0


def test_the_interval_is_that_of_a_bootstrap_within_paradigms():
    draw = np.random.default_rng(0)
    strata = np.repeat(["a", "b", "c"], [40, 80, 20])
    values = (draw.random(140) < np.repeat([0.9, 0.5, 0.7], [40, 80, 20])).astype(float)
    found = over_strata(values, strata)
    again = []
    for _ in range(4000):
        means = [draw.choice(part, len(part)).mean() for part in np.split(values, [40, 120])]
        again.append(np.mean(means))
    assert found.value == pytest.approx(np.mean([part.mean() for part in np.split(values, [40, 120])]))
    assert (found.high - found.low) / 2 == pytest.approx(1.98 * np.std(again), rel=0.05)


def test_only_the_first_pairs(pairs: Path, tiny_bert: Path, capsys):
    code, stdout, _ = call(capsys, "evaluate", tiny_bert, "--task", "blimp", "--data", pairs, "--pairs", "5")
    assert code == 0 and "14 pairs of 3 paradigms, read as [CLS] TEXT [SEP]" in stdout
    assert "(1) pseudo-log-likelihood, (2) pseudo-log-likelihood within words" in stdout


def test_the_protocol_is_of_pairs_tokenizer_and_form(pairs: Path, tiny_gpt2: Path, tiny_bert: Path):
    one, fewer, other = (
        score_pairs(str(place), str(pairs), most).protocol
        for place, most in ((tiny_gpt2, 4), (tiny_gpt2, 3), (tiny_bert, 4))
    )
    assert one["sentence"] == "<|endoftext|> TEXT" and one["pairs"] == other["pairs"] != fewer["pairs"]
    assert one["tokenizer"] == fewer["tokenizer"] != other["tokenizer"]


@pytest.mark.parametrize(
    ("lines", "arguments", "told"),
    [
        ('{"sentence_good": "a", "field": "f", "UID": "u"}', [], "a pair lacks sentence_bad"),
        ("[1, 2", [], "line 1 is no JSON object"),
        ("", [], "there are no pairs"),
        ('{"sentence_good": "a", "sentence_bad": "b", "field": "f", "UID": "u"}', [], "u has a single pair"),
        ("", ["--stride", "4"], "--stride=4: --task blimp has no use for it; leave it out"),
        ("", ["--as", "lm-eval"], "--as=lm-eval: --task blimp has no use for it; leave it out"),
        ("", ["--pairs", "1"], "--pairs=1: out of range; give 2 or more"),
    ],
)
def test_what_is_refused(lines, arguments, told, tiny_gpt2: Path, tmp_path: Path, capsys):
    (tmp_path / "pairs.jsonl").write_text(lines)
    code, stdout, stderr = call(capsys, "evaluate", tiny_gpt2, "--task", "blimp", "--data", tmp_path, *arguments)
    assert (code, stdout) == (2, "") and told in stderr


def test_pairs_of_no_task(tiny_gpt2: Path, capsys):
    assert (
        "--pairs=5: is for minimal pairs; give --task blimp, too"
        in call(capsys, "evaluate", tiny_gpt2, "--pairs", 5)[2]
    )


def test_the_hub_s_data_set_has_a_configuration_for_each_paradigm(pairs: Path, tiny_gpt2: Path, tmp_path, monkeypatch):
    """As `datasets` loads it, from a folder of the Hub's form in the place of the Hub's own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "someone" / "pairs"
    folder.mkdir(parents=True)
    heading = ["---", "configs:"]
    for file in pairs.glob("*.jsonl"):
        shutil.copy(file, folder)
        heading += [f"- config_name: {file.stem}", "  data_files:", "  - split: train", f"    path: {file.name}"]
    (folder / "README.md").write_text("\n".join([*heading, "---", ""]))
    from lightning_lm.evaluation import minimal_pairs

    found = list(minimal_pairs._of_hub("./someone/pairs"))
    assert [pair["UID"] for pair in found] == ["one"] * 12 + ["three"] * 6 + ["two"] * 4
    assert set(minimal_pairs.NEEDED) <= found[0].keys()


@needs_blimp
def test_blimp(tiny_gpt2: Path, tmp_path: Path):
    config = AutoConfig.from_pretrained(tiny_gpt2, n_positions=128)  # some sentences have more than 64 of its tokens
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_gpt2).save_pretrained(tmp_path)
    found = score_pairs(str(tmp_path), str(BLIMP), 2)
    assert (len(found.fields), len(set(found.paradigms))) == (134, 67)
    assert len(set(found.fields)) == 4
    assert 20 < found.accuracy("log-likelihood").value < 80, "random weights"
