"""What a run tells people: the ledger at its start, the figures at its end."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning_lm import figures
from lightning_lm.objectives.facts import ObjectiveFacts


def show_ledger(ledger: dict[str, dict[str, Any]]) -> str:
    """A table: per split, what the text holds, and where its tokens went."""
    names = ("rows", "words", "line_ends", "bytes", "tokens", "blocks", "tail")
    lines = ["".join([f"{'split':<12}", *(f"{name:>13}" for name in names)])]
    for split, entry in ledger.items():
        lines.append("".join([f"{split:<12}", *(f"{entry[name]:>13,}" for name in names)]))
    return "\n".join(lines)


def show_summary(summary: dict[str, Any], facts: ObjectiveFacts, run: Path) -> str:
    """The figures of a finished run, and what to type next."""
    lines = ["", f"{'':<26}" + "".join(f"{split:>12}" for split in figures.SPLITS.values())]
    for name, label in figures.labels(facts.perplexity_label).items():
        values = [summary.get(f"{split}/{name}") for split in figures.SPLITS]
        if values[0] is not None:
            lines.append(f"{label:<26}" + "".join(f"{'–' if v is None else format(v, '.4f'):>12}" for v in values))
    speed = summary["tokens_per_second"]
    lines += [
        f"{summary['steps']:,} steps, {summary['tokens_seen']:,} tokens in {summary['seconds']:.0f} s"
        + (f", {speed:,.0f} tokens per second" if speed else "")
        + f"; best at step {summary['best_step']:,}",
        f"run folder: {run}",
    ]
    command, arguments = facts.command
    commands = (f"{command} {run} {arguments}", f"evaluate {run} --split test", f"push {run} --repo NAME --dry-run")
    return "\n".join([*lines, "next:", *(f"  {program()} {command}" for command in commands)])


def program() -> str:
    """``lightning-lm`` as it can be typed here."""
    installed = os.path.relpath(Path(sys.executable).parent / "lightning-lm")
    return "lightning-lm" if shutil.which("lightning-lm") else installed
