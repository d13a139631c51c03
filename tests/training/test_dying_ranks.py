"""A rank that dies, hangs or gets a signal: what the job says of it, and how it goes on."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
from conftest import compose, fork_server, forked, in_fresh_process
from ranks import cut_off, rank_of_a_job, settings, weights
from tiny import write_gpt2

from lightning_lm import launch
from lightning_lm.launch import run_job
from lightning_lm.runs.folder import job_status
from lightning_lm.training.checkpoints import step_of
from lightning_lm.training.control import Budget


@pytest.mark.parametrize("how", ["KILLED", "raises"])
def test_a_rank_that_dies_ends_the_job_and_is_told(how, tiny_gpt2, text, tmp_path, monkeypatch, capfd):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", "hardware.devices=2"))
    died = cut_off(monkeypatch, job, 1, 5, how)
    told = {"KILLED": "was killed by SIGKILL", "raises": "RuntimeError: the disk is full"}[how]
    assert died.code == {"KILLED": 137, "raises": 1}[how] and "rank 1" in str(died)
    console = capfd.readouterr().err
    assert console.count(told) == 1 and "Connection" not in console
    assert told in (tmp_path / "run" / "train.log").read_text()
    # the first rank has a second to write that it failed, which a busy machine may not give it
    assert job_status(tmp_path / "run") in ("failed", "cut off")
    assert forked() == []


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tiny_gpt2, text, tmp_path, monkeypatch, capfd):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", "hardware.devices=2", "hardware.hang_timeout=20"))
    died = cut_off(monkeypatch, job, 1, 5, "HANGS")
    told = "rank 1 hangs: the others waited 20 s for it (hardware.hang_timeout)"
    assert (str(died), died.code) == (told, 1)
    assert capfd.readouterr().err.count(told) == (tmp_path / "run" / "train.log").read_text().count(told) == 1
    assert forked() == []


def test_a_wait_for_a_rank_that_never_starts_is_known(free_port):
    store = torch.distributed.TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)
    with pytest.raises(torch.distributed.DistStoreError) as error:
        store.wait(["a rank"], timedelta(milliseconds=50))
    assert launch.TIMED_OUT.search(str(error.value))


def test_ranks_draw_their_own_dropout_and_draw_it_again(text, tmp_path, monkeypatch):
    dropping = write_gpt2(tmp_path / "gpt2", text, dropout=0.1)
    short = ["trainer.max_steps=10", "trainer.checkpoint_every_n_steps=3", "hardware.devices=2"]
    jobs = [compose(*settings(dropping, text, tmp_path / name, *short)) for name in ("whole", "cut")]
    run_job(jobs[0])
    cut_off(monkeypatch, jobs[1], 1, 5, "KILLED")
    run_job(jobs[1])
    for name, value in weights(tmp_path / "cut").items():
        assert torch.equal(value, weights(tmp_path / "whole")[name]), name


def test_a_rank_ends_soon_after_the_process_that_started_the_job():
    """Also where that was killed; a whole command: test_sweeps, among the slow ones."""
    processes = fork_server()
    command = processes.Process(target=time.sleep, args=(60,))
    command.start()
    rank = processes.Process(target=launch._end_with, args=(command.pid,))
    rank.start()
    rank.join(timeout=0.5)
    assert rank.is_alive()
    command.kill()
    rank.join(timeout=30)
    assert rank.exitcode == 1


def signalled_at_a_step(*arguments):
    """A rank of which the first one signals the process that has started the job."""
    environ, number = arguments[-1][1], int(arguments[-1][1]["NUMBER"])
    original = Budget.on_train_batch_end

    def stop(self, trainer, *more):
        original(self, trainer, *more)
        if trainer.global_step == 5 and os.environ["RANK"] == "0":
            os.kill(int(environ["AGENT"]), number)
            time.sleep(1)  # it comes back from there

    Budget.on_train_batch_end = stop
    return rank_of_a_job(*arguments)


def start_ignoring(job, ignored, number):
    """In a process of its own; its exit code."""
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)
    os.environ.update(AGENT=str(os.getpid()), NUMBER=str(number))
    launch._rank = signalled_at_a_step
    try:
        launch.start(job, named=True)
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize(
    ("ignored", "number", "code"),
    [((), signal.SIGUSR1, 138), pytest.param((signal.SIGHUP,), signal.SIGHUP, 0, marks=pytest.mark.slow)],
)
def test_the_signals_of_several_ranks_are_those_of_one(ignored, number, code, tiny_gpt2, text, tmp_path):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", "hardware.devices=2", "trainer.max_steps=8"))
    assert in_fresh_process(start_ignoring, job, ignored, number) == code
    assert step_of(tmp_path / "run" / "checkpoints" / "last.ckpt") >= 5
