"""How much arithmetic a model needs, and how much a device's data sheet promises."""

import re

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import OutputHead

# Dense 16-bit FLOP/s with float32 accumulation, from NVIDIA's data sheets; TF32 has half of it where there is TF32
PEAKS = {
    "T4": 65e12,
    "V100-SXM2": 125e12,
    "V100-SXM3": 125e12,
    "V100-PCIE": 112e12,
    "A10": 125e12,
    "A30": 165e12,
    "A100": 312e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "L4": 121e12,
    "L40S": 362e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
}
NO_TF32 = ("T4", "V100")
DEVICE = r"(?:NVIDIA |Tesla |GeForce )*({names})(?:[- ](?:SXM\d|PCI[Ee]|HBM\d|\d+GB))*"  # and no "Ti" or such


def peak_flops(device: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s that a data sheet promises for a precision of Lightning; None for unknown devices, or float32 alone."""
    known = re.fullmatch(DEVICE.format(names="|".join(PEAKS)), device)
    if not known or (precision == "32-true" and (not tf32 or known[1].startswith(NO_TF32))):
        return None
    return PEAKS[known[1]] / (2 if precision == "32-true" else 1)


@torch.no_grad()
def training_flops(model: PreTrainedModel, length: int) -> tuple[float, float]:
    """What a token costs in the layers of a training step, and a label in the head; backwards twice the forward pass.

    The layers count at every position of a block of ``length`` tokens, also where only labelled ones need the last.
    """
    tokens = model.config.get_text_config().vocab_size  # various ones: some models look for what is no padding
    inputs, training = torch.arange(length, device=model.device).unsqueeze(0) % tokens, model.training
    totals = []
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):  # others' products aren't all counted
        for part in (model.eval().base_model, model):
            with FlopCounterMode(display=False) as counter:
                part(input_ids=inputs)
            totals.append(3 * counter.get_total_flops() / length)
    model.train(training)
    return totals[0], totals[1] - totals[0]


def flops_per_token(model: nn.Module, head: OutputHead, batch: dict[str, Tensor]) -> float:
    """Of a training step, for a token: the products of a forward pass of its first block, and twice as many backwards.

    Recomputation for saving memory doesn't count (Chowdhery et al., 2022, appendix B).
    """
    block = {name: batch[name][:1] for name in ("input_ids", "labels")}
    counter, training = FlopCounterMode(display=False), model.training
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        labelled_nll(model.eval(), head, block)
    model.train(training)
    return 3 * counter.get_total_flops() / block["input_ids"].numel()
