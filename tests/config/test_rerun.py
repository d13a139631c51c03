"""A run's settings for another run: all of them, changed as typed."""

import pytest
from conftest import compose
from resumable import assert_same

from lightning_lm import cli
from lightning_lm.config.rerun import changed
from lightning_lm.errors import Refused
from lightning_lm.runs.settings import config_of

TYPED = (
    *("data=text", "data.train=[a.txt]", "data.validation=b.txt", "model=gpt2-tiny", "model.config.n_layer=3"),
    *("optimizer=muon", "optimizer.momentum=0.5", "scheduler=wsd", "callbacks=ema", "callbacks.ema.decay=0.5"),
    *("logger=none", "hardware=cpu", "name=mine", "trainer.max_steps=7"),
)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["optimizer.lr=1", "model.config.n_head=1", "data.test=c.txt", "run_dir=there", "trainer.max_steps=null"],
        ["optimizer=adamw", "optimizer.lr=0.1", "callbacks=none", "objective=mlm", "hardware=auto", "scheduler=linear"],
        ["data=wikitext2", "model=bert-tiny"],
        ["debug=profiler", "trainer.max_steps=5"],
    ],
)
def test_it_is_what_the_whole_command_gives(more):
    before = compose(*TYPED)
    axes = {text.partition("=")[0] for text in more}
    command = [text for text in TYPED if text.partition(".")[0] not in axes]  # an option comes with its own settings
    expected, ours = compose(*command, *more), changed(before, more)
    if "run_dir=there" not in more:
        assert ours.run_dir.startswith("outputs/mine/")
        ours.run_dir = expected.run_dir
    assert ours == expected


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["optimizer=adam", "optimizr.lr=1"], "optimizer=adam: no such option.*\noptimizr.lr=1: no such setting"),
        (["seed", "optimizer.lr=x"], "seed=: no value; .*\noptimizer.lr=x: not a number"),
        (["optimizer.lr=1,2"], "several values"),
        (["experiment=quickstart"], "experiment=quickstart: a rerun takes options of axes and of debug only"),
        (["debug=one"], "debug=one: no such option; there are one_step, overfit, profiler"),
        (["~logger"], "~logger=: its defaults would stay; choose an option: logger=OPTION"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: relative paths"),
        (["optimizer=adamw", "optimizer.momentum=0.9"], "optimizer.momentum=0.9: no such setting; .*optimizer=muon"),
    ],
)
def test_what_is_wrong_is_told(typed, told):
    with pytest.raises(Refused, match=told):
        changed(compose(*TYPED), typed)


def test_a_rerun_gives_the_same_run(reference, tmp_path, capsys):
    run = reference()
    assert cli.main(["rerun", str(run), f"run_dir={tmp_path / 'again'}"]) == 0
    assert_same(tmp_path / "again", run)
    more = ["optimizer=muon", "trainer.max_steps=2", "trainer.limit_val_batches=1", f"run_dir={tmp_path / 'other'}"]
    assert cli.main(["rerun", str(run), *more]) == 0
    other = config_of(tmp_path / "other")
    assert (other.optimizer.name, other.trainer.max_steps, other.seed) == ("muon", 2, config_of(run).seed)
    assert cli.main(["rerun", str(tmp_path)]) == 2
    assert "it has no config.yaml" in capsys.readouterr().err
