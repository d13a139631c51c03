"""What a user is told when something that was asked for can't work."""

from dataclasses import dataclass
from difflib import get_close_matches

EXPORT_AGAIN = "delete the run's summary.json: the command that began the run then writes the export again"


@dataclass(frozen=True)
class Problem:
    """One reason why a run can't be done: the setting, its value, what is wrong, and what to do about it.

    ``meant`` is the full name of the setting that a misspelt one was perhaps meant to be.
    """

    setting: str
    value: object
    wrong: str
    remedy: str
    meant: str | None = None

    def __str__(self) -> str:
        value = "null" if self.value is None else self.value
        return f"{self.setting}={value}: {self.wrong}; {self.remedy}"


class Refused(Exception):
    """Raised before anything is spent or written; carries every problem found, each shown as one line.

    ``reported`` is set once the user has read it: a job of a multirun reports its own, and Hydra raises the first
    job's error again at the end. Both attributes survive the way from one process to another.
    """

    def __init__(self, *problems: Problem):
        self.problems = problems
        self.reported = False
        super().__init__("\n".join(map(str, problems)))

    def __reduce__(self):
        return Refused, self.problems, {"reported": self.reported}


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


class Fault(Refused):
    """Raised when the machine fails a run: disk, permission, memory. What was begun can be gone on with."""


class Died(Exception):
    """A process of the job ended early, and its last words are on the console. ``code`` is the command's exit code."""

    def __init__(self, message: str, code: int):
        self.code = code
        super().__init__(message)

    def __reduce__(self):
        return Died, (*self.args, self.code)
