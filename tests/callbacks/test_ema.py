"""callbacks=ema against an average computed by hand; it survives a cut-off and is the same on two devices."""

import signal
from dataclasses import dataclass, field

import pytest
import torch
from conftest import compose
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from tiny import write_text

from lightning_lm.callbacks.schema import CallbackConfig
from lightning_lm.config.validation import problems
from lightning_lm.evaluation.scoring import evaluate
from lightning_lm.interrupts import Interrupted, interrupts
from lightning_lm.launch import run_job
from lightning_lm.run import train
from lightning_lm.runs.folder import read_json_file
from lightning_lm.training.module import LanguageModel
from lightning_lm.training.telemetry import Telemetry

DECAY, STEPS = 0.9, 12  # with 0.9 an average of whole numbers would be off by one for some


@dataclass
class RecorderConfig(CallbackConfig):
    """Notes the weights after each step, by its number, and the buffers that each validation works with."""

    weights: dict = field(default_factory=dict)
    buffers: list = field(default_factory=list)

    def build(self) -> Callback:
        return Recorder(self.weights, self.buffers)


class Recorder(Callback):
    def __init__(self, weights: dict, buffers: list):
        self.weights, self.buffers = weights, buffers

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self.buffers.append({name: buffer.clone() for name, buffer in pl_module.model.named_buffers()})

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.weights[trainer.global_step] = {n: p.detach().clone() for n, p in pl_module.model.named_parameters()}


def settings(model, text, folder, *more):
    return [
        f"model.name_or_path={model}",
        "objective=mlm",
        "objective.prompts=['The <mask> of']",
        "data=text",
        f"data.train={text}",
        f"data.validation={write_text(text.parent / 'held-out.txt', lines=40, seed=1)}",
        "data.block_size=32",
        f"data.cache_dir={text.parent / 'cache'}",
        "optimizer.lr=1e-2",
        "callbacks=ema",
        f"callbacks.ema.decay={DECAY}",
        f"trainer.max_steps={STEPS}",
        "trainer.val_every_n_steps=4",
        "trainer.limit_train_batches=7",
        "trainer.checkpoint_every_n_steps=3",
        "hardware=cpu",
        "logger=none",
        f"run_dir={folder}",
        *more,
    ]


def checkpoint(folder, name):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def finished(tiny_bert, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ema") / "run"
    job, recorder = compose(*settings(tiny_bert, text, folder)), RecorderConfig()
    job.callbacks["recorder"] = recorder
    train(job)
    return folder, recorder


def test_the_average_is_validated_kept_and_exported(finished):
    folder, weights = finished[0], finished[1].weights
    average = {name: value.double() for name, value in weights[1].items()}
    averages = {1: average}
    for step in range(2, STEPS + 1):
        average = {n: DECAY * a + (1 - DECAY) * weights[step][n].double() for n, a in average.items()}
        averages[step] = average
    best, last = checkpoint(folder, "best"), checkpoint(folder, "last")
    exported = load_file(folder / "export" / "model.safetensors")
    for name, value in averages[best["global_step"]].items():
        torch.testing.assert_close(best["state_dict"][f"model.{name}"].double(), value, rtol=1e-5, atol=1e-7)
        if name in exported:  # tied weights are there once
            assert torch.equal(exported[name], best["state_dict"][f"model.{name}"])
    for name, value in weights[STEPS].items():
        assert torch.equal(last["current_model_state"][f"model.{name}"], value), "training goes on from its own weights"
    scored = evaluate(folder, split="validation")
    assert scored.loss == pytest.approx(read_json_file(folder / "summary.json")["val/loss"], rel=1e-6)


def test_positions_stay_whole_numbers(finished):
    noted = [{n.rpartition(".")[2]: b for n, b in buffers.items()} for buffers in finished[1].buffers]
    assert len(noted) == 3
    for buffers in noted:
        assert torch.equal(buffers["position_ids"], torch.arange(64)[None])


class Killed(BaseException):
    pass


def killed_after_a_step(self, *args):
    raise Killed


def signalled_in_a_validation(self, *args):
    interrupts.deferred, interrupts.received = True, signal.SIGTERM
    return validation_step(self, *args)


validation_step = LanguageModel.validation_step


@pytest.mark.parametrize(
    ("owner", "hook", "ending", "error"),
    [
        (Telemetry, "on_train_batch_end", killed_after_a_step, Killed),
        (LanguageModel, "validation_step", signalled_in_a_validation, Interrupted),
    ],
)
def test_a_run_that_was_cut_off_ends_with_the_same_average(  # noqa: PLR0913
    owner, hook, ending, error, finished, tiny_bert, text, tmp_path, monkeypatch
):
    original = getattr(owner, hook)

    def at_step_8(self, *args):
        trainer = args[0] if owner is Telemetry else self.trainer
        return ending(self, *args) if trainer.global_step == 8 else original(self, *args)

    job = compose(*settings(tiny_bert, text, tmp_path / "run"))
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(owner, hook, at_step_8)
        train(job)
    interrupts.received = 0
    (tmp_path / "run" / "summary.json").unlink(missing_ok=True)
    train(job)
    for name in ("best", "last"):
        ours, expected = checkpoint(tmp_path / "run", name), checkpoint(finished[0], name)
        for part in ("state_dict", "current_model_state"):
            assert all(torch.equal(ours[part][key], value) for key, value in expected[part].items())
    assert (tmp_path / "run" / "samples.csv").read_text() == (finished[0] / "samples.csv").read_text()


def test_two_devices_have_the_same_average(finished, tiny_bert, text, tmp_path):
    run_job(compose(*settings(tiny_bert, text, tmp_path / "run", "hardware.devices=2")))
    ours, expected = checkpoint(tmp_path / "run", "last"), checkpoint(finished[0], "last")
    for key, value in expected["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][key], value, rtol=1e-3, atol=1e-4)


def test_sharded_models_are_refused():
    job = compose("callbacks=ema", "hardware=cpu", "hardware.strategy=fsdp")
    (problem,) = problems(job)
    assert str(problem).startswith("callbacks=ema: it needs the whole model")
