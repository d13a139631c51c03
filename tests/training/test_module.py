"""The norm of the gradients, and so the clip, against float64."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_lm.objectives.clm import Clm
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
