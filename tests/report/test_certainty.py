"""The verdict over a search: what is within noise, where the best point lies, and what can't be said."""

import re

import numpy as np
import pytest
from run_folders import write_run

from lightning_lm.report.certainty import judge_search
from lightning_lm.report.runs import collect
from lightning_lm.runs.folder import write_json

RATES, DECAYS = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), (0.01, 0.03, 0.1, 0.3)
SETTINGS = ["trainer.global_batch_size=8"]


def write_search(folder, height, rates, decays, seeds, noise=0.03):
    """A grid of runs whose losses are ``height(log rate, log decay)`` and noise."""
    chance = np.random.default_rng(0)
    cells = [(rate, decay, seed) for rate in rates for decay in decays for seed in range(seeds)]
    for number, (rate, decay, seed) in enumerate(cells):
        own = f"optimizer.lr={rate}", f"optimizer.weight_decay={decay}", f"seed={seed}"
        loss = float(height(np.log(rate), np.log(max(decay, 1e-9))) + noise * chance.normal())
        run = write_run(folder / str(number), *own, *SETTINGS, loss=loss)
        write_json(run / "ledger.json", {"train": {"blocks": 81}, "validation": {"key": "k", "bytes": 1}})
    return judge_search(collect([folder]))


def bowl(x, y):
    return 3 + 0.3 * (x - np.log(4e-3)) ** 2 + 0.1 * (y - np.log(0.05)) ** 2


@pytest.fixture(scope="module")
def bowl_verdict(tmp_path_factory):
    """A bowl with its lowest point at 0.004 and 0.05, and decay 0 as a fifth value, which has no logarithm."""
    folder = tmp_path_factory.mktemp("sweeps") / "bowl"
    return write_search(folder, lambda x, y: bowl(x, max(y, np.log(1e-3))), RATES, (0.0, *DECAYS), 3)


def test_the_best_point_of_a_bowl(bowl_verdict):
    region = bowl_verdict.region
    assert region.best == pytest.approx({"optimizer.lr": 4e-3, "optimizer.weight_decay": 0.05}, rel=0.1)
    assert region.open_to == []
    (low, high), (weak, strong) = region.limits["optimizer.lr"], region.limits["optimizer.weight_decay"]
    assert 3e-3 < low < 4e-3 < high < 5e-3 and 0.04 < weak < 0.05 < strong < 0.07
    (polygon,) = region.outlines
    assert np.allclose([polygon.min(axis=0), polygon.max(axis=0)], [(low, weak), (high, strong)], rtol=0.05)
    assert any("lowest at learning rate 0.00" in sentence for sentence in bowl_verdict.sentences)
    assert not any("edge" in sentence for sentence in bowl_verdict.sentences)


def test_what_is_within_noise_of_the_best(bowl_verdict):
    """The two decays beside the best point differ by 0.02, at a noise of 0.03/√3; all others are further off."""
    assert bowl_verdict.sentences[0].startswith("2 of 25 configurations are within noise of the best")


def test_the_averaging_time(bowl_verdict):
    """1/(0.004 · 0.03) steps; an epoch is ⌈81 / 8⌉ = 11 of them. Without decay it has no end."""
    first = bowl_verdict.averaging_times[0]
    assert (first.steps, first.epochs) == pytest.approx((1 / (0.004 * 0.03), 1 / (0.004 * 0.03) / 11))
    times = {row.name: row.steps for row in bowl_verdict.averaging_times}
    assert times["learning rate 0.004, weight decay 0"] == np.inf


def test_the_sensitivity_to_the_rate(bowl_verdict):
    """The mean of 0.3·(log rate)² by the trapezoidal rule, at four steps of log 2 around the best."""
    step = 0.3 * np.log(2) ** 2
    expected = np.trapezoid([4 * step, step, 0, step, 4 * step]) / 4
    (told,) = re.findall(r"Sensitivity to the learning rate: (\S+),", " ".join(bowl_verdict.sentences))
    assert float(told) == pytest.approx(expected, abs=0.02)


def test_one_seed_claims_nothing(tmp_path):
    one = write_search(tmp_path / "one", bowl, RATES, DECAYS, 1)
    assert one.region is None and "one seed" in one.sentences[0]
    assert any(sentence.startswith("Sensitivity") for sentence in one.sentences)


def test_the_grids_edge_and_a_slope(tmp_path):
    """All rates below the best: the region is open to higher ones, and no point is named."""
    slope = write_search(tmp_path / "slope", bowl, (2.5e-4, 5e-4, 1e-3), DECAYS, 2)
    assert slope.region.best is None and slope.region.open_to == ["higher learning rate"]
    assert "The best learning rate, 0.001, lies on the grid's edge: try higher ones." in slope.sentences


def test_no_rate_that_diverged_is_recommended(tmp_path):
    """Neither by the warning of an edge, nor beside one that is the best."""
    for number, (rate, loss) in enumerate({1e-3: 3.2, 2e-3: 3.0, 1e30: None}.items()):
        write_run(tmp_path / str(number), f"optimizer.lr={rate}", loss=loss, status="finished" if loss else "diverged")
    sentences = judge_search(collect([tmp_path / str(number) for number in range(3)])).sentences
    assert "The next higher learning rate tried, 1e+30, diverged." in sentences
    assert not any("edge" in sentence for sentence in sentences)


def test_one_setting_alone(tmp_path):
    rates = write_search(tmp_path / "rates", bowl, RATES, (0.1,), 3)
    assert rates.region.best == pytest.approx({"optimizer.lr": 4e-3}, rel=0.1)
    assert rates.region.outlines == []


def test_a_single_run_has_no_verdict(tmp_path):
    assert judge_search(collect([write_run(tmp_path / "run", loss=3.0)])).sentences == []
