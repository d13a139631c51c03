"""Runs one side of a benchmark in a fresh process; what that side needs to tell its figures."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

THREADS = 2
PAIR = {"ours": "ours.py", "Trainer": "peers.py"}  # who is held against whom, and by which script
WARM_UP_STEPS = 5  # left out of tokens per second, as in the summary of a run
OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "true"}


def fresh(script: str, function: str, **arguments: Any) -> Any:
    """What ``function`` of a script returns in a process of its own.

    The kernel lets a process begin with the peak memory of the one that started it: this one stays small.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, str(Path(__file__).with_name(script)), function, json.dumps(arguments, default=str)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OFFLINE})
    os.sync()  # what this process leaves to be written must not slow down the next
    if ended.returncode:
        raise RuntimeError(f"{script} {function} {arguments} failed\n{ended.stderr[-3000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def tell(*functions: Callable[..., Any]) -> None:
    """The main program of a script: ``SCRIPT FUNCTION '{"argument": …}'`` prints what it returns as a line of JSON."""
    known = {function.__name__: function for function in functions}
    print("\n" + json.dumps(known[sys.argv[1]](**json.loads(sys.argv[2])), default=str))


def forget_peak_memory() -> None:
    """The most counts from here on: what came before is another workload's (proc(5), clear_refs)."""
    with suppress(OSError):  # where a sandbox forbids it, all counts
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Bytes: the most that was resident in this process, the libraries' code included (Linux: VmHWM)."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
