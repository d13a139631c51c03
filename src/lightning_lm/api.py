"""Runs for people who write Python: train one, open one. ``lightning_lm`` has these names; see docs/python.md."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_lm.config.schema import Config
from lightning_lm.errors import refuse
from lightning_lm.inference.sources import OpenedModel, open_model
from lightning_lm.launch import start
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.settings import config_of
from lightning_lm.runs.step_table import from_cell


class Run:
    """A run folder, read when it is asked. It stands for its folder wherever a path is expected.

    Args:
        folder: with a run's ``config.yaml``.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def config(self) -> Config:
        return config_of(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The final figures, under the names that are logged, and the run's ``status``."""
        return read_json_file(self.folder / "summary.json") or {}

    @property
    def metrics(self) -> pd.DataFrame:
        """``metrics.csv``: a row for each log and each evaluation, by optimizer step."""
        return pd.read_csv(self.folder / "metrics.csv", index_col="step")

    @property
    def samples(self) -> pd.DataFrame:
        """``samples.csv``: what the model made of each prompt after each validation."""
        return pd.read_csv(self.folder / "samples.csv", converters=dict.fromkeys(("prompt", "text"), from_cell))

    @cached_property
    def opened(self) -> OpenedModel:
        """The exported model with its tokenizer and objective; raises Refused where the run has no export."""
        return open_model(str(self.folder), None, strict=True)

    @property
    def model(self) -> Any:
        """The trained transformers model, in eval mode."""
        return self.opened.model

    @property
    def tokenizer(self) -> Any:
        return self.opened.tokenizer


def train(config: Config, *, run_test: bool = True) -> Run:
    """Train as ``train.py`` does, in the folder ``config.run_dir``; with several devices, in new processes.

    A script that asks for several devices must do so below ``if __name__ == "__main__":``.

    Raises:
        Refused: with all that is wrong, before anything is spent.
    """
    start(config, named=True, run_test=run_test)
    return Run(config.run_dir)


def load_run(folder: str | Path) -> Run:
    """A run that was trained before.

    Raises:
        Refused: the folder holds no run.
    """
    run = Run(folder)
    if not (run.folder / "config.yaml").is_file():
        raise refuse("run", folder, "it has no config.yaml", "name the folder of a run")
    return run
