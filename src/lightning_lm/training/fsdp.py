"""Fully sharded training (FSDP2): every device holds its share of the weights, the gradients and the optimizer's state.

What a checkpoint holds is whole, as one device would write it, so that any number of devices goes on from it.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_lm.models.loading import layers
from lightning_lm.objectives.objective import Objective
from lightning_lm.training.checkpoints import load_weights
from lightning_lm.training.module import LanguageModel


class ShardedLanguageModel(LanguageModel):
    def configure_model(self) -> None:
        if not isinstance(self.model, FSDPModule):  # a test after the training calls this again
            shard(self.model, self.device_mesh["data_parallel"])

    def _total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        if not self.exact_norm:
            return super()._total_norm(gradients).full_tensor()
        squares = super()._total_norm([gradient.to_local() for gradient in gradients]).square()
        torch.distributed.all_reduce(squares, group=gradients[0].device_mesh.get_group())
        return squares.sqrt()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Gather one layer at a time."""
    for layer in layers(model):
        fully_shard(layer, mesh=mesh)
    # The loss uses the head's weights after the model's forward has returned.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def unsharded(model: nn.Module, objective: Objective, checkpoint: Path) -> nn.Module:
    """The model itself, or, for a sharded one, a whole one on the CPU with the checkpoint's weights."""
    if not isinstance(model, FSDPModule):
        return model
    whole = getattr(transformers, objective.facts.auto_class).from_config(model.config, dtype=model.dtype)
    load_weights(whole, checkpoint)
    return whole


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's, with checkpoints of the same form as without sharding, for any optimizer."""

    lightning_restore_optimizer = True

    def __init__(self, processes: int, **options: Any):
        super().__init__(processes, 1, save_distributed_checkpoint=False, **options)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, inner.state_dict())

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(checkpoint_path, map_location="cpu", weights_only=weights_only, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        set_model_state_dict(self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            members = getattr(optimizer, "members", [optimizer])
            for member, saved in zip(members, state.get("members", [state]), strict=True):
                member.load_state_dict(_share_of(saved, member))


def _share_of(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, with what belongs to a parameter's elements sharded as the parameter is."""
    parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    indices = chain.from_iterable(group["params"] for group in state["param_groups"])

    def share(value: Any, parameter: DTensor) -> Any:
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    entries = {
        index: {name: share(value, parameter) for name, value in state["state"][index].items()}
        for index, parameter in zip(indices, parameters, strict=True)
        if index in state["state"]
    }
    return {**state, "state": entries}
