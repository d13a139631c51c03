"""A signal stops a run at once, and the same command goes on from the very step; nothing is lost, whenever it comes."""

import contextlib
import io
import json
import os
import random
import signal
import threading
import time
from pkgutil import resolve_name

import pytest
from conftest import compose, in_fresh_process
from resumable import assert_same, settings

from lightning_lm.interrupts import Interrupted, Interrupts, ask_for_requeue, deferring, stopping_on_signals
from lightning_lm.launch import start
from lightning_lm.training.checkpoints import step_of

EPOCH = 13  # steps
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}
STEP = "lightning_lm.training.telemetry:Telemetry.on_train_batch_end"
VALIDATING = "lightning_lm.training.module:LanguageModel.validation_step"
VALIDATED = "lightning_lm.training.samples:PromptSamples.on_validation_end"
FIRST = "lightning_lm.training.telemetry:Telemetry.on_train_batch_start"
STARTED = "lightning_lm.training.telemetry:Telemetry.on_train_start"
TESTING = "lightning_lm.training.module:LanguageModel.test_step"
EXPORTING = "lightning_lm.training.fit:export"
TOKENIZING = "lightning_lm.data.datamodule:tokenize"


def start_with_signal(job, number, place, step):
    """In a process of its own, which gets a signal before it comes to a place, at a step: exit code and stderr."""
    owner, _, name = place.replace(":", ".").rpartition(".")
    owner, original = resolve_name(owner), resolve_name(place)

    def signalled(*args, **kwargs):
        trainer = next((a for a in args if hasattr(a, "global_step")), None)
        if step is None or trainer.global_step == step:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, signalled)
    with contextlib.redirect_stderr(io.StringIO()) as console:
        try:
            start(job, named=True)
            code = 0
        except SystemExit as ended:
            code = ended.code
    return code, console.getvalue()


def interrupted(job, number, place, step=None):
    """What was said of it."""
    code, console = in_fresh_process(start_with_signal, job, number, place, step)
    assert code == CODES[number]
    (told,) = [line for line in console.splitlines() if line.startswith("interrupted")]
    return told


@pytest.mark.parametrize(
    ("number", "place", "step"),
    [
        pytest.param(signal.SIGINT, STEP, 20, id="in an epoch, Ctrl-C"),
        pytest.param(signal.SIGHUP, STEP, 1, id="at the first step, the terminal closes"),
        pytest.param(signal.SIGTERM, STEP, EPOCH, id="at an epoch's last step", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, VALIDATING, 2 * EPOCH, id="in a validation, SLURM's signal"),
        pytest.param(signal.SIGINT, VALIDATED, EPOCH, id="after a validation", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, VALIDATING, 32, id="in the last validation", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, VALIDATED, 32, id="after the last validation", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, TESTING, None, id="in the test"),
        pytest.param(signal.SIGTERM, EXPORTING, None, id="in the export"),
    ],
)
def test_the_same_command_goes_on_from_the_very_step(number, place, step, dropping, text, tmp_path, reference):
    job = compose(*settings(dropping, text, tmp_path / "run"))
    told, saved = interrupted(job, number, place, step), step or 32
    assert told == f"interrupted: the same command with run_dir={tmp_path / 'run'} goes on from step {saved}"
    assert step_of(tmp_path / "run" / "checkpoints" / "last.ckpt") == saved
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "interrupted"}
    start(job, named=True)
    assert_same(tmp_path / "run", reference())


@pytest.mark.parametrize("place", [TOKENIZING, STARTED, FIRST], ids=["tokenizing", "starting", "in the first step"])
def test_before_the_first_step_nothing_was_saved(place, dropping, text, tmp_path):
    job = compose(*settings(dropping, text, tmp_path / "run"))
    told = interrupted(job, signal.SIGTERM, place)
    assert told == "interrupted: nothing was saved yet, and the same command begins again"
    assert (tmp_path / "run").exists() == (place != TOKENIZING)


def start_while_it_trains(job):
    """A tokenizer, which takes much longer than this."""
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(SystemExit) as ended:
        start(job, named=True)
    return ended.value.code


def test_the_training_of_a_tokenizer_can_be_stopped(tmp_path):
    (tmp_path / "dna.txt").write_text("\n".join("".join(random.choices("ACGT", k=9_000)) for _ in range(200)))
    model = ["model=gpt2-tiny", "model.tokenizer=train", "model.name_or_path=null"]
    job = compose(*settings("x", tmp_path / "dna.txt", tmp_path / "run"), *model)
    began = time.monotonic()
    assert in_fresh_process(start_while_it_trains, job) == 130
    assert time.monotonic() - began < 60
    assert not (tmp_path / "run").exists()


def start_under_nohup(job):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code, _ = start_with_signal(job, signal.SIGHUP, STEP, 5)
    return code, signal.getsignal(signal.SIGHUP)


def test_a_signal_that_was_ignored_stays_ignored(dropping, text, tmp_path, reference):
    job = compose(*settings(dropping, text, tmp_path / "run"))
    assert in_fresh_process(start_under_nohup, job) == (0, signal.SIG_IGN)
    assert_same(tmp_path / "run", reference())


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A stand-in that writes down what it was called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "scontrol"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/calls\n[ "$2" != 13 ] || {{ echo "Invalid job id" >&2; exit 1; }}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


def with_environment(environ, job, number):
    """The fork server may have been started in another one."""
    os.environ.update(environ)
    start_with_signal(job, number, STEP, 4)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_is_asked_to_start_the_job_again(number, scontrol, dropping, text, tmp_path):
    """At the signal before the time limit; SIGTERM is what scancel sends."""
    job = compose(*settings(dropping, text, tmp_path / "run"))
    in_fresh_process(with_environment, {**os.environ, "SLURM_JOB_ID": "12"}, job, number)
    assert step_of(tmp_path / "run" / "checkpoints" / "last.ckpt") == 4
    assert scontrol.exists() == (number == signal.SIGUSR1)
    if scontrol.exists():
        assert scontrol.read_text() == "requeue 12\n"
        assert "SLURM was asked to start job 12 again" in (tmp_path / "run" / "train.log").read_text()


def test_what_slurm_answers(scontrol, monkeypatch):
    assert ask_for_requeue({}) is None
    array = {"SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    assert ask_for_requeue(array) == "SLURM was asked to start job 5_3 again"
    assert ask_for_requeue({"SLURM_JOB_ID": "13"}) == "SLURM does not start job 13 again: Invalid job id"
    monkeypatch.setenv("PATH", "/nowhere")
    assert "could not be asked" in ask_for_requeue({"SLURM_JOB_ID": "12"})
    assert scontrol.read_text() == "requeue 5_3\nrequeue 13\n"


@pytest.mark.parametrize("signalled", [True, False])
def test_an_error_that_a_signal_has_caused_is_an_interrupt(signalled):
    with pytest.raises(Interrupted if signalled else AttributeError) as raised, stopping_on_signals():
        try:
            if signalled:
                signal.raise_signal(signal.SIGTERM)
        finally:
            raise AttributeError("of what a library has left half done")
    assert not signalled or raised.value.code == 143


def test_a_signal_can_wait():
    steps = []
    with pytest.raises(Interrupted), stopping_on_signals():
        with deferring():
            signal.raise_signal(signal.SIGTERM)
            steps.append("within")
        steps.append("after")
    assert steps == ["within"]


def test_a_repeated_signal_within_a_second_is_the_same_one(monkeypatch):
    """A terminal signals every process, and the agent of several ranks sends it to them once more."""
    stop = Interrupts(deferred=True)
    monkeypatch.setattr(time, "monotonic", iter([10.0, 10.5, 12.0]).__next__)
    stop.note(signal.SIGINT, None)
    stop.note(signal.SIGTERM, None)
    assert stop.received == signal.SIGINT
    with pytest.raises(Interrupted):
        stop.note(signal.SIGINT, None)
