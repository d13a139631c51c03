"""Each row of each axis's table is whole: for whoever adds one, this says what is missing."""

from dataclasses import fields, is_dataclass
from itertools import chain

import pytest
from conftest import ROOT

from lightning_lm.callbacks.schema import CallbackConfig
from lightning_lm.config.schema import AXES
from lightning_lm.data.schema import DataConfig
from lightning_lm.models.schema import ModelConfig
from lightning_lm.objectives.schema import ObjectiveConfig
from lightning_lm.optim.schema import OptimizerConfig, SchedulerConfig

BASES = {
    "model": ModelConfig,
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "callbacks": CallbackConfig,
}
ROWS = [(axis, option, kind) for axis, table in AXES.items() for option, kind in table.items()]


@pytest.mark.parametrize(("axis", "option", "kind"), ROWS)
def test_a_row_is_whole(axis, option, kind):
    base = BASES[axis]
    assert is_dataclass(kind) and issubclass(kind, base), f"{kind.__name__} must be a dataclass and a {base.__name__}"
    assert kind.build is not base.build or base in (ModelConfig, SchedulerConfig), f"{kind.__name__} needs a build()"
    assert kind().problems() is not None
    if axis in ("objective", "optimizer", "scheduler") and list(AXES[axis].values()).count(kind) == 1:
        assert kind().name == option, f"the name of {kind.__name__} must be {option!r}"
    if axis == "optimizer":
        assert isinstance(kind.members, tuple) and {row.optimizer for row in kind().groups} <= set(kind.members)
    if axis == "objective":
        assert kind.facts.name == option
    assert all(row.name.isidentifier() for row in fields(kind))


@pytest.mark.parametrize(("axis", "option"), [row[:2] for row in ROWS if row[0] != "model"])
def test_a_row_has_a_file_that_names_its_schema(axis, option):
    files = (ROOT / "conf" / axis).glob("*.yaml")
    named = chain.from_iterable(path.read_text(encoding="utf-8").split() for path in files)
    assert f"schema_{option}" in named, f"no file in conf/{axis} has schema_{option} among its defaults"


@pytest.mark.parametrize("axis", AXES)
def test_a_file_names_a_schema_that_there_is(axis):
    for path in (ROOT / "conf" / axis).glob("*.yaml"):
        schemas = [word for word in path.read_text(encoding="utf-8").split() if word.startswith("schema_")]
        assert {word.removeprefix("schema_") for word in schemas} <= AXES[axis].keys(), path
        assert schemas or axis in ("model", "callbacks"), f"{path} must have a schema_… among its defaults"
