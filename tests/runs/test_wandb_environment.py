"""W&B's own variables hold where a setting was left at its default."""

import pytest
from conftest import compose

from lightning_lm.training import trainer


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], ("p", "e", "n", "g")),
        (["logger.project=mine", "logger.entity=me", "logger.group=ours"], ("mine", "me", "n", "ours")),
    ],
)
def test_the_environment_holds_where_nothing_was_typed(typed, expected, tmp_path, monkeypatch):
    for name, value in zip(("PROJECT", "ENTITY", "NAME", "RUN_GROUP"), "peng", strict=True):
        monkeypatch.setenv(f"WANDB_{name}", value)
    asked = {}
    monkeypatch.setattr(trainer, "wandb_logger", lambda *_, **given: asked.update(given))
    trainer.build_loggers(compose(*typed), tmp_path, "id")
    assert tuple(asked[name] for name in ("project", "entity", "name", "group")) == expected
