"""Batches: what a step holds and how many labels it counts do not depend on how it is dealt out."""

import numpy as np
import pytest
import torch
from conftest import compose
from resumable import settings
from tiny import part_of, write_text

from lightning_lm.data.batches import Batches
from lightning_lm.data.masking import Masking
from lightning_lm.data.token_stream import TokenStream
from lightning_lm.data.windows import BatchPlan, Windows
from lightning_lm.objectives.clm import Clm
from lightning_lm.objectives.mlm import Mlm
from lightning_lm.training.components import build

SAMPLES, SIZE, GLOBAL = 22, 16, 8  # the third step of an epoch has six samples

OBJECTIVES = {
    "clm": Clm(),
    "mlm": Mlm(Masking(0.15, False, mask_id=4, vocab_size=1000, special_ids=(0, 1, 2, 3, 4))),
    "whole_word": Mlm(Masking(0.15, True, mask_id=4, vocab_size=1000, special_ids=(0, 1, 2, 3, 4))),
}


def batches(objective: str, accumulate: int, world_size: int, rank: int, seed: int = 1) -> Batches:
    draw, n = np.random.default_rng(0), SAMPLES * SIZE + 3
    stream = TokenStream(
        tokens=draw.integers(0, 1000, n).astype(np.uint16),
        word_starts=(np.arange(n) % 3 == 0).astype(np.uint8),
        row_ends=np.array([n]),
        words=np.array([n]),
        bytes=np.array([n]),
        counts={},
        key="",
    )
    plan = BatchPlan(SAMPLES, GLOBAL, accumulate, world_size)
    return Batches(Windows(stream, SIZE, SIZE, whole=True), OBJECTIVES[objective], plan, rank, seed, pad_id=0)


def step(objective: str, number: int, accumulate: int, world_size: int, epoch: int = 0, seed: int = 1):
    """Inputs and labels of the step's blocks that have labels, from all ranks and micro batches; what these count."""
    ranks = [batches(objective, accumulate, world_size, rank, seed) for rank in range(world_size)]
    parts = [rank[epoch, number * accumulate + micro] for micro in range(accumulate) for rank in ranks]
    inputs, labels = (torch.cat([part[name] for part in parts]) for name in ("input_ids", "labels"))
    used = (labels != -100).any(1)  # a rank without a block of its own gets one without labels
    return inputs[used], labels[used], {int(part["num_labels"]) for part in parts}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("number", [0, 2])
def test_a_step_is_the_same_however_it_is_dealt_out(objective, number):
    inputs, labels, counted = step(objective, number, 1, 1)
    assert counted == {int((labels != -100).sum())} and max(counted) > 0
    for accumulate, world_size in [(2, 1), (1, 2), (2, 2), (4, 2)]:
        others = step(objective, number, accumulate, world_size)
        assert torch.equal(others[0], inputs) and torch.equal(others[1], labels) and others[2] == counted


def test_epochs_and_seeds_differ_and_repeat():
    first = step("mlm", 0, 1, 1)
    assert torch.equal(first[0], step("mlm", 0, 1, 1)[0])
    assert not torch.equal(first[0], step("mlm", 0, 1, 1, epoch=1)[0])
    assert not torch.equal(first[0], step("mlm", 0, 1, 1, seed=2)[0])


def test_a_file_of_two_splits_is_told(tiny_gpt2, text, tmp_path, caplog):
    """By its content: the second has another name."""
    (tmp_path / "train").mkdir()
    for seed, name in enumerate("ab"):
        write_text(tmp_path / "train" / f"{name}.txt", lines=50, seed=seed)
    held_out, other = part_of(text), write_text(tmp_path / "c.txt", lines=50, seed=1)
    files = [f"data.train='{tmp_path}/train/*.txt'", f"data.validation=[{other},{held_out}]", f"data.test={held_out}"]
    build(compose(*settings(tiny_gpt2, text, tmp_path / "run", *files))).data.check_apart()
    warnings = [record.message for record in caplog.records if "figures" in record.message]
    assert warnings == [
        f"data.validation: {other} is in data.train, too: its figures say little about new text",
        f"data.test: {held_out} is in data.validation, too: its figures say little about new text",
    ]
