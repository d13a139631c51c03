"""The report against figures worked out by hand."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT
from filelock import FileLock
from run_folders import write_run

from lightning_lm import cli
from lightning_lm.report.certainty import AveragingTime, Verdict
from lightning_lm.report.comparison import cautions, configurations, differing, ranked, winner
from lightning_lm.report.curves import POINTS, curves, progress, thinned
from lightning_lm.report.landscape import averaging
from lightning_lm.report.page import report
from lightning_lm.report.runs import collect
from lightning_lm.report.search_map import cell, search
from lightning_lm.report.study import as_study, pictures
from lightning_lm.runs.folder import LOCK, write_json
from lightning_lm.runs.numbers import show
from lightning_lm.runs.step_table import read_series


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    return shutil.copytree(ROOT / "conf", tmp_path_factory.mktemp("conf") / "conf")


GRID = {  # learning rate, weight decay, seed → validation loss
    (1e-3, 0.0, 0): 3.00,
    (1e-3, 0.0, 1): 3.20,
    (1e-3, 0.1, 0): 3.05,
    (1e-3, 0.1, 1): 3.11,
    (3e-3, 0.0, 0): 2.00,
    (3e-3, 0.0, 1): None,  # diverged
    (3e-3, 0.1, 0): 4.00,
    (3e-3, 0.1, 1): 4.40,
}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A sweep with a run that diverged and one that never began."""
    folder = tmp_path_factory.mktemp("sweeps") / "grid"
    for number, ((lr, decay, seed), loss) in enumerate(GRID.items()):
        own = f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}", f"seed={seed}"
        write_run(folder / str(number), *own, loss=loss, status="finished" if loss else "diverged")
    keys = ("optimizer.lr", "optimizer.weight_decay", "seed")
    rows = [dict(zip(keys, map(str, row), strict=True)) for row in [*GRID, (1e-2, 0.0, 0)]]
    write_json(folder / "sweep.json", {"fixed": {}, "search": rows})
    return folder


def test_the_order_of_runs_and_configurations(grid):
    runs = collect([grid])
    assert differing(runs) == ["optimizer.lr", "optimizer.weight_decay", "seed"]
    assert [run.name for run in ranked(runs)] == ["4", "0", "2", "3", "1", "6", "7", "5", "8"]
    assert [run.status for run in ranked(runs)][-2:] == ["diverged", "not run"]
    assert runs[8].settings["optimizer.lr"] == 1e-2 and runs[8].settings["data.train"] == "a.txt"
    sets = configurations(runs)
    order = [tuple(c.settings.values()) for c in sets]
    # the lowest mean is of one seed of two: it comes after those that are whole
    assert order == [(1e-3, 0.1), (1e-3, 0.0), (3e-3, 0.1), (3e-3, 0.0), (1e-2, 0.0)]
    assert winner(runs).name == "2", "the first seed of the best mean, not the luckiest run"


def test_means_and_spreads_over_seeds(grid):
    for c in configurations(collect([grid])):
        losses = [loss for (lr, decay, _), loss in GRID.items() if (lr, decay) == tuple(c.settings.values()) and loss]
        if losses:
            assert c.mean == pytest.approx(np.mean(losses))
            assert cell(c).startswith(f"{np.mean(losses):.4f}")
        spread = np.std(losses, ddof=1) if len(losses) > 1 else None
        assert c.spread == (None if spread is None else pytest.approx(spread))
    cells = [cell(c) for c in configurations(collect([grid]))]
    assert cells[0] == "3.0800\n± 0.0424\nn = 2"
    assert cells[3:] == ["2.0000\nn = 1 of 2", "not run"]


def test_a_seed_that_was_run_again_counts_once(grid, tmp_path):
    again = write_run(tmp_path / "again", "optimizer.lr=1e-3", "optimizer.weight_decay=0.1", "seed=0", loss=3.05)
    best = configurations(collect([grid, again]))[0]
    assert (len(best.runs), len(best.losses), best.complete) == (3, 2, True)
    assert best.mean == pytest.approx(3.08) and cell(best).endswith("n = 2")


class Page(HTMLParser):
    """Tables as rows of texts, and every address that the page names."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self.tags = [[]], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables.append([])  # what comes next is no cell

    def handle_data(self, data):
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data.strip()


def test_the_page(grid, tmp_path):
    assert "9 runs" in report([grid], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    means, runs, samples, shared, _ = page.tables
    rows = dict(re.fullmatch(r"(\d)(\D+)", row[0]).groups() for row in runs[1:])  # a run's name and its status
    assert list(rows) == ["4", "0", "2", "3", "1", "6", "7", "5", "8"]
    assert runs[0][:5] == ["run", "learning rate", "weight decay", "seed", "val loss"]
    assert runs[1][1:6] == ["0.003", "0", "0", "2.0000", f"{math.exp(2):.2f}"]
    assert runs[-1][1:4] == ["0.01", "0", "0"] and rows["8"] == "not run"
    assert means[1][1:] == ["0.001", "0.1", "3.0800", "0.0424", "3.0500", "3.1100", "2 of 2"]
    assert samples[0] == ["run", "The <b>"] and samples[1] == ["42.0000", "The <b> 4, 4"]
    assert ["data.train", "a.txt"] in shared and "b" not in page.tags, "what a model writes is no markup"
    assert len(page.addresses) == 2 * 8 and all((tmp_path / address).exists() for address in page.addresses)
    for name in ("search", "loss"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / "report" / f"{name}.svg").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "report"}, "nothing else is written"


def test_minutes_are_those_spent_in_steps(tmp_path):
    run = write_run(tmp_path / "run", loss=3.0)
    steps, minutes = progress(read_series(run / "metrics.csv"), "minutes")
    # 600 tokens a step, at 100, 200, 300, 400 tokens a second
    assert dict(zip(steps, minutes, strict=True)) == pytest.approx(
        {0: 0, 1: 0.1, 2: 0.15, 3: 0.15 + 1 / 30, 4: 0.15 + 7 / 120}
    )
    tokens = dict(zip(*progress(read_series(run / "metrics.csv"), "tokens"), strict=True))
    assert tokens == {step: 600 * step for step in (1, 2, 3, 4)}


def test_figures_that_are_no_numbers(tmp_path):
    losses = {"a": 3.0, "nan": math.nan, "inf": math.inf, "none": None}
    runs = [write_run(tmp_path / name, f"optimizer.lr={len(name)}", loss=loss) for name, loss in losses.items()]
    report(runs, tmp_path / "page.html")
    table = next(t for t in Page((tmp_path / "page.html").read_text(encoding="utf-8")).tables if "val loss" in t[0])
    shown = {row[0].removesuffix("finished"): row[table[0].index("val loss")] for row in table[1:]}
    assert next(iter(shown)) == "a" and shown == {"a": "3.0000", "nan": "nan", "inf": "∞", "none": "–"}


def test_one_run(tmp_path):
    run = write_run(tmp_path / "run", loss=3.0, **{"test/loss": 3.25, "seconds": 3671.0, "tokens_per_second": 1234.5})
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    table = Page(page).tables[0]
    assert table[0] == ["run", "val loss", "val perplexity", "test loss", "steps", "time", "tokens/s", "files"]
    assert table[1] == ["runfinished", "3.0000", "20.09", "3.2500", "–", "1:01:11", "1,234", "foldermetrics"]
    assert "rerun" not in page, "a single run is no winner"


def test_a_search_by_optuna_is_drawn_as_points(tmp_path):
    for number in range(6):
        settings = f"optimizer.lr={10.0**-number}", f"optimizer.weight_decay={0.01 * (number + 1)}"
        status = ["finished", "finished", "pruned", "diverged", "failed", None][number]
        loss = 3.0 + number if number < 3 else None
        write_run(tmp_path / "study" / str(number), *settings, loss=loss, status=status)
    (tmp_path / "study" / "study.db").touch()
    write_json(tmp_path / "study" / "sweep.json", {"fixed": {}, "search": [{"optimizer.lr": "interval(0, 1)"}]})
    runs = collect([tmp_path / "study"])
    assert [run.status for run in ranked(runs)] == ["finished"] * 2 + ["pruned", "cut off", "diverged", "failed"]
    axes = search(runs, "nats").axes[0]
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "weight decay"
    shown = {text: len(dots.get_offsets()) for dots, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    assert shown == {"finished": 2, "pruned": 1, "diverged": 1, "failed": 1, "best": 1}


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "1e-05"), (0.0, "0"), (True, "true"), ([1, "é"], '[1, "é"]'), (None, "–")]
)
def test_values_are_shown_as_people_write_them(value, text):
    assert show(value) == text


def test_what_cannot_be_reported(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    clm = write_run(tmp_path / "clm", loss=3.0)
    mlm = write_run(tmp_path / "mlm", "objective=mlm", "model=bert-tiny", loss=3.0)
    page = tmp_path / "page.html"
    broken = {"config.yaml": ["a: [", "a: 1"], "summary.json": ["{"]}
    spoilt = []
    for name, texts in broken.items():
        for text in texts:
            spoilt.append(write_run(tmp_path / f"broken{len(spoilt)}", loss=3.0))
            (spoilt[-1] / name).write_text(text)
    for arguments, told in [
        ([tmp_path / "empty"], "neither a run nor a sweep"),
        ([tmp_path / "none"], "neither a run nor a sweep"),
        ([clm, mlm], "clm and mlm losses mean different things"),
        ([clm, "--output", tmp_path / "no" / "page.html"], "can't be written"),
        ([clm, "--recipe", "../x"], "no name of a file"),
        ([clm, "--recipe", "quickstart"], "holds another recipe"),
        *(([run], str(run)) for run in spoilt),
    ]:
        arguments = [*arguments] if "--output" in arguments else [*arguments, "--output", page]
        assert cli.main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
        assert not page.exists() and not (tmp_path / "report").exists()


def test_other_texts_and_tokens_are_pointed_out(tmp_path):
    bits = {"1": 1.2, "2": 1.1}  # the other way round than the losses
    runs = [write_run(tmp_path / n, f"seed={n}", loss=2.0 + int(n), **{"val/bits_per_byte": bits[n]}) for n in bits]
    assert cautions(collect(runs)) == []
    for change, sentence, order in (
        ({"key": "other"}, "ranked by bits per byte", ["2", "1"]),
        ({"bytes": 1}, "No best is named", ["1", "2"]),
    ):
        write_json(tmp_path / "2" / "ledger.json", {"validation": {"key": "k", "bytes": 1000} | change})
        (line,) = cautions(collect(runs))
        assert sentence in line
        assert [run.name for run in ranked(collect(runs))] == order


def test_it_needs_no_torch(grid, tmp_path):
    code = "import sys; from lightning_lm.cli import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "report", str(grid / "0"), "--output", str(tmp_path / "page.html")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "page.html").exists()


def test_seeds_tested_are_averaged_only_where_all_were(tmp_path):
    for seed in range(3):
        tested = {"test/loss": 3.5 + seed} if seed < 2 else {}
        write_run(tmp_path / "seeds" / str(seed), f"seed={seed}", loss=3.0 + seed, **tested)
    assert configurations(collect([tmp_path / "seeds"]))[0].test_losses == []
    summary = json.loads((tmp_path / "seeds" / "2" / "summary.json").read_text())
    write_json(tmp_path / "seeds" / "2" / "summary.json", summary | {"test/loss": 5.5})
    report([tmp_path / "seeds"], tmp_path / "page.html")
    assert "4.5000 ± 1.0000" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_lengths_and_few_batches_are_pointed_out(tmp_path):
    for steps in (10, 4000):
        own = f"trainer.max_steps={steps}", "trainer.limit_val_batches=2"
        write_run(tmp_path / str(steps), *own, loss=3.0)
    runs = collect([tmp_path / "10", tmp_path / "4000"])
    length, batches = cautions(runs)
    assert "trainer.max_steps 10; trainer.max_steps 4000" in length and "2 batches only" in batches
    assert winner(runs) is None, "ten steps and 4,000 are no rivals"


def test_unlike_protocols_are_pointed_out(tmp_path):
    like = {"text": "ab" * 16, "tokenizer": "cd" * 16, "separator": "auto", "documents": "one stream", "stride": 127}
    like |= {"limit": None, "first_token": "not scored", "masking": None, "dtype": "float32"}
    for n, size in enumerate((128, 128, 256)):
        measured = {"val/protocol": like | {"block_size": size}, "val/protocol_hash": f"of {size}"}
        write_run(tmp_path / str(n), f"seed={n}", loss=3.0, **measured)
    report([tmp_path / "0", tmp_path / "1"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "validation protocol " in page and "windows of 128 tokens that advance by 127" in page
    (caution,) = cautions(collect([tmp_path / n for n in "012"]))
    assert caution.endswith("measured in different ways, and may differ by that: block size 128 or 256.")


def test_a_run_at_work_is_running(tmp_path):
    run = write_run(tmp_path / "run", status=None)
    with FileLock(run / LOCK):
        assert [run.status for run in collect([run])] == ["running"]
    assert [run.status for run in collect([run])] == ["cut off"]


def test_a_search_is_a_study_of_means(grid):
    study = as_study(collect([grid]))
    trials = {(t.params["learning rate"], t.params["weight decay"]): t.value for t in study.trials}
    assert trials == pytest.approx({(1e-3, 0.0): 3.1, (1e-3, 0.1): 3.08, (3e-3, 0.0): 2.0, (3e-3, 0.1): 4.2})
    kinds = {name: type(kind).__name__ for name, kind in study.trials[0].distributions.items()}
    assert kinds == {"learning rate": "FloatDistribution", "weight decay": "CategoricalDistribution"}, (
        "0 has no logarithm"
    )
    assert {"map", "parallel coordinates", "slices", "history", "contours"} == pictures(
        collect([grid]), "", Verdict([])
    ).keys()


def test_averaging_times_are_drawn_where_there_are_some():
    times = [AveragingTime(f"wd {n}", 3.0 + n, steps, None) for n, steps in enumerate((100.0, math.inf, 1000.0, 10.0))]
    (dots,) = averaging(times, "loss").data
    assert (dots.x, dots.y) == ((100, 1000, 10), (3, 5, 6)), "without decay nothing is averaged"
    assert averaging(times[:3], "loss") is None


def test_no_peak_is_lost_in_a_thinned_curve():
    values = np.random.default_rng(0).normal(size=10_000)
    values[[0, 1234, 9_999]] = 5, 100, -100
    places = thinned(values)
    assert len(places) <= POINTS + 2 and {0, 1234, 9_999} <= set(places) and np.all(np.diff(places) > 0)
    for stretch in np.array_split(np.arange(10_000), POINTS // 2):
        assert {values[stretch].min(), values[stretch].max()} <= set(values[places])


def test_the_curves_of_the_page_are_those_of_the_file(tmp_path):
    drawn = curves(collect([write_run(tmp_path / "run", loss=3.0)])[0])
    assert drawn["train/loss"]["values"] == [6.0, 5.0, 4.0, 3.0] and drawn["val/loss"]["steps"] == [2.0, 4.0]
    assert drawn["val/loss"]["tokens"] == [1200.0, 2400.0]
    assert drawn["val/loss"]["minutes"] == pytest.approx([0.15, 0.15 + 7 / 120], rel=1e-4)


def test_a_row_that_is_being_written_is_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "run", loss=3.0)
    with (run / "metrics.csv").open("a") as file:
        file.write("5,1.0")
    assert read_series(run / "metrics.csv")["train/loss"][0].tolist() == [1, 2, 3, 4]
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([lines[0], lines[1].replace("6.0", "six")]))
    assert cli.main(["report", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "metrics.csv: it is damaged" in line
