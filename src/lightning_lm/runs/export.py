"""The trained model as transformers would save it, with what it takes to check it later."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.tokenization_utils_base import LARGE_INTEGER

from lightning_lm.files import checksums, replacing
from lightning_lm.models.loading import positions


def export(run: Path, model: nn.Module, tokenizer: Any, objective: str, batch: dict[str, torch.Tensor]) -> None:
    """Write ``export/`` (model and tokenizer) whole or not at all, and ``export_check.json`` of a batch beside it."""
    with replacing(run / "export") as scratch, as_exported(model, tokenizer):
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in scratch.rglob("*"):  # safetensors' are for their owner alone, whatever the umask says
            file.chmod(scratch.stat().st_mode & 0o666)
    with torch.compiler.set_stance("force_eager"):
        write_check(run, model, objective, batch["input_ids"].tolist(), batch["labels"].tolist())


@contextmanager
def as_exported(model: Any, tokenizer: Any) -> Iterator[None]:
    """The longest text that the model takes, and the token that pads what it generates, where nothing else says them.

    Elsewhere the tokenizer stays as it is: it would warn of each text that is longer.
    """
    longest, generation = tokenizer.model_max_length, getattr(model, "generation_config", None)
    if longest > LARGE_INTEGER and (limit := positions(model)):
        tokenizer.model_max_length = limit
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    try:
        yield
    finally:
        tokenizer.model_max_length = longest


def write_check(run: Path, model: Any, objective: str, input_ids: list[list[int]], labels: list[list[int]]) -> float:
    """Write ``run/export_check.json``: a batch, the mean negative log-likelihood it has under the model, and checksums.

    Args:
        run: the run folder.
        model: a transformers model; computed in float32 without dropout, and left as it was.
        objective: ``clm`` or ``mlm``.
        input_ids: [batch, tokens].
        labels: [batch, tokens]; ``labels[b][t]`` is what ``logits[b][t]`` should predict, -100 where nothing.

    Returns:
        The mean, in nats per label.
    """
    if any(p.dtype != torch.float32 for p in model.parameters()):
        model = deepcopy(model).float()
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        nll, _ = mean_nll(model, input_ids, labels)
    finally:
        torch.set_float32_matmul_precision(precision)
        model.train(training)
    check = {"objective": objective, "input_ids": input_ids, "labels": labels, "nll": nll}
    check["crc32"] = checksums(run / "export")
    with replacing(run / "export_check.json") as scratch:
        scratch.write_text(json.dumps(check), encoding="utf-8")
    return nll


def mean_nll(model: Any, input_ids: list[list[int]], labels: list[list[int]]) -> tuple[float, float]:
    """Mean negative log-likelihood in nats over the labels that aren't -100, summed in float64; the largest logit."""
    device = next(model.parameters()).device
    tokens, targets = torch.tensor(input_ids, device=device), torch.tensor(labels, device=device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.cpu().double()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.cpu().flatten())
    return float(nll), float(logits.abs().max())
