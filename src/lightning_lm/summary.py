"""What a run tells people: the ledger at its start, the figures at its end."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

LABELS = {"clm": "perplexity", "mlm": "masked-token perplexity"}


def show_ledger(ledger: dict[str, dict[str, Any]]) -> str:
    """A table: per split, what the text holds, and where its tokens went."""
    names = ("rows", "words", "line_ends", "bytes", "tokens", "blocks", "tail")
    lines = ["".join([f"{'split':<12}", *(f"{name:>13}" for name in names)])]
    for split, entry in ledger.items():
        lines.append("".join([f"{split:<12}", *(f"{entry[name]:>13,}" for name in names)]))
    return "\n".join(lines)


def show_summary(summary: dict[str, Any], objective: str, run: Path, alone: bool) -> str:
    """The figures of a finished run, and, unless it is one of a sweep's, what to type next."""
    kinds = {"loss": "loss (nats per token)", "perplexity": LABELS[objective], "bits_per_byte": "bits per byte"}
    kinds |= {"word_perplexity": "word perplexity", "accuracy": "accuracy"}
    lines = ["", f"{'':<26}{'validation':>12}{'test':>12}"]
    for kind, label in kinds.items():
        values = [summary.get(f"{split}/{kind}") for split in ("val", "test")]
        if values[0] is not None:
            lines.append(f"{label:<26}" + "".join(f"{'–' if v is None else format(v, '.4f'):>12}" for v in values))
    speed = summary["tokens_per_second"]
    lines += [
        f"{summary['steps']:,} steps, {summary['tokens_seen']:,} tokens in {summary['seconds']:.0f} s"
        + (f", {speed:,.0f} tokens per second" if speed else "")
        + f"; best at step {summary['best_step']:,}",
        f"run folder: {run}",
    ]
    if not alone:
        return "\n".join(lines)
    use = f"generate {run} --prompt 'The'" if objective == "clm" else f"fill-mask {run} --text 'The <mask> is'"
    commands = (use, f"evaluate {run} --split test", f"push {run} --repo NAME --dry-run")
    installed = os.path.relpath(Path(sys.executable).parent / "lightning-lm")
    program = "lightning-lm" if shutil.which("lightning-lm") else installed
    return "\n".join([*lines, "next:", *(f"  {program} {command}" for command in commands)])
