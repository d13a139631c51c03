"""Checkpoints on disk: written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target and renames, so that a kill leaves the old file or the new one.

    Lightning's own goes through the system's temporary folder, which may lie on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(checkpoint, scratch)
        os.replace(scratch, path)


def load_weights(model: nn.Module, path: Path) -> dict[str, Any]:
    """Put the weights of a checkpoint of ``LanguageModel`` into its model; returns the checkpoint."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = checkpoint["state_dict"]
    weights = {n.removeprefix("model."): v for n, v in state.items() if n.startswith("model.")}
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)
    return checkpoint
