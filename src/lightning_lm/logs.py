"""Where a run says what it does: the console and, once there is a folder, train.log."""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from threading import RLock

from tqdm import tqdm

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # in a URL, such as one of the environment
JOB = "LIGHTNING_LM_JOB"  # in the environment of a sweep's job: what its lines begin with, where jobs share the console
# A terminal takes these for commands: C0 without tab and line feed, delete, and C1, each as an escape sequence shows it
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
log = logging.getLogger(__name__)
tqdm.set_lock(RLock())  # its own holds a semaphore, and Python warns of those that a killed process leaves


def rank() -> int:
    """Of this process among those of its job, as torchrun or srun tells it; 0 where it is the only one."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def has_bars() -> bool:
    """Whether progress bars can be drawn: on a terminal that no other job writes to."""
    return sys.stderr.isatty() and not os.environ.get(JOB)


def columns() -> int:
    """How wide a line of the log may be, so that it fits 80 columns with what it begins with."""
    return 80 - len(os.environ.get(JOB, ""))


class Console(logging.Handler):
    """Writes to stderr above the progress bars; leaves out records that have been given ``file_only``."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        try:
            prefix = os.environ.get(JOB, "")
            tqdm.write(prefix + self.format(record).replace("\n", f"\n{prefix}"), file=sys.stderr)
        except Exception:  # a closed terminal ends no run
            self.handleError(record)


class Formatter(logging.Formatter):
    """Without passwords, and without what a terminal would obey, of which text that a model makes may be full."""

    def format(self, record: logging.LogRecord) -> str:
        return CREDENTIALS.sub("…", super().format(record)).translate(CONTROLS)


class LogFile(logging.FileHandler):
    """A disk that is full ends the run where it fails to keep something that counts; that is what is to be shown."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logging_to(path: Path) -> Iterator[Callable[[], None]]:
    """The package's log on the console; in a file too, from its first line on, once the yielded function is called."""
    logger = logging.getLogger("lightning_lm")
    console, memory = Console(), MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    console.setFormatter(Formatter("%(message)s"))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [console, memory]

    def keep() -> None:
        file = LogFile(path, encoding="utf-8", delay=True)
        prefix = f"rank {rank()}: " if rank() else ""
        file.setFormatter(Formatter(f"%(asctime)s %(levelname)s {prefix}%(message)s"))
        memory.setTarget(file)
        memory.flush()
        logger.handlers = [console, file]

    try:
        yield keep
    except Exception as error:
        logger.handlers = [handler for handler in logger.handlers if handler is not console]
        logger.error("%s", error, exc_info=error)  # whoever called train shows it on the console
        raise
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers = []


@functools.cache
def tell_of_imports() -> None:
    """Say why nothing happens for some seconds, unless it has been said in this process."""
    if "torch" not in sys.modules:
        log.info("loading torch and transformers …")
