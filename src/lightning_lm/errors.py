"""What a user is told when something that was asked for can't work."""

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One reason why a run can't be done: the setting, its value, what is wrong, and what to do about it."""

    setting: str
    value: object
    wrong: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.setting}={self.value}: {self.wrong}; {self.remedy}"


class Refused(Exception):
    """Raised before anything is spent or written; carries every problem found, each shown as one line."""

    def __init__(self, *problems: Problem):
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))

    def __reduce__(self):
        return Refused, self.problems


def refuse(setting: str, value: object, wrong: str, remedy: str) -> Refused:
    """The common case of a single problem: ``raise refuse("data.train", path, "no such file", "check the path")``."""
    return Refused(Problem(setting, value, wrong, remedy))


def nearest(name: str, valid: list[str]) -> str:
    """The remedy for a misspelt name: the closest valid one, else all of them."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(sorted(valid))}"


class Diverged(Refused):
    """Raised when the loss is no longer a number; nothing that follows could be of use."""

    def __init__(self, setting: str, value: object, wrong: str):
        super().__init__(Problem(setting, value, wrong, "lower the rate, or warm up longer"))
