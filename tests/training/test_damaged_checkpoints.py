"""A run whose checkpoints, or whose export, are damaged goes on from what is whole, or says that it can't."""

import json
import os
import shutil

import pytest
import torch
from conftest import compose
from resumable import assert_same, settings
from test_resume import BATCH_END, cut_off

import lightning_lm as lm
from lightning_lm.errors import Refused
from lightning_lm.hub.push import push
from lightning_lm.run import train
from lightning_lm.training.module import LanguageModel


@pytest.fixture(scope="module")
def cut_at_20(dropping, text, tmp_path_factory):
    """A run that was cut off; its checkpoints are of the steps 18 and 15."""
    run = tmp_path_factory.mktemp("cut") / "run"
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, BATCH_END, 20, compose(*settings(dropping, text, run)))
    return run


@pytest.fixture
def cut_run(cut_at_20, dropping, text, tmp_path):
    """A copy of that run, to be damaged: its folder and its job."""
    run = shutil.copytree(cut_at_20, tmp_path / "run")
    return run, compose(*settings(dropping, text, run))


def flip(path):
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (cut, empty))])
def test_a_damaged_checkpoint_is_not_gone_on_from(damage, cut_run, monkeypatch, reference, capsys):
    run, job = cut_run
    scratch = run / "checkpoints" / ".best.ckpt.123.tmp"
    scratch.write_text("half")
    damage(run / "checkpoints" / "last.ckpt")
    whole = (run / "checkpoints" / "previous.ckpt").read_bytes()
    cut_off(monkeypatch, BATCH_END, 19, job)  # just after the next save
    assert (run / "checkpoints" / "previous.ckpt").read_bytes() == whole
    train(job)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "goes on from previous.ckpt" in line]
    assert "last.ckpt: it" in told and ("damaged" in told or "cut off" in told)
    assert_same(run, reference())
    assert not scratch.exists(), "what a dead process has left goes at the next start"


def test_where_no_checkpoint_is_whole_nothing_is_touched(cut_run):
    run, job = cut_run
    for name in ("last", "previous"):
        flip(run / "checkpoints" / f"{name}.ckpt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(Refused, match=r"run_dir=.*no checkpoint is whole \(last.ckpt: .*; previous.ckpt: .*\)"):
        train(job)
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_best_checkpoint_is_never_exported(cut_run):
    """At a start it is told before anything is spent; one that is damaged later ends the run without an export."""
    run, job = cut_run
    best = run / "checkpoints" / "best.ckpt"
    flip(best)
    with pytest.raises(Refused, match=r"run_dir=.*best.ckpt: .*damaged.*; delete that file"):
        train(job)
    best.unlink()
    train(job)
    assert torch.load(best, weights_only=True)["global_step"] in (26, 32), "the best of those after step 20"


def test_weights_without_a_loss_are_not_exported(dropping, text, tmp_path, monkeypatch):
    job = compose(*settings(dropping, text, tmp_path / "run", "trainer.max_steps=3"))
    original = LanguageModel.on_test_epoch_end

    def scored(self):
        original(self)
        self.figures["test/loss"] = float("nan")

    monkeypatch.setattr(LanguageModel, "on_test_epoch_end", scored)
    with pytest.raises(Refused, match="test/loss=nan"):
        train(job)
    ended = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert ended["status"] == "diverged" and ended["reason"].startswith("test/loss=nan: the best checkpoint")
    assert not (tmp_path / "run" / "export").exists()


def test_a_damaged_export_is_not_used(reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference(), run)
    assert lm.load_run(run).model
    flip(run / "export" / "model.safetensors")
    for use in (lambda: lm.load_run(run).model, lambda: push(run, "me/model", dry_run=True)):
        with pytest.raises(Refused, match="run=.*: its export: model.safetensors is damaged"):
            use()


@pytest.mark.parametrize("place", [26, -8, *(pytest.param(at, marks=pytest.mark.slow) for at in (-1500, -60))])
def test_flipped_bits_of_a_checkpoints_headers(place, cut_run, reference):
    """Where its records are listed, which no checksum covers: noticed, or without effect."""
    run, job = cut_run
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    for bit in (1, 32):
        content[place] ^= bit
    last.write_bytes(content)
    train(job)
    assert_same(run, reference())
