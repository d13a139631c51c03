"""One training run, from its configuration to its folder."""

import logging
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from lightning_lm.checks import check
from lightning_lm.config import Config, HubDataConfig
from lightning_lm.errors import Diverged, Refused
from lightning_lm.folder import read_json, same_settings, write_json
from lightning_lm.hub import check_before_training, go_offline_if_unreachable, push
from lightning_lm.summary import show_ledger, show_summary

log = logging.getLogger(__name__)


def train(job: Config, *, run_test: bool = True) -> float:
    """Train, evaluate and export the model that a configuration describes.

    A run folder that was cut off is continued; a finished one only tells its figures.

    Args:
        job: composed from ``conf/``, or made in code.
        run_test: score the test split at the end; a sweep leaves it alone.

    Returns:
        The best validation loss in nats per token.

    Raises:
        Refused: before anything is spent or written, with all that is wrong; or the finished run can't be pushed.
    """
    check(job)
    settings = OmegaConf.to_container(OmegaConf.structured(job), enum_to_str=True)
    run = Path(job.run_dir)
    same_settings(run, settings)
    with logging_to(run / "train.log") as keep_log:
        summary, repo = read_json(run / "summary.json"), job.trainer.push_to_hub
        if summary is not None and summary["status"] == "finished":
            if repo is not None:
                log.info("finished before: `lightning-lm push %s --repo %s` uploads it", run, repo)
            repo = None
        else:
            wanted = {f"model.{key}": getattr(job.model, key) for key in ("name_or_path", "tokenizer")}
            models = {setting: name for setting, name in wanted.items() if _on_hub(name)}
            if models or repo or _on_hub(_dataset(job)):
                check_before_training(models, repo, online=go_offline_if_unreachable())
            summary = _train(job, settings, run, run_test, keep_log)
        if summary["status"] == "finished":  # a pruned trial has no export to go on with
            log.info("%s", show_summary(summary, job.objective.name, run, alone=run_test))
        if repo is not None:
            _push(run, repo)
        return summary["val/loss"]


def _train(
    job: Config, settings: dict[str, Any], run: Path, run_test: bool, keep_log: Callable[[], None]
) -> dict[str, Any]:
    warnings.filterwarnings("ignore", message=".*treespec", module="lightning")  # torch's, about Lightning's own code
    warnings.filterwarnings("ignore", message="Checkpoint directory .* not empty")  # how a run goes on
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint")  # our batches know where they stand
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist")  # the metric has done so
    from lightning.pytorch.utilities import rank_zero_only
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from transformers.utils.logging import disable_progress_bar

    from lightning_lm import build, folder, optim, tracking, training  # torch, Lightning and transformers: only now

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    rank_zero_only.rank = rank()
    first = rank() == 0  # of several processes one tells and writes
    if not first:
        logging.getLogger("lightning_lm").setLevel(logging.ERROR)
        disable_progress_bar()
    parts = build.build(job)
    ledger = parts.data.ledger()
    folder.same_text(run, ledger)
    run_id = (read_json(run / "environment.json") or {}).get("wandb_run_id") or secrets.token_hex(4)
    run.mkdir(parents=True, exist_ok=True)
    keep_log()
    if first:
        folder.write_text(run / "config.yaml", OmegaConf.to_yaml(settings))  # first: it makes the folder a run's
        write_json(run / "environment.json", folder.environment(wandb_run_id=run_id))
        write_json(run / "ledger.json", ledger)
    log.info("%s", show_ledger(ledger))
    log.info("%s", optim.describe(parts.model, build.table(job.optimizer), job.optimizer.weight_decay))
    summary: dict[str, Any] = {"status": "failed"}
    try:
        loggers = training.build_loggers(job, settings, run, run_id)
        summary = _fit(job, parts, run, run_test, loggers, first)
    except Diverged:
        summary = {"status": "diverged"}
        raise
    except SystemExit as error:  # what Lightning makes of an interrupt
        summary = {"status": "interrupted"}
        place = f"run_dir={run}" if run_test else f"hydra.sweep.dir={run.parent}"  # of a sweep
        log.warning("interrupted: the same command with %s goes on from the last checkpoint", place)
        raise SystemExit(143 if isinstance(error, SIGTERMException) else 130) from error
    finally:
        if first:
            write_json(run / "summary.json", summary)
        tracking.finish_wandb(summary)
    return summary


def _fit(job: Config, parts: Any, run: Path, run_test: bool, loggers: list[Any], first: bool) -> dict[str, Any]:
    """Train, score the best checkpoint, and, in the first process, export it; returns the summary."""
    from lightning.pytorch.profilers import PassThroughProfiler

    from lightning_lm import export, plots, sharding, training
    from lightning_lm.checkpoint import load_weights

    callbacks, telemetry, budget = training.build_callbacks(job, parts, run)
    module = training.build_module(job, parts, budget)
    trainer = training.build_trainer(job, parts, run, callbacks, loggers)
    last = run / "checkpoints" / "last.ckpt"
    trainer.fit(module, datamodule=parts.data, ckpt_path=last if last.exists() else None, weights_only=True)
    steps = trainer.global_step
    pruned = any(getattr(callback, "pruned", False) for callback in callbacks)
    best = load_weights(parts.model, run / "checkpoints" / "best.ckpt")
    figures = dict(best["callbacks"]["Telemetry"]["figures"])
    if run_test and not pruned and "test" in parts.data.streams:
        trainer.profiler = PassThroughProfiler()  # the trace is of training
        trainer.test(module, datamodule=parts.data, verbose=False)
        figures |= module.figures
    if first and not pruned:
        model = sharding.unsharded(parts.model, parts.objective, run / "checkpoints" / "best.ckpt")
        export.export(run, model, parts.tokenizer, parts.data)
        plots.write(run, parts.objective.perplexity_label)
    return {
        **figures,
        "tokens_seen": telemetry.tokens_seen(steps),
        **telemetry.speed,
        "seconds": telemetry.seconds,
        "steps": steps,
        "best_step": best["global_step"],
        "parameters": parts.model.num_parameters(),
        "world_size": trainer.world_size,
        "status": "pruned" if pruned else "finished",
    }


def _push(run: Path, repo: str) -> None:
    again = f"the run is finished, and `lightning-lm push {run} --repo {repo}` tries again"
    try:
        log.info("pushed to %s", push(run, repo))
    except Refused as error:
        raise Refused(*(replace(p, remedy=f"{p.remedy}; {again}") for p in error.problems)) from error


def rank() -> int:
    """Of this process among those of its job, as torchrun or srun tells it; 0 where it is the only one."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _dataset(job: Config) -> str | None:
    return job.data.path if isinstance(job.data, HubDataConfig) else None


def _on_hub(name: str | None) -> bool:
    """Whether a name means a repository of the Hub rather than a folder."""
    return name is not None and name != "train" and not Path(name).expanduser().exists()


class Console(logging.Handler):
    """Writes to stderr above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def logging_to(path: Path) -> Iterator[Callable[[], None]]:
    """The package's log on the console; in a file too, from its first line on, once the yielded function is called."""
    logger = logging.getLogger("lightning_lm")
    console, kept = Console(), MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [console, kept]

    def keep() -> None:
        file = logging.FileHandler(path, encoding="utf-8", delay=True)
        who = f"rank {rank()}: " if rank() else ""
        file.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s"))
        kept.setTarget(file)
        kept.flush()
        logger.handlers = [console, file]

    try:
        yield keep
    except Exception as error:
        logger.handlers = [handler for handler in logger.handlers if handler is not console]
        logger.error("%s", error, exc_info=error)  # whoever called train shows it on the console
        raise
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers = []
