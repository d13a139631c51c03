"""Which parameters decay, who updates them, and how the learning rate moves."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler


@dataclass(frozen=True)
class Row:
    """A row of the ordered table: the first whose ``pattern`` (searched in the name) and ``ndim`` fit takes it."""

    pattern: str = ".*"
    ndim: int | None = None
    decay: bool = True
    optimizer: str = "adamw"

    def fits(self, name: str, parameter: Tensor) -> bool:
        return self.ndim in (None, parameter.ndim) and re.search(self.pattern, name) is not None


def sort_parameters(model: nn.Module, table: Sequence[Row]) -> list[tuple[Row, list[tuple[str, nn.Parameter]]]]:
    """The trainable parameters under the row that each belongs to; tied weights once, by their first name.

    Raises:
        ValueError: a parameter fits no row.
    """
    sorted_ = [(row, []) for row in table]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        for row, members in sorted_:
            if row.fits(name, parameter):
                members.append((name, parameter))
                break
        else:
            raise ValueError(f"no row of the table fits {name} with {parameter.ndim} dimensions")
    return sorted_


def describe(model: nn.Module, table: Sequence[Row], weight_decay: float) -> str:
    """The table with what each row took, for people."""
    lines = [f"{'optimizer':<10}{'decay':>7}{'tensors':>9}{'parameters':>13}  rule"]
    for row, members in sort_parameters(model, table):
        rule = row.pattern + (f" with {row.ndim} dimension(s)" if row.ndim is not None else "")
        count = sum(p.numel() for _, p in members)
        decay = weight_decay if row.decay else 0
        lines.append(f"{row.optimizer:<10}{decay:>7g}{len(members):>9}{count:>13,}  {rule}")
    return "\n".join(lines)


class CpuMuon(Muon):
    """Muon whose Newton–Schulz iteration (Jordan et al., 2024) runs in float32.

    torch's runs in bfloat16, which a CPU without bfloat16 units emulates at several times the cost.
    """

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                momentum = group["momentum"]
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = p.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                p.mul_(1 - group["lr"] * group["weight_decay"])
                rows, columns = p.shape
                scale = max(1.0, rows / columns) ** 0.5
                p.add_(orthogonalise(update, group["ns_coefficients"], group["ns_steps"]), alpha=-group["lr"] * scale)
        return loss


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """About U·Vᵀ of the matrix's singular value decomposition U·S·Vᵀ, by a quintic Newton–Schulz iteration."""
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Together(Optimizer):
    """Several optimizers over disjoint parameters, seen by Lightning and by a scheduler as one.

    Its ``param_groups`` are the very dictionaries of its members, so a scheduler reaches all of them.
    """

    def __init__(self, members: Sequence[Optimizer]):
        self.members = list(members)
        super().__init__([group for member in members for group in member.param_groups], {})

    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)
        self.param_groups = [group for member in self.members for group in member.param_groups]


def build_optimizer(
    model: nn.Module,
    table: Sequence[Row],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    muon_lr: float | None = None,
    momentum: float = 0.95,
    fused: bool = False,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) with rate ``lr``, and Muon with rate ``muon_lr`` for the rows that name it.

    Muon's groups come first, so that the first group's rate is the one that ``optimizer.lr`` sets.
    """
    groups: dict[str, list[dict]] = {"adamw": [], "muon": []}
    for row, members in sort_parameters(model, table):
        if members:
            decay = weight_decay if row.decay else 0.0
            groups[row.optimizer].append({"params": [p for _, p in members], "weight_decay": decay})
    made: list[Optimizer] = []
    if groups["muon"]:
        kind = CpuMuon if next(model.parameters()).device.type == "cpu" else Muon
        made.append(kind(groups["muon"], lr=muon_lr, momentum=momentum))
    if groups["adamw"]:
        made.append(AdamW(groups["adamw"], lr=lr, betas=betas, eps=eps, fused=fused))
    return made[0] if len(made) == 1 else Together(made)


def share_or_steps(value: float, total: int) -> int:
    """A length given as a share of the run (below 1) or in optimiser steps, in steps."""
    return math.ceil(round(value * total, 9)) if value < 1 else int(value)


def build_scheduler(
    optimizer: Optimizer,
    name: str,
    *,
    warmup: float,
    decay: float,
    total_steps: int,
    progress: Callable[[], float] | None = None,
) -> LambdaLR:
    """transformers' schedule of this name, which ends at ``total_steps`` optimiser steps.

    With ``progress`` (the share of a time budget that is spent) the schedule follows that share instead of the step.
    """
    steps = share_or_steps(warmup, total_steps)
    kinds = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}
    specific = {"num_decay_steps": share_or_steps(decay, total_steps)} if name == "wsd" else None
    schedule = get_scheduler(
        kinds.get(name, name),
        optimizer,
        num_warmup_steps=steps,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=specific,
    )
    if progress is None:
        return schedule
    factors = [lambda _, factor=factor: factor(int(progress() * total_steps)) for factor in schedule.lr_lambdas]
    return LambdaLR(optimizer, factors)
