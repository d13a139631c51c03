"""Which parameters decay, and which optimizer updates them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_lm.optim.schema import GroupConfig, OptimizerConfig

Named = list[tuple[str, nn.Parameter]]


def sort_parameters(model: nn.Module, table: Sequence[GroupConfig]) -> list[tuple[GroupConfig, Named]]:
    """The trainable parameters under the row that each belongs to; tied weights once, by their first name.

    Raises ValueError where a parameter fits no row.
    """
    rows: list[tuple[GroupConfig, Named]] = [(row, []) for row in table]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        members = next((members for row, members in rows if row.fits(name, parameter)), None)
        if members is None:
            raise ValueError(f"no row of the table fits {name} with {parameter.ndim} dimensions")
        members.append((name, parameter))
    return rows


def describe(model: nn.Module, table: Sequence[GroupConfig], weight_decay: float) -> str:
    """The table with the parameters that each row took, for people."""
    lines = [f"{'optimizer':<10}{'decay':>7}{'tensors':>9}{'parameters':>13}  rule"]
    for row, members in sort_parameters(model, table):
        rule = f"{row.ndim} dimension(s), " * (row.ndim is not None) + row.pattern
        rule = rule if len(rule) < 40 else f"{rule[:38]}…"  # the whole fits no terminal; config.yaml has it
        count = sum(p.numel() for _, p in members)
        decay = weight_decay if row.decay else 0
        lines.append(f"{row.optimizer:<10}{decay:>7g}{len(members):>9}{count:>13,}  {rule}")
    return "\n".join(lines)


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool = False) -> Optimizer:
    """The optimizer of a model's parameters, each with the decay and the member that its row of the table names."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, members in sort_parameters(model, config.groups):
        if members:
            decay = config.weight_decay if row.decay else 0.0
            group = {"params": [parameter for _, parameter in members], "weight_decay": decay}
            groups.setdefault(row.optimizer, []).append(group)
    optimizers = config.build(groups, model=model, fused=fused)
    return optimizers[0] if len(optimizers) == 1 else CombinedOptimizer(optimizers)


def with_state(optimizer_state: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A state dict that has another's moments and counts; rates and decay stay."""
    if "members" in optimizer_state:
        pairs = zip(optimizer_state["members"], other["members"], strict=True)
        return {"members": [with_state(*pair) for pair in pairs]}
    return {**optimizer_state, "state": other["state"]}


def update_unless(nonfinite: torch.Tensor, optimizer: Optimizer) -> None:
    """Have the optimizer's next update change neither weights nor state if ``nonfinite``, a bool on their device.

    torch's fused optimizers decide there, as for its GradScaler. Others pass over parameters without a gradient, and to
    tell whether these lose theirs, the host waits for the device.
    """
    for member in getattr(optimizer, "members", [optimizer]):
        if member.defaults.get("fused"):
            member.found_inf = nonfinite.float()
        elif nonfinite:
            for group in member.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None


class CombinedOptimizer(Optimizer):
    """Several optimizers over disjoint parameters, seen by Lightning and by a scheduler as one.

    Its ``param_groups`` are the very dictionaries of its members, so a scheduler reaches all of them.
    """

    def __init__(self, members: Sequence[Optimizer]):
        self.members = list(members)
        super().__init__([group for member in members for group in member.param_groups], {})

    def step(self, closure: Callable | None = None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for member in self.members:
            member.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)
        self.param_groups = [group for member in self.members for group in member.param_groups]
