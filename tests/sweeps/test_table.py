"""The table that ends a sweep: what is ranked with what, what is called best, and what fits a terminal."""

import re
import shlex
from statistics import fmean, stdev

import pytest
from run_folders import write_run

from lightning_lm.errors import Diverged, refuse
from lightning_lm.runs.folder import write_json
from lightning_lm.sweeps.progress import JobPlace, exit_code
from lightning_lm.sweeps.table import job_table


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Writes a sweep's jobs, each with its own settings, a loss or none, and what else is known; returns its table."""
    monkeypatch.setenv("COLUMNS", "80")

    def write(*rows, errors=()):
        write_json(
            tmp_path / "sweep.json",
            {"fixed": {}, "search": [own for own, _, _ in rows], "jobs": len(rows), "parallel": False},
        )
        for number, (own, loss, known) in enumerate(rows):
            if known is not None:
                status = {"status": "finished" if loss is not None else "diverged", "seconds": 60}
                ledger = known.pop("ledger", {"key": "k", "bytes": 1000})
                run = write_run(
                    tmp_path / str(number), *(f"{k}={v}" for k, v in own.items()), loss=loss, **status, **known
                )
                write_json(run / "ledger.json", {"validation": ledger})
        return job_table(tmp_path, [own for own, _, _ in rows], dict(errors))

    return write


def rows(table: str) -> list[list[str]]:
    return [re.split("  +", line) for line in table.splitlines() if re.match(r"\d+(, \d+)*  ", line)]


def test_the_best_has_the_best_mean_over_its_seeds(sweep, tmp_path):
    losses = {"1e-3": (3.0, 3.1), "1e-2": (2.9, 4.0)}
    jobs = [
        ({"optimizer.lr": lr, "seed": str(s)}, loss, {}) for lr, pair in losses.items() for s, loss in enumerate(pair)
    ]
    table = sweep(*jobs)
    first, second = rows(table)
    assert first[:2] == ["0, 1", "1e-3"] and first[-3:] == ["2/2", "2:00", "best"]
    assert second[2] == f"{fmean(losses['1e-2']):.4f} ± {stdev(losses['1e-2']):.4f}" and second[-1] == "2:00"
    (command,) = re.findall("^  .*lightning-lm rerun (.*)", table, re.MULTILINE)
    assert shlex.split(command) == [str(tmp_path / "0")]


def test_a_configuration_that_lost_a_seed_is_behind_whole_ones_and_the_reason_is_told(sweep):
    one, two = {"optimizer.lr": "1"}, {"optimizer.lr": "2"}
    table = sweep(
        ({**one, "seed": "0"}, 2.0, {}),
        ({**one, "seed": "1"}, None, {"reason": "the loss is nan"}),
        ({**two, "seed": "0"}, 3.0, {}),
        ({**two, "seed": "1"}, 3.0, {}),
        ({"optimizer.lr": "3", "seed": "0"}, None, None),
        ({"optimizer.lr": "4", "seed": "0"}, None, None),
        errors={4: refuse("data.block_size", 99, "too long", "lower it")},
    )
    assert [row[0] for row in rows(table)] == ["2, 3", "0"]
    assert rows(table)[1][-2:] == ["1/2", "1:00"]
    assert "job 1 (lr=1 seed=1) diverged: the loss is nan\n" in table
    assert "job 4 (lr=3 seed=0) refused: data.block_size=99: too long; lower it\n" in table
    assert "job 5" not in table, "one of many that are yet to be run"
    assert "3 finished, 1 diverged, 2 not run\n" in table
    assert "2 of 6 jobs are not done: the same command with hydra.sweep.dir=" in table
    assert "job 2 is the best so far; to train" in table


def test_what_ended_jobs_alike_is_told_once(sweep):
    lost = {"reason": "the loss is nan " * 20}
    table = sweep(*(({"optimizer.lr": str(n)}, None, lost) for n in range(2)), ({"optimizer.lr": "3"}, 3.0, {}))
    (start,) = re.findall(r"^jobs? \d.*", table.partition("3 jobs in")[0], re.MULTILINE)
    assert start.startswith("jobs 0 (lr=0), 1 (lr=1) diverged: the loss is nan")
    assert "not done" not in table and "so far" not in table


def test_a_job_that_diverged_is_told_in_a_line(sweep, tmp_path, capsys):
    sweep(({"optimizer.lr": "1"}, None, {"reason": "the loss is nan " * 20}), ({"optimizer.lr": "2"}, None, None))
    with pytest.raises(Diverged), JobPlace(tmp_path / "0").telling():
        raise Diverged("optimizer.lr", 1, "the loss is nan " * 20)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("[1/2] diverged: ") and " …; about " in line and len(line) <= 80


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ("diverged finished pruned", 0),
        ("diverged diverged", 1),
        ("diverged failed", 1),
        ("finished interrupted", 1),
        ("finished none", 2),
    ],
)
def test_a_sweeps_exit_code(statuses, code, tmp_path):
    """As docs/sweeps.md tells it."""
    for number, status in enumerate(statuses.split()):
        if status != "none":
            write_run(tmp_path / str(number), loss=1.0, status=status)
    assert exit_code(tmp_path, len(statuses.split())) == code


def test_nothing_is_best_of_what_cannot_be_compared(sweep):
    """Lengths are ranked apart; one configuration by itself is no winner."""
    jobs = [
        ({"trainer.max_steps": n, "optimizer.lr": lr}, loss, {})
        for n, lr, loss in [("10", "1", 5.0), ("10", "2", 4.0), ("20", "1", 3.0), ("20", "2", 3.5), ("30", "1", 1.0)]
    ]
    table = sweep(*jobs)
    assert [(row[0], row[-1]) for row in rows(table)] == [
        ("1", "best"),
        ("0", "1:00"),
        ("2", "best"),
        ("3", "1:00"),
        ("4", "1:00"),
    ]
    for number, steps in (1, 10), (2, 20):
        assert f"job {number} is the best with trainer.max_steps {steps}; to train" in table


@pytest.mark.parametrize("figures", [{"val/bits_per_byte": 2.0}, {}])
def test_other_tokenizers_are_ranked_by_bits_per_byte_where_there_are(sweep, figures):
    jobs = [
        (
            {"model.vocab_size": size},
            loss,
            {"ledger": {"key": size, "bytes": 1000}, **{k: v / loss for k, v in figures.items()}},
        )
        for size, loss in (("300", 1.0), ("400", 2.0))
    ]
    table = sweep(*jobs)
    if figures:
        assert [(row[0], row[2]) for row in rows(table)] == [("1", "1.0000"), ("0", "2.0000")]
        assert "val/bits_per_byte" in table and "val/perplexity" not in table
    else:
        assert "best" not in table and len(rows(table)) == 2


def test_other_texts_are_ranked_apart(sweep):
    table = sweep(*(({"data.train": f"{n}.txt"}, 1.0, {"ledger": {"key": n, "bytes": n}}) for n in (1000, 2000)))
    assert "\nvalidation bytes 1000, " in table and "\nvalidation bytes 2000, " in table and "best" not in table


def test_seeds_of_one_recipe_have_means_and_choose_nothing(sweep):
    losses = [2.0, 2.5, 2.3]
    table = sweep(*(({"seed": str(n)}, loss, {"test/loss": loss + 1}) for n, loss in enumerate(losses)))
    assert "best" not in table
    expected = [f"{fmean(losses) + plus:.4f} ± {stdev(losses):.4f}" for plus in (0, 1)]
    (line,) = (line for line in table.splitlines() if line.startswith("loss (nats per token)"))
    assert re.split("  +", line)[1:] == expected
    assert rows(table) == [["0, 1, 2", *expected, "3/3", "3:00"]]


def test_it_fits_eighty_columns(sweep):
    files = [f"a/very/long/path/to/{name}/a/file/of/text/that/can/hardly/be/shown.txt" for name in "ab"]
    jobs = [
        ({"data.train": file, "optimizer.lr": rate, "seed": str(seed)}, 500.0 + seed, {})
        for file in files
        for rate in ("0.00123456789", "1e-2")
        for seed in range(3)
    ]
    table = sweep(*jobs)
    lines = table.partition("12 jobs in")[0].splitlines()
    assert "4 of 4 configurations are within noise of the best" in table
    assert max(map(len, lines)) <= 80 and len(lines[1:7]) == 6
    assert "501.0000 ± 1.0000" in table and "0.001235" in table and "a/very/long" in table
