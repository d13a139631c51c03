"""The report against figures worked out by hand, and recipes against the configuration that they must give."""

import functools
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT, compose
from omegaconf import OmegaConf
from run_folders import write_run

from lightning_lm import cli
from lightning_lm.config.composition import as_settings, flat
from lightning_lm.errors import Refused
from lightning_lm.report import recipe
from lightning_lm.report.charts import progress
from lightning_lm.report.comparison import cautions, configurations, differing, ranked, winner
from lightning_lm.report.page import report
from lightning_lm.report.runs import collect
from lightning_lm.report.search_map import cell, search
from lightning_lm.runs.folder import write_json, write_text
from lightning_lm.runs.numbers import show
from lightning_lm.runs.plots import read


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


def test_the_page(grid, conf, tmp_path):
    told = report([grid], tmp_path / "page.html", None, conf)
    assert "9 runs" in told
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    means, runs, samples, shared, _ = page.tables
    assert [row[0] for row in runs[1:]] == ["4", "0", "2", "3", "1", "6", "7", "5", "8"]
    assert runs[0][:5] == ["run", "learning rate", "weight decay", "seed", "val loss"]
    assert runs[1][1:6] == ["0.003", "0", "0", "2.0000", f"{math.exp(2):.2f}"]
    assert runs[-1][1:4] == ["0.01", "0", "0"] and runs[-1][-1] == "not run"
    assert means[1][1:] == ["0.001", "0.1", "3.0800", "0.0424", "3.0500", "3.1100", "2 of 2"]
    assert samples[0] == ["run", "The <b>"] and samples[1] == ["42.0000", "The <b> 4, 4"]
    assert ["data.train", "a.txt"] in shared and "b" not in page.tags, "what a model writes is no markup"
    assert len(page.addresses) == 4 * 4 and all(a.startswith("data:image/png;base64,") for a in page.addresses)
    for name in ("search", "loss_over_steps", "loss_over_tokens", "loss_over_minutes"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_minutes_are_those_spent_in_steps(tmp_path):
    run = write_run(tmp_path / "run", loss=3.0)
    steps, minutes = progress(read(run / "metrics.csv"), "minutes")
    # 600 tokens a step, at 100, 200, 300, 400 tokens a second
    assert dict(zip(steps, minutes, strict=True)) == pytest.approx(
        {0: 0, 1: 0.1, 2: 0.15, 3: 0.15 + 1 / 30, 4: 0.15 + 7 / 120}
    )
    tokens = dict(zip(*progress(read(run / "metrics.csv"), "tokens"), strict=True))
    assert tokens == {step: 600 * step for step in (1, 2, 3, 4)}


def test_figures_that_are_no_numbers(conf, tmp_path):
    losses = {"a": 3.0, "nan": math.nan, "inf": math.inf, "none": None}
    runs = [write_run(tmp_path / name, f"optimizer.lr={len(name)}", loss=loss) for name, loss in losses.items()]
    report(runs, tmp_path / "page.html", conf=conf)
    table = next(t for t in Page((tmp_path / "page.html").read_text(encoding="utf-8")).tables if "val loss" in t[0])
    shown = {row[0]: row[table[0].index("val loss")] for row in table[1:]}
    assert table[1][0] == "a" and shown == {"a": "3.0000", "nan": "nan", "inf": "∞", "none": "–"}


def test_one_run(tmp_path):
    run = write_run(tmp_path / "run", loss=3.0, **{"test/loss": 3.25, "seconds": 3671.0, "tokens_per_second": 1234.5})
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    table = Page(page).tables[0]
    assert table[0] == ["run", "val loss", "val perplexity", "test loss", "time", "tokens/s", "status"]
    assert table[1] == ["run", "3.0000", "20.09", "3.2500", "1:01:11", "1,234", "finished"]
    assert "experiment=" not in page, "a single run is no winner"


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
    axes = search(runs, "nats", "wide").axes[0]
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
    runs = [write_run(tmp_path / name, f"seed={name}", loss=3.0) for name in ("1", "2")]
    assert cautions(collect(runs)) == []
    for change, told in ({"key": "other"}, "different tokens"), ({"bytes": 1}, "different texts"):
        write_json(tmp_path / "2" / "ledger.json", {"validation": {"key": "k", "bytes": 1000} | change})
        (line,) = cautions(collect(runs))
        assert told in line


def test_it_needs_no_torch(grid, tmp_path):
    code = "import sys; from lightning_lm.cli import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "report", str(grid / "0"), "--output", str(tmp_path / "page.html")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "page.html").exists()


# --------------------------------------------------------------------------------------------------------- recipes


LOCAL = ["data=text", "data.train=[a.txt,b.txt]", "data.validation_percent=5"]
SPLITS = ["data.splits.train=a", "data.splits.validation=b"]
TINY = [
    "model=gpt2-tiny",
    "model.config.n_layer=2",
    "optimizer=muon",
    "optimizer.lr=0.05",
    "optimizer.betas=[0.9,0.95]",
]
CASES = {  # what is typed, and how many values the recipe needs besides its name
    "defaults": ([], 0),
    "muon on local text": ([*TINY, *LOCAL, "seed=3", "scheduler=wsd", "hardware=cpu", "hardware.devices=2"], 7),
    "a dataset of the Hub": (["data=hub", "data.path=org/d", *SPLITS, "model.name_or_path=org/m", "logger=none"], 4),
    "texts that look like something else": (
        [
            "objective=mlm",
            "model=bert-tiny",
            "data=python_docs",
            "objective.prompts=['a <mask>: \"b\", #c','null','1e-5']",
        ],
        1,
    ),
    "rows of the optimizer's table": (["optimizer.groups=[{pattern:'a|b',decay:false},{ndim:2}]"], 1),
    "a recipe's own": (["experiment=quickstart_mlm", "optimizer.lr=1e-3", "trainer.max_minutes=0.5"], 5),
}


@pytest.fixture(scope="module", autouse=True)
def options_composed_once():
    """All recipes of this file lie over the same options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "settings_by_option", functools.cache(recipe.settings_by_option))
        yield


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_gives_the_configuration_again(case, conf, tmp_path):
    overrides, values = CASES[case]
    wanted = OmegaConf.to_container(OmegaConf.structured(compose(*overrides)), enum_to_str=True)
    wanted["logger"]["group"] = "the sweep's"
    write_text(tmp_path / "config.yaml", OmegaConf.to_yaml(wanted))
    name = re.sub(r"\W", "_", case)
    path = recipe.write(tmp_path, name, "about it", conf)
    given = as_settings(compose(f"experiment={name}", conf=conf))
    wanted["logger"]["group"] = None
    assert given | {"run_dir": wanted["run_dir"]} == wanted | {"name": name}
    own = flat(OmegaConf.to_container(OmegaConf.load(path)))
    assert len(own.keys() - {"name", "defaults"}) == values, "a small diff over the defaults"
    assert recipe.write(tmp_path, name, "about it", conf) == path, "the same again"


def test_a_recipe_overwrites_no_other(grid, conf):
    path = recipe.write(grid / "2", "taken", "about it", conf)
    before = path.read_text()
    with pytest.raises(Refused, match="holds another recipe"):
        recipe.write(grid / "4", "taken", "about it", conf)
    assert path.read_text() == before
