"""Muon on a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Muon


class CpuMuon(Muon):
    """Muon whose Newton–Schulz iteration (Jordan et al., 2024) runs in float32.

    torch's runs in bfloat16, which a CPU without bfloat16 units emulates at several times the cost.
    """

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
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
                scale = max(1.0, p.size(0) / p.size(1)) ** 0.5
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
