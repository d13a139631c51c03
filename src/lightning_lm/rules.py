"""What a single setting's value must be, where it can be judged by itself."""

from collections.abc import Callable
from functools import partial
from math import isfinite


def least(bound: float, value: float) -> bool:
    return value >= bound


def positive(value: float) -> bool:
    return isfinite(value) and value > 0


def share_or_steps(value: float) -> bool:
    return isfinite(value) and value >= 0 and (value < 1 or value == int(value))


COUNT = (partial(least, 1), "1 or more")
LENGTH = (share_or_steps, "a share of the run from 0 to below 1, or a whole number of steps")
RULES: dict[str, tuple[Callable[..., bool], str]] = {  # whether a value (null passes) is right; what is right
    "seed": (lambda v: 0 <= v < 2**32, f"0 to {2**32 - 1}"),
    "data.block_size": (partial(least, 2), "2 or more tokens"),
    "data.validation_percent": (lambda v: 0 < v < 100, "a number between 0 and 100"),
    "data.test_percent": (lambda v: 0 < v < 100, "a number between 0 and 100"),
    "objective.preview_tokens": COUNT,
    "objective.mlm_probability": (lambda v: 0 < v < 1, "a number between 0 and 1, such as 0.15"),
    "optimizer.lr": (positive, "a positive number, such as 2e-5"),
    "optimizer.adamw_lr": (positive, "a positive number, such as 3e-3"),
    "optimizer.weight_decay": (lambda v: isfinite(v) and v >= 0, "0 or more, such as 0.01"),
    "optimizer.betas": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two of 0 to below 1, as [0.9,0.999]"),
    "optimizer.eps": (positive, "a small positive number, such as 1e-8"),
    "optimizer.momentum": (lambda v: 0 <= v < 1, "0 to below 1, such as 0.95"),
    "scheduler.warmup": LENGTH,
    "scheduler.decay": LENGTH,
    "trainer.max_epochs": COUNT,
    "trainer.max_steps": COUNT,
    "trainer.max_tokens": COUNT,
    "trainer.max_minutes": (positive, "a positive number"),
    "trainer.global_batch_size": COUNT,
    "trainer.gradient_clip": (positive, "a positive number, or null for no clipping"),
    "trainer.val_every_n_steps": COUNT,
    "trainer.checkpoint_every_n_steps": COUNT,
    "trainer.log_every_n_steps": COUNT,
    "trainer.patience": COUNT,
    "trainer.limit_train_batches": COUNT,
    "trainer.limit_val_batches": COUNT,
    "trainer.limit_test_batches": COUNT,
    "hardware.devices": COUNT,
    "hardware.nodes": COUNT,
    "hardware.micro_batch_size": COUNT,
    "hardware.num_workers": (partial(least, 0), "0 or more"),
}
