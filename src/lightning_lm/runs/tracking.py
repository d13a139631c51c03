"""Where a run's figures go: ``metrics.csv`` always, Weights & Biases where asked for."""

import logging
import os
import shlex
import ssl
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_lm.errors import refuse
from lightning_lm.faults import innermost
from lightning_lm.figures import COLUMNS, EVALUATED, SPLITS
from lightning_lm.runs.folder import job_settings, sweep_name
from lightning_lm.runs.numbers import brief_settings
from lightning_lm.runs.step_table import StepTable, read_series

log = logging.getLogger(__name__)
CONNECT_TIMEOUT = 8.0  # seconds that a server has to answer
FINISH_TIMEOUT = 60.0  # seconds to send what is left at a run's end, unless WANDB_FINISH_TIMEOUT says otherwise
RECENT = 1000  # rows that a kill may have kept from W&B, which writes and sends what it has every 15 s


class RunFolderLogger(Logger):
    """Rows of ``metrics.csv``; unlike Lightning's CSVLogger it goes on with a file that is there."""

    def __init__(self, run: Path, resend_to: Logger | None = None):
        super().__init__()
        self.resend_to = resend_to  # where the latest rows are sent again: it belongs to a run that was killed
        self.table = StepTable(run / "metrics.csv", COLUMNS)
        self.named: set[str] = set()  # figures that no column takes, once they were told

    name = "run_folder"
    version = ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name in metrics.keys() - {*COLUMNS, *self.named}:
            self.named.add(name)
            log.warning(
                "%s: metrics.csv leaves it out; add it to TRAINING or EVALUATED in lightning_lm/figures.py", name
            )
        self.table.append({"step": step, **{k: v for k, v in metrics.items() if k in COLUMNS}})

    @rank_zero_only
    def go_on_from(self, step: int, every_n_steps: int) -> None:
        """Drop the rows after ``step``, which will be written again; raises Refused where one before is damaged."""
        self.table.rewind(step)
        read_series(self.table.path)
        rows = self.table.rows()
        if int(rows[-1]["step"] if rows else 0) < step - step % every_n_steps:
            log.warning("%s: the last rows before step %d are lost", self.table.path, step)
        for row in rows[-RECENT:] if self.resend_to else ():
            figures = {name: float(value) for name, value in row.items() if value and name != "step"}
            self.resend_to.log_metrics(figures, step=int(row["step"]))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml has them."""


class WandbHistory(WandbLogger):
    """Rows of W&B's history, each at a place of its own: a step's training, its validation, its test.

    W&B takes no row at an earlier place than its last one. So of the rows that come again when a run goes on, it takes
    those that it lacks. Where its server is away for a while, the run goes on: the run folder has it all.
    """

    place = 0
    lost = False  # its service, a process of its own, has ended

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.lost:
            return
        try:
            self._log(metrics, step)
        except OSError as error:
            self.lost = True
            log.warning("W&B: its service has ended (%s); the run goes on, and metrics.csv has all rows", error)
        except Exception as error:  # as for a table, for which its client asks the server
            log.warning("W&B does not take %s: %s", ", ".join(metrics), innermost(error))

    def _log(self, metrics: Mapping[str, float], step: int | None) -> None:
        if step is None:
            super().log_metrics(metrics)
            return
        splits = {name.partition("/")[0] for name in metrics}
        kind = max((n for n, split in enumerate(SPLITS, 1) if split in splits), default=0)
        self.place = max((1 + len(SPLITS)) * step + kind, self.place)
        self.experiment.log({**metrics, "trainer/global_step": step}, step=self.place)


def display_name(name: str, run: Path) -> str:
    """What W&B calls a run; a sweep's job has its number and its own settings in it: ``lr_wd_grid/2 lr=0.02 wd=0``."""
    if (run.parent / "sweep.json").exists() and run.name.isdigit():
        return f"{sweep_name(run.parent).partition('/')[0]}/{run.name} {brief_settings(job_settings(run))}"
    return name if run.name == name else f"{name}-{run.name}"


def wandb_mode() -> str:
    """What the environment or W&B's settings file asks for; online only where a key is configured, else offline.

    ``WANDB_DISABLED``, of older versions, counts where ``WANDB_MODE`` is not set.
    """
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings  # no banners, and no question for a key
    off = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
    mode = os.environ.get("WANDB_MODE") or ("disabled" if off else settings.mode)
    if mode in ("offline", "dryrun", "disabled"):
        return mode
    return mode if wandb.login(prompt=False, verify=False) else "offline"


def server_error() -> str | None:
    """Why W&B's server gives no answer, or one of failure; None where it answers, which takes seconds at most."""
    import wandb

    base = wandb.setup().settings.base_url
    try:
        urlopen(base, timeout=CONNECT_TIMEOUT).close()
    except HTTPError as error:
        return f"{base} fails ({error})" if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # it answers, and W&B may know other certificates
            return f"{base} can't be reached ({getattr(reason, 'strerror', None) or reason})"
    return None


def wandb_logger(  # noqa: PLR0913
    run: Path,
    run_id: str,
    *,
    project: str,
    entity: str | None,
    name: str,
    group: str,
    tags: list[str],
    config: dict[str, Any],
    require_online: bool = False,
) -> WandbHistory:
    """A W&B run that a later start with the same id continues; under W&B's own agent the one that it has made.

    Offline, every start writes a part of its own under the same id, which ``wandb sync`` sends in order of time. There,
    steps that were done again after a cut-off, and rows sent again, are twice.

    Where its server can't be reached, the run is kept offline, unless ``require_online``.

    Raises:
        Refused: W&B doesn't start, or doesn't take the key or the project.
    """
    import wandb

    if rank_zero_only.rank == 0 and wandb.run is not None:
        log.warning("W&B: the run %s, still open in this process, is ended", wandb.run.id)
        wandb.finish()  # WandbLogger would write into it
    of_agent = "WANDB_SWEEP_ID" in os.environ
    for variable in ("WANDB_DIR", *([] if of_agent else ["WANDB_RUN_ID"])):
        if variable in os.environ:
            log.info("W&B: %s has no effect: the run folder decides", variable)
    try:
        mode = wandb_mode()
        if mode not in ("offline", "dryrun", "disabled") and rank_zero_only.rank == 0 and (wrong := server_error()):
            if require_online:
                raise refuse("logger.require_online", True, wrong, "set it to false: the run is then kept offline")
            log.warning("W&B: %s; the run goes on offline", wrong)
            mode = "offline"
        logger = WandbHistory(
            project=project,
            entity=entity,
            name=name[:128],  # W&B's limits
            group=group[:128],
            tags=[tag[:64] for tag in dict.fromkeys(tags) if tag],
            id=os.environ["WANDB_RUN_ID"] if of_agent else run_id,
            resume="allow",
            job_type=os.environ.get("WANDB_JOB_TYPE", "train"),
            save_dir=str(run.absolute()),  # W&B's service may have been started in another folder
            mode=mode,
            config=config,
            settings=wandb.Settings(
                silent=True,
                finish_timeout=wandb.setup().settings.finish_timeout or FINISH_TIMEOUT,
                finish_timeout_raises=True,
            ),
        )
        experiment = logger.experiment
    except (wandb.Error, OSError, ValueError) as error:  # a variable that W&B can't read is a ValueError
        wrong = f"W&B did not start: {' '.join(str(error).split())}"
        raise refuse("logger", "wandb", wrong, "set WANDB_MODE=offline, or use logger=none") from error
    if mode == "disabled":
        log.info("W&B is disabled by the environment")
    elif rank_zero_only.rank == 0:
        for split in SPLITS:  # the summary keeps the best, not the last
            for figure in EVALUATED:
                best = "max" if figure.lower_is_better is False else "min"
                experiment.define_metric(f"{split}/{figure.name}", step_metric="trainer/global_step", summary=best)
        parts = shlex.quote(str(run / "wandb"))
        offline = mode in ("offline", "dryrun")  # a run that is offline warns when asked for its url
        if not offline:
            (run / "wandb" / "url.txt").write_text(experiment.url, encoding="utf-8")  # the report links to it
        log.info("W&B %s", f"offline: `wandb sync {parts}` sends the run later" if offline else f"at {experiment.url}")
    return logger


def finish_wandb(summary: dict[str, Any]) -> None:
    """End the process's W&B run, if there is one, with the run's last figures; failed unless they say "finished"."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    sync = f"wandb sync --no-skip-online {shlex.quote(wandb.run.settings.sync_dir)}"
    try:
        wandb.run.summary.update(summary)
        wandb.finish(exit_code=0 if summary["status"] in ("finished", "pruned") else 1)
    except Exception as error:  # the run folder has it all, and what really went wrong must show
        log.warning("W&B: the run could not be ended: %s `%s` sends what it lacks", error, sync)
