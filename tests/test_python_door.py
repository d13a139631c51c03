"""The code of docs/python.md runs as it stands there, in a folder of its own; and the import itself is light."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from tiny import write_text

import lightning_lm as lm

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "train.txt")
    write_text(tmp_path / "held-out.txt", lines=40, seed=1)
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    run, result = names["run"], names["result"]
    assert run.summary["status"] == "finished" and run.metrics["train/loss"].dropna().index.tolist() == [10, 20]
    assert (run.config.optimizer.lr, run.config.trainer.max_steps) == (0.01, 20)
    assert abs(result.loss - run.summary["val/loss"]) < 1e-5, "the evaluation scores what the run has scored"
    assert len(run.samples) == len(run.config.objective.prompts)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] != []


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"convention": "lmeval"}, "convention"),
        ({"task": "blimp"}, "task"),
        ({"block_size": 0}, "block_size"),
        ({"mask_draws": 0}, "mask_draws"),
        ({"objective": "xlm"}, "objective"),
        ({"separater": "eos"}, "separater"),
        ({"convention": "lm-eval", "stride": 5}, "stride"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(options, setting, tmp_path):
    with pytest.raises(lm.Refused) as refused:
        lm.evaluate(tmp_path, data="python_docs", **options)
    assert [problem.setting for problem in refused.value.problems] == [setting]


def test_what_is_refused_by_its_name_loads_no_torch():
    code = """import sys
from lightning_lm import cli
for typed in ("evaluate ./nowhere", "evaluate nowhere --stride 0", "report ./nowhere", "rerun ./nowhere"):
    assert cli.main(typed.split()) == 2 and "torch" not in sys.modules, typed"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_name_is_there():
    assert all(getattr(lm, name) for name in lm.__all__)


def test_importing_is_light():
    code = "import sys, lightning_lm; sys.exit(bool({'torch', 'hydra', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
