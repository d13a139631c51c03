"""What a setting carries besides its type: which values are right, and whether it may change when a run goes on.

Each field of a settings class says so itself: ``lr: float = setting(2e-5, POSITIVE)``.
"""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from lightning_lm.errors import Problem, nearest, refuse

REPOSITORY = re.compile(r"([A-Za-z0-9_.-]+/)?(?![-.])(?!.*(--|\.\.))[A-Za-z0-9_.-]{1,96}(?<![-.])")


@dataclass(frozen=True)
class Constraint:
    """A predicate on a setting's value, and in words what satisfies it. The value null always passes."""

    holds: Callable[[Any], bool]
    right: str


def at_least(bound: float, unit: str = "") -> Constraint:
    return Constraint(lambda value: value >= bound, f"{bound} or more{unit}")


def positive(example: str) -> Constraint:
    return Constraint(lambda value: isfinite(value) and value > 0, f"a positive number{example}")


def is_share_or_steps(value: float) -> bool:
    return isfinite(value) and value >= 0 and (value < 1 or value == int(value))


def to_steps(value: float, total: int) -> int:
    """A length given as a share of the run (below 1) or in optimizer steps, in steps."""
    return ceil(round(value * total, 9)) if value < 1 else int(value)


COUNT = at_least(1)
PERCENT = Constraint(lambda value: 0 < value < 100, "a number between 0 and 100")
PROBABILITY = Constraint(lambda value: 0 < value < 1, "a number between 0 and 1, such as 0.15")
SHARE = Constraint(lambda value: 0 <= value <= 1, "a number from 0 to 1, such as 0.5")
LENGTH = Constraint(is_share_or_steps, "a share of the run from 0 to below 1, or a whole number of steps")
SEED = Constraint(lambda value: 0 <= value < 2**32, f"0 to {2**32 - 1}")


class Settings:
    """What every class of settings has; a subclass is a dataclass. A misspelt name can't be set."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = [row.name for row in fields(self)]  # type: ignore[arg-type]
        if name not in known:
            raise refuse(name, value, "no such setting", nearest(name, known))
        super().__setattr__(name, value)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with these settings, beyond the constraints of single ones."""
        yield from ()


REQUIRED = object()  # the default of a setting that has none


def setting(
    default: Any,
    constraint: Constraint | None = None,
    *,
    may_change: bool = False,
    may_grow: bool = False,
    before: Any = REQUIRED,
):
    """A field of a settings class; each object gets its own copy of a list or a dictionary.

    Args:
        may_change: whether a run that was cut off may go on with another value: its outcome doesn't depend on it.
        may_grow: whether a run may go on, also after its end, with a larger value.
        before: the value that does what the code did before the setting existed, where that isn't the default. A run
            folder that lacks the setting counts as if it had this value.
    """
    metadata = {"constraint": constraint, "may_change": may_change, "may_grow": may_grow}
    if before is not REQUIRED:
        metadata["before"] = before
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(row: Field) -> Any:
    """What a field of a settings class has where it isn't given, or did before it existed."""
    if "before" in row.metadata:
        return row.metadata["before"]
    return row.default if row.default_factory is MISSING else row.default_factory()


def walk(settings: Any, above: str = "") -> Iterator[tuple[str, Field, Any]]:
    """Every field of nested settings: its dotted name, the field, its value; dictionaries of settings are entered."""
    for row in fields(settings):
        value = getattr(settings, row.name)
        yield above + row.name, row, value
        inner = {f"{row.name}.{key}.": part for key, part in value.items()} if isinstance(value, dict) else {}
        for prefix, part in (inner or {f"{row.name}.": value}).items():
            if is_dataclass(part):
                yield from walk(part, above + prefix)


def unsatisfied(settings: Any) -> Iterator[Problem]:
    """The settings whose value doesn't satisfy the constraint of its field."""
    for name, row, value in walk(settings):
        constraint = row.metadata.get("constraint")
        if constraint is not None and value is not None and not constraint.holds(value):
            yield Problem(name, value, "out of range", f"give {constraint.right}")


# ------------------------------------------------------------------------------------------- names of models and texts


def looks_local(name: str) -> bool:
    """Whether a name that need not exist reads like a path rather than like an id of the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def is_hub_id(name: str | None) -> bool:
    """Whether a name means a repository of the Hub: it may be one, and no file or folder has it."""
    return name is not None and not Path(name).expanduser().exists() and REPOSITORY.fullmatch(name) is not None
