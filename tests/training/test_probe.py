"""One pass before anything is spent finds what no attribute tells, and changes nothing."""

import random

import numpy as np
import pytest
import torch
from conftest import compose
from resumable import settings

from lightning_lm.errors import Refused
from lightning_lm.run import train
from lightning_lm.runs.folder import write_json
from lightning_lm.training import fit, probe
from lightning_lm.training.components import build


@pytest.fixture
def job(dropping, text, tmp_path):
    return compose(*settings(dropping, text, tmp_path / "sweep" / "0", "trainer.max_steps=2"))


def states():
    return torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in np.random.get_state()]


def test_random_states_and_gradients_stay_as_they_were(job, tmp_path):
    components = build(job)
    weights = {name: p.detach().clone() for name, p in components.model.named_parameters()}
    before = states()
    probe.probe(job, components, tmp_path / "run")
    assert states() == before
    for name, parameter in components.model.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, weights[name])


def test_positions_that_no_attribute_tells(job, tmp_path):
    components = build(job)
    components.model.transformer.wpe = torch.nn.Embedding(40, components.model.config.n_embd)
    with pytest.raises(Refused, match="data.block_size=64: the model fails on blocks of this length"):
        probe.probe(job, components, tmp_path / "run")


def test_a_loss_that_is_no_number(job, tmp_path):
    components = build(job)
    torch.nn.init.constant_(components.model.transformer.ln_f.weight, float("inf"))
    with pytest.raises(Refused, match="model=.*: its loss is nan before the first step"):
        probe.probe(job, components, tmp_path / "run")


def test_memory_names_the_setting_to_lower(job, tmp_path, monkeypatch):
    def allocate(*_):
        torch.empty(2**58)

    monkeypatch.setattr(probe, "labelled_nll", allocate)
    with pytest.raises(Refused, match="hardware.micro_batch_size=4: memory is short for a pass with 4 blocks .*"):
        probe.probe(job, build(job), tmp_path / "run")


def test_it_is_done_once_for_a_models_shape_and_not_on_a_resume(job, tmp_path, monkeypatch):
    passes, original = [], probe._pass
    monkeypatch.setattr(probe, "_pass", lambda *arguments: passes.append(1) or original(*arguments))
    (tmp_path / "sweep").mkdir()
    write_json(tmp_path / "sweep" / "sweep.json", {})
    components = build(job)
    for folder in ("0", "1"):
        probe.probe(job, components, tmp_path / "sweep" / folder)
    assert len(passes) == 1
    job.data.block_size = 32
    probe.probe(job, build(job), tmp_path / "sweep" / "2")
    assert len(passes) == 2
    train(job)
    (tmp_path / "sweep" / "0" / "summary.json").unlink()
    asked = []
    monkeypatch.setattr(fit, "probe", lambda *_: asked.append(1))
    train(job)
    assert not asked


def test_only_the_first_job_of_a_sweep_shows_what_all_have(job, tmp_path, capsys):
    (tmp_path / "sweep").mkdir()
    write_json(tmp_path / "sweep" / "sweep.json", {})
    for name in ("0", "1"):
        job.run_dir = str(tmp_path / "sweep" / name)
        train(job)
        assert "the first block: " in (tmp_path / "sweep" / name / "train.log").read_text(encoding="utf-8")
    console = capsys.readouterr().err
    assert [console.count(text) for text in ("line ends", "the first block", "parameters  rule", "step 2:")] == [
        1,
        1,
        1,
        2,
    ]


def test_a_step_has_no_more_blocks_than_the_text(job, tmp_path):
    job.trainer.global_batch_size, job.hardware.micro_batch_size = 4000, None
    components = build(job)
    blocks = len(components.data.windows("train"))
    assert f"of {blocks * 64:,} tokens each\n" in probe.show_plan(job, components, tmp_path / "run")


def test_the_plan_and_the_first_block_are_told(job, capsys):
    train(job)
    told = capsys.readouterr().err
    assert "2 steps, of 512 tokens each\n" in told and "GB are free" in told
    assert "the first block: " in told
