"""A run that goes on from another one's weights under the other objective."""

import json
import shutil

import pytest
import torch
from conftest import compose
from resumable import assert_equal
from safetensors.torch import load_file

from lightning_lm.errors import Refused
from lightning_lm.run import train
from lightning_lm.training.components import build
from lightning_lm.training.trainer import build_callbacks, build_module

SMALL = (
    "model.vocab_size=800", "model.config.hidden_size=32", "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2", "model.config.intermediate_size=64",
)  # fmt: skip
QUICK = (
    "data.block_size=32", "objective.prompts=[]", "hardware=cpu", "logger=none", "trainer.max_steps=4",
    "trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """The settings of a second phase, and the folder of the first one, which is causal."""
    folder = tmp_path_factory.mktemp("phases")
    quick = (*QUICK, f"data.cache_dir={folder / 'cache'}")
    train(compose("experiment=pair_clm", *SMALL, *quick, f"run_dir={folder / 'first'}"))
    second = ("experiment=pair_biphasic", f"model.name_or_path={folder / 'first'}", *quick)
    return second, folder / "first"


def test_the_second_phase_begins_with_the_weights_of_the_first(phases, tmp_path):
    second, first = phases
    parts = build(compose(*second, f"run_dir={tmp_path / 'run'}"))
    assert (type(parts.model).__name__, parts.model.config.is_decoder) == ("BertForMaskedLM", False)
    saved = load_file(first / "export" / "model.safetensors")
    state = parts.model.state_dict()
    assert saved and all(torch.equal(state[name], value) for name, value in saved.items())
    train(compose(*second, f"run_dir={tmp_path / 'run'}", "optimizer.carry_state=true"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 4)
    states = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert {int(s["step"]) for s in states[0]["members"][1]["state"].values()} == {8}, "of AdamW, over both phases"


@pytest.mark.parametrize("carried", [True, False])
def test_the_optimizer_goes_on_by_choice(carried, phases, tmp_path):
    second, first = phases
    more = (f"optimizer.carry_state={carried}", "optimizer.lr=0.5", f"run_dir={tmp_path / 'run'}")
    job = compose(*second, *more)
    parts = build(job)
    module = build_module(job, parts, build_callbacks(job, parts, tmp_path).budget)
    optimizer = module.configure_optimizers()["optimizer"]
    (theirs,) = torch.load(first / "checkpoints" / "best.ckpt", weights_only=True)["optimizer_states"]
    for mine, saved in zip(optimizer.state_dict()["members"], theirs["members"], strict=True):
        assert_equal(mine["state"], saved["state"] if carried else {})
    assert optimizer.param_groups[0]["initial_lr"] == 0.5, "the new run's"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["optimizer=adamw"], "best.ckpt: it has the state of another optimizer, or of other groups"),
        (["optimizer.groups=[{decay: false}]"], "best.ckpt: it has the state of another optimizer, or of other groups"),
        (
            ["model.pretrained=false"],
            "the weights that training begins with are no run's; name a run",
        ),
        (["hardware.strategy=fsdp"], "not tried with hardware.strategy=fsdp"),
        (["objective=clm"], "objective=clm: bert looks at the tokens"),
    ],
)
def test_what_is_refused(more, told, phases, tmp_path):
    second, _ = phases
    decoder = ["model.config.is_decoder=false"] if more == ["objective=clm"] else []
    with pytest.raises(Refused, match=told):
        train(compose(*second, "optimizer.carry_state=true", f"run_dir={tmp_path / 'run'}", *more, *decoder))
    assert not (tmp_path / "run").exists()


def test_a_sweeps_run_has_no_state_to_carry(phases, tmp_path):
    second, first = phases
    best = shutil.copytree(first, tmp_path / "first") / "checkpoints" / "best.ckpt"
    torch.save({**torch.load(best, weights_only=True), "optimizer_states": []}, best)
    more = ("optimizer.carry_state=true", f"model.name_or_path={tmp_path / 'first'}", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(Refused, match="a sweep has kept only its weights; trainer.keep_checkpoints=true keeps all"):
        train(compose(*second, *more))
