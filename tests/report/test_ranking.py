"""Which run is the best, and what must be said beside it, against figures worked out by hand."""

import json

import numpy as np
import pytest
from run_folders import GRID, write_grid, write_run

from lightning_lm.report.certainty import Verdict
from lightning_lm.report.comparison import cautions, configurations, differing, ranked, winner
from lightning_lm.report.page import report
from lightning_lm.report.runs import collect
from lightning_lm.report.search_map import cell, search
from lightning_lm.report.study import as_study, pictures
from lightning_lm.runs.folder import write_json


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return write_grid(tmp_path_factory.mktemp("sweeps") / "grid")


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


def test_one_lucky_seed_is_no_best_against_two(tmp_path):
    losses = {(1e-3, 0): 2.0, (1e-3, 1): None, (3e-3, 0): 3.0, (3e-3, 1): 3.1, (3e-3, 2): None}
    for number, ((lr, seed), loss) in enumerate(losses.items()):
        status = "finished" if loss else "failed"
        write_run(tmp_path / str(number), f"optimizer.lr={lr}", f"seed={seed}", loss=loss, status=status)
    runs = collect([tmp_path / str(number) for number in range(len(losses))])
    assert [c.settings["optimizer.lr"] for c in configurations(runs)] == [3e-3, 1e-3]


def test_a_seed_that_was_run_again_counts_once(grid, tmp_path):
    again = write_run(tmp_path / "again", "optimizer.lr=1e-3", "optimizer.weight_decay=0.1", "seed=0", loss=3.05)
    best = configurations(collect([grid, again]))[0]
    assert (len(best.runs), len(best.losses), best.complete) == (3, 2, True)
    assert best.mean == pytest.approx(3.08) and cell(best).endswith("n = 2")


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


def test_runs_of_which_one_has_no_bits_per_byte_have_a_page_without_a_best(tmp_path):
    runs = [
        write_run(tmp_path / "1", "seed=1", loss=3.0, **{"val/bits_per_byte": 1.2}),
        write_run(tmp_path / "2", "seed=2", loss=2.0),
    ]
    write_json(tmp_path / "2" / "ledger.json", {"validation": {"key": "other", "bytes": 1000}})
    (line,) = cautions(collect(runs))
    assert "No best is named" in line and winner(collect(runs)) is None
    report(runs, tmp_path / "page.html")


def test_lengths_and_few_batches_are_pointed_out(tmp_path):
    for steps in (10, 4000):
        own = f"trainer.max_steps={steps}", "trainer.limit_val_batches=2"
        write_run(tmp_path / str(steps), *own, loss=3.0)
    runs = collect([tmp_path / "10", tmp_path / "4000"])
    length, batches = cautions(runs)
    assert "trainer.max_steps 10; trainer.max_steps 4000" in length and "2 batches only" in batches
    assert winner(runs) is None, "ten steps and 4,000 are no rivals"
    assert "best" not in search(runs, "nats").axes[0].get_legend_handles_labels()[1], "nor is one ringed"
    assert "history" not in pictures(runs, "", Verdict([]))


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


def test_seeds_tested_are_averaged_only_where_all_were(tmp_path):
    for seed in range(3):
        tested = {"test/loss": 3.5 + seed} if seed < 2 else {}
        write_run(tmp_path / "seeds" / str(seed), f"seed={seed}", loss=3.0 + seed, **tested)
    assert configurations(collect([tmp_path / "seeds"]))[0].test_losses == []
    summary = json.loads((tmp_path / "seeds" / "2" / "summary.json").read_text())
    write_json(tmp_path / "seeds" / "2" / "summary.json", summary | {"test/loss": 5.5})
    report([tmp_path / "seeds"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "4.5000 ± 1.0000" in page


def test_over_seeds_nothing_is_chosen(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "seeds" / str(seed), f"seed={seed}", loss=3.0 + seed)
    write_json(tmp_path / "seeds" / "sweep.json", {"fixed": {}, "search": [{"seed": "0"}, {"seed": "1"}]})
    report([tmp_path / "seeds"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8").partition('<script type="application/json"')
    assert "Over 2 seeds" in page[0] and "<dt>val loss</dt><dd>3.5000 ± 0.7071</dd>" in page[0]
    for claim in (
        "Best",
        "The best",
        "lightning-lm rerun",
        "lightning-lm next",
        'class="first"',
        "<h2>Configurations",
        "untouched",
    ):
        assert claim not in page[0]
    assert '"best": true' not in page[2]


def test_a_search_is_a_study_of_means(grid):
    study = as_study(ranked(collect([grid])))
    trials = {(t.params["learning rate"], t.params["weight decay"]): t.value for t in study.trials}
    assert [t.value for t in study.trials] == pytest.approx([3.1, 3.08, 2.0, 4.2]), "in the order of the jobs"
    assert trials == pytest.approx({(1e-3, 0.0): 3.1, (1e-3, 0.1): 3.08, (3e-3, 0.0): 2.0, (3e-3, 0.1): 4.2})
    kinds = {name: type(kind).__name__ for name, kind in study.trials[0].distributions.items()}
    assert kinds == {"learning rate": "FloatDistribution", "weight decay": "CategoricalDistribution"}, (
        "0 has no logarithm"
    )
    assert {"map", "parallel coordinates", "slices", "history", "contours"} == pictures(
        collect([grid]), "", Verdict([])
    ).keys()
