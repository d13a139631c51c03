"""The files of a run folder: written whole or not at all, and read again."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "torchmetrics", "hydra-core", "wandb")
SWEEPS = Path("outputs/sweeps")


def write_text(path: Path, text: str) -> None:
    """Write all or nothing."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    """Write all or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def environment(**more: Any) -> dict[str, Any]:
    """Where and with what a run was made: commit, uncommitted changes, versions, hardware, command."""
    import torch

    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": _uncommitted(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
        **more,
    }


def _uncommitted() -> str | None:
    """The changes since the last commit as a patch, with the new files of code and configuration."""
    changes, top = _git("diff", "HEAD"), _git("rev-parse", "--show-toplevel")
    if changes is None or top is None:
        return None
    new = (_git("-C", top, "ls-files", "--others", "--exclude-standard", "src", "conf") or "").splitlines()
    patches = [_git("-C", top, "diff", "--no-index", "--", os.devnull, file, codes=(0, 1)) for file in new]
    return "\n".join(filter(None, [changes, *patches]))


def _git(*arguments: str, codes: tuple[int, ...] = (0,)) -> str | None:
    """What git prints; None where there is no git, no repository, or another exit code."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode in codes else None


def job_status(folder: Path) -> str:
    """The status of a sweep's job, by its folder."""
    summary = read_json(folder / "summary.json")
    return summary["status"] if summary else "cut off" if (folder / "config.yaml").exists() else "not run"


def sweep_name(folder: Path) -> str:
    """The name of a sweep: the place of its folder below ``outputs/sweeps``."""
    folder = folder.absolute()
    return str(folder.relative_to(SWEEPS.absolute()) if folder.is_relative_to(SWEEPS.absolute()) else folder.name)
