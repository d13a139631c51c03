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
from conftest import compose
from omegaconf import OmegaConf
from wandb_offline import as_rows, fresh_wandb, inspect, no_account, only, parts, rows, settings  # noqa: F401

from lightning_lm.data.schema import HubDataConfig
from lightning_lm.errors import Diverged
from lightning_lm.figures import COLUMNS, EVALUATED
from lightning_lm.models.schema import ModelConfig
from lightning_lm.run import train
from lightning_lm.training.telemetry import Telemetry
from lightning_lm.training.trainer import build_loggers


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


def test_tensorboard_has_the_figures_of_the_folder(tiny_gpt2, text, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = [o for o in settings(tiny_gpt2, text, tmp_path / "run") if not o.startswith("logger")]
    train(compose(*overrides, "logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    there = {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    written = {(name, row["step"]): value for row in rows(tmp_path / "run") for name, value in row.items()}
    expected = {key: value for key, value in written.items() if key[0] not in ("step", "epoch")}
    expected |= {key: math.inf for key, value in expected.items() if value > 3.4e38}  # TensorBoard keeps float32
    assert {key: there[key] for key in expected} == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def finished(tiny_gpt2, text, tmp_path_factory):
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
    for name in (figure.name for figure in EVALUATED if not figure.name.startswith("masked_")):  # of a hybrid run
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
    _, logger = build_loggers(job, Path(job.run_dir), "abcd")
    experiment = logger.experiment
    wandb.finish()
    assert set(experiment.tags) == {"mine", "clm", *tags}
    assert (experiment.name, experiment.group) == ("tiny", "tiny")
