"""The processes of a job: who starts them, which of them this one is, and what is told when one dies."""

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from multiprocessing.forkserver import _forkserver
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from lightning_lm.config.schema import Config, Strategy
from lightning_lm.config.validation import check
from lightning_lm.errors import Died, Problem, Refused, refuse
from lightning_lm.faults import told_in_one_line
from lightning_lm.interrupts import SIGNALS, deferring, heeded, stopping_on_signals
from lightning_lm.logs import JOB, logging_to, rank, tell_of_imports
from lightning_lm.run import train
from lightning_lm.runs.folder import alone_in
from lightning_lm.runs.settings import is_done

log = logging.getLogger(__name__)


TIMED_OUT = re.compile(r"[Tt]imed out|wait timeout|[Tt]imeout\(ms\)")  # what gloo, NCCL and their store say of a wait
PRELOADED = [  # by the fork server, so that not every rank and job imports it
    "lightning_lm.training.fit",
    "lightning_lm.data.corpora.text_files",
    "transformers.generation.utils",
    "transformers.optimization",
    "matplotlib.backends.backend_agg",
    "wandb",
]


def start(job: Config, named: bool, run_test: bool = True) -> float:
    """Train in this process where it is the only one or torchrun or srun has started it for that, else in new ones.

    ``named`` tells whether the user has named the run folder; the default has the time in it. Raises what ``run_job``
    raises; of a node's processes one tells its refusal and the others only exit with 2.
    """
    hardware = job.hardware
    several = hardware.devices * hardware.nodes > 1 or hardware.strategy == Strategy.fsdp or hardware.restarts > 0
    processes = launched(os.environ)
    if processes is None:
        check_not_launched(job, os.environ, alone=not several)
    try:
        with told_in_one_line({"run_dir": job.run_dir}):
            check(job)  # before there is a folder
        if processes is not None:
            check_launched(job, processes, named)
        with stopping_on_signals(), told_in_one_line({"run_dir": job.run_dir}):
            if rank() or (named and is_done(Path(job.run_dir), job)):  # the first rank holds the folder of a run
                return train(job, run_test=run_test)
            with alone_in(Path(job.run_dir), "run_dir", new=not named) as folder:
                job.run_dir = str(folder)
                return run_job(job, run_test) if several and processes is None else train(job, run_test=run_test)
    except Refused:
        if int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0):
            raise SystemExit(2) from None
        raise


def launched(environ: Mapping[str, str]) -> int | None:
    """How many processes of this job torchrun or srun has started; None where this is no such process."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return int(environ["WORLD_SIZE"])
    tasks = int(environ.get("SLURM_NTASKS", 1)) if "SLURM_STEP_ID" in environ else 1
    return tasks if tasks > 1 else None


def check_not_launched(job: Config, environ: Mapping[str, str], alone: bool) -> None:
    """Refuses where the environment is that of one of several processes, though no launcher has started this one.

    It would train into the folder of the others without holding it, or Lightning would fail on SLURM's tasks. SLURM
    names the job of a shell so that Lightning leaves its tasks alone.
    """
    tasks = int(environ.get("SLURM_NTASKS") or 1) if environ.get("SLURM_JOB_NAME") not in ("bash", "interactive") else 1
    world = int(environ.get("WORLD_SIZE") or 1)
    if rank() or world > 1 or (alone and tasks > 1):
        names = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")
        those = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
        wrong = f"{those} stand for several processes, but neither torchrun nor srun has started this one"
        remedy = "start it with one of them and hardware.devices={}, or unset these variables (sbatch --ntasks=1)"
        raise refuse("hardware.devices", job.hardware.devices, wrong, remedy.format(max(world, tasks, rank() + 1)))


def check_launched(job: Config, processes: int, named: bool) -> None:
    devices, nodes = job.hardware.devices, job.hardware.nodes
    problems = []
    if devices * nodes != processes:
        wrong = f"with hardware.nodes={nodes} that makes {devices * nodes} processes, but {processes} were started"
        problems.append(Problem("hardware.devices", devices, wrong, "give torchrun or srun the same numbers"))
    elif "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_NTASKS_PER_NODE" not in os.environ:
        remedy = f"give srun --ntasks-per-node={devices}"  # without which Lightning fails
        problems.append(Problem("hardware.devices", devices, "srun was given no number of tasks per node", remedy))
    if job.hardware.restarts:
        remedy = "give --max-restarts to torchrun, or --requeue to sbatch"
        problems.append(Problem("hardware.restarts", job.hardware.restarts, "others start these processes", remedy))
    if not named:
        wrong = "each process would take another time for its name"
        problems.append(Problem("run_dir", job.run_dir, wrong, "name it: run_dir=outputs/NAME, the same on all nodes"))
    if problems:
        raise Refused(*problems)


def run_job(job: Config, run_test: bool = True) -> float:
    """Train in child processes, one per device, and leave this one as it was.

    They are forked from a server that has imported torch and transformers but computed nothing: a fork of a process
    whose OpenMP or CUDA has started hangs or fails. torch's elastic agent starts and watches them. Those that died are
    started again from the last checkpoint, ``hardware.restarts`` times; the agent would do so after a refusal, too.

    Returns:
        The best validation loss in nats per token.

    Raises:
        Refused: by one of the processes, or before there are any.
        Died: a process ended with an error, or hung; it is on the console and in the folder's ``train.log``.
        SystemExit: 128 + the number of the signal that interrupted the job.
    """
    check(job)
    if job.hardware.nodes > 1:
        remedy = "start train.py on each of them with torchrun or srun"
        raise refuse("hardware.nodes", job.hardware.nodes, "a command by itself reaches only its own machine", remedy)
    run = Path(job.run_dir)
    if is_done(run, job):
        return train(job, run_test=run_test)  # only tells the figures
    with logging_to(run / "train.log"):
        tell_of_imports()
    for restarts in range(job.hardware.restarts - 1, -1, -1):
        try:
            return _run_once(job, run, run_test)
        except Died as died:
            _tell(run, f"{died}; the run goes on from its last checkpoint, {restarts} further restart(s) are left")
    return _run_once(job, run, run_test)


def _run_once(job: Config, run: Path, run_test: bool) -> float:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with deferring():
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    for part in ("distributed.elastic", "distributed.elastic.agent.server.api", "multiprocessing.spawn"):
        logging.getLogger(f"torch.{part}").setLevel(logging.CRITICAL)  # told here in a run's words
    errors: SimpleQueue = context.SimpleQueue()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.hardware.devices,
        run_id="run",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        start_method="forkserver",
        signals_to_handle=",".join(number.name for number in heeded()),
    )
    place = (Path.cwd(), dict(os.environ), sys.argv, os.getpid())
    try:
        with own_signal_handlers():
            return elastic_launch(config, _rank)(job, run_test, errors, place)[0]
    except SignalException as error:
        end_fork_server()
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        raise _cause(job, run, errors, *error.get_first_failure()) from None


def end_fork_server() -> None:
    """While it imports, it can't be told to leave out what it was asked to start, which would then fail on its own."""
    if pid := _forkserver._forkserver_pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _rank(job: Config, run_test: bool, errors: SimpleQueue, place: tuple[str, dict[str, str], list[str], int]) -> float:
    """One rank's part; ``errors`` gets its refusal, or the text of another exception."""
    folder, environ, sys.argv, parent = place
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("WANDB_", JOB)) and name not in environ]:
        del os.environ[name]  # the fork server may be older than a W&B service, or a job, that has ended since
    os.environ.update(environ)
    rank = int(os.environ["RANK"])
    try:
        with stopping_on_signals():
            return train(job, run_test=run_test)
    except Refused as problem:
        errors.put((rank, problem))
        raise SystemExit(2) from None
    except Exception:
        errors.put((rank, traceback.format_exc()[-20_000:]))  # a pipe holds this much while nobody reads
        time.sleep(1)  # the others' lost connections are no cause: let the agent see first who died
        raise SystemExit(1) from None


def _end_with(parent: int) -> None:
    """End this process soon after the one that has started the job, even where that was killed."""
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(2)


def _cause(job: Config, run: Path, errors: SimpleQueue, rank: int, failure: Any) -> BaseException:
    """What ended the job: a refusal, an interrupt, or that a rank died or hangs, which is told."""
    code = failure.exitcode
    if code - 128 in SIGNALS:
        return SystemExit(code)
    if sys.stderr.isatty():
        sys.stderr.write("\n")  # below the bar of a rank that had no time to end it
    if code < 0:
        message = f"rank {rank} (pid {failure.pid}) was killed by {signal.Signals(-code).name}"
        _tell(run, message)
        return Died(message, 128 - code)
    if errors.empty():  # it ended before _rank began
        return Died(f"rank {rank} did not start", code)
    rank, reason = errors.get()
    if isinstance(reason, Refused):
        return reason
    if TIMED_OUT.search(reason):
        waiting = {rank}
        while not errors.empty():
            waiting.add(errors.get()[0])
        if hanging := ", ".join(str(other) for other in range(job.hardware.devices) if other not in waiting):
            waited = f"the others waited {job.hardware.hang_timeout:g} s for it (hardware.hang_timeout)"
            _tell(run, message := f"rank {hanging} hangs: {waited}")
            return Died(message, code)
    sys.stderr.write(f"rank {rank}: {reason}")
    return Died(f"rank {rank} failed", code)


def _tell(run: Path, message: str) -> None:
    """On the console and, where there is a run folder, in its log, which no process of the job writes now."""
    with logging_to(run / "train.log") as keep:
        if run.exists():
            keep()
        log.error("%s", message)


@contextmanager
def own_signal_handlers():
    """The agent installs its handlers for good: put back those that were there."""
    before = {number: signal.getsignal(number) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
