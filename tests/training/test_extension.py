"""A run that gets a later end is the run that had it from the start; or one line says why it can't get one."""

import json
import shutil

import pytest
import torch
from conftest import compose
from resumable import assert_same, settings
from safetensors.torch import load_file

from lightning_lm.errors import Refused
from lightning_lm.logs import JOB
from lightning_lm.run import train
from lightning_lm.training.checkpoints import EXTEND, step_of
from lightning_lm.training.telemetry import Telemetry

END, LATER = 12, 20  # steps
# Scheduler → the step that the run goes on from, more settings
CASES = {
    "constant": (11, ("trainer.log_every_n_steps=3",)),
    "wsd": (9, ("trainer.val_every_n_steps=4", "callbacks=ema", "callbacks.ema.decay=0.5")),
}


def job(scheduler, model, text, run, *more):
    short = (f"trainer.max_steps={LATER}", "trainer.limit_train_batches=8")
    return compose(*settings(model, text, run, *short, f"scheduler={scheduler}", *CASES[scheduler][1], *more))


def summary(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module", params=CASES)
def ended(request, dropping, text, tmp_path_factory):
    """A scheduler, a run that has ended, and one that had the later end from the start."""
    folder = tmp_path_factory.mktemp(request.param)
    train(job(request.param, dropping, text, folder / "run", f"trainer.max_steps={END}"))
    train(job(request.param, dropping, text, folder / "whole"))
    return request.param, folder / "run", folder / "whole"


def test_a_finished_run_with_a_later_end(ended, dropping, text, tmp_path, capsys):
    scheduler, finished, whole = ended
    run = shutil.copytree(finished, tmp_path / "run")
    assert step_of(run / "checkpoints" / EXTEND) == CASES[scheduler][0]
    assert summary(run)["times_tested"] == 1 and summary(run)["steps"] == END
    train(job(scheduler, dropping, text, run))
    assert_same(run, whole)
    assert "The test split was scored 2 times" in capsys.readouterr().err
    ours, theirs = summary(run), summary(whole)
    assert (ours.pop("times_tested"), theirs.pop("times_tested")) == (2, 1)
    assert ours["test/loss"] == theirs["test/loss"] and ours["best_step"] == theirs["best_step"]
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in (run, whole)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("steps", [LATER, END])
def test_a_kill_between_the_files_that_change(ended, steps, dropping, text, tmp_path, monkeypatch):
    """The folder is put back, and config.yaml is not written yet: the new and the old command go on rightly."""
    scheduler, finished, whole = ended
    run = shutil.copytree(finished, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("lightning_lm.training.fit.write_text", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(job(scheduler, dropping, text, run))
    assert not (run / "checkpoints" / "previous.ckpt").exists(), "it is of a later step than last.ckpt now"
    train(job(scheduler, dropping, text, run, f"trainer.max_steps={steps}"))
    assert_same(run, whole if steps == LATER else finished)


def test_a_run_that_was_cut_off_in_its_decay(ended, dropping, text, tmp_path, monkeypatch):
    scheduler, _, whole = ended
    original = Telemetry.on_train_batch_end

    def dying(self, trainer, *args):
        if trainer.global_step == END - 1:
            raise KeyboardInterrupt
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "on_train_batch_end", dying)
        with pytest.raises(SystemExit):
            train(job(scheduler, dropping, text, tmp_path / "run", f"trainer.max_steps={END}"))
    train(job(scheduler, dropping, text, tmp_path / "run"))
    assert_same(tmp_path / "run", whole)
    assert summary(tmp_path / "run")["times_tested"] == 1


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        (["scheduler=linear"], "with scheduler=linear its rates depend on the end"),
        (["scheduler.warmup=0.1"], "its warmup, a share of the run, took 1 steps, and now 2"),
        (["scheduler.warmup=0", "trainer.max_minutes=60"], "has its rates follow the clock"),
    ],
)
def test_why_a_run_can_not_end_later(more, wrong, dropping, text, tmp_path):
    run = tmp_path / "run"
    short = [*more, "trainer.limit_val_batches=1", "objective.prompts=[]"]
    train(job("constant", dropping, text, run, *short, "trainer.max_steps=3"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "train.log"}
    with pytest.raises(Refused, match=f"trainer.max_steps=12: .*{wrong}"):
        train(job("constant", dropping, text, run, *short, "trainer.max_steps=12"))
    with pytest.raises(Refused, match="trainer.max_steps=2: .* holds a run with 3"):
        train(job("constant", dropping, text, run, *short, "trainer.max_steps=2"))
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("keep", [False, True])
def test_a_sweeps_finished_job_keeps_its_best_weights(keep, dropping, text, tmp_path, monkeypatch):
    """A job alone, in the environment that a sweep gives it."""
    monkeypatch.setenv(JOB, "0")
    more = ["trainer.limit_val_batches=1", "objective.prompts=[]", f"trainer.keep_checkpoints={keep}"]
    train(job("constant", dropping, text, tmp_path / "0", *more, "trainer.max_steps=3"), run_test=False)
    folder = tmp_path / "0" / "checkpoints"
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert bool(best["optimizer_states"]) == keep
    exported = load_file(tmp_path / "0" / "export" / "model.safetensors")
    assert all(torch.equal(best["state_dict"][f"model.{name}"], tensor) for name, tensor in exported.items())
    longer = job("constant", dropping, text, tmp_path / "0", *more, "trainer.max_steps=4")
    if keep:
        train(longer)
        assert summary(tmp_path / "0")["steps"] == 4
    else:
        assert [path.name for path in folder.iterdir()] == ["best.ckpt"]
        with pytest.raises(Refused, match="the sweep has not kept the checkpoints"):
            train(longer)


def test_an_end_right_after_an_epoch(dropping, text, tmp_path):
    """There no checkpoint is written where validations have an interval of their own."""
    more = ["scheduler=constant", "trainer.val_every_n_steps=3", "trainer.checkpoint_every_n_steps=null"]
    more += ["trainer.limit_train_batches=4"]
    for name, steps in ("run", 5), ("run", 8), ("whole", 8):
        train(compose(*settings(dropping, text, tmp_path / name, *more, f"trainer.max_steps={steps}")))
    assert_same(tmp_path / "run", tmp_path / "whole")
