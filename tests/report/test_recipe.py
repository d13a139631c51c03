"""Recipes against the configuration that they must give."""

import functools
import re
import shutil

import pytest
from conftest import ROOT, compose
from omegaconf import OmegaConf
from run_folders import write_run

from lightning_lm.config.composition import as_settings, flat
from lightning_lm.errors import Refused
from lightning_lm.report import recipe
from lightning_lm.runs.folder import write_text


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    return shutil.copytree(ROOT / "conf", tmp_path_factory.mktemp("conf") / "conf")


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
    path = recipe.write_recipe(tmp_path, name, "about it", conf)
    given = as_settings(compose(f"experiment={name}", conf=conf))
    wanted["logger"]["group"] = None
    assert given | {"run_dir": wanted["run_dir"]} == wanted | {"name": name}
    own = flat(OmegaConf.to_container(OmegaConf.load(path)))
    assert len(own.keys() - {"name", "defaults"}) == values, "a small diff over the defaults"
    assert recipe.write_recipe(tmp_path, name, "about it", conf) == path, "the same again"


def test_a_recipe_overwrites_no_other(conf, tmp_path):
    run, other = (write_run(tmp_path / str(n), f"optimizer.lr={n}e-3", loss=3.0) for n in (1, 2))
    path = recipe.write_recipe(run, "taken", "about it", conf)
    before = path.read_text()
    with pytest.raises(Refused, match="holds another recipe"):
        recipe.write_recipe(other, "taken", "about it", conf)
    assert path.read_text() == before
