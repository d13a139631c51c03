"""Muon, for weights as a layer uses them, however they are stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Layout:
    """How a stored weight holds a layer's matrices [out, in]."""

    transposed: bool = False  # stored [in, out]
    parts: int = 1  # matrices of one shape side by side, such as those of q, k and v

    def matrices(self, stored: Tensor) -> Tensor:
        """[parts, out, in], of a stored weight."""
        return (stored.T if self.transposed else stored).unflatten(0, (self.parts, -1))

    def stored(self, matrices: Tensor) -> Tensor:
        """What ``matrices`` was made of."""
        weight = matrices.flatten(0, 1)
        return weight.T if self.transposed else weight


def layouts(model: nn.Module) -> dict[nn.Parameter, Layout]:
    """Of the weights in Conv1D, which are stored [in, out]; attention with a ``split_size`` cuts their outputs so."""
    return {
        layer.weight: Layout(transposed=True, parts=layer.nf // getattr(module, "split_size", layer.nf))
        for module in model.modules()
        for layer in module.children()
        if isinstance(layer, Conv1D)
    }


class Muon(torch.optim.Muon):
    """Muon (Jordan et al., 2024), whose rate is scaled by √max(1, out / in) of each matrix that a layer multiplies by.

    Unlike torch's, it takes the Newton–Schulz iteration of all weights of one shape at once on a GPU, and runs it in
    float32 on a CPU: without bfloat16 units, bfloat16 is emulated at several times the cost.
    """

    def __init__(self, params, layouts: Mapping[nn.Parameter, Layout], **options):
        super().__init__(params, **options)
        self.layouts = layouts

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[object, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    key = p if p.device.type == "cpu" else (p.shape, self.layouts.get(p))
                    alike.setdefault(key, []).append(p)
            for members in alike.values():
                self._update(members, group)
        return loss

    def _update(self, members: list[nn.Parameter], group: dict) -> None:
        layout = self.layouts.get(members[0], Layout())
        matrices = torch.cat([layout.matrices(self._direction(p, group)) for p in members])
        if matrices.device.type == "cpu":
            changes = torch.stack([orthogonalise(m, group["ns_coefficients"], group["ns_steps"]) for m in matrices])
        else:
            changes = orthogonalise(matrices.bfloat16(), group["ns_coefficients"], group["ns_steps"])
        scale = max(1.0, matrices.size(1) / matrices.size(2)) ** 0.5
        for p, change in zip(members, changes.chunk(len(members)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            stored = layout.stored(change)
            if isinstance(p, DTensor):
                stored = distribute_tensor(stored, p.device_mesh, p.placements, src_data_rank=None)
            p.add_(stored, alpha=-group["lr"] * scale)

    def _direction(self, p: nn.Parameter, group: dict) -> Tensor:
        """The momentum, of the whole weight also where a process has only its share."""
        state, momentum, gradient = self.state[p], group["momentum"], p.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        return direction.full_tensor() if isinstance(direction, DTensor) else direction


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """About U·Vᵀ of each singular value decomposition U·S·Vᵀ, by a quintic Newton–Schulz iteration; [rows, columns] or
    [number, rows, columns]."""
    a, b, c = coefficients
    tall = matrix.size(-2) > matrix.size(-1)
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
