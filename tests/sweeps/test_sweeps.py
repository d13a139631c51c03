"""Sweeps: every job with its own settings, none twice, studies that survive, and what is told at the end."""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import fmean, stdev

import pytest
from conftest import ROOT, compose, forked
from hydra import compose as hydra_compose
from omegaconf import OmegaConf
from tiny import part_of

from lightning_lm.config.composition import hydra_at, typed_job


@pytest.fixture
def command(tiny_gpt2, text, tmp_path, train_py):
    """``train.py`` with a small model, as a command that prints to files, or as a sweep in this process."""
    settings = [
        *(f"data.{split}={text}" for split in ("train", "validation")),
        f"data.test={part_of(text)}",
        f"model.name_or_path={tiny_gpt2}",
        "data=text",
        "data.block_size=32",
        f"data.cache_dir={tmp_path / 'cache'}",
        "objective.prompts=[]",
        "trainer.global_batch_size=8",
        "trainer.limit_train_batches=2",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1",
        "trainer.max_epochs=3",
        "hardware=cpu",
        "logger=none",
    ]

    def start(*overrides: str) -> subprocess.Popen:
        arguments = [sys.executable, str(ROOT / "train.py"), *settings, *overrides]
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            return subprocess.Popen(arguments, cwd=tmp_path, stdout=out, stderr=err, start_new_session=True)

    def run(*overrides: str) -> tuple[int, str, str]:
        code = start(*overrides).wait(timeout=300)
        return code, (tmp_path / "out").read_text(), (tmp_path / "err").read_text()

    run.start, run.folder = start, tmp_path
    run.here = lambda *overrides: train_py("-m", *settings, *overrides)
    return run


def summary(job: Path) -> dict:
    return json.loads((job / "summary.json").read_text())


def config(job: Path):
    return OmegaConf.load(job / "config.yaml")


def steps(job: Path) -> list[int]:
    """At which the training loss was logged, in the order of the file."""
    with (job / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


def kill_when(process: subprocess.Popen, path: Path) -> None:
    """SIGKILL to the whole command once there is such a file."""
    for _ in range(6000):  # a busy machine takes minutes
        if path.exists():
            break
        assert process.poll() is None, "it ended before"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ------------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_grid_is_cut_off_and_gone_on_with(devices, command):
    """Two jobs diverge, the third is killed in its middle."""
    folder = command.folder / "outputs" / "sweeps" / "mine"
    typed = [
        "sweep=lr_wd_grid",
        "optimizer.lr=1e20,1e-2",
        "optimizer.weight_decay=0,0.5",
        f"hardware.devices={devices}",
    ]
    typed += ["hydra.sweep.dir=outputs/sweeps/mine"]
    kill_when(command.start(*typed), folder / "2" / "checkpoints" / "last.ckpt")
    (folder / "2" / "summary.json").unlink(missing_ok=True)
    told = (command.folder / "err").read_text()
    assert re.search(r"diverged: optimizer.lr=1e.20: gradients .*; about", told), "at once"
    before = {job: (folder / job / "train.log").stat().st_mtime_ns for job in "01"}

    code, out, err = command.here(*typed)
    assert code == 0, err
    assert {job: (folder / job / "train.log").stat().st_mtime_ns for job in "01"} == before, "done: not touched again"
    expected = list(itertools.product((1e20, 1e-2), (0.0, 0.5)))
    for number, (lr, decay) in enumerate(expected):
        settings = config(folder / str(number))
        assert (settings.optimizer.lr, settings.optimizer.weight_decay) == (lr, decay)
        assert settings.logger.group == "mine"
        assert summary(folder / str(number))["status"] == ("finished" if lr < 1 else "diverged")
    for number in (2, 3):
        assert steps(folder / str(number)) == [1, 2, 3, 4, 5, 6]
        assert summary(folder / str(number))["world_size"] == devices
        assert "test/loss" not in summary(folder / str(number))
    rows = [line.split() for line in out.splitlines() if re.match(r"\d  ", line)]
    losses = {job: summary(folder / job)["val/loss"] for job in "23"}
    assert [row[0] for row in rows] == sorted(losses, key=losses.get) and rows[0][-1] == "best"
    assert [float(row[2]) for row in rows] == pytest.approx(sorted(losses.values()), abs=1e-4)
    for job, decay in ("0", "0"), ("1", "0.5"):
        assert f"{job} (lr=1e+20 wd={decay})" in out
    assert "diverged: optimizer.lr=1e+20: gradients are no numbers" in " ".join(out.split())
    assert "4 jobs in outputs/sweeps/mine: 2 diverged, 2 finished" in out
    assert f"lightning-lm rerun outputs/sweeps/mine/{rows[0][0]}\n" in out
    done = [line for line in err.splitlines() if re.match(r"\[[12]/4\] ", line)]
    assert all(re.match(r"\[[12]/4\] lr=1e\+20 wd=0(.5)? done before: diverged: optimizer.lr=", line) for line in done)
    begun = re.search(r"^\[4/4\] lr=0.01 wd=0.5 → outputs/sweeps/mine/3$", err, re.MULTILINE)
    ended = re.search(r"^\[3/4\] val/loss .*, \d+:\d\d; about \d+:\d\d left for 1 more$", err, re.MULTILINE)
    assert len(done) == 2 and ended.end() < begun.start()
    assert re.search(rf"^\[4/4\] val/loss {losses['3']:.4f}, val/perplexity [\d.]+, \d+:\d\d$", err, re.MULTILINE)


def test_a_grid_gets_further_jobs_of_its_own(command):
    """As ``lightning-lm next`` writes them: they come last, and the same command again adds none."""
    grid = ["trainer.max_epochs=1", "hydra.sweep.dir=s"]
    assert command.here(*grid, "hydra.sweeper.more=[{seed:3}]")[0] == 2, "there is no sweep yet"
    assert command.here(*grid, "optimizer.lr=1e-3,1e-2")[0] == 0
    more = "hydra.sweeper.more=[{optimizer.lr:0.003,optimizer.weight_decay:0.1,seed:3},{optimizer.lr:1e-2}]"
    for _ in range(2):
        code, out, err = command.here(*grid, more)
        assert code == 0, err
        assert "3 jobs in s: 3 finished" in out
    third = config(command.folder / "s" / "2")
    assert (third.optimizer.lr, third.optimizer.weight_decay, third.seed) == (0.003, 0.1, 3)
    code, _, err = command.here(*grid, "hydra.sweeper.more=[1]")
    assert code == 2 and "no list of tables" in err


def test_a_refused_and_a_killed_job_leave_the_others_alone(command):
    """Of three jobs one can't begin, and one is killed; the console tells at once, and the exit code at the end."""
    folder = command.folder / "s"
    killed = []

    def kill_what_trains() -> None:
        for _ in range(1200):
            if (folder / "1" / "checkpoints" / "last.ckpt").exists():
                killed.extend(forked())
                os.kill(killed[-1], signal.SIGKILL)
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill_what_trains)
    killer.start()
    code, out, err = command.here("trainer.max_epochs=3,100000", "optimizer.lr=1e-2", "hydra.sweep.dir=s")
    killer.join()
    assert code == len(killed) == 1
    assert summary(folder / "0")["status"] == "finished"
    assert "was killed by SIGKILL" in err
    assert re.search(r"job 1 \(max_epochs=100000\) cut off: rank 0 .* killed by SIGKILL", out) and "1 cut off" in out


def test_where_only_the_seed_varies_each_job_is_tested(command):
    code, out, err = command.here("seed=0,1", "trainer.max_steps=2", "hydra.sweep.dir=s")
    assert code == 0, err
    losses = [summary(command.folder / "s" / job)["test/loss"] for job in "01"]
    assert losses[0] != losses[1] and f"{fmean(losses):.4f} ± {stdev(losses):.4f}" in out
    assert "best" not in out


@pytest.mark.slow
def test_a_study_that_goes_on_names_its_done_trials(command):
    typed = ["optimizer.lr=interval(1e-3,1e-2)", "hydra.sweep.dir=s", "hydra.sweeper.trials=1"]
    typed += ["hydra.sweeper.seed=0", "trainer.max_steps=1"]
    assert command.here(*typed)[0] == 0
    code, _, err = command.here(*typed)
    assert code == 0 and re.search(r"^\[1/1\] lr=\S+ done before: val/loss ", err, re.MULTILINE)


def test_a_search_that_cannot_work_is_refused_before_its_folder_exists(command, monkeypatch):
    for arguments, told in [
        (["hydra.sweeper.trials=abc"], "hydra.sweeper.trials=abc"),
        (["hydra.sweeper.trials=2", "hydra.sweeper.parallel=0"], "hydra.sweeper.parallel=0"),
        (["hydra.sweeper.sampler=foo"], "use tpe or random"),
        (["hydra.sweep.subdir=${hydra.job.override_dirname}"], "hydra.sweep.subdir"),
        (["run_dir=outputs/mine"], "name the sweep's: hydra.sweep.dir=FOLDER"),
    ]:
        code, out, err = command.here("optimizer.lr=1e-3,1e-2", "hydra.sweep.dir=s", *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert told in err and not (command.folder / "s").exists()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = command.here("optimizer.lr=1e-3,1e-2", "hydra.sweep.dir=s")
    assert code == 2 and "would sweep" in err


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("name", ["lr_wd_grid", "lr_wd_seeds", "lr_wd_optuna"])
def test_a_named_search_leaves_the_recipe_alone(name):
    with hydra_at():
        cfg = hydra_compose("config", ["experiment=quickstart", f"sweep={name}"], return_hydra_config=True)
        plain, searched = compose("experiment=quickstart"), typed_job(cfg)
    plain.run_dir = searched.run_dir
    assert searched == plain
