"""Two models on one text, and two groups of runs: what is compared, by what, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import compose
from omegaconf import OmegaConf
from tiny import write_gpt2, write_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm import cli
from lightning_lm.errors import Refused
from lightning_lm.evaluation.comparison import compare_models
from lightning_lm.evaluation.nll import read_token_losses
from lightning_lm.evaluation.recipes import compare_recipes
from lightning_lm.evaluation.scoring import evaluate


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2: Path, tiny_bert: Path) -> Path:
    """A text of 30 documents; a model, one that is worse from the 20th document on, and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("comparison")
    texts = [write_text(folder / "draft.txt", lines=8, seed=n).read_text() for n in range(30)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "few.jsonl").write_text("".join(json.dumps({"text": "a river\n"}) + "\n" for _ in range(3)))
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    model.save_pretrained(folder / "noisy")
    AutoTokenizer.from_pretrained(tiny_gpt2).save_pretrained(folder / "noisy")
    write_gpt2(folder / "other", folder / "text.jsonl")
    places = {"a": tiny_gpt2, "b": folder / "noisy", "other": folder / "other", "mlm": tiny_bert}
    for name, place in places.items():
        losses = evaluate(place, str(folder / "text.jsonl"), block_size=32).token_losses
        losses.write(folder / f"{name}.parquet")
    evaluate(tiny_gpt2, str(folder / "few.jsonl")).token_losses.write(folder / "few.parquet")
    evaluate(tiny_gpt2, str(folder / "text.jsonl"), block_size=16).token_losses.write(folder / "short.parquet")
    return folder


def test_models_are_paired_by_document(folder: Path, capsys):
    code, stdout, _ = call(capsys, "compare", folder / "a.parquet", folder / "b.parquet", "--json", "-")
    found = json.loads(stdout)
    a, b = (pd.read_parquet(folder / f"{name}.parquet") for name in "ab")
    gain = (b.nll - a.nll).groupby(a.document).sum()
    assert (code, found["documents"], found["kind"], found["unit"]) == (0, 30, "document", "nats per token")
    assert found["losses"] == pytest.approx([a.nll.mean(), b.nll.mean()])
    assert found["difference"]["value"] == pytest.approx(b.nll.mean() - a.nll.mean())
    draw = np.random.default_rng(9)  # another bootstrap, as a plain loop
    tokens = a.nll.groupby(a.document).count()
    again = [draw.integers(30, size=30) for _ in range(3000)]
    plain = np.std([gain[numbers].sum() / tokens[numbers].sum() for numbers in again])
    assert found["difference"]["high"] - found["difference"]["low"] == pytest.approx(2 * 2.08 * plain, rel=0.1)
    moved = (gain / tokens.sum()).sort_values()
    assert [row[0] for row in found["furthest"]] == [*moved.index[:3], *moved.index[-3:]]
    text = json.loads((folder / "text.jsonl").read_text().splitlines()[moved.index[0]])["text"]
    assert found["furthest"][0][2] and text.strip().startswith(found["furthest"][0][2])


def test_a_model_is_no_better_than_itself(folder: Path, tiny_gpt2: Path, capsys):
    text = str(folder / "text.jsonl")
    code, stdout, _ = call(capsys, "compare", tiny_gpt2, tiny_gpt2, "--data", text)
    assert code == 0 and "B − A = +0.0000, 95 % interval +0.0000 to +0.0000, p = 1.000" in stdout
    assert "No difference between the models can be told from chance." in stdout
    code, stdout, _ = call(capsys, "compare", folder / "a.parquet", folder / "b.parquet")
    assert "The better model is" in stdout


def test_causal_losses_of_another_objective_are_compared(folder: Path, tmp_path: Path):
    """A hybrid's loss is that of its causal part."""
    table = read_token_losses(folder / "b.parquet")
    table.facts["protocol"]["objective"] = "hybrid"
    table.write(tmp_path / "hybrid.parquet")
    found, expected = (
        compare_models(str(folder / "a.parquet"), str(b / f"{n}.parquet"))
        for b, n in ((tmp_path, "hybrid"), (folder, "b"))
    )
    assert (found.losses, found.cautions) == (expected.losses, [])


def test_other_tokenizers_are_compared_by_byte(folder: Path):
    found = compare_models(str(folder / "a.parquet"), str(folder / "other.parquet"))
    size = sum(len(json.loads(line)["text"].encode()) for line in (folder / "text.jsonl").open())
    nll = [pd.read_parquet(folder / f"{name}.parquet").nll.sum() for name in ("a", "other")]
    assert found.unit == "bits per byte"
    assert found.losses == pytest.approx([of / size / math.log(2) for of in nll])


def test_other_windows_are_told(folder: Path):
    (caution,) = compare_models(str(folder / "a.parquet"), str(folder / "short.parquet")).cautions
    assert caution == ("they were scored in different ways: block size 32 for A, 16 for B; stride 31 for A, 15 for B")


@pytest.mark.parametrize(
    ("b", "problem"),
    [
        ("few", "another text than A"),
        ("mlm", "clm and mlm losses mean different things"),
        ("gone", "no table of token"),
    ],
)
def test_refused_models(folder: Path, capsys, b: str, problem: str):
    code, stdout, stderr = call(capsys, "compare", folder / "a.parquet", folder / f"{b}.parquet")
    assert (code, stdout) == (2, "") and problem in stderr
    code, _, stderr = call(capsys, "compare", folder / "few.parquet", folder / "few.parquet")
    assert code == 2 and "too few to tell chance from a difference" in stderr


@pytest.mark.parametrize(("b", "problem"), [("./gone", "no such folder"), ("BERT", "losses mean different things")])
def test_b_is_looked_at_before_a_is_scored(tiny_gpt2: Path, tiny_bert: Path, capsys, b: str, problem: str):
    code, _, stderr = call(capsys, "compare", tiny_gpt2, {"BERT": tiny_bert}.get(b, b))  # A has no text to be scored on
    assert code == 2 and problem in stderr


# ------------------------------------------------------------------------------------------------------------ recipes


def write_runs(folder: Path, losses: list[float], *overrides: str, bytes_: int = 100, key: str = "k") -> Path:
    """Folders as training leaves them; a loss of None is that of a run that did not finish."""
    job = OmegaConf.structured(compose("experiment=quickstart", *overrides))
    for seed, loss in enumerate(losses):
        run = folder / str(seed)
        run.mkdir(parents=True)
        settings = OmegaConf.to_container(job, enum_to_str=True) | {"seed": seed, "run_dir": str(run)}
        (run / "config.yaml").write_text(OmegaConf.to_yaml(settings))
        counts = {"rows": 10, "words": 20, "line_ends": 10, "bytes": bytes_, "key": key}
        (run / "ledger.json").write_text(json.dumps({"validation": counts, "test": counts}))
        if loss is not None:
            figures = {"status": "finished", "val/loss": loss, "val/bits_per_byte": loss / 3}
            (run / "summary.json").write_text(json.dumps(figures))
    return folder


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_runs(folder / "a", [3.1, 3.3, 3.2, None])
    write_runs(folder / "b", [2.1, 2.2, 2.15], "optimizer.lr=0.5")
    write_runs(folder / "near", [3.0, 3.3, 3.15], "optimizer.lr=0.5")
    write_runs(folder / "one", [3.0], "optimizer.lr=0.5")
    write_runs(folder / "tokens", [3.0, 3.1], "model.vocab_size=900", key="other")
    write_runs(folder / "text", [3.0, 3.1], bytes_=101, key="other")
    write_runs(folder / "same", [3.0, 3.0])
    shutil.copytree(folder / "a", folder / "mixed")
    shutil.copytree(folder / "b" / "0", folder / "mixed" / "7")
    return folder


def test_a_recipe_of_two_phases_begins_with_runs_of_one_recipe(sweeps: Path, tmp_path: Path):
    folder = write_runs(tmp_path / "second", [2.9, 2.8, 2.7])
    for bases, problem in (("b/0 b/1 b/2", None), ("b/0 b/1 a/2", "its runs differ in model.name_or_path")):
        for seed, base in enumerate(bases.split()):
            config = OmegaConf.load(folder / str(seed) / "config.yaml")
            config.model.name_or_path = str(sweeps / base)
            OmegaConf.save(config, folder / str(seed) / "config.yaml")
        if problem is None:
            compared = compare_recipes(str(sweeps / "a"), str(folder), "validation", False)
            assert compared.values[1] == {0: 2.9, 1: 2.8, 2: 2.7}
        else:
            with pytest.raises(Refused, match=problem):
                compare_recipes(str(sweeps / "a"), str(folder), "validation", False)


def test_recipes_are_compared_over_seeds(sweeps: Path, capsys):
    code, stdout, _ = call(capsys, "compare", "--recipes", sweeps / "a", sweeps / "b")
    lines = stdout.splitlines()
    assert code == 0 and lines[0].endswith("a: 3.2000 ± 0.1000 over the seeds 0, 1, 2")
    assert lines[2] == "these two recipes, by val/loss, Welch's t over seeds:"
    assert lines[4] == "The better recipe is B."
    assert lines[5].endswith("a: 1 run(s) did not finish, and are left out")
    code, stdout, _ = call(
        capsys, "compare", "--recipes", "--paired", sweeps / "a", sweeps / "near/[0-2]", "--json", "-"
    )
    found = json.loads(stdout)
    assert (found["paired"], found["difference"]["value"]) == (True, pytest.approx(-0.05))
    assert found["seeds_to_tell"] == 10  # a paired t-test of an effect of one standard deviation, in tables
    code, stdout, _ = call(capsys, "compare", "--recipes", sweeps / "a", sweeps / "near")
    assert "No difference between the recipes can be told from chance." in stdout
    assert "seeds a side would tell in 80 % of cases." in stdout


def test_recipes_of_other_tokenizers_are_compared_by_byte(sweeps: Path, capsys):
    code, stdout, _ = call(capsys, "compare", "--recipes", sweeps / "a", sweeps / "tokens")
    assert code == 0 and "these two recipes, by val/bits_per_byte" in stdout


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("--recipes a one", "1 finished run(s) with val/loss; two seeds a side are the least"),
        ("--recipes a mixed", "its runs differ in optimizer.lr; a recipe's runs differ in the seed alone"),
        ("--recipes a text", "its validation text is another than A's"),
        ("--recipes a nowhere", "no runs there"),
        ("--recipes same same", "one and the same figure"),
        ("--recipes --split test a b", "0 finished run(s) with test/loss"),
        ("--recipes --paired a tokens", "A has the seeds 0, 1, 2, B 0, 1"),
        ("--recipes --split dev a b", "--split=dev: runs don't have it"),
        ("--recipes --data x a b", "--data=x: recipes have been scored"),
        ("--paired a b", "--paired=True: is for recipes"),
    ],
)
def test_refused_recipes(sweeps: Path, monkeypatch, capsys, typed: str, problem: str):
    monkeypatch.chdir(sweeps)
    code, stdout, stderr = call(capsys, "compare", *typed.split())
    assert (code, stdout) == (2, "") and problem in stderr
