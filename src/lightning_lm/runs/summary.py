"""What a run tells people: the ledger at its start, the figures at its end."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning_lm import figures
from lightning_lm.objectives.facts import ObjectiveFacts
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.numbers import duration, format_value


def times_tested(run: Path) -> int:
    """How often a run's test split has been scored, once at each of its ends."""
    summary, notes = read_json_file(run / "summary.json") or {}, read_json_file(run / "environment.json") or {}
    return summary.get("times_tested", 1) if "test/loss" in summary else notes.get("tests_before", 0)


def show_ledger(ledger: dict[str, dict[str, Any]]) -> str:
    """A table of at most 80 columns: what each split's text holds, and where its tokens went."""
    lines = [f"{'':<12}" + "".join(f"{split:>18}" for split in ledger)]
    added = ["separators"] if any(entry.get("separators") for entry in ledger.values()) else []  # to the text's tokens
    for name in ("rows", "words", "line_ends", "bytes", "tokens", *added, "blocks", "tail"):
        lines.append(f"{name.replace('_', ' '):<12}" + "".join(f"{entry[name]:>18,}" for entry in ledger.values()))
    return "\n".join(lines)


def show_summary(summary: dict[str, Any], facts: ObjectiveFacts, run: Path) -> str:
    """The figures of a finished run, and what to type next."""
    lines = ["", f"{'':<26}" + "".join(f"{split:>16}" for split in figures.SPLITS.values())]
    for name, label in figures.labels(facts.perplexity_label).items():
        values = [summary.get(f"{split}/{name}") for split in figures.SPLITS]
        if values[0] is not None:
            lines.append(f"{label:<26}" + "".join(f"{format_value(value, ',.4f'):>16}" for value in values))
    lines += notes(summary)
    if (times := summary.get("times_tested", 1)) > 1:
        lines.append(f"The test split was scored {times} times, at each of the run's ends: choose nothing by it.")
    speed = summary["tokens_per_second"]
    lines += [
        f"best at step {summary['best_step']:,} of {summary['steps']:,}; {summary['tokens_seen']:,} tokens"
        f" in {duration(summary['seconds'])}" + (f", {speed:,.0f} tokens/s" if speed else ""),
        f"run folder: {run}",
    ]
    command, arguments = facts.command
    folder = shlex.quote(str(run))
    split = "test" if "test/loss" in summary else "validation"
    commands = (
        f"{command} {folder} {arguments}",
        f"evaluate {folder} --split {split}",
        f"push {folder} --repo NAME --dry-run",
    )
    return "\n".join([*lines, "next:", *(f"  {program()} {command}" for command in commands)])


def notes(summary: dict[str, Any]) -> list[str]:
    """What must stand beside the figures: a part of a split that was scored alone, and tokens that are no text."""
    sentences = []
    for prefix, split in figures.SPLITS.items():
        limit, separators = (summary.get(f"{prefix}/protocol") or {}).get("limit"), summary.get(f"{prefix}/separators")
        if limit is not None:
            sentences.append(f"{split}: only the first {limit:,} windows were scored, not the whole text")
        if separators:
            sentences.append(f"{split}: of the tokens scored, {separators:,} are separators")
    return sentences


def program() -> str:
    """``lightning-lm`` as it can be typed here."""
    installed = os.path.relpath(Path(sys.executable).parent / "lightning-lm")
    return "lightning-lm" if shutil.which("lightning-lm") else installed
