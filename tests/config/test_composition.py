"""Composing works wherever it is asked for, also where Hydra is at work already."""

import subprocess
import sys

import pytest
from composing import compose
from hydra.core.global_hydra import GlobalHydra

from lightning_lm.config import overrides
from lightning_lm.config.validation import check
from lightning_lm.errors import Refused

JOB = """
import sys
import hydra
import lightning_lm as lm

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    config = lm.compose("experiment=quickstart", "optimizer.lr=0.5")
    again = lm.compose("experiment=quickstart")
    print(config.optimizer.lr, again.optimizer.lr, config.name, hydra.core.hydra_config.HydraConfig.get().job.name)

sys.argv = ["mine.py", "hydra.run.dir=.", "hydra.output_subdir=null"]
main()
"""


def test_compose_works_within_a_job_of_hydras(tmp_path):
    done = subprocess.run([sys.executable, "-c", JOB], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["0.5", "0.02", "quickstart"]


def test_what_is_wrong_is_told_as_on_the_command_line():
    with pytest.raises(Refused) as refused:
        compose("optimizer=lion", "seed=x", "optimiser.lr=1", "data.splits=[")
    settings = [problem.setting for problem in refused.value.problems]
    assert settings == ["optimizer", "data.splits", "seed", "optimiser.lr"]


def test_a_search_is_no_single_run():
    with pytest.raises(Refused, match="sweep=lr_wd_grid: it is of a search"):
        compose("experiment=quickstart", "sweep=lr_wd_grid")


def test_what_python_sets_wrongly_is_told():
    config = compose("data=text", "data.train=a.txt", "data.validation=b.txt")
    with pytest.raises(Refused, match="lrr=3: no such setting; did you mean lr?"):
        config.optimizer.lrr = 3
    config.trainer.max_steps, config.hardware.strategy = "x", "fspd"
    with pytest.raises(Refused) as refused:
        check(config)
    assert [problem.setting for problem in refused.value.problems] == ["trainer.max_steps", "hardware.strategy"]


def test_composing_leaves_hydra_as_it_was():
    before = GlobalHydra.instance().hydra
    assert compose("experiment=quickstart").name == "quickstart"
    assert GlobalHydra.instance().hydra is before


@pytest.mark.parametrize(
    "typed",
    [
        "experiment=quickstart_mlm logger=none seed=3 run_dir=outputs/here",
        "optimizer.lr=0.5 optimizer=muon data=text data.train=[a,b] objective.prompts=['The,river'] name=1 run_dir=r",
        "model=gpt2-tiny model.config.n_layer=2 callbacks=ema callbacks.ema.decay=0.5 ++optimizer.lr=2 run_dir=r",
    ],
)
def test_the_tests_compose_what_the_package_composes(typed):
    """Twice, since what was merged once is used again."""
    for _ in range(2):
        assert compose(*typed.split(" ")) == overrides.compose(*typed.split(" "))
