"""The run folder: what it is made of, and whether a command may go on in it."""

import csv
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_lm.errors import Problem, Refused, refuse

PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "torchmetrics", "hydra-core", "wandb")
# What may change when a run is continued: nothing that its outcome depends on.
FREE = {"run_dir", "name", "logger", "data.cache_dir", "trainer.push_to_hub"}
FREE |= {f"hardware.{name}" for name in ("devices", "nodes", "strategy", "micro_batch_size", "num_workers")}


def write_text(path: Path, text: str) -> None:
    """Write all or nothing."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    """Write all or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds, or None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def same_settings(run: Path, settings: dict[str, Any]) -> None:
    """Check that a folder's ``config.yaml``, if it has one, asks for the same outcome.

    Raises:
        Refused: for each setting that differs; or the path isn't a folder for runs.
    """
    path = run / "config.yaml"
    if not path.exists():
        if run.exists() and any(child.name not in ("train.log", "trial.json") for child in run.iterdir()):
            raise refuse("run_dir", run, "the folder isn't empty and holds no run", "choose a new one")
        return
    try:
        there, now = flat(OmegaConf.to_container(OmegaConf.load(path))), flat(settings)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise refuse("run_dir", run, "its config.yaml can't be read", "choose another run_dir") from error
    differing = [
        name
        for name in sorted({*there, *now})
        if there.get(name) != now.get(name) and name not in FREE and name.split(".")[0] not in FREE
    ]
    if differing:
        raise Refused(
            *(
                Problem(name, now.get(name), f"{run} holds a run with {there.get(name)}", "choose another run_dir")
                for name in differing
            )
        )


def same_text(run: Path, ledger: dict[str, dict[str, Any]]) -> None:
    """Check that a folder's ledger, if it has one, is about the same tokens.

    Raises:
        Refused: for each split whose text or tokenizer is another.
    """
    there = read_json(run / "ledger.json") or ledger
    differing = [split for split in sorted({*there, *ledger}) if there.get(split) != ledger.get(split)]
    if differing:
        wrong = f"{run} holds a run on other text, or with another tokenizer"
        keys = {split: ledger.get(split, {}).get("key") for split in differing}
        raise Refused(*(Problem(f"data.{split}", keys[split], wrong, "choose another run_dir") for split in differing))


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    return {k: v for name, value in settings.items() for k, v in flat(value, f"{prefix}.{name}".lstrip(".")).items()}


def environment(**more: Any) -> dict[str, Any]:
    """Where and with what a run was made: commit, uncommitted changes, versions, hardware, command."""
    import torch

    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": _git("diff", "HEAD"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
        **more,
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class Table:
    """A CSV file that grows by rows with a ``step``, and can be taken back to an earlier one."""

    def __init__(self, path: Path, columns: list[str]):
        self.path, self.columns = path, columns

    def append(self, row: dict[str, Any]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``, those of a test, and one that a kill left unfinished."""
        whole = [row for row in self.rows() if None not in row.values() and row["step"].isdigit()]
        kept = [row for row in whole if int(row["step"]) <= step and not row.get("test/loss")]
        scratch = self.path.with_suffix(".tmp")
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(scratch, self.path)
