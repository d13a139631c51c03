"""W&B's own variables hold where a setting was left at its default."""

import pytest
from conftest import compose
from wandb_offline import fresh_wandb, no_account

from lightning_lm.config.validation import problems
from lightning_lm.errors import Refused
from lightning_lm.training import trainer

__all__ = ["fresh_wandb", "no_account"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], ("p", "e", "n", "g", ["t", "u"])),
        (
            ["logger.project=mine", "logger.entity=me", "logger.group=ours", "logger.tags=[own]"],
            ("mine", "me", "n", "ours", ["own"]),
        ),
    ],
)
def test_the_environment_holds_where_nothing_was_typed(typed, expected, tmp_path, monkeypatch):
    for name, value in zip(("PROJECT", "ENTITY", "NAME", "RUN_GROUP"), "peng", strict=True):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_TAGS", "t,u")
    asked = {}
    monkeypatch.setattr(trainer, "wandb_logger", lambda *_, **given: asked.update(given))
    trainer.build_loggers(compose(*typed), tmp_path, "id")
    asked["tags"] = asked["tags"][:-3]  # without those of objective, model and text
    assert tuple(asked[name] for name in ("project", "entity", "name", "group", "tags")) == expected


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("WANDB_MODE", "ofline", "WANDB_MODE=ofline: no such mode; did you mean offline?"),
        ("WANDB_PROJECT", "a/b", "WANDB_PROJECT='a/b': W&B can't take it; give one without / "),
    ],
)
def test_what_wandb_could_not_take_is_refused_before_anything_is_spent(name, value, line, monkeypatch):
    monkeypatch.setenv(name, value)
    (problem,) = problems(compose())
    assert str(problem).startswith(line)
    assert not problems(compose("logger=none"))


def test_a_variable_that_wandb_cannot_read_is_one_line(tmp_path, monkeypatch, fresh_wandb):
    monkeypatch.setenv("WANDB_CONSOLE", "bogus")
    with pytest.raises(Refused, match="^logger=wandb: W&B did not start: .*bogus"):
        trainer.build_loggers(compose(), tmp_path, "id")
