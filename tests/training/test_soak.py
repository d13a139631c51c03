"""A long run keeps what it had of memory and open files."""

import os
from pathlib import Path

import pytest
from conftest import compose, in_fresh_process
from resumable import settings

from lightning_lm.run import train
from lightning_lm.training.telemetry import Telemetry

STEPS = int(os.environ.get("SOAK_STEPS", 2000))


def soak(job):
    """Train; the resident memory in MB and the number of open files at the start and after each tenth of the steps."""
    original, rows = Telemetry.on_train_batch_end, {}

    def note(self, trainer, *more):
        original(self, trainer, *more)
        if trainer.global_step % (STEPS // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len([*Path("/proc/self/fd").iterdir()])
            rows[trainer.global_step] = (pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files)

    Telemetry.on_train_batch_end = note
    os.environ["WANDB_MODE"] = "offline"
    train(job)
    return list(rows.values())


@pytest.mark.slow
def test_memory_and_open_files_are_flat(dropping, text, tmp_path, capsys):
    """With a validation, samples and checkpoints every 20 steps, and W&B; the first half is for caches to fill."""
    more = [f"trainer.max_steps={STEPS}", "trainer.val_every_n_steps=20", "trainer.checkpoint_every_n_steps=10"]
    more += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.log_every_n_steps=1"]
    rows = in_fresh_process(soak, compose(*settings(dropping, text, tmp_path / "run", *more, "logger=wandb")))
    with capsys.disabled():
        print("\n".join(f"{memory:.1f} MB, {files} open files" for memory, files in rows))
    assert len(rows) == 11
    memory, files = zip(*rows[5:], strict=True)
    assert len(set(files)) == 1
    assert max(memory) < 1.02 * memory[0]
