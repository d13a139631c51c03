"""Causal and masked runs on one page: each in tables of their own, and side by side on what both can do."""

import re

import pytest
from run_folders import write_run
from test_page import Page

from lightning_lm import cli
from lightning_lm.certainty.pairs import Estimate
from lightning_lm.errors import Refused
from lightning_lm.evaluation.findings import HEADS, Finding
from lightning_lm.evaluation.pair import PairComparison
from lightning_lm.evaluation.result import standard_json
from lightning_lm.report.comparison import by_objective, cautions, winner
from lightning_lm.report.next_runs import propose
from lightning_lm.report.runs import collect
from lightning_lm.runs.folder import write_json

LOSSES = {"clm": (3.0, 3.2, 3.1), "mlm": (2.0, 2.4, 2.2)}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both") / "sweep"
    for number, (objective, losses) in enumerate(LOSSES.items()):
        for seed, loss in enumerate(losses):
            own = (f"objective={objective}", "model=bert-tiny", f"seed={seed}", f"name=pair_{objective}")
            write_run(folder / str(3 * number + seed), *own, loss=loss)
    write_json(folder / "sweep.json", {"fixed": {}, "search": [{"seed": str(n % 3)} for n in range(6)]})
    return folder


@pytest.fixture(scope="module")
def comparison(sweep):
    """As ``lightning-lm compare --recipes … --json`` writes it."""
    ahead, caution = Estimate(2.5, 1.0, 4.0, 0.01), "Of these & no others."
    findings = [
        Finding(
            "minimal pairs", "mean over paradigms", ([55.0, 56.0], [58.0, 58.0]), difference=ahead, over_items=ahead
        ),
        Finding("the text", "bits per byte", ([1.5, 1.6], [])),
    ]
    sides, seeds, costs = (("<a>", "b"), ("clm", "mlm")), ([0, 1], [0, 1]), {"parameters": (100, 100)}
    found = PairComparison(*sides, seeds, False, costs, findings, {}, [caution])
    (sweep.parent / "comparison.json").write_text(standard_json(found.as_dict()))
    return sweep.parent / "comparison.json"


def test_each_objective_has_tables_of_its_own(sweep, tmp_path, capsys):
    assert cli.main(["report", str(sweep), "--output", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    tables = Page(text).tables
    runs = [[row[0] for row in table[1:]] for table in tables if table and table[0][0] == "run"][:2]
    assert [[name.removesuffix("finished") for name in table] for table in runs] == [["0", "2", "1"], ["3", "5", "4"]]
    means = re.findall("<dt>val loss</dt><dd>(.*?)</dd>", text)
    assert means == ["3.1000 ± 0.1000", "2.2000 ± 0.2000"], "of each objective by itself"
    assert "clm and mlm losses mean different things: they are shown apart and not compared." in text
    assert "Over 3 seeds, causal" in text and "Over 3 seeds, masked" in text
    assert "<h2>Search</h2>" not in text and "Side by side" not in text and "--recipe NAME" not in text
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {f"loss_{objective}.{suffix}" for objective in LOSSES for suffix in ("png", "svg")}


def test_nothing_is_chosen_across_objectives(sweep, capsys):
    runs = collect([sweep])
    assert {name: [run.name for run in of] for name, of in by_objective(runs).items()} == {
        "clm": ["0", "1", "2"],
        "mlm": ["3", "4", "5"],
    }
    assert winner(runs) is None and len(cautions(runs)) == 1
    with pytest.raises(Refused, match="clm and mlm losses mean different things"):
        propose(sweep, 2)
    assert cli.main(["report", str(sweep), "--recipe", "both", "--output", str(sweep / "page.html")]) == 2
    assert "there is no best run" in capsys.readouterr().err


def test_a_comparison_of_two_models_is_shown(sweep, tmp_path):
    ahead = Estimate(2.5, 1.0, 4.0, 0.01)
    findings = [
        Finding("held-out words", "left side", ([55.0], [58.0]), ((54.0, 56.0), (57.0, 59.0)), difference=ahead)
    ]
    comparison = PairComparison(("a", "b"), ("clm", "mlm"), None, False, {}, findings, {}, [])
    (tmp_path / "two.json").write_text(standard_json(comparison.as_dict()))
    typed = ["report", str(sweep), "--output", str(tmp_path / "page.html"), "--comparison", str(tmp_path / "two.json")]
    assert cli.main(typed) == 0
    first = Page((tmp_path / "page.html").read_text()).tables[0]
    assert "with other items" not in first[0] and len(first[0]) == len(first[-1])
    assert first[-1][0] == "left side" and first[-1][-1] == "B"


def test_objectives_of_one_kind_are_compared(tmp_path):
    for name, loss in {"clm": 3.0, "hybrid": 2.5}.items():
        write_run(tmp_path / name, f"objective={name}", "model=bert-tiny", "model.config.is_decoder=true", loss=loss)
    runs = collect([tmp_path / "clm", tmp_path / "hybrid"])
    assert list(by_objective(runs)) == ["clm"]
    assert winner(runs).name == "hybrid" and not cautions(runs)


def test_what_a_comparison_has_found_stands_first(sweep, comparison, tmp_path):
    typed = ["report", str(sweep), "--output", str(tmp_path / "page.html"), "--comparison", str(comparison)]
    assert cli.main(typed) == 0
    text = (tmp_path / "page.html").read_text()
    (table,) = [table for table in Page(text).tables if table and table[0][1:2] == ["A"]]
    assert table[0] == ["", *HEADS]
    assert table[1] == ["parameters", "100", "100", "equal"]
    difference = ["+2.5", "+1.0 to +4.0", "0.010", "+1.0 to +4.0", "B"]
    assert table[3] == ["mean over paradigms", "55.5 ± 0.7", "58.0 ± 0.0", *difference]
    assert table[5][:3] == ["bits per byte", "1.55 ± 0.07", "–"]
    assert text.index("Side by side") < text.index("Over 3 seeds, causal")
    assert "<code>&lt;a&gt;</code> (clm, seeds 0, 1)" in text and "Of these &amp; no others." in text
