"""SIGKILL at random moments, again and again: the run ends as if nothing had happened. ``make kills`` does it often."""

import contextlib
import os
import random
import signal
import time

import pytest
from conftest import compose, fork_server
from resumable import assert_same, settings

from lightning_lm.launch import start
from lightning_lm.runs.folder import job_status

KILLS = int(os.environ.get("KILLS", 4))


def run(job):
    os.setsid()  # ranks of the job die with it
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        start(job, named=True)


@pytest.mark.parametrize(
    ("objective", "devices"),
    [
        ("clm", 1),
        pytest.param("mlm", 1, marks=pytest.mark.slow),
        pytest.param("clm", 2, marks=pytest.mark.slow),
        pytest.param("mlm", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random(objective, devices, dropping, tiny_bert, text, tmp_path):
    model = dropping if objective == "clm" else tiny_bert
    more = [f"objective={objective}", f"hardware.devices={devices}", "trainer.val_every_n_steps=5"]
    more += ["objective.prompts=[]", "trainer.checkpoint_every_n_steps=2", "hardware.micro_batch_size=2"]
    if objective == "mlm":
        more.append("data.block_size=32")

    def job(name):
        typed = settings(model, text, tmp_path / name, *more)
        return compose(*(setting for setting in typed if objective == "clm" or "preview_tokens" not in setting))

    jobs = {name: job(name) for name in ("whole", "killed")}
    processes = fork_server()
    moments = random.Random(f"{objective} {devices}")

    def begin(name):
        process = processes.Process(target=run, args=(jobs[name],))
        process.start()
        return process

    began = time.monotonic()
    whole = begin("whole")
    whole.join()
    assert whole.exitcode == 0
    seconds = time.monotonic() - began
    for _ in range(KILLS):
        if job_status(tmp_path / "killed") == "finished":
            (tmp_path / "killed").rename(tmp_path / f"done-{time.monotonic_ns()}")
        process = begin("killed")
        process.join(timeout=moments.uniform(0.1, seconds))
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it has just begun, and leads no group yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        process.join()
    last = begin("killed")
    last.join()
    assert last.exitcode == 0
    for folder in [tmp_path / "killed", *tmp_path.glob("done-*")]:
        assert_same(folder, tmp_path / "whole")
