"""What a run leaves in W&B (offline, read back with W&B's own reader) is what its folder says."""

import csv
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from conftest import ROOT, compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_report import write_run
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from lightning_lm.config import HubDataConfig, LoggerConfig, ModelConfig
from lightning_lm.errors import Diverged, Refused
from lightning_lm.report import log_sweep
from lightning_lm.run import train
from lightning_lm.telemetry import Telemetry
from lightning_lm.tracking import COLUMNS, EVALUATED, wandb_mode
from lightning_lm.training import build_loggers

KEY = "0" * 40


@pytest.fixture(autouse=True, scope="module")
def no_account(tmp_path_factory):
    """W&B as on a machine where nobody has logged in."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SILENT", "WANDB_IDENTITY_TOKEN_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(home / "netrc"))
        for kind in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(home / kind))
        wandb.teardown()
        yield home
    wandb.teardown()


@pytest.fixture
def fresh_wandb():
    """W&B reads the environment again, before and after."""
    wandb.teardown()
    yield
    wandb.teardown()


def settings(model, text, run, *more):
    return [
        f"model.name_or_path={model}",
        "data=text",
        f"data.train={text}",
        f"data.validation={text}",
        f"data.test={text}",
        "data.block_size=64",
        f"data.cache_dir={text.parent / 'cache'}",
        "name=tiny",
        "objective.prompts=['The river','A house']",
        "objective.preview_tokens=3",
        "optimizer.lr=1",  # so high that the last validation isn't the best
        "scheduler=constant",
        "trainer.max_steps=6",
        "trainer.global_batch_size=4",
        "trainer.val_every_n_steps=2",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=1",
        "trainer.log_every_n_steps=1",
        "trainer.checkpoint_every_n_steps=null",  # after validations only
        "hardware=cpu",
        "hardware.micro_batch_size=2",  # accumulation: a batch isn't a step
        "logger=wandb",
        "logger.tags=[mine]",
        f"run_dir={run}",
        *more,
    ]


def inspect(part):
    """The records of one W&B folder: the run, its history, its summary, its exit code."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    return SimpleNamespace(
        run=next(record["run"] for record in records if record["type"] == "run"),
        history=[record["history"]["item"] for record in records if record["type"] == "history"],
        summary=summary,
        exit_code=next((record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"), None),
    )


def parts(run):
    return sorted(run.glob("wandb/offline-run-*"))


def only(run):
    (part,) = parts(run)
    return inspect(part)


def rows(run):
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def as_rows(history):
    """History in the form of ``metrics.csv``: without tables and W&B's own fields, under its step."""
    known = [
        {"step": item["trainer/global_step"], **{k: v for k, v in item.items() if k in COLUMNS}} for item in history
    ]
    return [row for row in known if len(row) > 1]


def summary_of(run):
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def dying(error):
    """A callback hook that fails after step 3, between two validations."""
    original = Telemetry.on_train_batch_end

    def hook(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == 3:
            raise error

    return hook


@pytest.fixture(scope="module")
def finished(no_account, tiny_gpt2, text, tmp_path_factory):
    run = tmp_path_factory.mktemp("finished") / "my run"
    train(compose(*settings(tiny_gpt2, text, f"'{run}'")))
    return SimpleNamespace(folder=run, wandb=only(run), csv=rows(run), summary=summary_of(run))


def test_the_run_says_what_it_is(finished):
    run = finished.wandb.run
    assert (run["project"], run["job_type"]) == ("lightning-lm", "train")
    assert (run["display_name"], run["run_group"]) == ("tiny-my run", "tiny")
    assert set(run["tags"]) == {"mine", "clm", "gpt2", "text"}
    environment = json.loads((finished.folder / "environment.json").read_text(encoding="utf-8"))
    assert run["run_id"] == environment["wandb_run_id"]


def test_the_whole_configuration(finished, text):
    config = {k: v for k, v in finished.wandb.run["config"]["update"].items() if k != "_wandb"}
    assert config == OmegaConf.to_container(OmegaConf.load(finished.folder / "config.yaml"))
    assert config["data"]["train"] == str(text)
    assert config["trainer"]["max_steps"] == 6


def test_history_is_metrics_csv(finished):
    ours = as_rows(finished.wandb.history)
    assert len(ours) == len(finished.csv) == 6 + 3 + 1
    for row, expected in zip(ours, finished.csv, strict=True):
        assert row == pytest.approx(expected, rel=1e-12)
    steps = {name: [row["step"] for row in ours if name in row] for name in COLUMNS}
    assert all("tokens_seen" in row and "epoch" in row for row in ours), "any figure can be drawn over tokens"
    for name in ("train/loss", "learning_rate", "gradient_norm", "tokens_per_second"):
        assert steps[name] == [1, 2, 3, 4, 5, 6]
    for name in EVALUATED:
        assert steps[f"val/{name}"] == [2, 4, 6]
        assert steps[f"test/{name}"] == [6]


def test_the_summary_keeps_the_best(finished):
    losses = [row["val/loss"] for row in finished.csv if "val/loss" in row]
    assert losses[-1] > min(losses), "this test needs a run that gets worse"
    assert finished.wandb.summary["val/loss"] == min(losses)
    assert finished.wandb.exit_code == 0
    for name, value in finished.summary.items():
        assert finished.wandb.summary[name] == (pytest.approx(value) if isinstance(value, float) else value)


def test_samples_are_a_table_that_grows(finished):
    logged = [item for item in finished.wandb.history if "samples.path" in item]
    assert [item["trainer/global_step"] for item in logged] == [2, 4, 6]
    tables = []
    for item in logged:
        assert item["samples._type"] == "table-file"
        path = parts(finished.folder)[0] / "files" / item["samples.path"]
        tables.append(json.loads(path.read_text(encoding="utf-8")))
    assert [len(table["data"]) for table in tables] == [2, 4, 6]
    assert tables[-1]["columns"] == ["step", "prompt", "text"]
    with (finished.folder / "samples.csv").open(encoding="utf-8", newline="") as file:
        expected = [[int(row["step"]), row["prompt"], row["text"]] for row in csv.DictReader(file)]
    assert tables[-1]["data"] == expected
    assert [row[:2] for row in expected[:2]] == [[2, "The river"], [2, "A house"]]


def test_the_log_tells_how_to_send_it(finished):
    (line,) = [line for line in (finished.folder / "train.log").read_text().splitlines() if "W&B" in line]
    command = shlex.split(line.split("`")[1])
    assert command[:2] == ["wandb", "sync"]
    found = subprocess.run([sys.executable, "-m", *command, "--dry-run"], capture_output=True, text=True, check=True)
    assert "Would sync 1 run" in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        pytest.param(RuntimeError("out of luck"), RuntimeError, id="an exception"),
        pytest.param(KeyboardInterrupt(), (KeyboardInterrupt, SystemExit), id="an interrupt"),
    ],
)
def test_a_failed_run_is_finished_as_failed(error, raised, tiny_gpt2, text, tmp_path, monkeypatch):
    monkeypatch.setattr(Telemetry, "on_train_batch_end", dying(error))
    with pytest.raises(raised):
        train(compose(*settings(tiny_gpt2, text, tmp_path / "run")))
    assert wandb.run is None
    run = only(tmp_path / "run")
    assert run.exit_code == 1
    assert run.summary["status"] == ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
    assert [row["step"] for row in as_rows(run.history) if "train/loss" in row] == [1, 2, 3]
    best = min(row["val/loss"] for row in rows(tmp_path / "run") if "val/loss" in row)
    assert run.summary["val/loss"] == {"min": best}  # kept by W&B while the run goes on


def test_a_run_that_diverges_is_marked_failed(tiny_gpt2, text, tmp_path):
    with pytest.raises(Diverged):
        train(compose(*settings(tiny_gpt2, text, tmp_path / "run", "optimizer.lr=1e30", "trainer.gradient_clip=null")))
    run = only(tmp_path / "run")
    assert run.exit_code == 1
    assert run.summary["status"] == "diverged"
    assert all(math.isfinite(row["train/loss"]) for row in as_rows(run.history) if "train/loss" in row)


def test_each_job_of_a_process_has_its_own_run(finished, tiny_gpt2, text, tmp_path):
    foreign = wandb.init(mode="offline", dir=tmp_path, project="other", settings=wandb.Settings(silent=True))
    train(compose(*settings(tiny_gpt2, text, tmp_path / "second", "trainer.max_steps=1")))
    second = only(tmp_path / "second")
    assert len({foreign.id, finished.wandb.run["run_id"], second.run["run_id"]}) == 3
    assert [row["step"] for row in as_rows(second.history) if "train/loss" in row] == [1]
    assert not as_rows(inspect(*tmp_path.glob("wandb/offline-run-*")).history)


def test_a_resumed_run_goes_on_under_its_id(finished, tiny_gpt2, text, tmp_path):
    run = tmp_path / "run"
    job = compose(*settings(tiny_gpt2, text, run))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Telemetry, "on_train_batch_end", dying(RuntimeError("cut off")))
        with pytest.raises(RuntimeError, match="cut off"):
            train(job)
    train(job)
    first, second = map(inspect, parts(run))
    assert first.run["run_id"] == second.run["run_id"] != finished.wandb.run["run_id"]
    assert first.run["resume"] and second.run["resume"]  # the later part is added to the earlier one
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [row["step"] for row in as_rows(first.history) if "train/loss" in row] == [1, 2, 3]
    assert [row["step"] for row in as_rows(second.history) if "train/loss" in row] == [3, 4, 5, 6]
    together = {(row["step"], *sorted(row)): row for row in [*as_rows(first.history), *as_rows(second.history)]}
    assert len(together) == len(rows(run))
    for expected in rows(run):
        assert together[(expected["step"], *sorted(expected))] == pytest.approx(expected)
    assert second.summary["val/loss"] == summary_of(run)["val/loss"] == finished.summary["val/loss"]
    tables = [item["samples.nrows"] for item in second.history if "samples.nrows" in item]
    assert tables == [4, 6]  # with the rows from before the cut
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(run / "wandb")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Would sync 2 run" in found.stdout + found.stderr


def test_disabled_writes_nothing_and_makes_no_noise(tiny_gpt2, text, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(compose(*settings(tiny_gpt2, text, tmp_path / "run", "trainer.max_steps=1")))
    assert not (tmp_path / "run" / "wandb").exists()
    assert len(rows(tmp_path / "run")) == 3
    assert "wandb" not in "".join(capfd.readouterr()).lower()


def test_offline_makes_no_noise(tiny_gpt2, text, tmp_path, capfd):
    train(compose(*settings(tiny_gpt2, text, tmp_path / "run", "trainer.max_steps=1")))
    lines = [line for line in "".join(capfd.readouterr()).splitlines() if "wandb" in line.lower() or "W&B" in line]
    assert len(lines) == 1
    assert lines[0].startswith("W&B offline: `wandb sync ")


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        pytest.param({}, False, "offline", id="no key"),
        pytest.param({"WANDB_API_KEY": KEY}, False, "online", id="a key"),
        pytest.param({}, True, "online", id="a key in netrc"),
        pytest.param({"WANDB_MODE": "online"}, False, "offline", id="online without a key never asks for one"),
        pytest.param({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, False, "offline", id="offline"),
        pytest.param({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, False, "disabled", id="disabled"),
    ],
)
def test_mode(environment, netrc, mode, tmp_path, monkeypatch, capfd, fresh_wandb):
    for name, value in {"NETRC": str(tmp_path / "netrc"), **environment}.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
        monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert wandb_mode() == mode
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    ("key", "wrong"), [(KEY, "connection refused"), ("short", "API key must have")], ids=["no server", "a bad key"]
)
def test_where_wandb_does_not_start(key, wrong, tiny_gpt2, text, tmp_path, monkeypatch, fresh_wandb):
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    with pytest.raises(Refused, match=wrong) as refused:
        train(compose(*settings(tiny_gpt2, text, tmp_path / "run")))
    (line,) = str(refused.value).splitlines()
    assert line.startswith("logger=wandb: ") and line.endswith("set WANDB_MODE=offline, or use logger=none")


@pytest.mark.parametrize(
    ("dataset", "model", "tags"),
    [
        (
            {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"},
            "org/distilgpt2",
            ["distilgpt2", "wikitext-2-raw-v1"],
        ),
        ({"path": "org/" + "x" * 80}, None, ["gpt2", "x" * 64]),
    ],
)
def test_tags_fit(dataset, model, tags, tiny_gpt2, text, tmp_path, monkeypatch):
    job = compose(*settings(tiny_gpt2, text, tmp_path / "tiny"))
    job.data, job.model = HubDataConfig(**dataset), ModelConfig(name_or_path=model, model_type="gpt2")
    _, logger = build_loggers(job, {}, Path(job.run_dir), "abcd")
    experiment = logger.experiment
    wandb.finish()
    assert set(experiment.tags) == {"mine", "clm", *tags}
    assert (experiment.name, experiment.group) == ("tiny", "tiny")


# ---------------------------------------------------------------------------------------------------------- sweeps


def test_the_jobs_of_a_sweep_are_runs_of_one_group(no_account, tiny_gpt2, text, tmp_path):
    more = [
        "optimizer.lr=1e-2,1e20",
        "trainer.gradient_clip=null",
        "trainer.max_steps=3",
        f"hydra.sweep.dir={tmp_path}/s",
    ]
    overrides = [o for o in settings(tiny_gpt2, text, "") if not o.startswith(("run_dir", "optimizer.lr"))]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *overrides, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = [only(tmp_path / "s" / number) for number in "01"]
    assert len({run.run["run_id"] for run in runs}) == 2, "they are sent to W&B one by one"
    for run, number in zip(runs, "01", strict=True):
        assert (run.run["run_group"], run.run["job_type"]) == ("s", "train")
        config = {k: v for k, v in run.run["config"]["update"].items() if k != "_wandb"}
        assert config == OmegaConf.to_container(OmegaConf.load(tmp_path / "s" / number / "config.yaml"))
        assert run.exit_code == {"finished": 0, "diverged": 1}[run.summary["status"]]
    assert [run.run["config"]["update"]["optimizer"]["lr"] for run in runs] == [0.01, 1e20]


def test_a_sweeps_summary_is_a_run_of_its_own(no_account, tmp_path):
    for number, loss in enumerate([3.0, 2.0, 2.5, None]):
        own = f"optimizer.lr={number // 2 + 1}", f"seed={number % 2}"
        status = "diverged" if loss is None else "finished"
        write_run(tmp_path / "s" / str(number), *own, loss=loss, status=status, seconds=1.5)
    for _ in range(2):  # the second time as after a sweep has been gone on with
        log_sweep(tmp_path / "s", LoggerConfig(project="mine", tags=["a"]))
    first, second = map(inspect, parts(tmp_path / "s"))
    assert first.run["run_id"] == second.run["run_id"] and first.run["resume"]
    assert [first.run[key] for key in ("project", "job_type", "run_group", "tags")] == ["mine", "sweep", "s", ["a"]]
    assert first.exit_code == second.exit_code == 0
    expected = {"best/job": "0", "best/val_loss": 2.5, "best/seeds": 2, "best/optimizer.lr": 1.0}
    assert {name: second.summary[name] for name in expected} == expected
    assert (second.summary["jobs/finished"], second.summary["jobs/diverged"]) == (3, 1)
    media = parts(tmp_path / "s")[0] / "files" / "media"
    (path,) = media.glob("table/runs_*.json")
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table["columns"][:4] == ["run", "optimizer.lr", "seed", "val/loss"]
    expected = [["1", 1, 1, 2.0], ["2", 2, 0, 2.5], ["0", 1, 0, 3.0], ["3", 2, 1, None]]
    assert [row[:4] for row in table["data"]] == expected
    (picture,) = media.glob("images/search_*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_summary_where_it_is_not_wanted(no_account, tmp_path, monkeypatch):
    write_run(tmp_path / "s" / "0", loss=3.0)
    log_sweep(tmp_path / "s", LoggerConfig(name="none"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "theirs")  # W&B's agent sweeps: its run must not be written into
    log_sweep(tmp_path / "s", LoggerConfig())
    assert not (tmp_path / "s" / "wandb").exists()


VALUES = {  # as in the YAML of a W&B sweep → what the setting must be
    "optimizer.lr": (1e-05, 1e-5),
    "optimizer.weight_decay": (0, 0.0),
    "optimizer.betas": ([0.9, 0.95], [0.9, 0.95]),
    "model.pretrained": (False, False),
    "model.revision": ("'a, b=c (d) é'", "a, b=c (d) é"),
    "model.tokenizer": ("null", None),
    "model.config.n_layer": (4, 4),
    "hardware.precision": ("bf16-mixed", "bf16-mixed"),
    "objective.prompts": (["The river, it", "a=b"], ["The river, it", "a=b"]),
    "scheduler": ("wsd", None),
    "trainer.max_tokens": (10**9, 10**9),
}


def test_what_an_agent_of_wandb_runs(monkeypatch):
    path = ROOT / "conf" / "wandb_sweep.yaml"
    wanted = load_sweep_config(str(path))
    rates = wanted["parameters"]["optimizer.lr"]
    assert (wanted["program"], rates["min"], rates["max"]) == ("train.py", 1e-6, 1e-3), "numbers, not texts"
    assert all(isinstance(value, int | float) for value in wanted["parameters"]["optimizer.weight_decay"]["values"])
    given = {name: {"value": value} for name, (value, _) in VALUES.items()}
    filled = {**create_sweep_command_args({"args": given}), "env": ["/usr/bin/env"], "program": [wanted["program"]]}
    command = [
        word
        for chunk in create_sweep_command(wanted["command"])  # as W&B's agent does it
        for word in (filled[chunk[2:-1]] if chunk.startswith("${") and chunk.endswith("}") else [chunk])
    ]
    assert command[:4] == ["/usr/bin/env", "python", "train.py", "-m"]
    assert not any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(command[4:]))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    job = OmegaConf.structured(compose(*command[4:]))
    for name, (_, value) in VALUES.items():
        assert name == "scheduler" or OmegaConf.select(job, name) == value
    assert (job.scheduler.name.name, job.logger.group, job.logger.name) == ("wsd", "sweep1", "wandb")
    assert HydraConfig.get().sweep.dir == "outputs/sweeps/wandb/sweep1/run1"


def test_an_agents_run_goes_by_its_id(no_account, tiny_gpt2, text, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    build_loggers(compose(*settings(tiny_gpt2, text, tmp_path / "run")), {"seed": 0}, tmp_path / "run", "ours")
    wandb.finish()
    assert only(tmp_path / "run").run["run_id"] == "theirs"
