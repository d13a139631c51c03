"""A run that was cut off ends as if it had not been."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, compose
from resumable import assert_same, outcome, settings

from lightning_lm.errors import Refused
from lightning_lm.run import train
from lightning_lm.training.checkpoints import LastCheckpoint
from lightning_lm.training.samples import PromptSamples
from lightning_lm.training.telemetry import Telemetry

EPOCH = 13  # optimizer steps


class Killed(BaseException):
    pass


def cut_off(monkeypatch, hook, step, job):
    """Run until ``hook`` (of a callback class) at a step, and stop there as a kill would."""
    owner, name = hook
    original = getattr(owner, name)

    def dying(self, trainer, *args):
        if trainer.global_step == step and trainer.state.fn == "fit":
            raise Killed
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            train(job)
    Path(job.run_dir, "summary.json").unlink(missing_ok=True)  # a kill would not have left one


BATCH_END, VALIDATED = (Telemetry, "on_train_batch_end"), (PromptSamples, "on_validation_end")


@pytest.mark.parametrize(
    ("hook", "steps"),
    [
        pytest.param(BATCH_END, [2], id="before the first checkpoint"),
        pytest.param(BATCH_END, [4, 9, 11], id="within an epoch, three times"),
        pytest.param(BATCH_END, [EPOCH], id="at an epoch's last step", marks=pytest.mark.slow),
        pytest.param(VALIDATED, [EPOCH], id="in the validation at an epoch's end", marks=pytest.mark.slow),
        pytest.param(BATCH_END, [EPOCH + 1], id="just after an epoch's end", marks=pytest.mark.slow),
        pytest.param(BATCH_END, [EPOCH, EPOCH + 1, 2 * EPOCH, 2 * EPOCH + 1, 32], id="at all borders"),
        pytest.param(VALIDATED, [32], id="in the last validation"),
    ],
)
def test_resumed_runs_end_like_uninterrupted_ones(hook, steps, dropping, text, tmp_path, monkeypatch, reference):
    job = compose(*settings(dropping, text, tmp_path / "run"))
    for step in steps:
        cut_off(monkeypatch, hook, step, job)
    train(job)
    assert_same(tmp_path / "run", reference())
    log = (tmp_path / "run" / "train.log").read_text()
    assert ("the run has no checkpoint, and begins again at step 0" in log) == (steps == [2])


def test_a_checkpoint_waits_for_a_validation_that_is_due(dropping, text, tmp_path, monkeypatch, reference):
    """What the kill has left half written is no part of the run that goes on."""
    job = compose(*settings(dropping, text, tmp_path / "run", f"trainer.checkpoint_every_n_steps={EPOCH}"))
    for hook in (VALIDATED, (LastCheckpoint, "on_validation_end")):
        cut_off(monkeypatch, hook, EPOCH, job)
    (scratch := tmp_path / "run" / "checkpoints" / ".last.ckpt.1.tmp").touch()
    train(job)
    assert_same(tmp_path / "run", reference())
    assert not scratch.exists()


@pytest.mark.parametrize(
    "more",
    [
        ("trainer.val_every_n_steps=5",),
        pytest.param(("optimizer=muon", "hardware.num_workers=2"), marks=pytest.mark.slow),
    ],
)
def test_resuming_with_other_settings(more, dropping, text, tmp_path, monkeypatch, reference):
    job = compose(*settings(dropping, text, tmp_path / "run", *more))
    for step in (5, 14, 30):
        cut_off(monkeypatch, BATCH_END, step, job)
    train(job)
    assert_same(tmp_path / "run", reference(*more))


def test_a_run_from_before_a_setting_goes_on_as_it_began(dropping, text, tmp_path, monkeypatch, reference):
    before = {"optimizer": {"layout_aware": False}, "trainer": {"exact_gradient_norm": False}}
    old = [f"{axis}.{name}={value}" for axis, part in before.items() for name, value in part.items()]
    run = tmp_path / "run"
    cut_off(monkeypatch, BATCH_END, 14, compose(*settings(dropping, text, run, "optimizer=muon", *old)))
    saved = yaml.safe_load((run / "config.yaml").read_text())
    for axis, part in before.items():
        for name in part:
            del saved[axis][name]
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    train(compose(*settings(dropping, text, run, "optimizer=muon")))
    assert_same(run, reference("optimizer=muon", *old))
    assert "layout_aware=False: the run began so, and goes on so" in (run / "train.log").read_text()


def test_a_finished_run_is_not_trained_again(dropping, text, reference, caplog):
    run = reference()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "train.log"}
    assert train(compose(*settings(dropping, text, run))) > 0
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "train.log"}


def test_a_run_with_other_settings_is_refused(dropping, text, reference):
    with pytest.raises(Refused) as refused:
        train(compose(*settings(dropping, text, reference(), "optimizer.lr=5e-3", "seed=3")))
    assert [problem.setting for problem in refused.value.problems] == ["optimizer.lr", "seed"]


def test_another_text_under_the_same_name_is_refused(dropping, text, tmp_path, monkeypatch):
    copy = tmp_path / "text.txt"
    copy.write_bytes(text.read_bytes())
    job = compose(*settings(dropping, copy, tmp_path / "run"))
    cut_off(monkeypatch, BATCH_END, 5, job)
    copy.write_bytes(text.read_bytes()[:-100])
    with pytest.raises(Refused, match="data.train"):
        train(job)


@pytest.mark.slow
def test_ten_kills(dropping, text, tmp_path):
    """Kill −9 the real command at ten random moments of training; all is as in an uninterrupted run."""

    def start(run):
        command = [sys.executable, ROOT / "train.py", *settings(dropping, text, run, "trainer.max_steps=600")]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def steps(run):
        table = run / "metrics.csv"
        lines = table.read_text(encoding="utf-8").splitlines()[1:] if table.exists() else []
        return max((int(line.split(",")[0]) for line in lines if "," in line), default=0)

    run, draw, goal = tmp_path / "run", random.Random(0), 0
    for _ in range(10):
        goal += draw.randint(15, 50)
        process = start(run)
        while steps(run) < goal:
            assert process.poll() is None, "the run ended by itself"
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(run).wait() == 0
    assert start(tmp_path / "reference").wait() == 0
    assert_same(run, tmp_path / "reference")


WORSENING = ["optimizer.lr=1e-2", "scheduler=constant", "trainer.val_every_n_steps=4", "trainer.max_steps=26"]


@pytest.mark.parametrize("way", ["moved", pytest.param("linked", marks=pytest.mark.slow)])
def test_a_folder_that_was_moved_goes_on_with_its_best_checkpoint(way, dropping, text, tmp_path, monkeypatch):
    """On a text that soon teaches nothing more, so that an early validation is the best."""
    narrow = tmp_path / "narrow.txt"
    narrow.write_text("the river was old\n" * 4000, encoding="utf-8")
    more = [*WORSENING, f"data.train={narrow}"]
    whole, cut = ([*settings(dropping, text, tmp_path / name), *more] for name in ("whole", "cut"))
    train(compose(*whole))
    cut_off(monkeypatch, BATCH_END, 22, compose(*cut))
    if way == "moved":
        (tmp_path / "cut").rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").symlink_to(tmp_path / "cut")
    train(compose(*cut, f"run_dir={tmp_path / 'elsewhere'}"))
    ours, theirs = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("elsewhere", "whole"))
    assert ours["best_step"] == theirs["best_step"] < 22
    assert ours["val/loss"] == theirs["val/loss"]
    assert_same(tmp_path / "elsewhere", tmp_path / "whole")


def test_a_checkpoint_by_minutes(dropping, text, tmp_path, monkeypatch):
    """On a clock on which each step takes a minute."""
    more = ["trainer.checkpoint_every_n_steps=null", "trainer.checkpoint_every_n_minutes=5", "trainer.max_steps=12"]
    job = compose(*settings(dropping, text, tmp_path / "run", *more))
    saved, clock = [], itertools.count(step=60)
    monkeypatch.setattr("lightning_lm.training.checkpoints.time.monotonic", lambda: float(next(clock)))
    original = LastCheckpoint.on_save_checkpoint

    def note(self, trainer, *rest):
        saved.append(trainer.global_step)
        original(self, trainer, *rest)

    monkeypatch.setattr(LastCheckpoint, "on_save_checkpoint", note)
    train(job)
    assert len(saved) >= 3 and set(saved) - {12}, "besides the one after the only validation"


def test_a_row_counts_all_labels_since_the_last_one(dropping, text, tmp_path, monkeypatch):
    more = ["trainer.log_every_n_steps=5", "trainer.max_steps=12"]
    whole, cut = (compose(*settings(dropping, text, tmp_path / name), *more) for name in ("whole", "cut"))
    train(whole)
    cut_off(monkeypatch, BATCH_END, 8, cut)
    train(cut)
    assert_same(tmp_path / "cut", tmp_path / "whole")
    assert [row["step"] for row in outcome(tmp_path / "whole")[1] if row["train/loss"]] == ["5", "10", "12"]
