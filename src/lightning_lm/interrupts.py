"""Signals that ask a run to stop: raised as an exception, or noted until the training's step is through."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the last is what SLURM's --signal sends

PATIENCE = 1.0  # seconds after which another signal is a second request; a terminal and an agent each send the first
Result = TypeVar("Result")


class Interrupted(SystemExit):
    """Ends the process, unless caught, with 128 + the signal's number, as shells count."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(128 + number)


@dataclass
class Interrupts:
    """Of this process; signals come to its main thread."""

    received: int = 0  # the number of the first signal; 0: none
    since: float = 0.0  # when it came, on the monotonic clock
    deferred: bool = False  # whether someone will ask for ``received``, so that the exception can wait
    signals: tuple[int, ...] = ()  # those that come here

    def note(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        again = bool(self.received) and now - self.since > PATIENCE
        if not self.received:
            self.received, self.since = number, now
        if again or not self.deferred:
            raise Interrupted(number)

    def install(self) -> None:
        """Take the signals; also back from a library that has taken them since."""
        for number in self.signals:
            signal.signal(number, self.note)


interrupts = Interrupts()


def heeded() -> list[signal.Signals]:
    """The signals that are not ignored: ``nohup`` has a job go on when its terminal closes."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def deferring() -> Iterator[None]:
    """Within, the first signal waits: an exception within torch's import is swallowed, or aborts the process."""
    interrupts.deferred = bool(interrupts.signals)
    try:
        yield
    finally:
        interrupts.deferred = False
    if interrupts.received:
        raise Interrupted(interrupts.received)


@contextmanager
def interrupts_win() -> Iterator[None]:
    """Within, ``Interrupted`` takes the place of an error that came after a signal.

    A library that it has cut off, such as OmegaConf, may go on to fail in a way of its own.
    """
    try:
        yield
    except Exception as error:
        if interrupts.received:
            raise Interrupted(interrupts.received) from error
        raise


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Within, a signal that is not ignored raises ``Interrupted``; afterwards, it does what it did before.

    Does nothing in a thread that is not the main one, which no signal reaches.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in heeded()}
    interrupts.received, interrupts.deferred, interrupts.signals = 0, False, tuple(before)
    interrupts.install()
    try:
        with interrupts_win():
            yield
    finally:
        interrupts.signals = ()
        for number, handler in before.items():
            signal.signal(number, handler)


def waiting_for(call: Callable[[], Result]) -> Result:
    """The result of a call into a library that heeds no signal, made in a thread, so that a signal ends the waiting."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result()


def ask_for_requeue(environ: Mapping[str, str]) -> str | None:
    """Ask SLURM to start this job again, where it is one; returns what has come of it, for people.

    Source: scontrol(1), ``requeue``.
    """
    job = environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if job is None or not re.fullmatch(r"\d+(_\d+)?", job):
        return None
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM could not be asked to start job {job} again: {error}"
    if done.returncode:
        return f"SLURM does not start job {job} again: {' '.join((done.stderr or done.stdout).split())}"
    return f"SLURM was asked to start job {job} again"
