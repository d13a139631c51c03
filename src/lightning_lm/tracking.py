"""Where a run's figures go: ``metrics.csv`` always, Weights & Biases where asked for."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_lm.folder import Table

log = logging.getLogger(__name__)

EVALUATED = ("loss", "perplexity", "accuracy", "bits_per_byte", "word_perplexity")
COLUMNS = [
    "step",
    "epoch",
    "tokens_seen",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "train/loss",
    "train/perplexity",
    *(f"{split}/{name}" for split in ("val", "test") for name in EVALUATED),
]


class RunFolderLogger(Logger):
    """Rows of ``metrics.csv``; unlike Lightning's CSVLogger it goes on with a file that is there."""

    def __init__(self, run: Path):
        super().__init__()
        self.table = Table(run / "metrics.csv", COLUMNS)

    name = "run_folder"
    version = ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.table.append({"step": step, **{k: v for k, v in metrics.items() if k in COLUMNS}})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml has them."""


def wandb_logger(
    run: Path,
    run_id: str,
    *,
    project: str,
    entity: str | None,
    name: str,
    group: str | None,
    tags: list[str],
    config: dict[str, Any],
) -> WandbLogger:
    """A W&B run that a later start with the same id continues: online where a key is configured, else offline."""
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    logger = WandbLogger(
        project=project,
        entity=entity,
        name=name,
        group=group,
        tags=tags,
        id=run_id,
        resume="allow",
        job_type="train",
        save_dir=str(run),
        mode=mode,
        config=config,
        settings=wandb.Settings(silent=True),
    )
    experiment = logger.experiment
    if rank_zero_only.rank == 0 and mode != "disabled":
        for split in ("val", "test"):  # the summary keeps the best, not the last
            for figure in EVALUATED:
                experiment.define_metric(f"{split}/{figure}", summary="max" if figure == "accuracy" else "min")
        log.info("W&B %s: %s", mode, experiment.url or f"`wandb sync {experiment.dir}/..` sends it later")
    return logger


def finish_wandb(summary: dict[str, Any] | None) -> None:
    """End the process's W&B run, if there is one: with the run's final figures, or, without them, as failed."""
    import sys

    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    if summary is not None:
        wandb.run.summary.update(summary)
    wandb.finish(exit_code=0 if summary is not None else 1)
