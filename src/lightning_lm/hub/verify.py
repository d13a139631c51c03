"""Whether an export is the model that was trained: reloaded in a fresh process, it must give the same loss."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from lightning_lm.errors import EXPORT_AGAIN, refuse
from lightning_lm.files import export_damage
from lightning_lm.objectives.schema import OBJECTIVES


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
    if wrong := export_damage(run):
        raise refuse("run", run, f"its export: {wrong}", EXPORT_AGAIN)
    command = [sys.executable, "-m", "lightning_lm.hub.verify", str(run)]
    # Offline: whoever downloads the export has nothing but the export.
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise refuse("run", run, f"its export doesn't load: {reason}", "write the export again, or repair it")
    nll, largest = map(float, done.stdout.split()[-2:])
    expected, tolerance = json.loads(check.read_text(encoding="utf-8"))["nll"], _tolerance(export)
    if not math.isclose(nll, expected, rel_tol=tolerance, abs_tol=tolerance / 10 * largest):  # float32 rounds by logits
        wrong = f"its export has a loss of {nll:.6f}, the trained model had {expected:.6f}"
        raise refuse("run", run, wrong, "write the export again: its files were changed or are incomplete")
    return nll


def _tolerance(export: Path) -> float:
    """Relative; wider where rounding on the way to the file is to be expected."""
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    return 1e-5 if config.get("dtype", config.get("torch_dtype")) in (None, "float32") else 1e-4


def reload(run: Path) -> tuple[float, float]:
    """The fresh process's part: load model and tokenizer by the Auto classes; loss and largest logit."""
    import torch
    import transformers

    from lightning_lm.runs.export import mean_nll

    check = json.loads((run / "export_check.json").read_text(encoding="utf-8"))
    auto = getattr(transformers, OBJECTIVES[check["objective"]].facts.auto_class)
    known, needed = (
        len(transformers.AutoTokenizer.from_pretrained(run / "export")),
        1 + max(map(max, check["input_ids"])),
    )
    if known < needed:  # without its files, transformers makes an empty tokenizer and says nothing
        raise ValueError(f"the tokenizer has {known} tokens, the text needs {needed}")
    model = auto.from_pretrained(run / "export", dtype=torch.float32)
    return mean_nll(model.eval(), check["input_ids"], check["labels"])


if __name__ == "__main__":
    print(*reload(Path(sys.argv[1])))
