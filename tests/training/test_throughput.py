"""Telemetry against what can be counted by hand."""

import time

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from lightning_lm.models.flops import flops_per_token, peak_flops
from lightning_lm.models.output_head import find_head
from lightning_lm.training.throughput import WaitClock

N, T, WIDTH, LAYERS, VOCABULARY = 2, 16, 32, 3, 97
BODY = LAYERS * (2 * 12 * WIDTH**2 + 2 * 2 * T * WIDTH)  # per token, forwards: matrices; scores and their use


def batch_with(labelled):
    ids = torch.arange(N * T).view(N, T) % VOCABULARY
    return {"input_ids": ids, "labels": torch.where(torch.arange(T) < labelled, ids, -100)}


def test_flops_of_gpt2_are_those_of_its_matrices():
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=T, attn_implementation="eager"
    )
    model = GPT2LMHeadModel(config).train()
    found = flops_per_token(model, find_head(model), batch_with(labelled=T))
    assert found == pytest.approx(
        3 * (BODY + 2 * WIDTH * VOCABULARY), rel=2e-2
    )  # one more row of logits, for form's sake
    assert model.training


def test_of_a_masked_model_only_the_labelled_positions_meet_the_last_feed_forward_layer_and_the_vocabulary():
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        attn_implementation="eager",
    )
    model = BertForMaskedLM(config)
    found = flops_per_token(model, find_head(model), batch_with(labelled=4))
    feed_forward, head = 16 * WIDTH**2, 2 * WIDTH**2 + 2 * WIDTH * VOCABULARY
    assert found == pytest.approx(3 * (BODY - feed_forward + (feed_forward + head) * 4 / T), rel=2e-2)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", 156e12),
        ("NVIDIA H100 80GB HBM3", "bf16-true", 989e12),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756e12),
        ("NVIDIA L4", "16-mixed", 121e12),
        ("NVIDIA L40", "16-mixed", None),
        ("Tesla T4", "16-mixed", 65e12),
        ("Tesla T4", "32-true", None),
        ("Tesla V100-SXM2-16GB", "16-mixed", 125e12),
        ("Tesla V100-PCIE-32GB", "16-mixed", 112e12),
        ("NVIDIA A100 80GB PCIe", "bf16-mixed", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16-mixed", None),
        ("NVIDIA GeForce RTX 3090", "bf16-mixed", 71e12),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16-mixed", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed", None),
        ("NVIDIA A10-24Q", "bf16-mixed", None),
        ("Some accelerator", "bf16-mixed", None),
    ],
)
def test_a_device_that_is_not_known_has_no_peak(device, precision, expected):
    assert peak_flops(device, precision, tf32=True) == expected
    assert precision != "32-true" or peak_flops(device, precision, tf32=False) is None


class Slow(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        time.sleep(0.05)
        return torch.ones(1)


class Quick(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        time.sleep(0.1)
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_clock_counts_waiting_and_nothing_else(tmp_path):
    clock = WaitClock()
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=clock,
    )
    started = time.monotonic()
    trainer.fit(Quick(), DataLoader(Slow(), batch_size=1))
    assert 5 * 0.05 <= clock.seconds <= time.monotonic() - started - 5 * 0.1
