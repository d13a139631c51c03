"""Whether a run is sent to W&B, kept offline or not logged at all: keys, the environment, and a server that is away."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import compose
from wandb_offline import fresh_wandb, no_account, rows, settings  # noqa: F401

from lightning_lm.errors import Refused
from lightning_lm.run import train
from lightning_lm.runs import tracking
from lightning_lm.runs.tracking import wandb_mode

KEY = "0" * 40


@pytest.mark.usefixtures("fresh_wandb")
def test_disabled_writes_nothing_and_makes_no_noise(tiny_gpt2, text, tmp_path, monkeypatch, capfd):
    for name, value in {"DISABLED": "1", "RUN_ID": "mine", "DIR": str(tmp_path / "mine")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    train(compose(*settings(tiny_gpt2, text, tmp_path / "run", "trainer.max_steps=1")))
    assert not (tmp_path / "run" / "wandb").exists()
    assert len(rows(tmp_path / "run")) == 3
    lines = [line for line in capfd.readouterr().err.splitlines() if "wandb" in line.lower() or "W&B" in line]
    expected = [f"W&B: WANDB_{name} has no effect: the run folder decides" for name in ("DIR", "RUN_ID")]
    assert lines == [*expected, "W&B is disabled by the environment"]
    assert not (tmp_path / "mine").exists()


def test_offline_makes_no_noise(tiny_gpt2, text, tmp_path, capfd):
    train(compose(*settings(tiny_gpt2, text, tmp_path / "run", "trainer.max_steps=1")))
    lines = [line for line in "".join(capfd.readouterr()).splitlines() if "wandb" in line.lower() or "W&B" in line]
    assert len(lines) == 1
    assert lines[0].startswith("W&B offline: `wandb sync ")


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        pytest.param({}, False, "offline", id="no key"),
        pytest.param({"WANDB_API_KEY": KEY}, False, "online", id="a key"),
        pytest.param({}, True, "online", id="a key in netrc"),
        pytest.param({"WANDB_MODE": "online"}, False, "offline", id="online without a key never asks for one"),
        pytest.param({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, False, "offline", id="offline"),
        pytest.param({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, False, "disabled", id="disabled"),
        pytest.param({"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, False, "disabled", id="as older versions"),
        pytest.param({"WANDB_MODE": "offline", "WANDB_DISABLED": "true"}, False, "offline", id="the newer one counts"),
    ],
)
def test_mode(environment, netrc, mode, tmp_path, monkeypatch, capfd):
    for name, value in {"NETRC": str(tmp_path / "netrc"), **environment}.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
        monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert wandb_mode() == mode
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize("typed", [[], ["logger.require_online=true"]], ids=["offline", "required"])
def test_a_server_that_does_not_answer(typed, tiny_gpt2, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run"), *typed)
    if typed:
        with pytest.raises(Refused, match="^logger.require_online=True: http://127.0.0.1:9 can't be reached"):
            train(job)
        return
    train(job)
    told = capsys.readouterr().err
    assert "W&B: http://127.0.0.1:9 can't be reached (Connection refused); the run goes on offline" in told
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1


class Answering(BaseHTTPRequestHandler):
    code = 500

    def do_GET(self):
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize(
    ("code", "told"), [(None, "can't be reached (timed out)"), (503, "fails (HTTP Error 503"), (404, None), (200, None)]
)
def test_a_server_that_takes_connections(code, told, monkeypatch):
    """Behind a gateway there is always someone who takes them; W&B itself would wait for minutes."""
    monkeypatch.setattr(tracking, "CONNECT_TIMEOUT", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answering,), {"code": code})) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        if code:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        error = tracking.server_error()
        if code:
            server.shutdown()
    assert error is None if told is None else told in error


@pytest.mark.usefixtures("fresh_wandb")
def test_where_wandb_does_not_start(tiny_gpt2, text, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(Refused, match="API key must have") as refused:
        train(compose(*settings(tiny_gpt2, text, tmp_path / "run")))
    (line,) = str(refused.value).splitlines()
    assert line.startswith("logger=wandb: ") and line.endswith("set WANDB_MODE=offline, or use logger=none")
