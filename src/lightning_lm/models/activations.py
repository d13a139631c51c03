"""Activations: some are computed again in the backward pass instead of kept for it, and GELU is one operator."""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import FSDPModule
from transformers import activations

POINTWISE = (nn.GELU, nn.SiLU, activations.GELUActivation, activations.GELUTanh, activations.SiLUActivation)
# Modules that are cheap to compute again and whose own derivative needs their argument, not their output, with the
# number of elements of an output from which the memory saved is worth the time: for each a GELU takes longer.
LARGE: dict[type[nn.Module], int] = {**dict.fromkeys(POINTWISE, 2**22), nn.LayerNorm: 2**20}


@contextmanager
def recomputed(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Within, what a GELU, SiLU or LayerNorm of ``model`` returns is not kept for the layer that takes it.

    Yields a list of those whose output was large enough; while it is empty, all this only takes time.

    The widest activations of a transformer are kept once instead of twice, and gradients are the same to the bit: Chen
    et al. (2016), "Training Deep Nets with Sublinear Memory Cost", for single operators. For layers that torch.compile
    doesn't see; it chooses by itself what to compute again.
    """
    # FSDP2 has a norm's weights at hand while its own layer is computed, not when another one asks for its output
    kinds = [kind for kind in LARGE if kind is not nn.LayerNorm or not isinstance(model, FSDPModule)]
    outputs: dict[int, tuple] = {}  # by address, while they live
    large: list[nn.Module] = []

    def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        same_type = output.dtype == args[0].dtype  # or the backward pass, without autocast, would compute another one
        if output.numel() >= LARGE[type(module)] and output.is_contiguous() and same_type:
            address = output.data_ptr()
            living = weakref.ref(output, lambda _: outputs.pop(address))
            outputs[address] = living, module.forward, args[0].detach(), args[0]._version
            large.append(module)

    def pack(tensor: Tensor) -> tuple:
        living, forward, argument, version = outputs.get(tensor.data_ptr(), (None, None, None, None))
        same = living is not None and living().numel() == tensor.numel() and tensor.is_contiguous()
        if same and not tensor._version and argument._version == version:
            return argument, version, forward, tensor.shape
        return tensor.detach(), tensor._version, None, None  # itself it would hold what holds it, and never be freed

    def unpack(packed: tuple) -> Tensor:
        tensor, version, forward, shape = packed
        if tensor._version != version:  # where there are hooks, autograd doesn't look
            raise RuntimeError("a tensor that the backward pass needs has been changed in place")
        return tensor if forward is None else forward(tensor).view(shape)

    with ExitStack() as hooks:
        for module in model.modules():
            if type(module) in kinds:
                hooks.callback(module.register_forward_hook(note).remove)
        hooks.enter_context(saved_tensors_hooks(pack, unpack))
        yield large


def fuse_gelu(model: nn.Module) -> nn.Module:
    """Let one operator compute what transformers writes as a formula: GELU's tanh approximation, as in GPT-2.

    The formula keeps half a dozen tensors of the feed-forward layer's width for the backward pass, the operator one.
    """
    formulas = (activations.NewGELUActivation, activations.FastGELUActivation, activations.AccurateGELUActivation)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, formulas):
                setattr(module, name, nn.GELU("tanh"))
    return model
