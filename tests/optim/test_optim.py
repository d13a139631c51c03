"""Who decays, who updates, and where the learning rate ends."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from lightning_lm.optim.groups import build_optimizer, sort_parameters
from lightning_lm.optim.muon import Muon, layouts, orthogonalise
from lightning_lm.optim.schema import GroupConfig, MuonConfig, SchedulerConfig, build_scheduler

PLAIN = [GroupConfig(ndim=1, decay=False), GroupConfig()]
MUON = [
    GroupConfig(ndim=1, decay=False),
    GroupConfig("wte|wpe|embed|head|decoder"),
    GroupConfig(ndim=2, optimizer="muon"),
    GroupConfig(),
]


def muon(table, betas):
    return MuonConfig(lr=0.02, adamw_lr=1e-3, weight_decay=0.1, betas=betas, groups=table)


def gpt2():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "gpt2", n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0
        )
    )


def bert():
    return AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(
            "bert", num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=50
        )
    )


@pytest.mark.parametrize("model", [gpt2, bert])
@pytest.mark.parametrize("table", [PLAIN, MUON])
def test_every_parameter_is_in_one_group_once(model, table):
    model = model()
    optimizer = build_optimizer(model, muon(table, [0.9, 0.999]))
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert sum(p.numel() for p in grouped) == model.num_parameters()


@pytest.mark.parametrize("model", [gpt2, bert])
def test_decay_is_what_the_transformers_trainer_decays(model, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = model()
    expected = set(Trainer(model, TrainingArguments(tmp_path)).get_decay_parameter_names(model))
    rows = sort_parameters(model, PLAIN)
    assert {name for row, members in rows for name, _ in members if row.decay} == expected & {
        name for name, _ in model.named_parameters()
    }


def test_a_parameter_that_no_row_fits_is_an_error():
    with pytest.raises(ValueError, match="transformer.wte.weight"):
        sort_parameters(gpt2(), [GroupConfig(ndim=1)])


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32)])
def test_weights_as_they_are_stored_take_the_steps_of_torchs_muon_in_float32(shape, monkeypatch):
    """Bit for bit; so did the code before ``layout_aware``."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    torch.manual_seed(0)
    weights = torch.randn(shape)
    ours, theirs = nn.Parameter(weights.clone()), nn.Parameter(weights.clone())
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = Muon([ours], {}, **settings), torch.optim.Muon([theirs], **settings)
    for _ in range(5):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)
    before = build_optimizer(gpt2(), MuonConfig(layout_aware=False))
    assert not next(member for member in before.members if isinstance(member, Muon)).layouts


def test_each_matrix_of_a_layer_takes_the_step_of_its_singular_vectors():
    """Two steps in float64 by the papers: momentum, U·Vᵀ, a rate that grows with √(fan-out / fan-in) above 1."""
    layer = gpt2().transformer.h[0]
    weights = {  # stored [in, out], each with the columns that make one matrix
        layer.attn.c_attn.weight: [slice(0, 32), slice(32, 64), slice(64, 96)],
        layer.attn.c_proj.weight: [slice(0, 32)],
        layer.mlp.c_fc.weight: [slice(0, 128)],
        layer.mlp.c_proj.weight: [slice(0, 32)],
    }
    lr, momentum, decay = 0.02, 0.95, 0.1
    before = {weight: weight.detach().double() for weight in weights}
    optimizer = Muon(list(weights), layouts(layer), lr=lr, momentum=momentum, weight_decay=decay)
    for group in optimizer.param_groups:
        group["ns_coefficients"], group["ns_steps"] = (15 / 8, -10 / 8, 3 / 8), 40  # these converge to U·Vᵀ itself
    buffers = {weight: torch.zeros_like(value) for weight, value in before.items()}
    for step in range(2):
        torch.manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        for weight, columns in weights.items():
            gradient, value = weight.grad.double(), before[weight]
            buffers[weight] = momentum * buffers[weight] + (1 - momentum) * gradient
            direction = momentum * buffers[weight] + (1 - momentum) * gradient
            value *= 1 - lr * decay
            for column in columns:
                u, _, vh = torch.linalg.svd(direction[:, column], full_matrices=False)
                fan_in, fan_out = value[:, column].shape
                value[:, column] -= lr * max(1, fan_out / fan_in) ** 0.5 * (u @ vh)
    for weight, expected in before.items():
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=lr * 1e-4)


def test_matrices_of_one_shape_are_orthogonalised_together_as_one_by_one():
    torch.manual_seed(0)
    coefficients, matrices = (3.4445, -4.7750, 2.0315), torch.randn(3, 48, 20)
    one_by_one = torch.stack([orthogonalise(matrix, coefficients, 5) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices, coefficients, 5), one_by_one)


@pytest.mark.parametrize(("kind", "weights"), [("gpt2", 8), ("openai-gpt", 8), ("bert", 0)])
def test_layouts_hold_the_matrices_that_the_model_multiplies_by(kind, weights):
    config = AutoConfig.for_model(kind, n_layer=2, num_hidden_layers=2, n_embd=32, n_head=2, add_cross_attention=False)
    model = AutoModel.from_config(config)
    table = layouts(model)
    assert len(table) == weights and sorted({layout.parts for layout in table.values()}) == ([1, 3] if weights else [])
    for weight, layout in table.items():
        assert torch.equal(layout.stored(layout.matrices(weight)), weight)
    for module in model.modules():
        if hasattr(module, "split_size"):
            query, *_ = module.c_attn(torch.eye(32)[None]).split(module.split_size, dim=2)
            by_matrix = table[module.c_attn.weight].matrices(module.c_attn.weight)[0].T
            torch.testing.assert_close(query[0] - module.c_attn.bias[:32], by_matrix)


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(64, 48), (3.4445, -4.7750, 2.0315), 5))
    assert values.min() > 0.5 and values.max() < 1.5


def test_together_resumes_and_follows_one_scheduler():
    def build():
        model = gpt2()
        optimizer = build_optimizer(model, muon(MUON, [0.9, 0.99]))
        return model, optimizer, build_scheduler(optimizer, SchedulerConfig("linear", decay=0), 8)

    def advance(model, optimizer, scheduler, steps):
        for step in steps:
            torch.manual_seed(step)
            ids = torch.randint(50, (2, 8))
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    straight, broken = build(), build()
    advance(*straight, range(6))
    advance(*broken, range(3))
    resumed = build()
    for fresh, old in zip(resumed, broken, strict=True):
        fresh.load_state_dict(old.state_dict())
    advance(*resumed, range(3, 6))
    assert [g["lr"] for g in resumed[1].param_groups] == [g["lr"] for g in straight[1].param_groups]
    assert {round(g["lr"] / g["initial_lr"], 6) for g in resumed[1].param_groups} == {0.25}
    for a, b in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "wsd"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0.1, 7), (3, 20), (0.5, 100)])
def test_schedules_rise_to_the_rate_and_end_at_the_last_step(name, warmup, total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, SchedulerConfig(name, warmup), total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    steps = math.ceil(warmup * total) if warmup < 1 else warmup
    assert rates[:steps] == pytest.approx([i / steps for i in range(steps)])
    if steps < total:
        assert rates[steps] == pytest.approx(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-9)


def test_only_wsd_has_a_decay_that_must_fit_into_the_run():
    assert SchedulerConfig("wsd", 3, 0.5).phases == {"warmup": 3, "decay": 0.5}
    assert SchedulerConfig("linear", 3).phases == {"warmup": 3}


def test_a_schedule_can_follow_the_clock():
    clock = [0.0]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, SchedulerConfig("linear", 0.1), 10_000, progress=lambda: clock[0])
    for share, expected in ((0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0)):
        clock[0] = share
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
