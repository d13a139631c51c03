"""Which trials of a study are ended early, and whether that was right."""

from types import SimpleNamespace

import pytest
from conftest import compose
from optuna.distributions import FloatDistribution
from resumable import settings

from lightning_lm.report.pruning import rank_correlations
from lightning_lm.runs.folder import write_json
from lightning_lm.sweeps.study import Study
from lightning_lm.training.components import build
from lightning_lm.training.pruning import Pruning
from lightning_lm.training.trainer import build_callbacks

STEPS = (10, 20, 30, 40, 60)  # of the validations; the rate warms up until the first, and the last ends the run
LOSSES = [
    [9.0, 5.0, 1.0, 4.0, 3.0],
    [1.0, 6.0, 1.0, 6.0, 2.0],
    [1.0, 7.0, 0.0, 0.0, 0.0],  # the third, and not in the better half at step 20
    [9.0, 4.0, 9.0, 3.5, 2.5],
    [9.0, 9.0, 2.0, 9.0, 4.0],  # the worst, but one of each five is spared
    [9.0, 4.5, 9.0, 9.0, 0.0],  # in the better half at step 20, not at step 40
]


def run_study(folder, all_losses, startup_trials):
    """The study of trials with these losses, and the steps that each of them was validated at."""
    validated = []
    ours = Study(folder, {"optimizer.lr": FloatDistribution(0, 1)}, "random", 0, 2, startup_trials, spare_every=5)
    for number, losses in enumerate(all_losses):
        ours.next_batch(number + 1, 1)
        budget, run = SimpleNamespace(progress=0.0), folder / str(number)
        pruning = Pruning(run / "trial.json", budget, warmup=1 / 6)
        trainer = SimpleNamespace(should_stop=False, is_global_zero=True, global_step=0)
        pruning.on_train_start(trainer, None)
        steps = []
        for step, loss in zip(STEPS, losses, strict=True):
            trainer.global_step, budget.progress, trainer.should_stop = step, step / 60, step == 60
            steps.append(step)
            if pruning.behind(trainer, loss):
                break
        write_json(run / "summary.json", {"status": "finished" if step == 60 else "pruned", "val/loss": loss})
        ours.tell([number], [loss])
        validated.append(steps)
    return ours.study, validated


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, *run_study(folder, LOSSES, startup_trials=2)


def test_trials_are_pruned_by_whole_rungs_after_the_warmup_and_the_first_trials(study):
    _, trials, validated = study
    assert [steps[-1] for steps in validated] == [60, 60, 20, 60, 60, 40]
    assert all(10 not in trial.intermediate_values for trial in trials.trials)
    assert [trial.user_attrs["spared"] for trial in trials.trials] == [True, True, False, False, True, False]


def test_spared_trials_tell_whether_the_early_order_is_the_last_one(study, tmp_path):
    """The rungs are at steps 20 and 40; at the first of them the last two of five trials were the other way round."""
    run_study(tmp_path, [[9.0, early, 9.0, n, n] for n, early in enumerate([1.0, 2.0, 3.0, 5.0, 4.0])], 5)
    rhos, count = rank_correlations(tmp_path)
    assert rhos == pytest.approx({20: 1 - 6 * (1 + 1) / (5 * (25 - 1)), 40: 1}) and count == 5
    assert rank_correlations(study[0]) == ({}, 3), "three have no order"
    assert rank_correlations(tmp_path / "none") == ({}, 0)


@pytest.mark.parametrize("warmup", [8, 0.25])
def test_a_warmup_in_steps_is_a_share_of_the_run(warmup, dropping, text, tmp_path):
    job = compose(*settings(dropping, text, tmp_path / "0", f"scheduler.warmup={warmup}", "trainer.max_steps=32"))
    (tmp_path / "0").mkdir()
    write_json(tmp_path / "0" / "trial.json", {})
    callbacks = build_callbacks(job, build(job), tmp_path / "0").all
    assert [callback.warmup for callback in callbacks if isinstance(callback, Pruning)] == [0.25]
