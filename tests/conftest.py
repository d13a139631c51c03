"""What several test files share."""

import faulthandler
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from tiny import write_bert, write_gpt2, write_text

from lightning_lm.config.composition import compose, register

ROOT = Path(__file__).parents[1]
register()
__all__ = ["ROOT", "compose"]

settings.register_profile("any-machine", deadline=None)  # a busy one is no failure
settings.load_profile("any-machine")


def pytest_sessionfinish(exitstatus: int) -> None:
    """An interpreter that can't end shows what it waits for, and ends with what the tests have found."""

    def leave() -> None:
        faulthandler.dump_traceback()
        os._exit(exitstatus)

    timer = threading.Timer(120, leave)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(180, exit=True)  # where even that thread no longer runs


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


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
