"""A run that gets a later end: whether its schedule allows that, and from which checkpoint it goes on.

It ends as the run would that had the later end from its start. So what came of the earlier end is taken back: the rates
of a decay, and the validation after the last step, which may have given the best checkpoint.
"""

from pathlib import Path

import torch

from lightning_lm.config.schema import Config
from lightning_lm.constraints import to_steps
from lightning_lm.errors import Refused, refuse
from lightning_lm.files import remove, replacing
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.settings import config_of, later_ends
from lightning_lm.training.checkpoints import (
    BEST,
    EXTEND,
    EXTEND_BEST,
    LAST,
    PREVIOUS,
    checkpoint_damage,
    name_also,
    step_of,
    to_go_on_from,
)
from lightning_lm.training.components import RunComponents, total_steps

ANOTHER = "train it in another run_dir"


def to_extend_from(cfg: Config, components: RunComponents, run: Path) -> Path | None:
    """The checkpoint from which a run goes on where its end is later than in its folder; None where there is none yet.

    Raises:
        Refused: the rates up to there depend on the end, or no such checkpoint is left.
    """
    before = total_steps(config_of(run).trainer, components.data, components.costs)
    last, extend = to_go_on_from(run), run / "checkpoints" / EXTEND
    ended = (read_json_file(run / "summary.json") or {}).get("status") in ("finished", "pruned")
    if last is None and not ended:
        return None
    if last is None:
        wrong = "the sweep has not kept the checkpoints of its jobs that have ended; trainer.keep_checkpoints=true does"
        raise _refusal(run, cfg, wrong)
    steps = min(cfg.scheduler.steady_steps(before), before - 1)
    warmups = [to_steps(cfg.scheduler.warmup, total) for total in (before, components.max_steps)]
    if cfg.trainer.max_minutes is not None:
        raise _refusal(run, cfg, "trainer.max_minutes has its rates follow the clock")
    if warmups[0] != warmups[1]:
        raise _refusal(run, cfg, f"its warmup, a share of the run, took {warmups[0]} steps, and now {warmups[1]}")
    if not cfg.scheduler.steady_steps(before):
        raise _refusal(run, cfg, f"with scheduler={cfg.scheduler.name} its rates depend on the end from the start")
    if step_of(last) <= steps and (
        last.name == LAST or not extend.exists()
    ):  # previous.ckpt may be older than best.ckpt
        return last
    if not extend.exists():
        raise _refusal(run, cfg, f"no checkpoint of its first {steps} steps, before its end or decay, is left")
    if wrong := checkpoint_damage(extend):
        raise _refusal(run, cfg, f"checkpoints/{EXTEND}: {wrong}")
    return extend


def drop_what_goes_on(run: Path) -> None:
    """Of a run that has ended, remove what only serves to go on; of the best checkpoint, the weights stay."""
    folder = run / "checkpoints"
    for name in (LAST, PREVIOUS, EXTEND, EXTEND_BEST):
        remove(folder / name)
    best = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    with replacing(folder / BEST) as scratch:
        torch.save({**best, "optimizer_states": [], "lr_schedulers": []}, scratch)


def _refusal(run: Path, cfg: Config, wrong: str) -> Refused:
    setting = later_ends(run, cfg)[0]
    value = getattr(cfg.trainer, setting.removeprefix("trainer."))
    return refuse(setting, value, f"the run in {run} can't get a later end: {wrong}", ANOTHER)


def go_back(run: Path) -> None:
    """Put a folder back to the step of ``extend.ckpt``; the checkpoint by which the run goes on comes last."""
    folder = run / "checkpoints"
    remove(folder / PREVIOUS)
    name_also(folder, {EXTEND_BEST: BEST, EXTEND: LAST})
