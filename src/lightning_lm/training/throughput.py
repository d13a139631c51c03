"""How fast a run is and what it takes: the time in training steps, waiting for data, and peak memory."""

import re
import resource
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler


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


class StepTimer:
    """The time that goes by in training steps; it stands still in validations and while checkpoints are written."""

    WARM_UP_STEPS = 5  # of each process, left out of ``measured``

    def __init__(self, clock: WaitClock):
        self.clock = clock
        self.seconds = self.waiting = 0.0  # of this process: in steps, and the part of it before the batch was there
        # Without each process's first steps, over all processes of the run; checkpoints keep it
        self.measured = {"measured_tokens": 0, "measured_seconds": 0.0, "measured_wait": 0.0}
        self.steps = 0  # of this process
        self._running_since: float | None = None
        self._waited = 0.0  # on the clock, when time was last added up

    @property
    def warms_up_next(self) -> bool:
        """Whether the step that ends now is the last that isn't measured."""
        return self.steps == self.WARM_UP_STEPS - 1

    def per_second(self, name: str) -> float | None:
        """One of ``measured`` by the measured time; None before there is any."""
        seconds = self.measured["measured_seconds"]
        return self.measured[name] / seconds if seconds else None

    def resume(self) -> None:
        if self._running_since is None:
            self._running_since, self._waited = time.monotonic(), self.clock.seconds

    def pause(self, device: torch.device) -> None:
        """Stand still until ``resume``; what a GPU still has to do belongs to the steps."""
        if self._running_since is not None:
            synchronize(device)
            self._add_up()
            self._running_since = None

    def end_step(self, tokens: int) -> None:
        self._add_up()
        self.steps += 1
        if self.steps > self.WARM_UP_STEPS:
            self.measured["measured_tokens"] += tokens

    def _add_up(self) -> None:
        now = time.monotonic()
        spent, self._running_since = now - self._running_since, now
        waited, self._waited = self.clock.seconds - self._waited, self.clock.seconds
        self.seconds += spent
        self.waiting += waited
        if self.steps >= self.WARM_UP_STEPS:
            self.measured["measured_seconds"] += spent
            self.measured["measured_wait"] += waited


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
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
