"""A run that goes on from another one's weights, with that one's optimizer state, too."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_lm.config.schema import Config
from lightning_lm.errors import refuse
from lightning_lm.runs.settings import part_of
from lightning_lm.training.checkpoints import BEST, checkpoint_damage


def carried_state(cfg: Config, model: nn.Module) -> dict[str, Any]:
    """The optimizer's state of the run that ``model.name_or_path`` names, of the step whose weights it has exported.

    Raises:
        Refused: the run has none, or it is another optimizer's, or that of other parameters.
    """
    run = Path(cfg.model.name_or_path or "").expanduser()
    best, theirs = run / "checkpoints" / BEST, part_of(run, "optimizer")
    wrong = checkpoint_damage(best) if best.exists() else "it isn't there"
    if not wrong:
        checkpoint = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
        shapes = {name: weight.shape for name, weight in checkpoint["state_dict"].items()}
        if not checkpoint["optimizer_states"]:
            wrong = "a sweep has kept only its weights; trainer.keep_checkpoints=true keeps all"
        elif (type(theirs), theirs.groups) != (type(cfg.optimizer), cfg.optimizer.groups):
            wrong = "it has the state of another optimizer, or of other groups"
        elif any(shapes.get(f"model.{name}") != p.shape for name, p in model.named_parameters()):
            wrong = "its parameters are others"
        else:
            return checkpoint["optimizer_states"][0]
    raise refuse("optimizer.carry_state", True, f"{best}: {wrong}", "leave it out, or name another run")
