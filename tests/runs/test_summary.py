"""What a run tells at its start and at its end."""

import pytest

from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.runs.summary import show_ledger, show_summary

COUNTS = dict.fromkeys(("rows", "words", "line_ends", "bytes", "tokens", "blocks", "tail"), 1)


def test_tokens_that_a_tokenizer_adds_are_counted():
    plain = {"train": {**COUNTS, "separators": 0}, "validation": {**COUNTS, "separators": 0}}
    assert "separators" not in show_ledger(plain)
    plain["validation"]["separators"] = 1234
    assert [line.split() for line in show_ledger(plain).splitlines()][6] == ["separators", "0", "1,234"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_that_there_is_is_proposed(split, tmp_path):
    figures = {"val/loss": 3.0, "tokens_per_second": None, "tokens_seen": 1, "seconds": 1.0, "steps": 1, "best_step": 1}
    summary = figures | ({"test/loss": 3.1} if split == "test" else {})
    assert f"evaluate {tmp_path} --split {split}" in show_summary(summary, OBJECTIVES["clm"].facts, tmp_path)
