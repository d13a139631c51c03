"""What a sweep leaves in W&B: its jobs as one group, a run for all of it, and runs that W&B's own agent starts."""

import json

import pytest
import wandb
from conftest import ROOT, compose
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from run_folders import write_run
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config
from wandb_offline import fresh_wandb, inspect, no_account, only, parts, settings  # noqa: F401

from lightning_lm.config.schema import LoggerConfig
from lightning_lm.report.wandb_summary import log_sweep
from lightning_lm.training.trainer import build_loggers


@pytest.mark.usefixtures("fresh_wandb")
def test_the_jobs_of_a_sweep_are_runs_of_one_group(tiny_gpt2, text, tmp_path, train_py):
    more = [
        "optimizer.lr=1e-2,1e20",
        "trainer.gradient_clip=null",
        "trainer.max_steps=3",
        f"hydra.sweep.dir={tmp_path}/s",
    ]
    overrides = [o for o in settings(tiny_gpt2, text, "") if not o.startswith(("run_dir", "optimizer.lr"))]
    code, _, err = train_py("-m", *overrides, *more)
    assert code == 0, err[-2000:]
    runs = [only(tmp_path / "s" / number) for number in "01"]
    assert len({run.run["run_id"] for run in runs}) == 2, "they are sent to W&B one by one"
    for run, number in zip(runs, "01", strict=True):
        assert (run.run["run_group"], run.run["job_type"]) == ("s", "train")
        assert run.run["display_name"] == f"s/{number} lr={(0.01, 1e20)[int(number)]}"
        config = {k: v for k, v in run.run["config"]["update"].items() if k != "_wandb"}
        assert config == OmegaConf.to_container(OmegaConf.load(tmp_path / "s" / number / "config.yaml"))
        assert run.exit_code == {"finished": 0, "diverged": 1}[run.summary["status"]]
    assert [run.run["config"]["update"]["optimizer"]["lr"] for run in runs] == [0.01, 1e20]


def test_a_sweeps_summary_is_a_run_of_its_own(tmp_path):
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


def test_no_summary_where_it_is_not_wanted(tmp_path, monkeypatch):
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
    assert (job.scheduler.name, job.logger.group, job.logger.name) == ("wsd", "sweep1", "wandb")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sweep = hydra_compose("config", command[4:], return_hydra_config=True).hydra.sweep
    assert sweep.dir == "outputs/sweeps/wandb/sweep1/run1"


@pytest.mark.usefixtures("fresh_wandb")
def test_an_agents_run_goes_by_its_id(tiny_gpt2, text, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    build_loggers(compose(*settings(tiny_gpt2, text, tmp_path / "run")), tmp_path / "run", "ours")
    wandb.finish()
    assert only(tmp_path / "run").run["run_id"] == "theirs"
