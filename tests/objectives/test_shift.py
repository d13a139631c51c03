"""Masked next-token prediction, and the mixture with causal blocks: against a walk over the tokens."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from lightning_lm.data.batches import Batches, counts
from lightning_lm.data.masking import Masking, key, uniform
from lightning_lm.data.token_stream import TokenStream
from lightning_lm.data.windows import BatchPlan, Windows, order
from lightning_lm.errors import Refused
from lightning_lm.models.attention import on_both_sides
from lightning_lm.objectives.clm import Clm
from lightning_lm.objectives.hybrid import Hybrid
from lightning_lm.objectives.mlm import Mlm

SAMPLES, SIZE, GLOBAL = 22, 16, 8  # the third step of an epoch has six samples
MASK, TOKENS = 4, np.random.default_rng(0).integers(0, 1000, SAMPLES * SIZE + 3).astype(np.uint16)
MASKED = Mlm(Masking(0.3, False, mask_id=MASK, vocab_size=1000, special_ids=(0, 1, 2, 3, MASK)), shift=1)
STREAM = TokenStream(TOKENS, np.ones(len(TOKENS), np.uint8), *(np.array([len(TOKENS)]),) * 3, {}, "")
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}


def mixture(ratio=0.5, weigh="blocks"):
    return Hybrid(masked=MASKED, ratio=ratio, weigh=weigh)


def batches(objective, accumulate=1, world_size=1, rank=0, seed=1):
    plan = BatchPlan(SAMPLES, GLOBAL, accumulate, world_size)
    windows = Windows(STREAM, SIZE, SIZE if seed is not None else objective.stride(SIZE), whole=seed is not None)
    if seed is None:
        plan = BatchPlan(len(windows), GLOBAL, accumulate, world_size)
    return Batches(windows, objective, plan, rank, seed, pad_id=0)


def masked_by_hand(begin, mask_key):
    """Of the block that begins there: position → the token that the output before it has to tell."""
    special = (0, 1, 2, 3, MASK)
    places = range(begin + 1, min(begin + SIZE, len(TOKENS)))  # before the first token there is no output
    chosen = [at for at in places if uniform(mask_key, np.array([at]))[0] < 0.3 and TOKENS[at] not in special]
    return {at - begin: int(TOKENS[at]) for at in chosen}


@pytest.mark.parametrize("seed", [1, None])
def test_a_masked_token_is_the_label_of_the_output_before_it(seed):
    of_epoch = key(1, 1, 0) if seed else key(2)
    stride, seen = (SIZE if seed else SIZE - 1), []
    for step in range(3):
        batch = batches(MASKED, seed=seed)[0, step]
        blocks = np.arange(GLOBAL * step, GLOBAL * (step + 1))
        blocks = order(SAMPLES, 1, 0)[blocks[blocks < SAMPLES]] if seed else blocks
        for inputs, labels, block in zip(batch["input_ids"], batch["labels"], blocks, strict=True):
            tokens = TOKENS[block * stride : block * stride + SIZE]
            expected = masked_by_hand(block * stride, of_epoch)
            assert {at + 1: int(label) for at, label in enumerate(labels) if label != -100} == expected
            same = [i for i in range(len(tokens)) if i not in expected]
            assert inputs[same].tolist() == tokens[same].tolist(), "nothing else is corrupted"
            seen += [int(inputs[at]) == MASK for at in expected]
    assert 0.7 < np.mean(seen) < 0.9, "80 % are masked"


def test_with_overlapping_windows_each_masked_token_is_scored_once():
    objective, stride = MASKED.for_overlapping_windows(), 5
    windows = Windows(STREAM, SIZE, stride)
    found = Batches(windows, objective, BatchPlan(len(windows), len(windows), 1, 1), 0, None, 0)[0, 0]
    scored = {}
    for number, (inputs, labels) in enumerate(zip(found["input_ids"].tolist(), found["labels"].tolist(), strict=True)):
        begin, expected = number * stride, masked_by_hand(number * stride, key(2))
        for at in range(SIZE):
            if at not in expected and begin + at < len(TOKENS):
                assert inputs[at] == TOKENS[begin + at]
        for at, label in enumerate(labels):
            if label != -100:
                assert begin + at + 1 not in scored and expected[at + 1] == label
                scored[begin + at + 1] = label
    whole = {at: int(TOKENS[at]) for at in range(1, len(TOKENS)) if uniform(key(2), np.array([at]))[0] < 0.3}
    assert scored == {at: token for at, token in whole.items() if token > MASK}, "special tokens have the lowest ids"


def of_step(objective, step, accumulate=1, world_size=1):
    """The parts of a step from all ranks and micro batches."""
    made = []
    for rank in range(world_size):
        of_rank = batches(objective, accumulate, world_size, rank)
        for micro in range(step * accumulate, (step + 1) * accumulate):
            first = of_rank[0, micro]
            made += [first, *first["others"]]
    return made


@pytest.mark.parametrize("step", [0, 2])
def test_a_block_has_the_same_kind_however_it_is_dealt_out(step):
    def rows(parts):
        return sorted(
            (part["kind"], inputs, labels)
            for part in parts
            for inputs, labels in zip(part["input_ids"].tolist(), part["labels"].tolist(), strict=True)
            if any(label != -100 for label in labels)
        )

    def sizes(parts):
        return {(part["kind"], int(part["num_labels"]), part["weight"]) for part in parts}

    alone = of_step(mixture(), step)
    begins = order(SAMPLES, 1, 0)[GLOBAL * step : GLOBAL * (step + 1)] * SIZE
    kinds = [int(draw < 0.5) for draw in uniform(key(int(key(1, 1, 0)), 1), begins)]
    labels = [part["kind"] for part in alone for label in part["labels"].flatten().tolist() if label != -100]
    assert sizes(alone) == {(kind, labels.count(kind), kinds.count(kind) / len(kinds)) for kind in (0, 1)}
    for accumulate, world_size in [(2, 1), (1, 2), (2, 2), (8, 1), (4, 2)]:
        parts = of_step(mixture(), step, accumulate, world_size)
        assert rows(parts) == rows(alone) and sizes(parts) == sizes(alone)


def test_each_kind_is_collated_as_by_itself():
    for part in of_step(mixture(), 1):
        alone = batches(MASKED if part["kind"] else Clm())[0, 1]
        rows = {tuple(i): tuple(o) for i, o in zip(alone["input_ids"].tolist(), alone["labels"].tolist(), strict=True)}
        assert all(
            rows[tuple(i)] == tuple(o) for i, o in zip(part["input_ids"].tolist(), part["labels"].tolist(), strict=True)
        )


def test_ratio_weights_and_another_epoch():
    windows = Windows(STREAM, SIZE, SIZE, whole=True).take(np.arange(SAMPLES))
    blocks = {ratio: counts(mixture(ratio), windows, key(1), None)[1].tolist() for ratio in (0.0, 0.5, 1.0)}
    assert blocks[0.0] == [SAMPLES, 0] and blocks[1.0] == [0, SAMPLES] and 5 < blocks[0.5][0] < 17
    draws = [uniform(key(int(key(1, 0, epoch)), 1), np.arange(10_000)) < 0.3 for epoch in (0, 1)]
    assert draws[0].mean() == pytest.approx(0.3, abs=0.02) and (draws[0] != draws[1]).any()
    labels, of_blocks = np.array([90, 30]), np.array([6, 2])
    assert mixture().weights(labels, of_blocks).tolist() == [0.75, 0.25]
    assert mixture(weigh="labels").weights(np.array([90, 10]), of_blocks).tolist() == [0.9, 0.1]


def test_evaluation_has_all_windows_of_both_kinds():
    batch = batches(mixture(), seed=None)[0, 0]
    (masked,) = batch["others"]
    assert (batch["kind"], masked["kind"]) == (0, 1)
    for part, objective in ((batch, Clm()), (masked, MASKED)):
        expected = batches(objective, seed=None)[0, 0]
        assert torch.equal(part["input_ids"], expected["input_ids"]) and torch.equal(part["labels"], expected["labels"])


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_one_model_has_the_attention_of_both_classes(name):
    torch.manual_seed(0)
    causal = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, is_decoder=True, **TINY)).eval()
    masked = AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **TINY)).eval()
    masked.load_state_dict(causal.state_dict())
    mixture().check_model(causal)
    ids = torch.arange(5, 29).view(2, 12)
    for mask in (None, torch.tensor([[1] * 12, [1] * 9 + [0] * 3])):
        before = causal(input_ids=ids, attention_mask=mask).logits
        with on_both_sides(causal):
            assert torch.equal(causal(input_ids=ids, attention_mask=mask).logits, masked(ids, mask).logits)
        assert torch.equal(causal(input_ids=ids, attention_mask=mask).logits, before)
        assert not torch.allclose(before, masked(ids, mask).logits)


def test_what_cannot_look_at_both_sides_is_refused():
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 99, "state_size": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **fields))
    with pytest.raises(Refused, match="objective=hybrid: mamba can't look at what follows a token; choose"):
        mixture().check_model(model)
    with pytest.raises(Refused, match="objective=hybrid: bert looks at the tokens that it should predict; set"):
        mixture().check_model(AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **TINY)))
