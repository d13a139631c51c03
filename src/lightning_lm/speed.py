"""How fast a run is and what it takes: waiting for data, peak memory, and the share of the device's arithmetic."""

import re
import resource
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_lm.loss import Head, labelled_nll

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


class WaitClock(Profiler):
    """Adds up the seconds in which training waits for its next batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._since = time.monotonic()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.monotonic() - self._since


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of the GPU's memory, or, on a CPU, of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands a parent's ru_maxrss down to its children
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_flops(device: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s that a device's data sheet promises for a precision of Lightning.

    None for a device that isn't known, and for float32 without TF32.
    """
    known = re.fullmatch(DEVICE.format(names="|".join(PEAKS)), device)
    if not known or (precision == "32-true" and (not tf32 or known[1].startswith(NO_TF32))):
        return None
    return PEAKS[known[1]] / (2 if precision == "32-true" else 1)


def flops_per_token(model: nn.Module, head: Head, batch: dict[str, Tensor]) -> float:
    """Of a training step, for a token: the products of a forward pass of its first block, and twice as many backwards.

    Recomputation for saving memory doesn't count (Chowdhery et al., 2022, appendix B).
    """
    block = {name: batch[name][:1] for name in ("input_ids", "labels")}
    counter, training = FlopCounterMode(display=False), model.training
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        labelled_nll(model.eval(), head, block)
    model.train(training)
    return 3 * counter.get_total_flops() / block["input_ids"].numel()
