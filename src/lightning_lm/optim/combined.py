"""Several optimizers that look like one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class CombinedOptimizer(Optimizer):
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
