"""Whether a command may go on in a run's folder, also where settings or options have come since."""

from dataclasses import dataclass

import pytest
import yaml
from conftest import compose
from omegaconf import OmegaConf

from lightning_lm.callbacks.schema import CALLBACKS, EmaConfig
from lightning_lm.config.composition import as_settings
from lightning_lm.config.schema import AXES, chosen, may_change
from lightning_lm.constraints import setting
from lightning_lm.data.schema import PythonDocsDataConfig, TextDataConfig
from lightning_lm.errors import Refused
from lightning_lm.optim.schema import OPTIMIZERS, AdamWConfig
from lightning_lm.runs.folder import write_json
from lightning_lm.runs.settings import config_of, later_ends, part_of, same_settings

BASE = ("data=text", "data.train=a.txt", "data.validation=b.txt", "logger=none", "run_dir=there")


def write(folder, job, options=True, without=()):
    """A folder that keeps a job's settings, as an older code would that did not know some of them."""
    settings = as_settings(job)
    for name in without:
        axis, _, key = name.rpartition(".")
        del (settings[axis] if axis else settings)[key]
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    write_json(folder / "environment.json", {"options": chosen(job)} if options else {})
    return folder


def refusals(folder, job):
    try:
        same_settings(folder, job)
    except Refused as refused:
        return [problem.setting for problem in refused.problems]
    return []


def test_the_same_settings_go_on_and_others_are_named(tmp_path):
    folder = write(tmp_path / "run", compose(*BASE))
    assert refusals(folder, compose(*BASE)) == []
    assert refusals(folder, compose(*BASE, "optimizer.lr=1e-3", "seed=1")) == ["optimizer.lr", "seed"]
    assert refusals(folder, compose(*BASE, "model.config.n_layer=2")) == ["model.config.n_layer"]


def test_what_decides_no_outcome_may_change(tmp_path):
    folder = write(tmp_path / "run", compose(*BASE))
    free = ("hardware.devices=2", "hardware.micro_batch_size=1", "hardware.strategy=ddp", "hardware.num_workers=3")
    assert refusals(folder, compose(*BASE, *free, "logger=wandb", "name=x", "data.cache_dir=c")) == []
    assert refusals(folder, compose(*BASE, "hardware.precision=bf16-mixed")) == ["hardware.precision"]
    expected = {"run_dir", "name", "logger", "data.cache_dir", "data.verify", "trainer.push_to_hub"}
    expected |= {f"trainer.{name}" for name in ("checkpoint_every_n_minutes", "keep_checkpoints", "on_nonfinite")}
    expected |= {"hardware.hang_timeout", "hardware.restarts"}
    expected |= {f"hardware.{name}" for name in ("devices", "nodes", "strategy", "micro_batch_size", "num_workers")}
    expected |= {f"logger.{name}" for name in ("name", "project", "entity", "group", "tags", "require_online")}
    assert may_change() == expected


@pytest.mark.parametrize("missing", ["callbacks", "trainer.patience", "objective.preview_tokens", "optimizer.groups"])
def test_a_setting_that_has_come_since_counts_as_its_default(missing, tmp_path):
    folder = write(tmp_path / "run", compose(*BASE), without=[missing])
    assert refusals(folder, compose(*BASE)) == []


def test_a_new_setting_at_another_value_is_told(tmp_path):
    folder = write(tmp_path / "run", compose(*BASE), without=["trainer.patience", "callbacks"])
    assert refusals(folder, compose(*BASE, "trainer.patience=3")) == ["trainer.patience"]
    with pytest.raises(Refused, match=f"^callbacks=ema: {folder} holds a run with none; choose another run_dir$"):
        same_settings(folder, compose(*BASE, "callbacks=ema"))


def test_another_option_is_told_without_its_settings(tmp_path):
    folder = write(tmp_path / "run", compose(*BASE))
    (folder / "environment.json").write_text(
        '{"options": {"optimizer": "adamw", "scheduler": "linear", "callbacks": []}}'
    )
    assert refusals(folder, compose(*BASE, "optimizer=muon", "scheduler=wsd")) == ["optimizer", "scheduler"]


def test_a_default_that_changes_what_runs_do_says_what_was_before(tmp_path, monkeypatch):
    @dataclass
    class Newer(AdamWConfig):
        damping: float = setting(0.5, before=0.0)

    folder = write(tmp_path / "run", compose(*BASE))
    monkeypatch.setitem(OPTIMIZERS, "adamw", Newer)
    assert config_of(folder).optimizer.damping == 0
    for job in (compose(*BASE), compose(*BASE, "optimizer.damping=0")):
        assert refusals(folder, job) == [] and job.optimizer.damping == 0
    assert refusals(folder, compose(*BASE, "optimizer.damping=0.2")) == ["optimizer.damping"]
    write(folder, job)  # as the run does that goes on
    assert refusals(folder, compose(*BASE)) == []


def test_settings_within_a_callback_and_a_table_have_room_too(tmp_path, monkeypatch):
    @dataclass
    class LaterEma(EmaConfig):
        start: int = 0
        verbose: bool = setting(False, may_change=True)

    folder = write(tmp_path / "run", compose(*BASE, "callbacks=ema"))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    for row in settings["optimizer"]["groups"]:
        del row["decay"]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setitem(CALLBACKS, "ema", LaterEma)
    assert refusals(folder, compose(*BASE, "callbacks=ema", "callbacks.ema.verbose=true")) == ["optimizer.groups"]
    assert refusals(folder, compose(*BASE, "callbacks=ema", "optimizer.groups=[{ndim: 1}, {}]")) == []
    assert refusals(
        folder, compose(*BASE, "callbacks=ema", "optimizer.groups=[{ndim: 1}, {}]", "callbacks.ema.start=2")
    )
    assert "callbacks.ema.verbose" in may_change()


def test_an_end_may_come_later(tmp_path):
    job = (*BASE, "trainer.max_steps=4", "trainer.max_tokens=4000")
    folder = write(tmp_path / "run", compose(*job))
    assert refusals(folder, compose(*job, "trainer.max_steps=5")) == []
    assert later_ends(folder, compose(*job, "trainer.max_steps=5", "seed=0")) == ["trainer.max_steps"]
    assert refusals(folder, compose(*job, "trainer.max_steps=5", "trainer.max_tokens=3999")) == ["trainer.max_tokens"]
    assert refusals(folder, compose(*job, "trainer.max_epochs=9")) == ["trainer.max_epochs"], "it may come before"
    assert refusals(folder, compose(*job, "trainer.max_tokens=null")) == ["trainer.max_tokens"]
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("max_steps: 4", "max_steps: x"))
    assert refusals(folder, compose(*job)) == ["trainer.max_steps"], "a damaged end is none"


def test_an_option_that_is_gone_is_named(tmp_path):
    folder = write(tmp_path / "run", compose(*BASE))
    write_json(folder / "environment.json", {"options": {"data": "archive"}})
    with pytest.raises(Refused, match="it used data=archive, which isn't there now"):
        part_of(folder, "data")


def test_two_options_with_the_same_settings_are_told_apart(tmp_path, monkeypatch):
    @dataclass
    class Other(PythonDocsDataConfig):
        pass

    folder = write(tmp_path / "run", compose("data=python_docs"))
    monkeypatch.setitem(AXES["data"], "other", Other)
    job = compose("data=python_docs")
    assert refusals(folder, job) == []
    job.data = Other()
    assert refusals(folder, job) == ["data"]


@pytest.mark.parametrize("options", [True, False])
@pytest.mark.parametrize("data", ["python_docs", "text", "wikitext2"])
def test_a_folders_settings_have_their_classes_again(data, options, tmp_path):
    more = BASE[1:3] if data == "text" else ()
    job = compose(f"data={data}", *more, "objective=mlm", "optimizer=muon", "callbacks=ema", "scheduler=wsd")
    folder = write(tmp_path / "run", job, options)
    assert config_of(folder) == job


def test_an_older_folders_class_is_the_one_with_its_settings(tmp_path, monkeypatch):
    @dataclass
    class Longer(TextDataConfig):
        extra: int = 0

    monkeypatch.setitem(AXES["data"], "longer", Longer)
    folder = write(tmp_path / "run", compose(*BASE), options=False)
    assert type(part_of(folder, "data")) is TextDataConfig
    monkeypatch.setitem(AXES["data"], "twin", type("Twin", (TextDataConfig,), {}))
    with pytest.raises(Refused, match="2 options of data have the settings"):
        part_of(folder, "data")


def test_no_settings_are_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("- a\n")
    with pytest.raises(Refused, match="is no run's"):
        config_of(tmp_path)
    with pytest.raises(Refused, match="can't be read"):
        same_settings(tmp_path, compose(*BASE))
    (tmp_path / "config.yaml").write_text("a: {\n")
    with pytest.raises(Refused, match="is no run's .*node content"):
        config_of(tmp_path)
    OmegaConf.save({"data": {"train": 1, "unheard": 2}}, tmp_path / "config.yaml")
    with pytest.raises(Refused, match="0 options of data"):
        part_of(tmp_path, "data")
