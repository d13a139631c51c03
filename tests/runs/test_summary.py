"""The tables for people: as wide as the narrowest terminal, and with a gap between any two numbers."""

import re

import pytest

from lightning_lm.config.schema import Config
from lightning_lm.runs.summary import show_ledger, show_summary

BIG = {
    "val/loss": 9.2481,
    "val/perplexity": 10385.0,
    "val/word_perplexity": 4151230.25,
    "test/loss": 8.1,
    "test/perplexity": float("inf"),
    "test/word_perplexity": 17765.1234,
}


def cells(table: str, label: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(label))
    return re.split(r" {2,}", line)[1:]


def test_figures_of_any_size_stand_apart(tmp_path):
    rest = {"tokens_per_second": 1e5, "steps": 10**4, "tokens_seen": 10**9, "seconds": 1e4, "best_step": 10**4}
    table = show_summary(BIG | rest, Config().objective.facts, tmp_path)
    assert cells(table, "word perplexity") == ["4.15e+06", "17,765.1234"]
    assert cells(table, "perplexity") == ["10,385.0000", "∞"]
    assert max(map(len, table.partition("run folder")[0].splitlines())) <= 80


@pytest.mark.parametrize("tokens", [12, 999_999_999_999])
def test_the_ledger_fits(tokens):
    entry = dict.fromkeys(("rows", "words", "line_ends", "bytes", "tokens", "blocks", "tail"), tokens)
    table = show_ledger({"train": entry, "validation": entry, "test": entry})
    assert cells(table, "tokens") == [f"{tokens:,}"] * 3
    assert max(map(len, table.splitlines())) <= 80
