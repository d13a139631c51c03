"""What a step does beside the loss: the norm of the gradients against float64, and masks that training goes without."""

import itertools
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_lm.objectives.clm import Clm
from lightning_lm.training.control import StepSeed
from lightning_lm.training.module import LanguageModel


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_gradient_norm_and_clip_are_right_with_a_large_vocabulary(dtype, rounding):
    config = AutoConfig.for_model("gpt2", vocab_size=30522, n_embd=64, n_layer=1, n_head=2, n_positions=8)
    module = LanguageModel(AutoModelForCausalLM.from_config(config, dtype=dtype), Clm())
    parameters = list(module.parameters())
    torch.manual_seed(0)
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** -(number % 5)

    def norm():
        return float(torch.cat([p.grad.double().flatten() for p in parameters]).norm())

    expected = norm()
    module.configure_gradient_clipping(torch.optim.SGD(parameters, lr=1.0), 0.5)
    assert float(module.gradient_norm) == pytest.approx(expected, rel=1e-6) and expected > 100
    assert norm() == pytest.approx(0.5, rel=rounding)  # in bfloat16 the clipped gradients are rounded


def test_each_step_micro_batch_and_rank_has_a_dropout_of_its_own():
    """Also a seed has; nothing that was drawn before has a say."""
    drawn, module = {}, SimpleNamespace(device=torch.device("cpu"))
    for place in itertools.product((0, 1), (6, 7), (0, 1), (0, 1), (0, 0)):
        seed, step, micro_batch, rank, _ = place
        trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=2, global_rank=rank)
        torch.rand(step + 1)
        StepSeed(seed).on_train_batch_start(trainer, module, None, 2 * step + micro_batch)
        drawn.setdefault(place[:-1], set()).add(tuple(torch.rand(4).tolist()))
    assert {len(values) for values in drawn.values()} == {1}
    assert len(set.union(*drawn.values())) == len(drawn) == 16


def test_training_goes_without_masks_and_evaluation_has_them_back(tiny_gpt2, tmp_path):
    module = LanguageModel(AutoModelForCausalLM.from_pretrained(tiny_gpt2), Clm())
    seen = set()

    def note(layer, *_):
        seen.add((layer.training, module.model.config._attn_implementation))

    ids = torch.arange(16).view(2, 8)
    sizes = {"num_labels": torch.tensor(16), "words": torch.tensor(2.0), "bytes": torch.tensor(9.0)}
    batches = DataLoader([{"input_ids": ids, "labels": ids, **sizes}], batch_size=None)
    module.model.transformer.h[0].register_forward_pre_hook(note)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, use_distributed_sampler=False
    )  # fmt: skip
    trainer.fit(module, batches, batches)
    assert seen == {(True, "sdpa_unmasked"), (False, "sdpa"), (False, "sdpa_unmasked")}  # the last: when it is tried
    assert module.needs_no_mask
