"""Several processes train what one trains, end as one, and leave one run behind."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, compose
from ranks import cut_off, rank_of_a_job, settings, weights
from safetensors.torch import load_file

from lightning_lm import launch
from lightning_lm.errors import Refused
from lightning_lm.figures import COLUMNS
from lightning_lm.launch import run_job
from lightning_lm.training.checkpoints import step_of
from lightning_lm.training.control import Budget
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import Telemetry

FIGURES = ["step", "tokens_seen", "learning_rate", "gradient_norm", *COLUMNS[COLUMNS.index("train/loss") :]]
FSDP = "hardware.strategy=fsdp"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started here: the models are too small for more


def table(folder, name="metrics.csv"):
    with (folder / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_figures(folder, reference):
    """The same figures, step by step, to 1e-5; speed is another matter."""
    ours, theirs = table(folder), table(reference)
    for row, other in zip(ours, theirs, strict=True):
        for name in FIGURES:
            assert (row[name] == "") == (other[name] == ""), name
            if row[name]:
                close = {"gradient_norm": 1e-4}.get(name, 1e-5)
                assert float(row[name]) == pytest.approx(float(other[name]), rel=close), (row["step"], name)
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, weights(reference)[name], rtol=0, atol=2e-4)
    theirs = load_file(reference / "export" / "model.safetensors")
    for name, value in load_file(folder / "export" / "model.safetensors").items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def small(text):
    """Too little text for every rank to have some."""
    path = text.parent / "small.txt"
    path.write_text(" ".join(text.read_text(encoding="utf-8").split()[:25]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tiny_gpt2, tiny_bert, text, small, tmp_path_factory):
    """The folder of a run with these settings, which is trained when first asked for."""
    made = {}

    def run(objective="clm", *more):
        key = (objective, *more)
        if key not in made:
            folder = tmp_path_factory.mktemp("run") / "run"
            model = tiny_gpt2 if objective == "clm" else tiny_bert
            own = ["model.config.is_decoder=true"] if objective == "hybrid" else []
            own += [f"objective={objective}", f"data.test={small}", *more]
            run_job(compose(*settings(model, text, folder, *own)))
            made[key] = folder
        return made[key]

    return run


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("clm", ("hardware.devices=2", "hardware.micro_batch_size=2")),
        ("mlm", ("hardware.devices=2", FSDP)),
        ("hybrid", ("hardware.devices=2",)),
        pytest.param("hybrid", ("hardware.devices=4", "hardware.micro_batch_size=1"), marks=pytest.mark.slow),
        pytest.param("mlm", ("hardware.devices=2",), marks=pytest.mark.slow),
        pytest.param("clm", ("hardware.devices=2", FSDP, "hardware.micro_batch_size=2"), marks=pytest.mark.slow),
        pytest.param("clm", ("hardware.devices=4",), marks=pytest.mark.slow),
        pytest.param("mlm", ("hardware.devices=4", "hardware.micro_batch_size=1"), marks=pytest.mark.slow),
        pytest.param("clm", ("hardware.devices=4", FSDP, "hardware.micro_batch_size=1"), marks=pytest.mark.slow),
        pytest.param("mlm", ("hardware.devices=4", FSDP), marks=pytest.mark.slow),
        pytest.param("clm", ("hardware.devices=2", FSDP, "optimizer=muon"), marks=pytest.mark.slow),
        pytest.param("clm", ("hardware.devices=2", FSDP, "trainer.exact_gradient_norm=false"), marks=pytest.mark.slow),
        pytest.param(
            "clm", ("hardware.devices=2", FSDP, "hardware.gradient_checkpointing=true"), marks=pytest.mark.slow
        ),
    ],
)
def test_the_number_of_devices_changes_no_figure(objective, more, trained):
    folder = trained(objective, *more)
    outcome = [setting for setting in more if not setting.startswith("hardware.")]
    assert_same_figures(folder, trained(objective, *outcome))
    devices = int(more[0][-1])
    assert json.loads((folder / "summary.json").read_text())["world_size"] == devices


BETWEEN = [  # starts between the first and the last: with these settings, and this rank is killed at this step
    ([FSDP], 0, 11),
    (["hardware.devices=1", "hardware.micro_batch_size=1"], 0, 17),
    ([FSDP, "hardware.micro_batch_size=1"], 1, 23),
]


@pytest.mark.parametrize("between", [BETWEEN[2:], pytest.param(BETWEEN, marks=pytest.mark.slow)], ids=len)
def test_a_run_goes_on_with_other_devices(between, trained, tiny_gpt2, text, small, tmp_path, monkeypatch):
    def job(*more):
        more = (f"data.test={small}", "trainer.checkpoint_every_n_steps=3", *more)
        return compose(*settings(tiny_gpt2, text, tmp_path / "run", *more))

    two = ("hardware.devices=2", "hardware.micro_batch_size=2")
    ended = cut_off(monkeypatch, job(*two), 0, 5, "INTERRUPTS")
    assert ended.code == 143
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "interrupted"}
    for more, rank, step in between:
        cut_off(monkeypatch, job("hardware.devices=2", *more), rank, step, "KILLED")
    run_job(job())
    assert_same_figures(tmp_path / "run", trained())


def noting_rates(*arguments):
    """A rank that writes down its learning rates; the second one's clock is ahead."""
    environ, rank, seconds = arguments[-1][1], os.environ["RANK"], Telemetry.seconds

    def note(self, trainer, *more):
        with Path(environ["RATES"]).joinpath(rank).open("a") as file:
            print(trainer.optimizers[0].param_groups[0]["lr"], file=file)

    Budget.on_train_batch_start = note
    Telemetry.seconds = property(lambda self: seconds.fget(self) + int(rank))
    return rank_of_a_job(*arguments)


def test_in_a_time_budget_all_ranks_have_the_same_rate(tiny_gpt2, text, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_rank", noting_rates)
    monkeypatch.setenv("RATES", str(tmp_path))
    timed = ["hardware.devices=2", "trainer.max_steps=null", "trainer.max_minutes=0.05"]
    run_job(compose(*settings(tiny_gpt2, text, tmp_path / "run", *timed)))
    first, second = ((tmp_path / rank).read_text().split() for rank in "01")
    assert first == second and len(set(first)) > 2


def test_one_run_is_left_behind(tiny_gpt2, text, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    more = ["hardware.devices=2", "trainer.max_steps=3", "logger=wandb", "objective.prompts=['The river']"]
    run_job(compose(*settings(tiny_gpt2, text, folder, *more)))
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert [row["step"] for row in table(folder)] == ["1", "2", "3", "3", "3"], "three steps, validation, test"
    assert [row["step"] for row in table(folder, "samples.csv")] == ["3"]
    log = (folder / "train.log").read_text()
    assert log.count("line ends") == log.count("step 2/3 · loss") == 1


def test_sharded_models_show_samples_and_low_precision(tiny_gpt2, text, tmp_path):
    more = ["hardware.devices=2", FSDP, "hardware.precision=bf16-true", "trainer.max_steps=3"]
    run_job(compose(*settings(tiny_gpt2, text, tmp_path / "run", *more, "objective.prompts=['The river']")))
    assert "The river" in (tmp_path / "run" / "samples.csv").read_text()


@pytest.mark.parametrize(
    ("more", "environ", "setting"),
    [
        (["hardware.strategy=fsdp", "hardware.precision=16-mixed"], {}, "hardware.precision"),
        (["hardware.nodes=2"], {}, "hardware.nodes"),
        (["hardware.devices=2", "data.block_size=65"], {}, "data.block_size"),
        (["hardware.devices=2"], {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}, "hardware.devices"),
        (["hardware.devices=2"], {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, "run_dir"),
        (["hardware.devices=2"], {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, "run_dir"),
        (["hardware.devices=2"], {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, "hardware.devices"),
        ([], {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "hardware.devices"),
    ],
)
def test_what_is_refused_before_anything_is_written(more, environ, setting, tiny_gpt2, text, tmp_path, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refused) as refused:
        launch.start(compose(*settings(tiny_gpt2, text, tmp_path / "run", *more)), named=False)
    assert setting in [problem.setting for problem in refused.value.problems]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "environ"),
    [
        ([], "RANK=1 WORLD_SIZE=2"),
        ([], "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0"),
        (["hardware.devices=2"], "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1"),
        ([], "SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2"),
        ([], "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=2"),
    ],
)
def test_one_of_several_that_no_launcher_has_started(more, environ, tiny_gpt2, text, tmp_path, monkeypatch):
    for pair in environ.split():
        monkeypatch.setenv(*pair.split("="))
    wrong = "hardware.devices=.* stand for several processes.* hardware.devices=2, or unset"
    with pytest.raises(Refused, match=wrong) as refused:
        launch.start(compose(*settings(tiny_gpt2, text, tmp_path / "run", *more)), named=True)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_one_process_in_a_shell_or_a_job_of_slurm_trains(environ, tiny_gpt2, text, tmp_path, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    launch.start(compose(*settings(tiny_gpt2, text, tmp_path / "run", "trainer.max_steps=1")), named=True)
    assert (tmp_path / "run" / "export").exists()


@pytest.mark.slow
def test_two_nodes(trained, tiny_gpt2, text, small, tmp_path, free_port):
    """Two torchrun agents on loopback; the run equals one process's."""
    more = [f"data.test={small}", "hardware.nodes=2", "hardware.micro_batch_size=2"]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"]
            + ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port}", ROOT / "train.py"]
            + settings(tiny_gpt2, text, tmp_path / "run", *more),
            cwd=tmp_path,
        )
        for node in (0, 1)
    ]
    assert [agent.wait() for agent in agents] == [0, 0]
    assert_same_figures(tmp_path / "run", trained())


def test_all_ranks_leave_a_validation_together(trained, tiny_gpt2, text, small, tmp_path, monkeypatch):
    """The other one hears of it before the next batch; the validation is done again."""
    job = compose(*settings(tiny_gpt2, text, tmp_path / "run", f"data.test={small}", "hardware.devices=2"))
    monkeypatch.setattr(launch, "_rank", signalled_in_a_validation)
    with pytest.raises(SystemExit) as ended:
        run_job(job)
    assert ended.value.code == 143
    assert step_of(tmp_path / "run" / "checkpoints" / "last.ckpt") == 8
    assert "goes on from step 8" in (tmp_path / "run" / "train.log").read_text()
    monkeypatch.undo()
    run_job(job)
    assert_same_figures(tmp_path / "run", trained())


def signalled_in_a_validation(*arguments):
    """A rank of which the second one gets SIGTERM in its first validation."""
    original = LanguageModel.validation_step

    def validate(self, *batch):
        if os.environ["RANK"] == "1" and self.trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *batch)

    LanguageModel.validation_step = validate
    return rank_of_a_job(*arguments)
