"""Runs that log to W&B offline, read back with W&B's own reader."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import wandb
from tiny import part_of

from lightning_lm.figures import COLUMNS


@pytest.fixture(autouse=True, scope="module")
def no_account(tmp_path_factory):
    """W&B as on a machine where nobody has logged in."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("API_KEY", "MODE", "DISABLED", "BASE_URL", "SILENT", "IDENTITY_TOKEN_FILE"):
            patch.delenv(f"WANDB_{name}", raising=False)
        patch.setenv("NETRC", str(home / "netrc"))
        for kind in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(home / kind))
        wandb.teardown()
        yield home
    wandb.teardown()


@pytest.fixture
def fresh_wandb():
    """W&B reads the environment again, before and after."""
    wandb.teardown()
    yield
    wandb.teardown()


def settings(model, text, run, *more):
    return [
        f"model.name_or_path={model}",
        "data=text",
        f"data.train={text}",
        f"data.validation={text}",
        f"data.test={part_of(text)}",
        "data.block_size=64",
        f"data.cache_dir={text.parent / 'cache'}",
        "name=tiny",
        "objective.prompts=['The river','A house']",
        "objective.preview_tokens=3",
        "optimizer.lr=1",  # so high that the last validation isn't the best
        "scheduler=constant",
        "trainer.max_steps=6",
        "trainer.global_batch_size=4",
        "trainer.val_every_n_steps=2",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=1",
        "trainer.log_every_n_steps=1",
        "trainer.checkpoint_every_n_steps=null",  # after validations only
        "hardware=cpu",
        "hardware.micro_batch_size=2",  # accumulation: a batch isn't a step
        "logger=wandb",
        "logger.tags=[mine]",
        f"run_dir={run}",
        *more,
    ]


def inspect(part):
    """The records of one W&B folder: the run, its history, its summary, its exit code."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    return SimpleNamespace(
        run=next((record["run"] for record in records if record["type"] == "run"), None),
        history=[record["history"]["item"] for record in records if record["type"] == "history"],
        summary=summary,
        exit_code=next((record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"), None),
    )


def parts(run):
    return sorted(run.glob("wandb/offline-run-*"))


def only(run):
    (part,) = parts(run)
    return inspect(part)


def rows(run):
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def as_rows(history):
    """History in the form of ``metrics.csv``: without tables and W&B's own fields, under its step."""
    known = [
        {"step": item["trainer/global_step"], **{k: v for k, v in item.items() if k in COLUMNS}} for item in history
    ]
    return [row for row in known if len(row) > 1]
