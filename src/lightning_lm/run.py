"""One training run, from its configuration to its folder. Read this first."""

import logging
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path

from lightning_lm.config.schema import Config
from lightning_lm.config.validation import check
from lightning_lm.constraints import is_hub_id
from lightning_lm.errors import EXPORT_AGAIN, Refused
from lightning_lm.faults import told_in_one_line
from lightning_lm.hub.access import check_before_training, go_offline_if_unreachable
from lightning_lm.hub.push import push
from lightning_lm.interrupts import ask_for_requeue, deferring, interrupts_win
from lightning_lm.logs import JOB, logging_to, rank, tell_of_imports
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.settings import is_done, same_settings
from lightning_lm.runs.summary import show_summary

log = logging.getLogger(__name__)


def train(job: Config, *, run_test: bool = True) -> float:
    """Train, evaluate and export the model that a configuration describes; returns its validation loss, nats per token.

    A run folder that was cut off is continued, and so is a finished one that is to end later; else that only tells its
    figures. With ``run_test`` the test split is scored at the end; a sweep leaves it alone. Raises Refused before
    anything is spent or written, with all that is wrong; or where the finished run can't be pushed.
    """
    check(job)
    run = Path(job.run_dir)
    places = {"run_dir": run, "data.cache_dir": job.data.cache}
    with logging_to(run / "train.log") as keep_log, told_in_one_line(places):
        same_settings(run, job)
        summary, repo = read_json_file(run / "summary.json"), job.trainer.push_to_hub
        if summary is not None and is_done(run, job):
            if not (run / "export").exists():
                can_export = (run / "checkpoints" / "last.ckpt").exists()
                remedy = EXPORT_AGAIN if can_export else "begin again in another run_dir"
                log.warning("%s: its export/ is gone; %s", run, remedy)
            if repo is not None:
                log.info("finished before: `lightning-lm push %s --repo %s` uploads it", run, repo)
            repo = None
        else:
            tell_of_imports()
            if job.model.hub_ids or repo or is_hub_id(job.data.dataset):
                if job.data.dataset is None:
                    job.data.build()  # refuses files that aren't there before the Hub is asked
                check_before_training(job.model.hub_ids, repo, online=go_offline_if_unreachable())
            silence_warnings()
            try:
                with interrupts_win():
                    with deferring():
                        import torch.distributed  # noqa: F401 (the other imports can be cut off)
                    from lightning_lm.training.fit import fit  # Lightning and transformers: only now

                    summary = fit(job, run, run_test, keep_log)
            except SystemExit as interrupt:
                _tell_interrupt(run, interrupt)
                raise
        if summary["status"] == "finished" and JOB not in os.environ:  # a sweep tells of each job in one line
            log.info("%s", show_summary(summary, job.objective.facts, run))
        if repo is not None:
            _push(run, repo)
        return summary["val/loss"]


def _tell_interrupt(run: Path, interrupt: SystemExit) -> None:
    saved = [path for name in ("last", "previous") if (path := run / "checkpoints" / f"{name}.ckpt").exists()]
    if saved:
        from lightning_lm.training.checkpoints import step_of

        place = f"hydra.sweep.dir={run.parent}" if JOB in os.environ else f"run_dir={run}"
        log.warning("interrupted: the same command with %s goes on from step %d", place, step_of(saved[0]))
    else:
        log.warning("interrupted: nothing was saved yet, and the same command begins again")
    if interrupt.code == 128 + signal.SIGUSR1 and rank() == 0 and (answer := ask_for_requeue(os.environ)):
        log.warning("%s", answer)


def silence_warnings() -> None:
    """Hide other libraries' warnings about what is done here on purpose; called before they are imported."""
    warnings.filterwarnings("ignore", message=".*treespec", module="lightning")  # torch's, about Lightning's own code
    warnings.filterwarnings("ignore", message="Checkpoint directory .* not empty")  # how a run goes on
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint")  # our batches know where they stand
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist")  # the metric has done so


def _push(run: Path, repo: str) -> None:
    again = f"the run is finished, and `lightning-lm push {run} --repo {repo}` tries again"
    try:
        log.info("pushed to %s", push(run, repo))
    except Refused as error:
        raise Refused(*(replace(p, remedy=f"{p.remedy}; {again}") for p in error.problems)) from error
