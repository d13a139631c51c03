"""Activations that are computed again, against autograd's own way of keeping them."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from lightning_lm.models import activations as recompute
from lightning_lm.models.activations import fuse_gelu, recomputed
from lightning_lm.objectives.clm import Clm
from lightning_lm.training import module as training

LAYERS = 3
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 40, "pad_token_id": 0, "hidden_dropout_prob": 0.1}
MODELS = {  # and what is computed again: GELUs or SiLUs, and LayerNorms for each layer that takes them
    "gpt2": ({}, LAYERS, 2 * LAYERS + 1),
    "bert": ({}, LAYERS + 1, LAYERS + 3 * (LAYERS - 1) + 2),  # the embeddings' goes through dropout first
    "bert-relu": ({"hidden_act": "relu"}, 0, LAYERS + 3 * (LAYERS - 1) + 2),
    "llama": ({}, LAYERS, 0),
    "gemma2": ({"head_dim": 8}, LAYERS, 0),
    "gpt_neox": ({}, LAYERS, 2 * LAYERS + 1),
}


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(recompute, "LARGE", dict.fromkeys(recompute.LARGE, 16))


class Count(TorchDispatchMode):
    """How often a GELU or SiLU runs, and a LayerNorm."""

    def __init__(self):
        super().__init__()
        self.calls = self.norms = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls += operator in (torch.ops.aten.gelu.default, torch.ops.aten.silu.default)
        self.norms += operator is torch.ops.aten.native_layer_norm.default
        return operator(*args, **(kwargs or {}))


def make(name):
    kind = name.partition("-")[0]
    config = CONFIG_MAPPING[kind](**SIZES, **MODELS[name][0])
    auto = MODEL_FOR_MASKED_LM_MAPPING if kind == "bert" else MODEL_FOR_CAUSAL_LM_MAPPING
    torch.manual_seed(0)
    return fuse_gelu(auto[type(config)](config)).train()


def step(model, around, precision=torch.float32):
    """The gradients after one step, and how often a nonlinearity and a norm ran during the backward pass."""
    ids = torch.arange(24).reshape(2, 12)
    torch.manual_seed(1)
    with around(model), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = model(input_ids=ids, labels=ids).loss
    with Count() as count:
        loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found, (count.calls, count.norms)


def plain(model):
    return torch.enable_grad()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_to_the_bit(name, precision):
    model = make(name)
    expected, none = step(model, plain, precision)
    found, (nonlinearities, norms) = step(model, recomputed, precision)
    assert none == (0, 0) and nonlinearities == MODELS[name][1]
    assert norms == MODELS[name][2] or precision != torch.float32  # autocast gives the layer a copy
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert step(model, plain, precision)[1] == (0, 0)  # nothing is left on the model


def test_layers_that_are_computed_again_whole():
    model = make("gpt2")
    model.gradient_checkpointing_enable()
    expected, calls = step(model, plain)
    found, again = step(model, recomputed)
    assert calls == (LAYERS, 2 * LAYERS) and again == (LAYERS, 2 * LAYERS + 1)  # and the last norm
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Wide(nn.Module):
    """One nonlinearity, and what is done to its output before the next layer takes it."""

    def __init__(self, between):
        super().__init__()
        self.first, self.act, self.second, self.between = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), between

    def forward(self, x):
        wide = self.act(self.first(x))
        return self.second(self.between(wide))


def gradient(model, around):
    x = torch.linspace(-2, 2, 8).reshape(2, 4)
    with around(model):
        out = model(x)
    with Count() as count:
        out.square().sum().backward()
    return model.first.weight.grad.clone(), count.calls


@pytest.mark.parametrize(
    ("between", "calls"),
    [
        (lambda wide: wide, 1),
        (lambda wide: wide.view(1, 2, 8), 1),
        (lambda wide: wide.mul_(2), 0),  # no longer what the nonlinearity returned
        (lambda wide: wide.flip(0), 0),
        (lambda wide: wide[:1], 0),  # a part of it, at the same address
    ],
)
def test_only_the_output_itself_is_computed_again(between, calls):
    torch.manual_seed(0)
    model = Wide(between)
    expected, _ = gradient(model, plain)
    model.zero_grad()
    found, again = gradient(model, recomputed)
    assert torch.equal(found, expected) and again == calls


@pytest.mark.parametrize("around", [plain, recomputed])
def test_a_tensor_that_was_changed_in_place_is_still_an_error(around):
    model, x = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2)), torch.ones(1, 2)
    with around(model):
        out = model(x).exp()
    out.add_(1)
    with pytest.raises(RuntimeError, match="in.?place"):
        out.sum().backward()


class Sum(nn.Module):
    """A norm whose argument, of which nothing needs the gradient, is changed in place after it."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8)

    def forward(self, x):
        normed = self.norm(x)
        x.add_(1)
        return self.linear(normed)


def test_an_output_whose_argument_has_changed_is_kept():
    torch.manual_seed(0)
    model, x = Sum(), torch.randn(4, 8)
    found = []
    for around in (plain, recomputed):
        model.zero_grad()
        with around(model):
            out = model(x.clone())
        with Count() as count:
            out.sum().backward()
        assert count.norms == 0
        found.append(model.linear.weight.grad)
    assert torch.equal(*found)


def test_what_no_backward_pass_asks_for_is_freed():
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Softmax(-1)), torch.ones(1, 2)
    with recomputed(model):
        hidden = model[1](model[0](x))
        living = weakref.ref(model[2](hidden)), weakref.ref(hidden.untyped_storage())
    del hidden
    assert [kept() for kept in living] == [None, None]  # at once: cycles through C++ are never collected


class CudaNorm(nn.LayerNorm):
    """What autocast makes of a LayerNorm on a GPU: float32 from any type."""

    def forward(self, x):
        return super().forward(x.float() if torch.is_autocast_enabled("cpu") else x.to(self.weight.dtype))


def test_a_norm_that_autocast_lets_return_another_type_is_kept(monkeypatch):
    monkeypatch.setitem(recompute.LARGE, CudaNorm, 1)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), CudaNorm(8)), torch.randn(4, 8)
    for around in (plain, recomputed):
        with around(model), torch.autocast("cpu", torch.bfloat16):
            out = model(x).sin()
        with Count() as count:
            out.sum().backward()
        assert out.dtype == torch.float32 and count.norms == 0


def test_only_batches_that_may_have_large_activations_take_the_hooks(monkeypatch):
    entered = []
    monkeypatch.setattr(recompute, "LARGE", dict.fromkeys(recompute.LARGE, 40 * 48))  # a GELU's of 48 positions
    monkeypatch.setattr(training, "recomputed", lambda model: entered.append(model) or recomputed(model))
    model = make("gpt2")
    module, again = training.LanguageModel(model, Clm()), []
    for blocks in (2, 1, 2, 4, 2, 4):
        ids = torch.arange(12 * blocks).reshape(blocks, 12)
        loss = module._nll({"input_ids": ids, "labels": ids, "num_labels": ids.numel()}, 0)
        with Count() as count:
            loss.backward()
        again.append((len(entered), count.calls))
    assert again == [(1, 0), (1, 0), (1, 0), (2, LAYERS), (2, 0), (3, LAYERS)]
