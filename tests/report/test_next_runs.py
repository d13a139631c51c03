"""The runs that ``lightning-lm next`` proposes, and the command that adds them to the sweep."""

import re
import shlex

import numpy as np
import pytest
from run_folders import write_run

from lightning_lm import cli
from lightning_lm.certainty.region import mesh, size
from lightning_lm.certainty.surface import fit_surface
from lightning_lm.runs.folder import write_json


def write_sweep(folder, losses):
    """A sweep's folder with a job for each (rate, decay, seed): finished, or diverged where it has no loss."""
    rows = [dict(zip(("optimizer.lr", "optimizer.weight_decay", "seed"), map(str, key), strict=True)) for key in losses]
    for number, (row, loss) in enumerate(zip(rows, losses.values(), strict=True)):
        status = "diverged" if loss is None else "finished"
        write_run(folder / str(number), *(f"{key}={value}" for key, value in row.items()), loss=loss, status=status)
    write_json(folder / "sweep.json", {"fixed": {"experiment": "quickstart", "data.path": "a b"}, "search": rows})


def proposed(folder, capsys, *arguments):
    """What is printed: the jobs of the command, and all lines."""
    assert cli.main(["next", str(folder), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = shlex.split(lines[-1])
    assert words[:3] == ["python", "train.py", "-m"] and {"experiment=quickstart", "data.path=a b"} <= {*words}
    assert {f"hydra.sweep.dir={folder}", "logger=none"} <= {*words}, "it is logged as the sweep was"
    tables = re.findall(r"{(.*?)}", words[-1].removeprefix("hydra.sweeper.more="))
    return [dict(pair.split(":") for pair in table.split(",")) for table in tables], lines


def test_runs_that_shrink_the_region(tmp_path, capsys):
    chance = np.random.default_rng(0)
    rates, decays = (1e-3, 2e-3, 4e-3, 8e-3), (0.01, 0.03, 0.1)
    losses = {
        (r, w, s): 3 + 0.3 * np.log(r / 3e-3) ** 2 + 0.1 * np.log(w / 0.03) ** 2 + 0.05 * chance.normal()
        for r in rates for w in decays for s in (0, 1)
    }  # fmt: skip
    write_sweep(tmp_path / "sweep", losses)
    jobs, lines = proposed(tmp_path / "sweep", capsys, "--runs", "3")
    assert len(jobs) == 3 and "expected to shrink" in lines[0]
    tried = {tuple(map(float, job.values())) for job in jobs}
    assert len(tried) == 3 and not tried & losses.keys(), "no job twice"
    assert all(1e-3 <= rate <= 16e-3 for rate, _, _ in tried)


def test_a_rate_that_diverged_is_not_proposed(tmp_path, capsys):
    """The losses fall to the highest rate that finished; one step of the grid further is known to diverge."""
    chance = np.random.default_rng(0)
    losses = {
        (r, 0.1, s): 3 + 0.3 * np.log(r / 3e-2) ** 2 + 0.05 * chance.normal()
        for r in (1e-3, 2e-3, 4e-3)
        for s in (0, 1)
    }
    write_sweep(tmp_path / "open", losses)
    jobs, _ = proposed(tmp_path / "open", capsys, "--runs", "4")
    assert max(float(job["optimizer.lr"]) for job in jobs) > 5e-3, "it looks beyond the edge where nothing diverged"
    write_sweep(tmp_path / "lost", losses | {(5e-3, 0.1, s): None for s in (0, 1)})
    jobs, _ = proposed(tmp_path / "lost", capsys, "--runs", "4")
    assert max(float(job["optimizer.lr"]) for job in jobs) < 5e-3


def test_one_seed_asks_for_another(tmp_path, capsys):
    write_sweep(tmp_path / "sweep", {(1e-3, 0.1, 0): 3.0, (2e-3, 0.1, 0): 2.9, (4e-3, 0.1, 0): 3.5})
    jobs, _ = proposed(tmp_path / "sweep", capsys, "--runs", "2")
    assert [(job["optimizer.lr"], job["seed"]) for job in jobs] == [("0.002", "1"), ("0.001", "1")]


def test_a_further_seed_is_for_several_configurations(tmp_path, capsys):
    """Also where the best is told from the other: a seed that it alone has can't be told from what it does to all."""
    write_sweep(
        tmp_path / "sweep", {(1e-3, 0.1, 0): 2.9, (1e-3, 0.1, 1): 3.0, (2e-3, 0.1, 0): 3.5, (2e-3, 0.1, 1): 3.6}
    )
    jobs, lines = proposed(tmp_path / "sweep", capsys, "--runs", "3")
    assert [(job["optimizer.lr"], job["seed"]) for job in jobs] == [("0.001", "2"), ("0.002", "2")]
    assert lines[0] == "These are 2: a seed of one configuration alone tells nothing."
    assert cli.main(["next", str(tmp_path / "sweep"), "--runs", "1"]) == 2
    assert capsys.readouterr().err.endswith("tells nothing; give 2\n")


def test_a_run_more_is_least_squares_with_a_row_more():
    """Of a noise known beforehand the covariance with the run is that of the fit that has it."""
    points = mesh(np.array([[-1.0, -1.0], [1.0, 1.0]]), 4)
    losses, place = np.sum(points**2, axis=1), np.array([[0.2, -0.4]])
    before = fit_surface(points, losses, np.full(16, 1), 0.1, 10)
    after = fit_surface(np.vstack([points, place]), np.append(losses, np.sum(place**2)), np.full(17, 1), 0.1, 10)
    assert before.with_run(place).covariance == pytest.approx(after.covariance, abs=1e-12)
    assert size(before.with_run(place), points) < size(before, points)


def test_what_cannot_be_extended(tmp_path, capsys):
    write_sweep(tmp_path / "study", {(1e-3, 0.1, 0): 3.0, (2e-3, 0.1, 0): 2.9})
    (tmp_path / "study" / "study.db").touch()
    write_sweep(tmp_path / "one", {(1e-3, 0.1, 0): 3.0})
    for folder, problem in [(tmp_path / "study", "Optuna draws"), (tmp_path / "one", "fewer than two configurations")]:
        assert cli.main(["next", str(folder)]) == 2
        assert problem in capsys.readouterr().err
    assert cli.main(["next", str(tmp_path / "one"), "--runs", "0"]) == 2
