"""GPT-2 against BERT: what the two recipes of a pair have in common, and the durations that hold one thing equal."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import compose

from lightning_lm.data.windows import order
from lightning_lm.errors import Refused
from lightning_lm.training.components import build, total_steps
from lightning_lm.training.probe import show_plan

SMALL = ("model.vocab_size=800", "data.block_size=32", "hardware=cpu")
BLOCK, STEP = 32, 16  # tokens of a block, blocks of a step


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    cache = tmp_path_factory.mktemp("pair")
    jobs = [compose(f"experiment={name}", *SMALL, f"data.cache_dir={cache}") for name in ("pair_clm", "pair_mlm")]
    return jobs, [build(job) for job in jobs]


@pytest.mark.parametrize("size", ["", "_base"])
def test_the_recipes_differ_in_attention_and_objective_alone(size):
    causal, masked = (compose(f"experiment=pair_{side}{size}") for side in ("clm", "mlm"))
    assert causal.model.config.pop("is_decoder") is True
    names = {row.name for row in dataclasses.fields(causal)} - {"name", "run_dir", "objective"}
    assert [name for name in names if getattr(causal, name) != getattr(masked, name)] == []


def test_hybrid_and_biphasic_train_as_long_as_the_pair():
    hybrid, second = (
        compose("experiment=pair_hybrid"),
        compose("experiment=pair_biphasic", "model.name_or_path=some/run"),
    )
    for other, side in ((hybrid, "clm"), (second, "mlm")):
        job = compose(f"experiment=pair_{side}")
        names = {row.name for row in dataclasses.fields(job)} - {"name", "run_dir", "objective"}
        differing = {name for name in names if getattr(job, name) != getattr(other, name)}
        assert differing == (set() if side == "clm" else {"model", "trainer"})
    half = dataclasses.replace(second.trainer, max_epochs=2 * second.trainer.max_epochs)
    assert half == hybrid.trainer, "the second of two phases"


def test_the_parameters_are_the_same_and_load_across(pair):
    causal, masked = (parts.model for parts in pair[1])
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (causal, masked)]
    assert shapes[0] == shapes[1] and causal.num_parameters() == masked.num_parameters()
    assert (type(causal).__name__, type(masked).__name__) == ("BertLMHeadModel", "BertForMaskedLM")
    assert all(torch.equal(p, masked.state_dict()[name]) for name, p in causal.state_dict().items()), "the same draw"
    masked.load_state_dict(causal.state_dict())


def test_only_the_causal_model_sees_no_later_token(pair):
    ids = torch.arange(8).repeat(2, 1) + 10
    ids[1, -1] = 5
    for parts, blind in zip(pair[1], (True, False), strict=True):
        one, other = parts.model.eval()(input_ids=ids).logits[:, :-1]
        assert torch.allclose(one, other, atol=1e-5) == blind


def test_the_blocks_are_the_same_in_the_same_order(pair):
    causal, masked = (parts.data for parts in pair[1])
    assert np.array_equal(causal.streams["train"].tokens, masked.streams["train"].tokens)
    tokens, plan = causal.streams["train"].tokens.astype(np.int64), causal.plan("train")
    for epoch, step in ((0, 0), (0, 7), (2, 3)):
        blocks = order(plan.samples, 0, epoch)[step * STEP : (step + 1) * STEP]
        expected = torch.from_numpy(np.stack([tokens[i * BLOCK : (i + 1) * BLOCK] for i in blocks]))
        first, second = (d._batches("train", d.plan("train"), rank=0)[epoch, step] for d in (causal, masked))
        assert torch.equal(first["input_ids"], expected)
        chosen = second["labels"] != -100
        assert torch.equal(torch.where(chosen, second["labels"], second["input_ids"]), expected)


def test_what_a_token_costs(pair):
    """By hand: 12·width² products a layer and token, scores and their use, and the head's two matrices."""
    causal, masked = (parts.costs for parts in pair[1])
    width, layers, vocabulary = 192, 4, pair[1][0].model.config.vocab_size
    assert causal.flops_layers == masked.flops_layers == 6 * layers * (12 * width**2 + 2 * BLOCK * width)
    of_label = 6 * width * (width + vocabulary)
    assert causal.labels == (BLOCK - 1) / BLOCK and masked.labels == pytest.approx(0.15 * 0.87, rel=0.1)
    assert [cost.flops_head / cost.labels for cost in (causal, masked)] == pytest.approx([of_label] * 2)
    data, labels = pair[1][1].data, 0
    for micro in range(data.plan("train").steps):
        labels += len(data._batches("train", data.plan("train"), rank=0)[0, micro]["labelled"])
    assert masked.of(data.plan("train").samples * BLOCK)["labels_seen"] == labels, "of the first epoch, all are counted"


@pytest.mark.parametrize("side", [0, 1])
def test_durations_that_hold_labels_or_arithmetic(pair, side):
    job, parts = pair[0][side], pair[1][side]
    costs, plan = parts.costs, parts.data.plan("train")

    def tokens(**durations) -> int:
        trainer = dataclasses.replace(job.trainer, max_epochs=None, **durations)
        return plan.samples_seen(total_steps(trainer, parts.data, costs)) * BLOCK

    for labels in (1000, 300_000):
        found = tokens(max_labels=labels) * costs.labels
        assert labels <= found < labels + (STEP + 1) * BLOCK
    per_token = costs.flops_layers + costs.flops_head
    assert 1e12 <= tokens(max_flops=1e12) * per_token < 1e12 + (STEP + 1) * BLOCK * per_token
    assert tokens(max_flops=1e12, max_tokens=600) == math.ceil(600 / (BLOCK * STEP)) * BLOCK * STEP, "the first one"
    with pytest.raises(Refused, match=r"trainer\.max_labels=5: the training text has no labels"):
        total_steps(dataclasses.replace(job.trainer, max_labels=5), parts.data, dataclasses.replace(costs, labels=0))


def test_the_plan_tells_what_a_step_costs(pair, tmp_path):
    told, costs = show_plan(pair[0][0], pair[1][0], tmp_path), pair[1][0].costs
    assert f"a step: 496 labels, {costs.flops_layers * 512:.3g} FLOPs in the layers" in told
