"""SIGKILL at random moments, again and again: the run ends as if nothing had happened. ``make kills`` does it often."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from conftest import compose, fork_server
from resumable import assert_same, settings

from lightning_lm import launch
from lightning_lm.launch import start
from lightning_lm.runs.folder import job_status
from lightning_lm.training.control import Budget

KILLS = int(os.environ.get("KILLS", 2))
CHAOS_STEPS = int(os.environ.get("CHAOS_STEPS", 240))
rank_of_a_job = launch._rank


def run(job):
    os.setsid()  # ranks of the job die with it
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
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


def noting_rank(*arguments):
    """What a rank does in the place of ``_rank``: it notes its process and its micro batches."""
    notes, rank, original = Path(arguments[-1][1]["NOTES"]), os.environ["RANK"], Budget.on_train_batch_end

    def note(self, trainer, *more):
        original(self, trainer, *more)
        with (notes / "steps").open("a") as file:
            print(trainer.global_step, file=file)

    (notes / rank).write_text(str(os.getpid()))
    Budget.on_train_batch_end = note
    return rank_of_a_job(*arguments)


def run_noting(job, notes):
    os.environ["NOTES"] = str(notes)
    launch._rank = noting_rank
    with (notes / "console").open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        start(job, named=True)


@pytest.mark.slow
def test_a_rank_is_killed_every_few_steps(dropping, text, tmp_path, capsys):
    """And no hand is needed: the ranks are started again. On a machine of any speed they come 4 to 24 steps further."""
    more = ["hardware.devices=2", "trainer.checkpoint_every_n_steps=3", f"trainer.max_steps={CHAOS_STEPS}"]
    more += ["hardware.micro_batch_size=2", "objective.prompts=[]"]
    whole, chaos = (compose(*settings(dropping, text, tmp_path / name, *more)) for name in ("whole", "chaos"))
    chaos.hardware.restarts = 1000
    (notes := tmp_path / "notes").mkdir()
    (notes / "steps").touch()
    processes, draw, kills, due = fork_server(), random.Random(0), 0, 40
    command = processes.Process(target=run_noting, args=(chaos, notes))
    command.start()
    while command.is_alive():
        command.join(timeout=0.1)
        if (batches := len((notes / "steps").read_text().splitlines())) >= due:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((notes / draw.choice("01")).read_text()), signal.SIGKILL)
                kills += 1
            due = batches + 4 * draw.randint(4, 24)  # two ranks, two micro batches
    assert command.exitcode == 0, (notes / "console").read_text()[-3000:]
    undisturbed = processes.Process(target=run, args=(whole,))
    undisturbed.start()
    undisturbed.join()
    assert_same(tmp_path / "chaos", tmp_path / "whole")
    told = (tmp_path / "chaos" / "train.log").read_text().count("the run goes on from its last checkpoint")
    done = len((notes / "steps").read_text().splitlines()) / 4
    assert 0 < told <= kills
    with capsys.disabled():
        print(f"{kills} kills, {told} restarts, {CHAOS_STEPS / done:.1%} of {done:.0f} steps useful")
