"""Models and tokenizers fit together, or the user is told why not."""

import logging

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from lightning_lm.errors import Refused
from lightning_lm.models.loading import fit_together, load_config, load_model
from lightning_lm.objectives.clm import Clm
from lightning_lm.objectives.mlm import Mlm


def load(folder, objective, **overrides):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = load_config(str(folder), None, overrides, tokenizer, pretrained=True)
    facts = objective.facts
    return load_model(config, facts.auto_class, str(folder), objective=facts.name), tokenizer


def test_a_checkpoint_in_bfloat16_is_trained_in_float32(tiny_gpt2, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_gpt2).bfloat16().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_gpt2).save_pretrained(tmp_path)
    model, _ = load(tmp_path, Clm())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_new_config_derives_its_layers_kinds(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    config = load_config(None, "modernbert", {"num_hidden_layers": 2}, tokenizer, pretrained=False)
    assert config.layer_types == ["full_attention", "sliding_attention"] and config.vocab_size == len(tokenizer)
    wrong = {"num_hidden_layers": 2, "layer_types": ["full_attention"]}
    with pytest.raises(Refused, match="must be equal to the number of `layer_types`"):
        load_config(None, "modernbert", wrong, tokenizer, pretrained=False)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate"])
def test_one_operator_for_the_tanh_gelu_changes_no_result(tiny_gpt2, name):
    ours, _ = load(tiny_gpt2, Clm(), activation_function=name)
    plain = AutoModelForCausalLM.from_pretrained(tiny_gpt2, activation_function=name)
    kept, ids = [], torch.arange(64).view(2, 32)
    for model in (ours.eval(), plain.eval()):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.numel()) or x, lambda x: x):
            model(input_ids=ids, labels=ids).loss.backward()
        kept.append(sum(sizes))
    assert kept[0] < 0.8 * kept[1]
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for (weight, found), expected in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=weight)


def test_embeddings_grow_when_the_tokenizer_needs_it(tiny_gpt2, caplog):
    model, tokenizer = load(tiny_gpt2, Clm())
    before = model.get_input_embeddings().weight.detach().clone()
    tokenizer.add_tokens(["<one>", "<two>"])
    with caplog.at_level(logging.WARNING, "lightning_lm"):
        fit_together(model, tokenizer, block_size=64)
    after = model.get_input_embeddings().weight
    assert len(after) == len(before) + 2 == model.config.vocab_size
    assert torch.equal(after[: len(before)], before)
    assert after.data_ptr() == model.get_output_embeddings().weight.data_ptr(), "still tied"


def test_a_new_head_is_named(tiny_bert, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning_lm"), "propagate", True)
    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "lightning_lm"):
        load(tmp_path, Mlm(masking=None))
    assert "cls.predictions.transform.dense.weight" in caplog.text


def test_a_bidirectional_model_is_no_causal_one(tiny_bert):
    model, tokenizer = load(tiny_bert, Clm())
    with pytest.raises(Refused, match="is_decoder=true"):
        Clm().check_model(model)
    model, tokenizer = load(tiny_bert, Clm(), is_decoder=True)
    Clm().check_model(model)


def test_robertas_positions_begin_after_the_padding_index(tiny_bert):
    config = RobertaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=66
    )
    model, tokenizer = RobertaForMaskedLM(config), AutoTokenizer.from_pretrained(tiny_bert)
    fit_together(model, tokenizer, block_size=64)
    model(torch.full((1, 64), 7))
    with pytest.raises(Refused, match="64 positions"):
        fit_together(model, tokenizer, block_size=65)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 65), 7))
