"""How the learning rate moves."""

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_lm.optim.schema import SchedulerConfig


def build_scheduler(
    optimizer: Optimizer, config: SchedulerConfig, total_steps: int, progress: Callable[[], float] | None = None
) -> LambdaLR:
    """The schedule that a configuration asks for, which ends at ``total_steps`` optimiser steps.

    With ``progress`` (the share of a time budget that is spent) the schedule follows that share instead of the step.
    """
    schedule = config.build(optimizer, total_steps)
    if progress is None:
        return schedule

    def follow(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(int(progress() * total_steps))

    return LambdaLR(optimizer, [follow(factor) for factor in schedule.lr_lambdas])
