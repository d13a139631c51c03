"""Sweeps as commands of their own: processes that end with a killed one, searches that go on, launchers."""

# ruff: noqa: F811 (a fixture)
import csv
import sqlite3
import subprocess
import time

import pytest
from test_sweeps import command, config, kill_when, steps, summary  # noqa: F401 (a fixture)


@pytest.mark.slow
def test_the_processes_of_a_killed_command_end_too(command):
    process = command.start("hardware.devices=2", "trainer.max_epochs=100000", "run_dir=r")
    for _ in range(1200):
        if (command.folder / "r" / "checkpoints" / "last.ckpt").exists():
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    for _ in range(300):
        left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
        if not left:
            break
        time.sleep(0.1)
    assert left == [] and not (command.folder / "r" / "summary.json").exists()


@pytest.mark.slow
def test_an_unseeded_search_on_two_processes_is_cut_off_and_gone_on_with(command):
    """Every rank of every job trained with the job's own rate; pruned, diverged and finished trials are told apart."""
    folder = command.folder / "s"
    typed = ["sweep=lr_wd_optuna", "optimizer.lr=tag(log,interval(1e-3,1e3))", "optimizer.weight_decay=0"]
    typed += ["scheduler=constant", "hardware.devices=2", "hydra.sweep.dir=s", "hydra.sweeper.trials=6"]
    typed += ["hydra.sweeper.sampler=random", "hydra.sweeper.seed=null", "hydra.sweeper.reduction_factor=2"]
    typed += ["hydra.sweeper.startup_trials=0", "hydra.sweeper.spare_every=0", "scheduler.warmup=0"]
    kill_when(command.start(*typed), folder / "1" / "checkpoints" / "last.ckpt")
    code, out, err = command(*typed)
    assert code == 0, err
    with sqlite3.connect(folder / "study.db") as db:
        drawn = dict(db.execute("select number, param_value from trials natural join trial_params"))
        states = [state for (state,) in db.execute("select state from trials order by number")]
        reported = db.execute(
            "select number, step, intermediate_value from trials natural join trial_intermediate_values"
        ).fetchall()
    assert [*drawn] == [*range(6)] and len(set(drawn.values())) == 6
    names = {"finished": "COMPLETE", "pruned": "PRUNED", "diverged": "FAIL"}
    for number, rate in drawn.items():
        job = folder / str(number)
        assert config(job).optimizer.lr == rate
        with (job / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {float(row["learning_rate"]) for row in rows if row["learning_rate"]} <= {rate}
        assert states[number] == names[summary(job)["status"]]
        ranks = [int(step) for step in steps(job)]
        assert ranks == sorted(set(ranks)), "no step twice"
        assert (job / "export").exists() == (states[number] == "COMPLETE")
    # The rule, by hand: after validations 1 and 2 (of 3) the best half of those that came as far goes on.
    kept: dict[int, list[float]] = {2: [], 4: []}
    for number in range(6):
        ours = {step: value for n, step, value in reported if n == number}
        for step, seen in kept.items():
            if step in ours:
                seen.append(ours[step])
                good = ours[step] <= sorted(seen)[max(len(seen) // 2 - 1, 0)]
                assert good == (step + 2 in ours or states[number] == "FAIL"), (number, step, ours, seen)
    assert "6 jobs in s: " in out
    # Cut off between its last checkpoint and its summary, a pruned trial stays one.
    for job in [folder / str(number) for number, state in enumerate(states) if state == "PRUNED"][:1]:
        before = steps(job)
        (job / "summary.json").unlink()
        with sqlite3.connect(folder / "study.db") as db:
            db.execute("update trials set state = 'RUNNING' where number = ?", [job.name])
        code, out, err = command(*typed)
        assert code == 0, err
        assert summary(job)["status"] == "pruned" and steps(job) == before


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local"]])
def test_launchers(command, launcher):
    rates = "1e-2,1e20,1e-3"
    code, out, err = command(
        "hydra.mode=MULTIRUN",
        f"optimizer.lr={rates}",
        "hydra.sweep.dir=s",
        f"hydra/launcher={launcher[0]}",
        *launcher[1:],
    )
    assert code == 0, err
    for number, rate in enumerate(rates.split(",")):
        job = command.folder / "s" / str(number)
        assert config(job).optimizer.lr == float(rate)
        assert summary(job)["status"] == ("diverged" if rate == "1e20" else "finished")
    assert "3 jobs in s: 2 finished, 1 diverged" in out
    if launcher[0] == "joblib":  # the other's jobs have files of their own
        lines = [line for line in err.splitlines() if " parameters; " in line]
        assert sorted(line[:6] for line in lines) == ["[1/3] ", "[2/3] ", "[3/3] "]
