"""A sweep's table and pictures in W&B."""

import io
import logging
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

from lightning_lm.config.schema import LoggerConfig
from lightning_lm.errors import Refused
from lightning_lm.report.comparison import comparable, configurations, differing, ranked, winner
from lightning_lm.report.content import figures_of
from lightning_lm.report.runs import SavedRun, collect
from lightning_lm.runs.folder import sweep_name

log = logging.getLogger(__name__)


def log_sweep(folder: Path, logger: LoggerConfig) -> None:
    """The sweep's table and pictures as a W&B run of its own, in its jobs' group; again, once it has been gone on with.

    Nothing where W&B isn't asked for, or where its own agent is the one that sweeps.
    """
    if logger.name != "wandb" or "WANDB_SWEEP_ID" in os.environ:
        return
    import wandb
    from PIL import Image

    from lightning_lm.report import charts
    from lightning_lm.report.curves import read_curves
    from lightning_lm.runs.tracking import wandb_mode

    group = logger.group or sweep_name(folder)
    earlier = [path.name.rpartition("-")[2] for path in folder.glob("wandb/*run-*-*")]
    try:
        runs = ranked(collect([folder]))
        with wandb.init(
            project=logger.project,
            entity=logger.entity,
            name=f"{group} (sweep)"[-128:],
            group=group[:128],
            job_type="sweep",
            tags=[tag[:64] for tag in logger.tags],
            id=earlier[0] if earlier else secrets.token_hex(4),
            resume="allow",
            dir=folder.absolute(),  # W&B's service may have been started in another folder
            mode=wandb_mode(),
            settings=wandb.Settings(silent=True),
        ) as run:
            columns, rows = as_table(runs)
            curves_of = {of.name: read_curves(of) for of in runs}
            pngs = {name: charts.encode_figure(figure, "png") for name, figure in charts.draw_figures(runs, curves_of)}
            images = {name: wandb.Image(Image.open(io.BytesIO(png))) for name, png in pngs.items()}
            run.log({"runs": wandb.Table(columns, rows, allow_mixed_types=True), **images})
            run.summary.update({f"jobs/{status}": n for status, n in Counter(r.status for r in runs).items()})
            if (best := winner(runs)) is not None:
                chosen = configurations(runs)[0]
                facts = {"job": best.name, "val_loss": chosen.mean, "seeds": len(chosen.losses)} | chosen.settings
                run.summary.update({f"best/{name}": comparable(value) for name, value in facts.items()})
    except (wandb.Error, OSError, Refused) as error:  # the folders have it all
        log.warning("W&B: the sweep's summary could not be logged: %s", error)


def as_table(runs: list[SavedRun]) -> tuple[list[str], list[list[Any]]]:
    """A row for each run: its name, the settings that differ, its figures, its status."""
    names, figures = differing(runs), [*figures_of(runs), "seconds", "tokens_per_second"]
    rows = [
        [
            run.name,
            *(comparable(run.settings.get(name)) for name in names),
            *(run.summary.get(figure) for figure in figures),
            run.status,
        ]
        for run in runs
    ]
    return ["run", *names, *figures, "status"], rows
