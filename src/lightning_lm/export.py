"""The trained model as transformers would save it, with what it takes to check it later."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_lm.data.module import TextDataModule
from lightning_lm.verify import write_check


def export(run: Path, model: nn.Module, tokenizer: Any, data: TextDataModule) -> None:
    """Write ``export/`` (model and tokenizer) whole or not at all, and ``export_check.json`` beside it."""
    scratch, target = run / ".export", run / "export"
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    batch = data.first_validation_batch()
    with torch.compiler.set_stance("force_eager"):
        write_check(run, model, data.objective.name, batch["input_ids"].tolist(), batch["labels"].tolist())
