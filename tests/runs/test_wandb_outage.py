"""Where W&B's server goes away while a run is at work, the run goes on, and W&B's own record has all of it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb
from conftest import compose
from wandb_offline import as_rows, fresh_wandb, inspect, no_account, rows, settings  # noqa: F401

from lightning_lm.run import train
from lightning_lm.runs import tracking
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.tracking import WandbHistory
from lightning_lm.training.telemetry import Telemetry

PROJECT = {"id": "2", "name": "p", "entity": {"id": "3", "name": "e"}}


class Server(BaseHTTPRequestHandler):
    """As much of W&B's server as its client needs to begin a run and to send rows."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(body)["variables"] if "graphql" in self.path else {}
        files = [
            {"name": name, "uploadUrl": f"http://{self.headers['Host']}/{name}"} for name in asked.get("files", [])
        ]
        created = {"runID": "1", "uploadHeaders": [], "files": files}
        bucket = {"id": "1", "name": asked.get("name"), "project": PROJECT}
        data = {"upsertBucket": {"bucket": bucket, "inserted": True}, "model": None, "createRunFiles": created}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": data} if "graphql" in self.path else {}).encode())

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.usefixtures("fresh_wandb")
def test_a_server_that_goes_away(tiny_gpt2, text, tmp_path, monkeypatch, capsys):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    original = Telemetry.on_train_batch_end

    def ending(self, trainer, *more):
        original(self, trainer, *more)
        if trainer.global_step == 3:
            server.shutdown()
            server.server_close()

    monkeypatch.setattr(Telemetry, "on_train_batch_end", ending)
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT", 1.0)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run = tmp_path / "run"
    train(compose(*settings(tiny_gpt2, text, run, "objective.prompts=[]")))
    assert read_json_file(run / "summary.json")["status"] == "finished"
    (part,) = (run / "wandb").glob("run-*")
    assert f"Timed out finishing run. `wandb sync --no-skip-online {part}` sends" in capsys.readouterr().err
    assert as_rows(inspect(part).history) == [pytest.approx(row, rel=1e-12) for row in rows(run)]


def test_what_wandb_does_not_take_ends_no_run(tmp_path, caplog):
    """As a table, for which its client asks the server."""
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        pass
    WandbHistory(experiment=run).log_metrics({"train/loss": 3.0}, 5)
    assert "W&B does not take train/loss: " in caplog.text
