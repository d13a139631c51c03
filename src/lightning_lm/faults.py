"""Faults of the machine, and of other libraries: their innermost cause, and what a user can do about it."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lightning_lm.errors import Fault, Problem, Refused

FULL = (errno.ENOSPC, errno.EDQUOT)
# errno → what is wrong, and the remedy; of a full disk, the space that is left is told, too
CAUSES = {
    errno.ENOSPC: ("the disk is full", "make room, or choose a folder on another disk"),
    errno.EDQUOT: ("your quota of this disk is used up", "make room, or choose a folder on another disk"),
    errno.EROFS: ("its file system is read-only", "choose a folder that can be written"),
    errno.EACCES: ("there is no permission for it", "correct its permissions, or choose another"),
    errno.EPERM: ("there is no permission for it", "correct its permissions, or choose another"),
    errno.ENOENT: ("it has vanished", "see what removes it, and start again"),
    errno.ENOTDIR: ("a file is where a folder should be", "move it away"),
    errno.EISDIR: ("a folder is where a file should be", "move it away"),
    errno.EFBIG: ("a file would be larger than the limit", "raise the limit (ulimit -f)"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.EIO: ("the disk reports an error", "check the disk, or choose a folder on another one"),
    errno.ESTALE: ("its network file system lost it", "mount it again"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}
# What libraries say that turn a full disk into an error of their own: torch, safetensors, Arrow, numpy
SAYS_FULL = re.compile(r"No space left on device|file write failed|Disk quota exceeded|requested and \d+ written")
SAYS_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|out of memory|std::bad_alloc", re.IGNORECASE)
LOWER = "choose a smaller model, lower hardware.micro_batch_size, or set hardware.gradient_checkpointing=true"


@contextmanager
def told_in_one_line(places: Mapping[str, str | Path]) -> Iterator[None]:
    """Turns a fault of the machine into ``Fault``; what isn't one, such as a bug, goes on as it is.

    Args:
        places: setting → the folder or file that it names, where this code writes and reads.
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        if (problem := problem_of(error, places)) is None:
            raise
        raise Fault(problem) from error


def problem_of(error: BaseException, places: Mapping[str, str | Path]) -> Problem | None:
    """What a fault of the machine is called; None for an error that is none."""
    for cause in chain(error):
        if isinstance(cause, MemoryError) or SAYS_NO_MEMORY.search(str(cause)):
            return Problem("memory", "short", first_line(cause) or type(cause).__name__, LOWER)
        if isinstance(cause, OSError) and cause.errno in CAUSES and not isinstance(cause, ConnectionError):
            return _of_storage(cause.errno, cause.filename, places)
        if SAYS_FULL.search(str(cause)):
            return _of_storage(errno.EDQUOT if "quota" in str(cause) else errno.ENOSPC, None, places)
    return None


def chain(error: BaseException) -> list[BaseException]:
    """An exception and its causes, the innermost first."""
    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in causes:
        causes.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return causes[::-1]


def innermost(error: BaseException) -> str:
    """The innermost cause that says something, on one line; libraries wrap what tells into what doesn't."""
    return next(filter(None, map(first_line, chain(error))), type(error).__name__)


def first_line(error: BaseException) -> str:
    """What an error says first; all that it says, where that only announces a list."""
    text = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    first = next(filter(None, (line.strip() for line in text.splitlines())), "")
    return (" ".join(text.split()) if first.endswith(":") else first).rstrip(".:")


def _of_storage(number: int, filename: object, places: Mapping[str, str | Path]) -> Problem:
    wrong, remedy = CAUSES[number]
    folders = {setting: Path(place).expanduser().absolute() for setting, place in places.items()}
    path = Path(os.fsdecode(filename)).absolute() if isinstance(filename, str | bytes) else None
    if path is None and number in FULL and folders:
        path = min(folders.values(), key=lambda place: _space(place)[0])
    within = {s: f for s, f in folders.items() if path is not None and (path == f or f in path.parents)}
    setting = max(within, key=lambda name: len(within[name].parts), default="file")
    nameless = "the working folder" if number == errno.ENOENT else "what was being written"
    value = path or ", ".join(map(str, folders.values())) or nameless
    if number in FULL and path is not None:
        free, total = _space(path)
        wrong += f"; without what was being written, {free / 1e6:,.0f} of its {total / 1e6:,.0f} MB are free"
    return Problem(setting, value, wrong, f"{remedy}; the same command then goes on")


def _space(path: Path) -> tuple[int, int]:
    """Free and total bytes of the disk that a path, which need not exist yet, lies on."""
    there = next(place for place in (path, *path.parents) if place.exists())
    usage = shutil.disk_usage(there)
    return usage.free, usage.total
