"""docs/extending.md followed to the letter: its blocks are put where it says, and two steps are trained with each."""

import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from tiny import write_text

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
NEW = re.compile(r"`([\w./-]+)`, new:\n\n```\w+\n(.*?)```", re.DOTALL)
ABOVE = re.compile(r"In\s+`([\w./-]+)`, above `([^`]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)

TRAIN = """
import json, sys
from pathlib import Path
import lightning_lm as lm
from lightning_lm.cli import main
from lightning_lm.report import recipe
from lightning_lm.config.composition import list_axes
from lightning_lm.runs.folder import read_json_file
from lightning_lm.training.components import build

COMMON, RUNS = json.loads(sys.argv[1])
results = {"help": list_axes(0)}
for name, overrides in RUNS.items():
    config = lm.compose(*COMMON, *overrides, f"run_dir=runs/{name}")
    before = {n: p.detach().clone() for n, p in build(config).model.named_parameters()}
    run = lm.train(config)
    after = dict(run.model.named_parameters())
    moves = {n: (after[n].cpu() - p).abs().flatten().tolist() for n, p in before.items()}
    changes = {n: sorted({round(x, 6) for x in values}) for n, values in moves.items()}
    environment, ledger = (read_json_file(run.folder / f"{file}.json") for file in ("environment", "ledger"))
    results[name] = {"summary": run.summary, "ledger": ledger, "options": environment["options"]}
    results[name]["changes"] = {n: values[:4] for n, values in changes.items()}
results["generate"] = main(["generate", "runs/model-objective", "--prompt", "The river", "--max-new-tokens", "2"])
results["recipe"] = str(recipe.write_recipe(Path("runs/callbacks"), "two", "with two callbacks", Path("conf")))
print(json.dumps(results))
"""
COMMON = [
    "data.block_size=32",
    "data.cache_dir=cache",
    "objective.prompts=[]",
    "scheduler=constant",
    "trainer.max_steps=2",
    "trainer.val_every_n_steps=1",
    "trainer.gradient_clip=null",
    "hardware=cpu",
    "logger=none",
]
SIZES = ["model.vocab_size=300", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_head=2"]
NEW_WEIGHTS = ["model.name_or_path=null", "model.model_type=gpt2", "model.pretrained=false", "model.tokenizer=train"]
MODEL, TEXT = ["model=gpt2-tiny", *SIZES], ["data=text", "data.train=train.txt", "data.validation=held-out.txt"]
CALLBACKS = ["callbacks=[ema,stop_at]", "callbacks.ema.decay=0.5", "callbacks.stop_at.loss=99"]
RUNS = {  # options of unlike axes together, where neither can hide what the other does
    "file": [*TEXT, "model=llama-tiny"],
    "model-objective": [*TEXT, "model=gpt2-frozen", *NEW_WEIGHTS, *SIZES, "objective=prefix"],
    "corpus-optimizer": [
        *(*MODEL, "data=archive", "data.path=texts.zip"),
        *("optimizer=lion", "optimizer.lr=0.001", "optimizer.weight_decay=0"),
    ],
    "callbacks": [*MODEL, *TEXT, *CALLBACKS],
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the code with every block of the page in its place."""
    project = tmp_path_factory.mktemp("extended")
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for path, block in NEW.findall(PAGE):
        assert not (project / path).exists()
        (project / path).write_text(block, encoding="utf-8")
    for path, line, block in ABOVE.findall(PAGE):
        lines = (project / path).read_text(encoding="utf-8").splitlines(keepends=True)
        (place,) = (number for number, text in enumerate(lines) if text.strip() == line)
        lines.insert(place, block)
        (project / path).write_text("".join(lines), encoding="utf-8")
    write_text(project / "train.txt")
    write_text(project / "held-out.txt", lines=30, seed=1)
    with zipfile.ZipFile(project / "texts.zip", "w") as archive:
        for split, file in (("train", "train.txt"), ("validation", "held-out.txt")):
            archive.write(project / file, f"{split}/{file}")
    return project


@pytest.fixture(scope="module")
def results(extended):
    arguments = json.dumps([COMMON, RUNS])
    environment = {"PYTHONPATH": str(extended / "src"), "PATH": "/usr/bin:/bin", "HOME": str(extended)}
    environment["OMP_NUM_THREADS"] = "1"  # the models are too small for more
    command = [sys.executable, "-c", TRAIN, arguments]
    done = subprocess.run(command, cwd=extended, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_block_has_a_place():
    blocks = re.findall(r"^```", PAGE, re.MULTILINE)
    assert len(NEW.findall(PAGE)) + len(ABOVE.findall(PAGE)) == len(blocks) // 2 > 15


def test_help_lists_the_new_options_by_itself(results):
    for option in ("llama-tiny", "gpt2-frozen", "archive", "prefix", "lion", "stop_at"):
        assert option in results["help"]


def test_a_model_by_a_file_and_by_a_class(results):
    assert results["file"]["summary"]["status"] == "finished"
    frozen = {name for name, values in results["model-objective"]["changes"].items() if values == [0.0]}
    assert results["model-objective"]["options"]["model"] == "frozen"
    assert frozen == {"transformer.wte.weight", "transformer.wpe.weight"}


def test_a_corpus(results, extended):
    result = results["corpus-optimizer"]
    assert result["options"]["data"] == "archive"
    for split, file in (("train", "train.txt"), ("validation", "held-out.txt")):
        assert result["ledger"][split]["bytes"] == (extended / file).stat().st_size


def test_an_objective(results):
    result = results["model-objective"]
    assert result["options"]["objective"] == "prefix"
    assert result["summary"]["val/tokens"] == result["ledger"]["validation"]["tokens"] - 16, "half of the first window"


def test_an_optimizer(results):
    result = results["corpus-optimizer"]
    assert result["options"]["optimizer"] == "lion"
    steps = {value for values in result["changes"].values() for value in values}
    assert steps <= {0.0, 0.001, 0.002}, "each step moves each weight by the rate"


def test_a_figure(results):
    summary = results["file"]["summary"]
    assert summary["val/bits_per_word"] == pytest.approx(math.log2(summary["val/word_perplexity"]))


def test_a_run_of_a_new_option_can_be_used(results, extended):
    assert results["generate"] == 0, "the command that its summary names"
    text = (extended / results["recipe"]).read_text(encoding="utf-8")
    assert "- ema\n" in text and "- stop_at\n" in text and "decay: 0.5" in text


def test_a_callback(results):
    assert results["callbacks"]["options"]["callbacks"] == ["ema", "stop_at"]
    assert (results["callbacks"]["summary"]["steps"], results["file"]["summary"]["steps"]) == (1, 2)
