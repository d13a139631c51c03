"""The report against figures worked out by hand."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from filelock import FileLock
from run_folders import write_grid, write_run

from lightning_lm import cli
from lightning_lm.report.comparison import ranked
from lightning_lm.report.page import report, watch
from lightning_lm.report.runs import collect
from lightning_lm.report.search_map import search
from lightning_lm.runs.folder import LOCK, write_json
from lightning_lm.runs.numbers import format_value


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    return shutil.copytree(ROOT / "conf", tmp_path_factory.mktemp("conf") / "conf")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return write_grid(tmp_path_factory.mktemp("sweeps") / "grid")


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
    assert format_value(value) == text


def test_what_cannot_be_reported(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    clm = write_run(tmp_path / "clm", loss=3.0)
    (tmp_path / "other.json").write_text('{"question": "models"}')
    page, taken = tmp_path / "page.html", tmp_path / "taken"
    (taken / "report").mkdir(parents=True)
    (taken / "report" / "notes.tex").touch()
    broken = {"config.yaml": ["a: [", "a: 1"], "summary.json": ["{"]}
    spoilt = []
    for name, texts in broken.items():
        for text in texts:
            spoilt.append(write_run(tmp_path / f"broken{len(spoilt)}", loss=3.0))
            (spoilt[-1] / name).write_text(text)
    for arguments, told in [
        ([tmp_path / "empty"], "neither a run nor a sweep"),
        ([tmp_path / "none"], "neither a run nor a sweep"),
        ([clm, "--comparison", tmp_path / "other.json"], "no comparison of what both sides can do"),
        ([clm, "--comparison", tmp_path / "none.json"], "no comparison of what both sides can do"),
        ([clm, "--nll", tmp_path / "other.json"], "no token losses with their profile"),
        ([clm, "--nll", tmp_path / "none.parquet"], "no token losses with their profile"),
        ([clm, "--output", tmp_path / "no" / "page.html"], "can't be written"),
        ([clm, "--output", taken / "page.html"], "which gets its pictures, has other files; give another folder"),
        ([clm, "--output", clm / "config.yaml"], "it is there already"),
        ([clm, "--recipe", "../x"], "no name of a file"),
        ([clm, "--recipe", "quickstart"], "holds another recipe"),
        *(([run], str(run)) for run in spoilt),
    ]:
        arguments = [*arguments] if "--output" in arguments else [*arguments, "--output", page]
        assert cli.main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
        assert not page.exists() and not (tmp_path / "report").exists()


def test_what_tokens_cost(tmp_path):
    clm, protocol = write_run(tmp_path / "clm", loss=3.0), {"text": "a" * 64, "separator": "none", "stride": 31}
    protocol |= {"tokenizer": "b" * 64, "documents": "in one stream", "block_size": 32, "dtype": "float32"}
    protocol |= dict.fromkeys(("limit", "first_token", "masking"))
    of_files = {"one": [["2 to 3", 4, 5.25], ["16 to 31", 2, 5.0]], "two": [["1", 3, 5.5], ["2 to 3", 4, 4.125]]}
    for name, context in of_files.items():
        profile = {"context": context, "occurrences": [["1 to 3", 7, 5.0]], "hardest": [[9.5, "<hard> & long"]]}
        facts = json.dumps({"protocol": protocol, "profile": profile | {"easiest": [[0.5, "easy"]]}})
        table = pa.table({"nll": [1.0]}).replace_schema_metadata({"lightning_lm": facts})
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "nll.parquet")
    report([clm], tmp_path / "page.html", losses=[tmp_path / name / "nll.parquet" for name in of_files])
    tables = Page((tmp_path / "page.html").read_text()).tables
    by_context = next(table for table in tables if table and table[0][0].startswith("tokens before it"))
    assert [row[0] for row in by_context[1:]] == ["1", "2 to 3", "16 to 31"]
    assert by_context[1:3] == [["1", "", "", "5.5000", "3"], ["2 to 3", "5.2500", "4", "4.1250", "4"]]
    passages = [table[1:] for table in tables if table and table[0] == ["mean loss", "passage"]]
    assert passages == 2 * [[["9.5000", "<hard> & long"], ["0.5000", "easy"]]]


def test_it_needs_neither_torch_nor_pandas(grid, tmp_path):
    heavy = "len({'torch', 'pandas'} & sys.modules.keys())"
    code = f"import sys; from lightning_lm.cli import main; sys.exit(main(sys.argv[1:]) or {heavy})"
    command = [sys.executable, "-c", code, "report", str(grid / "0"), "--output", str(tmp_path / "page.html")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "page.html").exists()


def test_a_page_whose_watch_was_ended_loads_itself_no_more(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", status=None)
    refreshes = []

    def interrupt(_):
        refreshes.append(refresh_of(tmp_path / "page.html"))
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_lm.report.page.time.sleep", interrupt)
    with FileLock(run / LOCK), pytest.raises(KeyboardInterrupt):
        watch([run], tmp_path / "page.html")
    assert [*refreshes, refresh_of(tmp_path / "page.html")] == ["10", "null"]


def refresh_of(page):
    return re.search('"refresh": (\\w+)', page.read_text(encoding="utf-8"))[1]


def test_a_run_at_work_is_running(tmp_path):
    run = write_run(tmp_path / "run", status=None)
    with FileLock(run / LOCK):
        assert [run.status for run in collect([run])] == ["running"]
    assert [run.status for run in collect([run])] == ["cut off"]
