"""A run that is cut off and goes on is one run in W&B: no row is lost, and none is there twice."""

import os
import signal
from pathlib import Path

import pytest
import wandb
from conftest import compose, fork_server
from wandb_offline import as_rows, inspect, no_account, only, parts, rows, settings  # noqa: F401

from lightning_lm.run import train
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.tracking import WandbHistory
from lightning_lm.training.telemetry import Telemetry


@pytest.mark.parametrize("last", [{"train/loss": 3.0}, {"val/loss": 3.1}], ids=["before", "after its validation"])
def test_wandb_takes_only_the_rows_that_it_lacks(last, tmp_path):
    """W&B's own client leaves them out, also where its server says up to where it has them."""
    before = [(5, {"train/loss": 4.0}), (10, {"train/loss": 3.0}), (10, last)]
    again = [(5, {"train/loss": 4.0}), (10, {"train/loss": 3.0}), (10, {"val/loss": 3.1}), (15, {"train/loss": 2.0})]
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        for steps in (before, [*again, (15, {"val/loss": 2.1}), (15, {"test/loss": 2.2})]):
            logger = WandbHistory(experiment=run)  # as each process has its own
            for step, figures in steps:
                logger.log_metrics({**figures, "tokens_seen": 8.0 * step}, step)
    history = as_rows(only(tmp_path).history)
    expected = [(5, "train/loss"), (10, "train/loss"), (10, "val/loss")] + [
        (15, f"{split}/loss") for split in ("train", "val", "test")
    ]
    assert [(row["step"], next(name for name in row if "loss" in name)) for row in history] == expected
    assert [row["tokens_seen"] for row in history] == [40, 80, 80, 120, 120, 120]


def killed_after(step, job, environ, service_alone=False):
    """Train in a process group of its own, which is killed, with W&B's service or that alone, after a step."""
    os.setsid()
    os.environ.clear()
    os.environ.update({name: value for name, value in environ.items() if "WANDB_SERVICE" not in name})
    original = Telemetry.on_train_batch_end

    def dying(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == step and service_alone:
            for children in Path("/proc/self/task").glob("*/children"):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
        elif trainer.global_step == step:
            os.killpg(0, signal.SIGKILL)

    Telemetry.on_train_batch_end = dying
    train(job)


def test_rows_that_a_kill_kept_from_wandb_are_sent_again(tiny_gpt2, text, tmp_path):
    """A machine that goes down takes what W&B's service has not written yet."""
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", "trainer.max_steps=8", "objective.prompts=[]"))
    for step in (5, None):
        process = fork_server().Process(target=killed_after, args=(step, job, dict(os.environ)))
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if step else 0)
    before, after = (as_rows(inspect(part).history) for part in parts(tmp_path / "run"))
    expected = rows(tmp_path / "run")
    assert len(before) < 6, "else the kill has taken nothing, and this test shows nothing"
    assert after == [pytest.approx(row, rel=1e-12) for row in expected]


def test_a_run_outlives_the_service_of_wandb(tiny_gpt2, text, tmp_path):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", "trainer.max_steps=8", "objective.prompts=[]"))
    process = fork_server().Process(target=killed_after, args=(5, job, dict(os.environ), True))
    process.start()
    process.join()
    assert process.exitcode == 0 and read_json_file(tmp_path / "run" / "summary.json")["status"] == "finished"
    assert (tmp_path / "run" / "train.log").read_text().count("W&B: its service has ended") == 1
