"""Run folders made without a run."""

import functools
import math
import shutil

from omegaconf import OmegaConf

from lightning_lm.config.composition import as_settings
from lightning_lm.config.overrides import compose
from lightning_lm.runs.folder import write_json, write_text
from lightning_lm.runs.step_table import StepTable
from lightning_lm.runs.tracking import RunFolderLogger

SPLITS = ("train", "validation", "test")
BASE = ("data=text", "data.train=a.txt", "data.validation=b.txt", "hardware=cpu", "logger=none")
GRID = {  # learning rate, weight decay, seed → validation loss
    (1e-3, 0.0, 0): 3.00,
    (1e-3, 0.0, 1): 3.20,
    (1e-3, 0.1, 0): 3.05,
    (1e-3, 0.1, 1): 3.11,
    (3e-3, 0.0, 0): 2.00,
    (3e-3, 0.0, 1): None,  # diverged
    (3e-3, 0.1, 0): 4.00,
    (3e-3, 0.1, 1): 4.40,
}


@functools.cache
def composed(*choices):
    return OmegaConf.create(as_settings(compose(*BASE, *choices)))


def write_run(folder, *overrides, loss=None, status="finished", **figures):
    """A run folder, made with what a run makes it with; its loss falls to ``loss`` in four steps."""
    choices = [override for override in overrides if override.startswith(("model=", "objective="))]
    values = [override for override in overrides if override not in choices]
    settings = OmegaConf.merge(composed(*choices), OmegaConf.from_dotlist([*values, f"run_dir={folder}"]))
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(settings))
    write_json(folder / "ledger.json", {"validation": {"key": "k", "bytes": 1000}})
    logger, samples = RunFolderLogger(folder), StepTable(folder / "samples.csv", ["step", "prompt", "text"])
    for step in (1, 2, 3, 4):
        value = (loss or math.nan) + 4 - step
        speed = 100.0 * step  # tokens a second
        logger.log_metrics({"train/loss": value, "tokens_seen": 600 * step, "tokens_per_second": speed}, step=step)
        if step % 2 == 0:
            logger.log_metrics({"val/loss": value, "tokens_seen": 600 * step}, step=step)
            samples.append({"step": step, "prompt": "The <b>", "text": f"The <b> {step}, {folder.name}"})
    if status is not None:
        known = {"val/loss": loss, "val/perplexity": math.exp(loss), "best_step": 4} if loss is not None else {}
        write_json(folder / "summary.json", {**known, **figures, "status": status})
    return folder


def write_exported_run(folder, model, objective, text, *overrides):
    """A run folder with the settings and the export alone, which is a copy of a model; ``text`` is all its splits."""
    shutil.copytree(model, folder / "export")
    choices = [f"objective={objective}", "data=text", "model=gpt2-tiny", *(f"data.{split}={text}" for split in SPLITS)]
    job = compose(*choices, "data.block_size=48", f"data.cache_dir={folder.parent / 'cache'}", *overrides)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(as_settings(job))))
    write_json(folder / "summary.json", {"status": "finished"})
    return folder


def write_grid(folder):
    """A sweep with a run that diverged and one that never began."""
    for number, ((lr, decay, seed), loss) in enumerate(GRID.items()):
        own = f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}", f"seed={seed}"
        write_run(folder / str(number), *own, loss=loss, status="finished" if loss else "diverged")
    keys = ("optimizer.lr", "optimizer.weight_decay", "seed")
    rows = [dict(zip(keys, map(str, row), strict=True)) for row in [*GRID, (1e-2, 0.0, 0)]]
    write_json(folder / "sweep.json", {"fixed": {}, "search": rows})
    return folder
