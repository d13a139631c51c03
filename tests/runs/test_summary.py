"""What a run tells at its start."""

from lightning_lm.runs.summary import show_ledger

COUNTS = dict.fromkeys(("rows", "words", "line_ends", "bytes", "tokens", "blocks", "tail"), 1)


def test_tokens_that_a_tokenizer_adds_are_counted():
    plain = {"train": {**COUNTS, "separators": 0}, "validation": {**COUNTS, "separators": 0}}
    assert "separators" not in show_ledger(plain)
    plain["validation"]["separators"] = 1234
    assert [line.split() for line in show_ledger(plain).splitlines()][6] == ["separators", "0", "1,234"]
