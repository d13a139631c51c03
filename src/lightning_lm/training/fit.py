"""Training in a run folder: from the components to the figures and the export of the best checkpoint."""

import logging
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from transformers.utils.logging import disable_progress_bar

from lightning_lm.config.composition import as_settings
from lightning_lm.config.schema import Config, chosen
from lightning_lm.data.datamodule import TextDataModule
from lightning_lm.errors import Diverged, refuse
from lightning_lm.faults import innermost
from lightning_lm.figures import SPLITS
from lightning_lm.files import remove_scratch
from lightning_lm.interrupts import interrupts
from lightning_lm.logs import CREDENTIALS, JOB, rank
from lightning_lm.optim.groups import describe
from lightning_lm.runs import plots
from lightning_lm.runs.export import export
from lightning_lm.runs.folder import environment, read_json_file, write_json, write_text
from lightning_lm.runs.protocol import build_protocol, short_hash
from lightning_lm.runs.settings import later_ends, same_text
from lightning_lm.runs.summary import show_ledger, times_tested
from lightning_lm.runs.tracking import finish_wandb
from lightning_lm.training.checkpoints import BEST, EXTEND, check_best, load_weights, to_go_on_from
from lightning_lm.training.components import RunComponents, build
from lightning_lm.training.extension import drop_what_goes_on, go_back, to_extend_from
from lightning_lm.training.fsdp import unsharded
from lightning_lm.training.nonfinite import NonFinite
from lightning_lm.training.probe import probe, probed, show_plan
from lightning_lm.training.trainer import build_callbacks, build_loggers, build_module, build_trainer

log = logging.getLogger(__name__)


def fit(cfg: Config, run: Path, run_test: bool, keep_log: Callable[[], None]) -> dict[str, Any]:
    """Build data and model, train in the run folder, or go on in it; returns the summary.

    ``keep_log`` is called once the run has a folder, for the log to go there, too. Raises Refused before the folder is
    touched, Diverged from within the training, and Interrupted where a signal has come.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    rank_zero_only.rank = rank()
    first = rank() == 0  # of several processes one tells and writes
    if not first:
        logging.getLogger("lightning_lm").setLevel(logging.ERROR)
    disable_progress_bar()  # of each shard that transformers reads and writes
    components = build(cfg)
    ledger = components.data.ledger()
    same_text(run, ledger)
    extended = bool(later_ends(run, cfg))
    checkpoint = to_extend_from(cfg, components, run) if extended else to_go_on_from(run)
    shown = probed(cfg, run)
    if checkpoint is None:
        components.data.check_apart()
        probe(cfg, components, run)
        if (run / "metrics.csv").exists():
            log.warning("run_dir=%s: the run has no checkpoint, and begins again at step 0", run)
    run_id = (read_json_file(run / "environment.json") or {}).get("wandb_run_id") or secrets.token_hex(4)
    tests_before = times_tested(run)
    killed = checkpoint is not None and not (run / "summary.json").exists()
    run.mkdir(parents=True, exist_ok=True)
    keep_log()
    if first:
        remove_scratch(run)
        notes = environment(wandb_run_id=run_id, options=chosen(cfg), tests_before=tests_before)
        if extended:  # config.yaml, which then has the later end, comes last
            write_json(run / "environment.json", notes)
            if checkpoint is not None and checkpoint.name == EXTEND:
                go_back(run)
        (run / "summary.json").unlink(missing_ok=True)  # where there is none, the run is at work, or was killed
        write_text(run / "config.yaml", OmegaConf.to_yaml(as_settings(cfg)))  # first: it makes the folder a run's
        write_json(run / "environment.json", notes)
        write_json(run / "ledger.json", ledger)
    groups = describe(components.model, cfg.optimizer.groups, cfg.optimizer.weight_decay)
    for text in (show_ledger(ledger), show_plan(cfg, components, run), groups):
        log.info("%s", text, extra={"file_only": shown or checkpoint is not None})  # a run that goes on has told them
    summary: dict[str, Any] = {"status": "failed"}
    try:
        loggers = build_loggers(cfg, run, run_id, killed)
        summary = _train_and_score(cfg, components, run, checkpoint, run_test, loggers)
        summary["times_tested"] = tests_before + ("test/loss" in summary)
    except Exception as error:
        status, reason = "diverged" if isinstance(error, Diverged) else "failed", CREDENTIALS.sub("…", innermost(error))
        summary = {"status": status, "reason": reason}
        raise
    except SystemExit:
        summary = {"status": "interrupted"}
        raise
    finally:
        interrupts.deferred = False
        if first:
            _write_summary(run, summary)
        finish_wandb(summary)
    if first and JOB in os.environ and not cfg.trainer.keep_checkpoints:
        drop_what_goes_on(run)
    return summary


def _write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Of a run that has failed: where this fails, too, as on a full disk, the first error is the one to be shown."""
    try:
        write_json(run / "summary.json", summary)
    except OSError:
        if summary["status"] == "finished":
            raise


def _train_and_score(
    cfg: Config, components: RunComponents, run: Path, checkpoint: Path | None, run_test: bool, loggers: list[Logger]
) -> dict[str, Any]:
    """Train on from a checkpoint, score the best one, and, in the first process, export it; returns the summary."""
    callbacks = build_callbacks(cfg, components, run)
    module = build_module(cfg, components, callbacks.budget)
    trainer = build_trainer(cfg, components, run, callbacks, loggers)
    trainer.fit(module, datamodule=components.data, ckpt_path=checkpoint, weights_only=True)
    best = run / "checkpoints" / BEST
    check_best(run)
    if not best.exists():
        raise refuse("run_dir", run, f"there is no checkpoints/{BEST} to export", "begin again in another run_dir")
    steps, objective = trainer.global_step, components.objective
    pruned = any(getattr(callback, "pruned", False) for callback in callbacks.all)
    best_state = load_weights(components.model, best)
    figures = dict(best_state["callbacks"]["Telemetry"]["figures"])
    if run_test and not pruned and "test" in components.data.streams:
        trainer.profiler = PassThroughProfiler()  # the trace is of training
        trainer.test(module, datamodule=components.data, verbose=False)
        figures |= module.figures
    _check_finite(figures)
    measured = _protocols(cfg, components.data, figures)
    if trainer.is_global_zero and not pruned:
        model = unsharded(components.model, objective, best)
        batch = components.data.first_validation_batch()
        export(run, model, components.tokenizer, objective.facts.name, batch)
        plots.write_plot(run, objective.facts.perplexity_label)
    telemetry = callbacks.telemetry
    return {
        **figures,
        **measured,
        "tokens_seen": telemetry.tokens_seen(steps),
        **components.costs.of(telemetry.tokens_seen(steps)),
        **telemetry.speed,
        "seconds": telemetry.seconds,
        "steps": steps,
        "best_step": best_state["global_step"],
        "skipped_steps": sum(len(part.skipped) for part in callbacks.all if isinstance(part, NonFinite)),
        "parameters": components.model.num_parameters(),
        "world_size": trainer.world_size,
        "status": "pruned" if pruned else "finished",
    }


def _protocols(cfg: Config, data: TextDataModule, figures: dict[str, float]) -> dict[str, Any]:
    """How the figures of each split were measured, and how many of the tokens behind them stand for no text."""
    notes: dict[str, Any] = {}
    for prefix, split in SPLITS.items():
        if f"{prefix}/loss" not in figures:
            continue
        windows, samples = data.windows(split), data.plan(split).samples
        measured = build_protocol(
            windows.stream.text,
            data.separator,
            data.tokenizer,
            data.collator,
            block_size=windows.size,
            stride=windows.stride,
            within=data.bounds.get(split),
        )
        if samples < len(windows):
            measured["limit"] = samples
        measured["dtype"] = cfg.hardware.precision.replace("32-true", measured["dtype"])
        notes |= {f"{prefix}/protocol": measured, f"{prefix}/protocol_hash": short_hash(measured)}
        if rank() == 0:  # whose summary is kept
            notes[f"{prefix}/separators"] = data.separators_scored(split)
    return notes


def _check_finite(figures: dict[str, Any]) -> None:
    """Raises Diverged where the exported weights have a loss that is no number."""
    for name, value in figures.items():
        if name.endswith("/loss") and not math.isfinite(value):
            raise Diverged(name, value, "the best checkpoint has a loss that is no number")
