"""GPUs that the jobs of a sweep share."""

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_lm.config.schema import Config


@contextmanager
def gpus_for(job: Config) -> Iterator[None]:
    """Let the job see only GPUs that no other job of its sweep uses; waits for them. SLURM does so by itself."""
    count, folder = job.hardware.devices, Path(job.run_dir).parent
    gpus = [] if job.hardware.accelerator == "cpu" or "SLURM_JOB_ID" in os.environ else visible_gpus()
    if not 0 < count <= len(gpus) or job.hardware.nodes > 1:  # nothing to share, or refused when the run begins
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with claimed(gpus, count, folder / ".gpus") as claimed_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed_gpus)  # the job's processes start with it
        try:
            yield
        finally:
            del os.environ["CUDA_VISIBLE_DEVICES"]
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def visible_gpus() -> list[str]:
    import torch

    gpus = [str(number) for number in range(torch.cuda.device_count())]  # counts by NVML: CUDA isn't started here
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[: len(gpus)] if named else gpus


@contextmanager
def claimed(devices: Sequence[str], count: int, folder: Path) -> Iterator[list[str]]:
    """``count`` of the devices, each locked by a file in ``folder`` until the block or the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with ExitStack() as locks:
            locked: list[str] = []
            for device in devices:
                try:
                    locks.enter_context(FileLock(folder / f"{device}.lock", blocking=False))
                except Timeout:
                    continue
                locked.append(device)
                if len(locked) == count:
                    yield locked
                    return
        time.sleep(random.uniform(0.5, 1.5))  # all or none, so that two jobs never wait for each other's
