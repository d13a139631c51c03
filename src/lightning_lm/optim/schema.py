"""Settings of the axes ``optimizer`` and ``scheduler``: their options, and how each is built. Loads nothing heavy."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from lightning_lm.constraints import LENGTH, Constraint, Settings, positive, setting, to_steps
from lightning_lm.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

FACTOR = Constraint(lambda value: 0 <= value < 1, "0 to below 1, such as 0.95")
BETAS = Constraint(lambda pair: len(pair) == 2 and all(map(FACTOR.holds, pair)), "two of 0 to below 1, as [0.9,0.999]")
NOT_NEGATIVE = Constraint(lambda value: 0 <= value < float("inf"), "0 or more, such as 0.01")
# Their rows are looked up one by one, so Muon's orthogonal updates make no sense there
EMBEDDINGS_AND_HEADS = r"embed|(^|\.)(wte|wpe|lm_head|embed_out|decoder|vocab_projector)\.weight$"


@dataclass
class GroupConfig:
    """One row of the ordered table that sorts parameters: the first row that fits a parameter takes it."""

    pattern: str = ".*"  # regular expression, searched in the parameter's name
    ndim: int | None = None  # number of dimensions, where it matters
    decay: bool = True  # whether weight_decay applies
    optimizer: str = "adamw"

    def fits(self, name: str, parameter: "Tensor") -> bool:
        return self.ndim in (None, parameter.ndim) and re.search(self.pattern, name) is not None


@dataclass
class OptimizerConfig(Settings, ABC):
    """What every optimizer has. ``groups[].optimizer`` names one of ``members``, the optimizers that work together."""

    name: str = MISSING
    lr: float = setting(2e-5, positive(", such as 2e-5"))
    weight_decay: float = setting(0.01, NOT_NEGATIVE)
    groups: list[GroupConfig] = setting([])
    carry_state: bool = False  # begin with the state of the run that model.name_or_path names, of its best step
    members: ClassVar[tuple[str, ...]]

    def problems(self) -> Iterator[Problem]:
        if not self.groups:
            yield Problem("optimizer.groups", "[]", "no parameter would be trained", "leave it out, or give a row")
        for number, row in enumerate(self.groups):
            name = f"optimizer.groups[{number}]"
            if row.optimizer not in self.members:
                remedy = f"choose from {', '.join(self.members)}"
                if row.optimizer in OPTIMIZERS:
                    remedy += f", or take optimizer={row.optimizer} as the axis's option"
                yield Problem(f"{name}.optimizer", row.optimizer, "this table can't name it", remedy)
            try:
                re.compile(row.pattern)
            except re.error as error:
                yield Problem(f"{name}.pattern", row.pattern, f"no regular expression ({error})", "correct it")

    @abstractmethod
    def build(self, groups: dict[str, list[dict[str, Any]]], *, model: "Module", fused: bool) -> "list[Optimizer]":
        """The optimizers, one for each member that has parameters; the first one's rate is ``lr``.

        ``groups`` has for each member torch's parameter groups, each with its ``weight_decay``, of ``model``. ``fused``
        tells whether torch's fused implementation may be used, where there is one.
        """


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter, 2019); biases and norms don't decay."""

    name: str = "adamw"
    betas: list[float] = setting([0.9, 0.999], BETAS)
    eps: float = setting(1e-8, positive(", such as 1e-8"))
    groups: list[GroupConfig] = setting([GroupConfig(ndim=1, decay=False), GroupConfig()])
    members: ClassVar[tuple[str, ...]] = ("adamw",)

    def build(self, groups: dict[str, list[dict[str, Any]]], *, model: "Module", fused: bool) -> "list[Optimizer]":
        return self.adamw(groups, self.lr, fused)

    def adamw(self, groups: dict[str, list[dict[str, Any]]], lr: float, fused: bool) -> "list[Optimizer]":
        from torch.optim import AdamW

        rows, (fast, slow) = groups.get("adamw"), self.betas
        return [AdamW(rows, lr=lr, betas=(fast, slow), eps=self.eps, fused=fused)] if rows else []


@dataclass
class MuonConfig(AdamWConfig):
    """Muon (Jordan et al., 2024) for the matrices inside the network, AdamW for all else."""

    name: str = "muon"
    lr: float = setting(0.02, positive(", such as 2e-5"))  # of the matrices
    adamw_lr: float = setting(3e-3, positive(", such as 3e-3"))  # of the rest
    momentum: float = setting(0.95, FACTOR)
    # true: each matrix as its layer multiplies by it, fused q, k and v apart; false: weights as they are stored
    layout_aware: bool = setting(True, before=False)
    groups: list[GroupConfig] = setting(
        [
            GroupConfig(ndim=1, decay=False),
            GroupConfig(pattern=EMBEDDINGS_AND_HEADS),
            GroupConfig(ndim=2, optimizer="muon"),
            GroupConfig(),
        ]
    )
    members = ("adamw", "muon")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for number, row in enumerate(self.groups):
            if row.optimizer == "muon" and row.ndim != 2:
                yield Problem(f"optimizer.groups[{number}].ndim", row.ndim, "Muon is for matrices only", "give ndim: 2")

    def build(self, groups: dict[str, list[dict[str, Any]]], *, model: "Module", fused: bool) -> "list[Optimizer]":
        from lightning_lm.optim.muon import Muon, layouts

        rows, table = groups.get("muon"), layouts(model) if self.layout_aware else {}
        first: list[Optimizer] = [Muon(rows, table, lr=self.lr, momentum=self.momentum)] if rows else []
        return first + self.adamw(groups, self.adamw_lr, fused)


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adamw": AdamWConfig,
    "muon": MuonConfig,
    # a new optimizer goes here: docs/extending.md
}


@dataclass
class SchedulerConfig(Settings):
    """The schedules of transformers: linear, cosine, constant, and warmup-stable-decay (wsd)."""

    name: str = "linear"
    warmup: float = setting(0.0, LENGTH)  # below 1: share of the run; from 1: optimizer steps
    decay: float = setting(0.2, LENGTH)  # wsd: share of the run, or steps, in which the rate falls to zero

    @property
    def phases(self) -> dict[str, float]:
        """The settings that are lengths, as shares or steps; together they must fit into the run."""
        return {"warmup": self.warmup} | ({"decay": self.decay} if self.name == "wsd" else {})

    def problems(self) -> Iterator[Problem]:
        phases = self.phases
        if self.name != "wsd" and self.decay != SchedulerConfig().decay:
            yield Problem(
                "scheduler.decay", self.decay, f"{self.name} has no such phase", "leave it out, or give scheduler=wsd"
            )
        if len(phases) > 1 and max(phases.values()) < 1 < sum(phases.values()):
            wrong = f"together with scheduler.warmup={self.warmup} longer than the run"
            yield Problem("scheduler.decay", self.decay, wrong, "lower one of the two")

    def steady_steps(self, total_steps: int) -> int:
        """The first optimizer steps, whose rates a later end would leave as they are; 0 where it changes them all."""
        steps = {"constant": total_steps, "wsd": total_steps - to_steps(self.decay, total_steps)}
        return steps.get(self.name, 0)

    def build(self, optimizer: "Optimizer", total_steps: int) -> "LambdaLR":
        """The schedule, which ends at ``total_steps`` optimizer steps."""
        from transformers import get_scheduler

        names = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}
        specific = {"num_decay_steps": to_steps(self.decay, total_steps)} if self.name == "wsd" else None
        return get_scheduler(
            names.get(self.name, self.name),
            optimizer,
            num_warmup_steps=to_steps(self.warmup, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=specific,
        )


def build_scheduler(
    optimizer: "Optimizer", config: SchedulerConfig, total_steps: int, progress: Callable[[], float] | None = None
) -> "LambdaLR":
    """The schedule that a configuration asks for, which ends at ``total_steps`` optimizer steps.

    With ``progress`` (the share of a time budget that is spent) the schedule follows that share instead of the step.
    """
    from torch.optim.lr_scheduler import LambdaLR

    schedule = config.build(optimizer, total_steps)
    if progress is None:
        return schedule

    def follow(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(int(progress() * total_steps))

    return LambdaLR(optimizer, [follow(factor) for factor in schedule.lr_lambdas])


SCHEDULERS: dict[str, type[SchedulerConfig]] = {
    **dict.fromkeys(("linear", "cosine", "constant", "wsd"), SchedulerConfig),
    # a new scheduler goes here: docs/extending.md
}
