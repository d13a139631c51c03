"""The benchmarks compare like with like, run from end to end, and cover the table that they are for."""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composing import compose
from conftest import ROOT
from transformers import AutoTokenizer, default_data_collator

from lightning_lm.config.validation import check
from lightning_lm.training import components as build

BATCH, BLOCK = 8, 32
GRAPHS = "ours, CUDA graphs"
WORKLOADS = ["mlm_small", "mlm_base", "clm_small", "clm_base", "clm_4096", "clm_tiny", "evaluate_clm", "evaluate_mlm"]
WORKLOADS += [
    "prepare_10",
    "prepare_100",
    "prepare_wordpiece",
    "prepare_again",
    "batches_clm",
    "batches_mlm",
    "race_mlm",
]
WORKLOADS += ["show_help", "refuse"]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def one_batch(text, tiny_gpt2, tmp_path):
    """Text that is eight blocks and a tail, so that both sides' first batch has the same blocks in whatever order."""
    tokenizer, kept, tokens = AutoTokenizer.from_pretrained(tiny_gpt2), [], 0
    with text.open(encoding="utf-8", newline="\n") as file:
        while tokens < BATCH * BLOCK:
            kept.append(next(file))
            tokens += len(tokenizer(kept[-1])["input_ids"])
    assert tokens < (BATCH + 1) * BLOCK
    path = tmp_path / "one-batch.txt"
    path.write_text("".join(kept), encoding="utf-8", newline="\n")
    return str(path)


def test_both_sides_begin_with_the_same_causal_loss(tiny_gpt2, one_batch):
    import ours
    import peers

    case = {"objective": "clm", "model": str(tiny_gpt2), "text": one_batch, "batch": BATCH, "block": BLOCK}
    mine, theirs = (script.steps(**case, steps=1) for script in (ours, peers))
    # Trainer divides by all labels of the recipe, though a block's first one is never predicted
    assert mine["losses"] == pytest.approx([theirs["losses"][0] * BLOCK / (BLOCK - 1)], abs=1e-5)
    assert mine["tokens_per_second"] is theirs["tokens_per_second"] is None, "the first steps aren't timed"
    assert min(mine["peak_memory"], theirs["peak_memory"]) > 100e6, "torch alone takes more"


def test_both_sides_begin_with_the_same_masked_loss_for_the_same_masks(tiny_bert, text, tmp_path):
    import ours
    import peers

    case = {"objective": "mlm", "model": str(tiny_bert), "text": str(text), "block": BLOCK}
    mine = ours.steps(**case, batch=BATCH, steps=1)["losses"]
    parts = build.build(ours.of_text(**case, cache=str(tmp_path)))
    batch = parts.data._batches("train", parts.data.plan("train"), rank=0)[0, 0]
    samples = [{"input_ids": x, "labels": y} for x, y in zip(batch["input_ids"], batch["labels"], strict=True)]
    given = {"max_steps": 1, "per_device_train_batch_size": BATCH, "logging_steps": 1}
    theirs = peers.train(peers.load("mlm", str(tiny_bert)), samples, default_data_collator, peers.Clock(), **given)
    assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_the_bare_loop_runs_and_is_timed(objective, tiny_gpt2, tiny_bert, text):
    import peers

    model = str(tiny_gpt2 if objective == "clm" else tiny_bert)
    told = peers.bare(objective, model, text=str(text), batch=BATCH, block=BLOCK, steps=8)
    assert told["tokens_per_second"] > 0


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_both_evaluations_give_the_same_scores(objective, tiny_gpt2, tiny_bert, text, tmp_path):
    import ours
    import peers

    part = tmp_path / "part.txt"
    part.write_bytes(b"".join(text.read_bytes().splitlines(keepends=True)[:200]))
    model = str(tiny_gpt2 if objective == "clm" else tiny_bert)
    case = {"objective": objective, "model": model, "text": str(part), "batch": BATCH, "block": BLOCK}
    mine, theirs = ours.evaluate(**case), peers.evaluate(**case)
    if objective == "clm":  # Trainer divides by all labels of the recipe here, too
        theirs["loss"] *= BLOCK / (BLOCK - 1)
    # They don't score the same tokens: other windows and masks, and the recipe loses some
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.003)
    assert mine["tokens"] == pytest.approx(theirs["tokens"], rel=0.06 if objective == "clm" else 0.2)
    assert min(mine["seconds"], theirs["seconds"]) > 0


def test_preparations_find_the_same_tokens(tiny_gpt2, text, tmp_path):
    import ours
    import peers

    case = {"model": str(tiny_gpt2), "text": str(text)}
    again = {"objective": "clm", "cache": str(tmp_path), **case}
    mine, theirs = ours.prepare(block=BLOCK, **again), peers.prepare("clm", block=BLOCK, **case)
    assert mine["tokens"] == ours.prepare(block=2 * BLOCK, **again)["tokens"] == peers.rust(**case)["tokens"]
    assert 0 <= mine["tokens"] - theirs["tokens"] < BLOCK


def test_the_table_has_a_row_for_every_workload():
    import run

    assert {*WORKLOADS} == {make.__name__ for make in run.ROWS}


def test_the_command_keeps_the_rows_that_are_finished(tmp_path, monkeypatch, capsys):
    """A row that can't run doesn't take the others along, and a second run adds to the table."""
    import inputs
    import run

    def broken(o):
        inputs.fresh("inputs.py", "text", source=str(tmp_path / "none"), megabytes=1)

    def interrupted(o):
        raise KeyboardInterrupt

    monkeypatch.setattr(inputs, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(run, "ROWS", [broken, run.refuse, run.show_help, interrupted])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)  # pytest keeps its cores
    assert run.main(["--only", "broken,refuse", "--pairs", "2"]) == 1
    assert "inputs.py text" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        run.main(["--only", "show_help,interrupted", "--pairs", "1"])
    kept = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert kept.index("optimizer.lrr=1") < kept.index("--help")
    assert [len(row["pairs"]) for row in json.loads((tmp_path / "results.json").read_text()).values()] == [2, 1]
    (tmp_path / "results.json").unlink()  # on another machine, or after outputs/ was cleared
    run.main(["--only", "show_help", "--pairs", "1"])
    again = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert again.index("optimizer.lrr=1") < again.index("--help") and again.count("\n") == kept.count("\n")
    with pytest.raises(SystemExit, match="2"):
        run.main(["--only", "mlm_smal"])
    assert "no workload mlm_smal; there are broken, " in capsys.readouterr().err


def test_figures_are_medians_of_pairs_and_say_whether_a_goal_is_met(tmp_path):
    import run

    def row(seconds):
        each = iter(seconds)
        figures = [run.Figure("seconds, Trainer / ours", "≥ 2.5", run.ratio("seconds", "Trainer", "ours"))]
        sides = {"ours": lambda: {"seconds": 1.0}, "Trainer": lambda: {"seconds": next(each)}}
        return run.measured(run.Row("some work", sides, figures, len(seconds), "seconds"))

    run.write(tmp_path / "results.md", {"mlm_small": row([3.0, 2.0, 2.5]), "clm_small": row([2.4, 9.0, 1.0])})
    lines = (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
    assert lines[-2].startswith(
        "| some work | seconds, Trainer / ours | ≥ 2.5 met | 2.50 (2.00–3.00) | ours 1.00 s; Trainer 2.50 s | 3 | 20"
    )
    assert "≥ 2.5 **missed** | 2.40 (1.00–9.00)" in lines[-1]


@pytest.mark.slow
def test_the_gpu_benchmark_keeps_what_it_has_and_goes_on(tmp_path, monkeypatch, capsys):
    import gpu

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # which it sets
    shapes = ("GPT-2 small", "BERT-base", "BERT-base, evaluation")
    monkeypatch.setattr(gpu, "SHAPES", {name: gpu.SHAPES[name] for name in shapes})
    typed = ["--quick", "--pairs", "1", "--budget", "3600", "--out", str(tmp_path)]
    assert gpu.main([*typed, "--budget", "0"]) == 0 and "the same command goes on" in capsys.readouterr().out
    for _ in range(2):
        assert gpu.main(typed) == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2 * 5 + 2 and not any("failed" in row for row in rows), rows
    by_side = {(row["shape"], row["side"]): row for row in rows}
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    for shape in ("BERT-base", "BERT-base, evaluation"):
        ours, theirs = by_side[shape, "ours"], by_side[shape, "Trainer"]
        ratio = theirs["tokens_per_second"] / ours["tokens_per_second"]
        first = f"{theirs['first_step']:.1f}" if "first_step" in theirs else "–"
        begins = rf"^\| {shape} \| Trainer \| [^|]* \| {ratio:.2f} \| – \| [^|]* \| {first} \| "
        assert re.search(begins, table, re.MULTILINE), table
    assert all(0 < row["first_step"] < row["seconds"] for row in rows if "evaluation" not in row["shape"])


def test_only_small_steps_on_a_gpu_are_tried_with_cuda_graphs():
    import gpu

    tried = {(s, hardware) for s in gpu.SHAPES for hardware in ("cpu", "gpu") if GRAPHS in gpu.sides(s, hardware, {})}
    assert tried == {("GPT-2 small as fine-tuned", "gpu"), ("BERT-base as fine-tuned", "gpu")}
    for shape, _ in tried:
        more = gpu.sides(shape, "gpu", {})[GRAPHS][2]["more"]
        check(compose("hardware=gpu", *more))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_without_a_gpu_the_gpu_benchmark_says_so():
    script = ROOT / "benchmarks" / "gpu.py"
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "no CUDA device" in ended.stderr


def test_trial_times_come_from_the_log(text, tmp_path):
    import ours

    overrides = ["model=gpt2-tiny", "model.vocab_size=300", "data.block_size=32", "trainer.max_steps=8"]
    overrides += ["name=race", "trainer.val_every_n_steps=4", "trainer.log_every_n_steps=2", "model.config.n_layer=1"]
    overrides += ["trainer.limit_val_batches=1", "hardware=cpu", "objective.prompts=[]"]
    points = ours.race(overrides, "bits_per_byte", str(text), str(text))
    steps, seconds, figures = zip(*points, strict=True)
    assert steps == (4, 8)
    assert 0 < seconds[0] < seconds[1]
    assert figures[1] < figures[0]


def test_the_ladder_of_the_causal_race_ends_with_the_recipe():
    import race

    name = next(name for name in race.RUNGS if name.endswith("`speedrun_clm`"))
    rung, data = race.RUNGS[name], ["data=text", "data.train=x.txt", "data.validation=y.txt"]
    sizes = [f"trainer.global_batch_size={rung.batch}", f"trainer.max_steps={rung.steps}"]
    ladder, recipe = compose(*rung.overrides, *data, *sizes), compose("experiment=speedrun_clm", *data)
    assert all(
        getattr(ladder, axis) == getattr(recipe, axis) for axis in ("model", "objective", "optimizer", "scheduler")
    )
    assert replace(ladder.trainer, val_every_n_steps=34) == recipe.trainer


def test_a_rung_has_reached_the_baseline_only_if_its_mean_is_surely_lower(tmp_path, monkeypatch):
    import race

    monkeypatch.setattr(race, "RAW", tmp_path / "race.jsonl")
    scores = {"Trainer's AdamW": [2.0, 2.01, 1.99], "Muon": [1.9, 1.91, 1.89], "half the batch": [1.99, 2.0, 1.985]}
    for name, bits in scores.items():
        for number, score in enumerate(bits):
            race.keep(Path("a.txt"), Path("b.txt"), rung=name, seed=number, bits_per_byte=score)
    for series, rounds, slower in (("first", 3, 9), ("second", 3, 1), ("cut off", 1, 5)):
        for number, name in itertools.product(range(rounds), ["Trainer's AdamW", "Muon"]):
            seconds = 0.1 * slower * (number + 1)
            race.keep(Path("a.txt"), Path("b.txt"), rung=name, series=series, round=number, seconds_per_step=seconds)
    first, muon, half = race.table(race.kept()).splitlines()[-3:]
    assert first.startswith(
        "| Trainer's AdamW | 400 × 16 | 3 | 2.0000 ± 0.0100 |  | 200.0 |"
    )  # the median of all seven
    # By hand: t = −0.1 / √(2 · 0.01² / 3) = −12.247 with 4 degrees of freedom
    assert muon.startswith("| Muon | 130 × 16 | 3 | 1.9000 ± 0.0100 | 1.3e-04 | 26.0 | 3.08 (3.08–3.08) |")
    assert "not reached" in half and "not timed" in half


def test_a_gpu_side_is_held_against_ours_of_the_same_pair(tmp_path):
    import gpu

    results = gpu.Results(tmp_path / "results.jsonl", {"device": "some GPU"})
    for pair, rate in enumerate((100.0, 200.0, None)):
        for side, share in (("ours", 1.0), ("Trainer", 0.5)):
            figures = {"tokens_per_second": rate and rate * share, "peak_memory": 1e9, "seconds": 1.0, "date": "today"}
            results.add("GPT-2 small", side, pair, figures)
    ours, trainer = results.table(None, {}).splitlines()[-2:]
    assert ours.startswith("| GPT-2 small | ours | 150 (100–200) | 1.00 |")
    assert trainer.startswith("| GPT-2 small | Trainer | 75.00 (50.00–100) | 0.50 |")
