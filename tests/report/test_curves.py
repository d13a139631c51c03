"""The curves of the report's page against those of the file."""

import math

import numpy as np
import pytest
from run_folders import write_run

from lightning_lm import cli
from lightning_lm.report.certainty import AveragingTime
from lightning_lm.report.curves import POINTS, progress, read_curves, thinned
from lightning_lm.report.landscape import averaging
from lightning_lm.report.runs import collect
from lightning_lm.runs.step_table import read_series


def test_minutes_are_those_spent_in_steps(tmp_path):
    run = write_run(tmp_path / "run", loss=3.0)
    steps, minutes = progress(read_series(run / "metrics.csv"), "minutes")
    # 600 tokens a step, at 100, 200, 300, 400 tokens a second
    assert dict(zip(steps, minutes, strict=True)) == pytest.approx(
        {0: 0, 1: 0.1, 2: 0.15, 3: 0.15 + 1 / 30, 4: 0.15 + 7 / 120}
    )
    tokens = dict(zip(*progress(read_series(run / "metrics.csv"), "tokens"), strict=True))
    assert tokens == {step: 600 * step for step in (1, 2, 3, 4)}


def test_no_peak_is_lost_in_a_thinned_curve():
    values = np.random.default_rng(0).normal(size=10_000)
    values[[0, 1234, 9_999]] = 5, 100, -100
    places = thinned(values)
    assert len(places) <= POINTS + 2 and {0, 1234, 9_999} <= set(places) and np.all(np.diff(places) > 0)
    for stretch in np.array_split(np.arange(10_000), POINTS // 2):
        assert {values[stretch].min(), values[stretch].max()} <= set(values[places])


def test_the_curves_of_the_page_are_those_of_the_file(tmp_path):
    drawn = read_curves(collect([write_run(tmp_path / "run", loss=3.0)])[0])
    assert drawn["train/loss"]["values"] == [6.0, 5.0, 4.0, 3.0] and drawn["val/loss"]["steps"] == [2.0, 4.0]
    assert drawn["val/loss"]["tokens"] == [1200.0, 2400.0]
    assert drawn["val/loss"]["minutes"] == pytest.approx([0.15, 0.15 + 7 / 120], rel=1e-4)


def test_a_row_that_is_being_written_is_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "run", loss=3.0)
    with (run / "metrics.csv").open("a") as file:
        file.write("5,1.0")
    assert read_series(run / "metrics.csv")["train/loss"][0].tolist() == [1, 2, 3, 4]
    first, second, *_ = (run / "metrics.csv").read_text().splitlines()
    for damaged in (f"{first}\n{second.replace('6.0', 'six')}".encode(), b"a,b\n1,2\n", bytes(range(256))):
        (run / "metrics.csv").write_bytes(damaged)
        assert cli.main(["report", str(run)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "metrics.csv: it is damaged" in line


def test_averaging_times_are_drawn_where_there_are_some():
    times = [AveragingTime(f"wd {n}", 3.0 + n, steps, None) for n, steps in enumerate((100.0, math.inf, 1000.0, 10.0))]
    (dots,) = averaging(times, "loss").data
    assert (dots.x, dots.y) == ((100, 1000, 10), (3, 5, 6)), "without decay nothing is averaged"
    assert averaging(times[:3], "loss") is None
