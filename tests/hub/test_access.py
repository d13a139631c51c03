"""Whether the Hub can be reached, asked of real sockets on loopback."""

import logging
import socket
import time

import pytest
from hub_server import HubServer

from lightning_lm.hub import access as hub


@pytest.fixture
def silent():
    """Address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def timed(timeout: float) -> bool:
    start = time.monotonic()
    answer = hub.reachable(timeout)
    assert time.monotonic() - start < timeout + 30, "a name look-up that hangs for a minute isn't waited for"
    return answer


def test_reachable(silent, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub.reachable(0.01)  # imports the client
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert timed(5)
        monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/no/such/page")
        assert timed(5)
    assert not timed(5)  # nobody listens there any more
    monkeypatch.setenv("HF_ENDPOINT", silent)
    assert not timed(0.5)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    monkeypatch.setenv("HF_ENDPOINT", "http://a-name-that-takes-long.example")
    assert not timed(0.5)


def test_going_offline_says_so_once(silent, monkeypatch, caplog):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert not hub.go_offline_if_unreachable()
        assert not hub.go_offline_if_unreachable()
    assert len(caplog.records) == 1 and hub.os.environ["HF_HUB_OFFLINE"] == "1"
