"""What several test files share."""

import faulthandler
import gc
import json
import logging
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
from composing import compose
from hypothesis import settings
from resumable import settings as run_settings
from tiny import write_bert, write_gpt2, write_text

from lightning_lm.config.composition import register
from lightning_lm.launch import PRELOADED

ROOT = Path(__file__).parents[1]
register()
__all__ = ["ROOT", "compose", "fork_server", "forked", "in_fresh_process"]

settings.register_profile("any-machine", deadline=None)  # a busy one is no failure
settings.load_profile("any-machine")

# Files that take long. They begin first, so that no process waits at the end for what another has left.
LONG = """
training/test_devices sweeps/test_sweeps test_recipes test_default_run training/test_resume training/test_extension
hub/test_hub test_run training/test_dying_ranks config/test_refusals test_interrupts test_extending config/test_schema
test_python_door test_command sweeps/test_tracking_sweeps runs/test_tracking test_cli test_benchmarks report/test_page
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {ROOT / "tests" / f"{name}.py": rank for rank, name in enumerate(LONG.split())}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    gc.freeze()  # the collector would walk again and again what the imports have made


def fork_server() -> BaseContext:
    """Starts processes in which no test has run before: the imports are done, and nothing is computed yet.

    The server is the one that starts the ranks of a job.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns, or raises, in a process of its own."""
    with ProcessPoolExecutor(1, fork_server()) as pool:
        return pool.submit(function, *arguments).result()


def forked() -> list[int]:
    """The processes that this process's fork server has started and that have not ended."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" (")
            parents[int(pid)] = int(rest.rpartition(") ")[2].split()[1])
        except OSError:
            continue  # it has just ended
    return sorted(pid for pid, parent in parents.items() if parents.get(parent) == os.getpid())


@pytest.fixture
def train_py(tmp_path, monkeypatch, capfd):
    """``train.py`` with some arguments, run in this process and the folder ``tmp_path``: exit code, stdout and stderr.

    Its jobs have the fork server of this process, which spares each command the imports of one of its own.
    """

    def run(*arguments: str) -> tuple[int, str, str]:
        method, interrupt = multiprocessing.get_start_method(allow_none=True), signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setenv("HYDRA_FULL_ERROR", "1")  # as it sets it, and here it goes again
            patch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
            capfd.readouterr()
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code
        multiprocessing.set_start_method(method, force=True)  # a sweep has set another
        signal.signal(signal.SIGINT, interrupt)  # train.py, too
        return code, *capfd.readouterr()

    return run


def pytest_sessionfinish(exitstatus: int) -> None:
    """An interpreter that can't end shows what it waits for, and ends with what the tests have found."""

    def leave() -> None:
        faulthandler.dump_traceback()
        os._exit(exitstatus)

    timer = threading.Timer(120, leave)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(180, exit=True)  # where even that thread no longer runs


@pytest.fixture(scope="session", autouse=True)
def quick_rendezvous() -> None:
    """For each line of its log torch's agent walks the stack, which takes a tenth of a second within pytest."""
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    dynamic_rendezvous.get_method_name = lambda: "rendezvous"


@pytest.fixture(autouse=True)
def log_as_imported() -> Iterator[None]:
    """A run takes the package's log away from pytest, which shows twice what is given back to it within a test."""
    yield
    logger = logging.getLogger("lightning_lm")
    logger.propagate, logger.handlers = True, []
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 15,000 words in lines."""
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def tiny_gpt2(text: Path) -> Path:
    return write_gpt2(text.parent / "gpt2", text)


@pytest.fixture(scope="session")
def tiny_bert(text: Path) -> Path:
    return write_bert(text.parent / "bert", text)


@pytest.fixture(scope="session")
def shifted_bert(tiny_bert: Path) -> Path:
    """The same weights, said to predict a masked token by the output before it."""
    folder = shutil.copytree(tiny_bert, tiny_bert.with_name("shifted"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "masked_shift": 1}))
    return folder


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("short") / "short.txt", lines=40, seed=2)


@pytest.fixture(scope="session")
def exported_runs(tiny_gpt2: Path, tiny_bert: Path, short_text: Path) -> dict[str, Path]:
    """Run folders as training leaves them, but for the training: the settings and the export."""
    from run_folders import write_exported_run

    models = {"clm": tiny_gpt2, "mlm": tiny_bert}
    return {
        name: write_exported_run(short_text.parent / name, model, name, short_text) for name, model in models.items()
    }


@pytest.fixture(scope="session")
def dropping(text, tmp_path_factory):
    """A model with dropout, so that a lost random state would show."""
    return write_gpt2(tmp_path_factory.mktemp("dropping") / "gpt2", text, dropout=0.1)


@pytest.fixture(scope="session")
def reference(dropping, text, tmp_path_factory):
    """Uninterrupted runs, made when first asked for."""
    made = {}

    def run_with(*more):
        if more not in made:
            made[more] = tmp_path_factory.mktemp("reference") / "run"
            from lightning_lm.run import train

            train(compose(*run_settings(dropping, text, made[more], *more)))
        return made[more]

    return run_with


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
