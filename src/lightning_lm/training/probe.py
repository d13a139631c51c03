"""One pass through the model before anything is spent; and what a run is going to do, in a few lines."""

import json
import logging
import math
import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_lm.config.schema import Config
from lightning_lm.errors import refuse
from lightning_lm.logs import rank
from lightning_lm.models.activations import recomputed
from lightning_lm.models.loading import vocabulary_size
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head
from lightning_lm.objectives.objective import Objective
from lightning_lm.runs.folder import read_json_file, write_json
from lightning_lm.training.components import RunComponents, accelerator, failing_in_one_line

log = logging.getLogger(__name__)
PROBED = "probed.json"  # in a sweep's folder: the models, texts and shapes whose probe went well
BYTES_PER_PARAMETER = 12 * 4 + 4  # float32 with AdamW's state: last, previous, best, and the one being written; export
SHOWN = 300  # characters of the first block


def probe(cfg: Config, components: RunComponents, run: Path) -> None:
    """A forward and a backward pass with the first micro batch, as long as they will be, and the highest token id.

    It finds what no attribute of a model tells, such as position tables that end early, and memory. Neither random
    state nor gradients are left changed. In a sweep it is done once for each model, text and shape. Under fsdp it
    isn't done: the whole model may not fit on a device.

    Raises:
        Refused: the pass fails, or gives a loss that is no number.
    """
    if cfg.hardware.strategy == "fsdp" or probed(cfg, run):
        return
    device = torch.device("cpu")
    if accelerator(cfg.hardware) == "gpu":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    batch = components.data.first_training_batch(cfg.hardware.devices * cfg.hardware.nodes)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][-1, -1] = vocabulary_size(components.tokenizer) - 1
    loss = _pass(cfg, components.model.to(device).train(), components.objective, batch)
    if not math.isfinite(loss):
        wrong = f"its loss is {loss} before the first step"
        raise refuse("model", cfg.model.tag, wrong, "choose another checkpoint, or another hardware.precision")
    if (run.parent / "sweep.json").exists() and rank() == 0:
        known = read_json_file(run.parent / PROBED) or {}
        write_json(run.parent / PROBED, {**known, _shape(cfg): True})


def probed(cfg: Config, run: Path) -> bool:
    """Whether the same model, text and shape went well before, in the same sweep."""
    return _shape(cfg) in (read_json_file(run.parent / PROBED) or {})


def _shape(cfg: Config) -> str:
    shape = [cfg.model, cfg.data, cfg.objective, cfg.hardware, cfg.trainer.global_batch_size]
    return json.dumps([asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in shape], default=str)


def _pass(cfg: Config, model: Any, objective: Objective, batch: dict[str, Any]) -> float:
    device = next(model.parameters()).device
    low = {"bf16": torch.bfloat16, "16": torch.float16}.get(cfg.hardware.precision.partition("-")[0])
    precision = torch.autocast(device.type, low) if low else nullcontext()
    inputs = move_data_to_device(batch, device)
    try:
        with failing_in_one_line(cfg, len(inputs["input_ids"])), torch.compiler.set_stance("force_eager"):
            with torch.random.fork_rng([device] if device.type == "cuda" else []), precision, recomputed(model):
                head, parts = find_head(model), objective.passes(model, inputs)
                nll = sum(labelled_nll(model, head, part).nll for _, part in parts)
            nll.backward()
            return float(nll.detach())
    finally:
        model.zero_grad(set_to_none=True)


def show_plan(cfg: Config, components: RunComponents, run: Path) -> str:
    """How large model, run and checkpoints are, and the first block as the model gets it; warns of a disk too small."""
    parameters, plan = components.model.num_parameters(), components.data.plan("train")
    steps = f"{components.max_steps:,} step{'s' * (components.max_steps != 1)}"
    steps = steps if cfg.trainer.max_minutes is None else f"{cfg.trainer.max_minutes:g} min"
    place = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    needed, free = parameters * BYTES_PER_PARAMETER / 1e9, shutil.disk_usage(place).free / 1e9
    if needed > free:
        log.warning("run_dir=%s: the disk may become full; make room, or choose a folder on another disk", run)
    batch = components.data.first_training_batch(1)
    text = components.tokenizer.decode(batch["input_ids"][0].tolist())
    tokens = min(plan.global_batch_size, plan.samples) * cfg.data.block_size
    cost = components.costs.of(tokens)
    return (
        f"{parameters:,} parameters; {steps}, of {tokens:,} tokens each\n"
        f"a step: {cost['labels_seen']:,} labels, {cost['flops_layers']:.3g} FLOPs in the layers,"
        f" {cost['flops_head']:.3g} in the head\n"
        f"disk: about {needed:.2g} GB for checkpoints and export; {free:.3g} GB are free\n"
        f"the first block: {text[:SHOWN]!r}{'…' * (len(text) > SHOWN)}"
    )
