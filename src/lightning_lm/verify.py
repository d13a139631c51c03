"""Whether an export is the model that was trained: reloaded in a fresh process, it must give the same loss."""

import json
import math
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning_lm.errors import refuse


def write_check(run: Path, model: Any, objective: str, input_ids: list[list[int]], labels: list[list[int]]) -> float:
    """Write ``run/export_check.json``: a batch, and the mean negative log-likelihood that the model gives it.

    Args:
        run: the run folder.
        model: a transformers model; computed in float32 without dropout, and left as it was.
        objective: ``clm`` or ``mlm``.
        input_ids: [batch, tokens].
        labels: [batch, tokens]; ``labels[b][t]`` is what ``logits[b][t]`` should predict, -100 where nothing.

    Returns:
        The mean, in nats per label.
    """
    import torch

    if any(p.dtype != torch.float32 for p in model.parameters()):
        model = deepcopy(model).float()
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        nll = mean_nll(model, input_ids, labels)
    finally:
        torch.set_float32_matmul_precision(precision)
        model.train(training)
    check = {"objective": objective, "input_ids": input_ids, "labels": labels, "nll": nll}
    (run / "export_check.json").write_text(json.dumps(check), encoding="utf-8")
    return nll


def mean_nll(model: Any, input_ids: list[list[int]], labels: list[list[int]]) -> float:
    """Mean negative log-likelihood in nats over the labels that aren't -100, summed in float64."""
    import torch

    device = next(model.parameters()).device
    tokens, targets = torch.tensor(input_ids, device=device), torch.tensor(labels, device=device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.cpu().double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.cpu().flatten()).item()


def verify(run: Path) -> float:
    """Reload ``run/export`` in a fresh, offline process and compare its loss with ``run/export_check.json``.

    Returns:
        The mean negative log-likelihood of the reloaded model, in nats per label.

    Raises:
        Refused: the export or the check is missing, doesn't load by the Auto classes, or gives another loss.
    """
    export, check = run / "export", run / "export_check.json"
    if not (export / "config.json").exists() or not check.exists():
        missing = "export/config.json" if check.exists() else check.name
        raise refuse("run", run, f"there is no {missing} in it", "name the folder of a finished run")
    command = [sys.executable, "-m", "lightning_lm.verify", str(run)]
    # Offline: whoever downloads the export has nothing but the export.
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise refuse("run", run, f"its export doesn't load: {reason}", "write the export again, or repair it")
    found, expected = float(done.stdout.split()[-1]), json.loads(check.read_text(encoding="utf-8"))["nll"]
    if not math.isclose(found, expected, rel_tol=_tolerance(export)):
        wrong = f"its export has a loss of {found:.6f}, the trained model had {expected:.6f}"
        raise refuse("run", run, wrong, "write the export again: its files were changed or are incomplete")
    return found


def _tolerance(export: Path) -> float:
    """Relative; wider where rounding on the way to the file is to be expected."""
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    return 1e-5 if config.get("dtype", config.get("torch_dtype")) in (None, "float32") else 1e-4


def reload(run: Path) -> float:
    """What the fresh process does: load model and tokenizer by the Auto classes, compute the loss."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    check = json.loads((run / "export_check.json").read_text(encoding="utf-8"))
    auto = {"clm": AutoModelForCausalLM, "mlm": AutoModelForMaskedLM}[check["objective"]]
    known, needed = len(AutoTokenizer.from_pretrained(run / "export")), 1 + max(map(max, check["input_ids"]))
    if known < needed:  # without its files, transformers makes an empty tokenizer and says nothing
        raise ValueError(f"the tokenizer has {known} tokens, the text needs {needed}")
    model = auto.from_pretrained(run / "export", dtype=torch.float32)
    return mean_nll(model.eval(), check["input_ids"], check["labels"])


if __name__ == "__main__":
    sys.stdout.write(f"{reload(Path(sys.argv[1]))!r}\n")
