"""The code of docs/python.md runs as it stands there, in a folder of its own; and the import itself is light."""

import re
import subprocess
import sys

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


def test_every_name_is_there():
    assert all(getattr(lm, name) for name in lm.__all__)


def test_importing_is_light():
    code = "import sys, lightning_lm; sys.exit(bool({'torch', 'hydra', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
