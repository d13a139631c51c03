"""Prompts at the borders: of the model's positions, and of what a tokenizer has."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm.errors import Refused
from lightning_lm.objectives.clm import Clm, continue_prompt, encode_prompts

POSITIONS = 64


@pytest.fixture(scope="module")
def model(tiny_gpt2):
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2)


@pytest.fixture
def tokenizer(tiny_gpt2):
    return AutoTokenizer.from_pretrained(tiny_gpt2)


def prompt_of(tokenizer, size):
    """A text that becomes so many tokens."""
    prompt = tokenizer.decode([tokenizer(" the")["input_ids"][0]] * size)
    assert len(tokenizer(prompt)["input_ids"]) == size
    return prompt


def test_a_prompt_may_end_at_the_last_position_but_one(model, tokenizer):
    almost, full = (prompt_of(tokenizer, size) for size in (POSITIONS - 1, POSITIONS))
    assert [len(ids) for ids in encode_prompts(model, tokenizer, [almost], new_tokens=1)] == [POSITIONS - 1]
    with pytest.raises(Refused, match="64 tokens and 1 new ones exceed the model's 64 positions"):
        encode_prompts(model, tokenizer, [full], new_tokens=1)
    (text,) = Clm([almost], preview_tokens=40).preview(model, tokenizer, seed=0)
    assert text.startswith(almost)
    ids = tokenizer(almost)["input_ids"]
    assert len(continue_prompt(model, tokenizer, ids, max_new_tokens=1, greedy=True)) == POSITIONS


@pytest.mark.parametrize("pad", [None, 7])
def test_the_pad_token_is_the_tokenizers_or_else_its_end_token(pad, model, tokenizer, monkeypatch):
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    asked, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda *args, **given: asked.append(given) or generate(*args, **given))
    continue_prompt(model, tokenizer, [1, 2], max_new_tokens=2, greedy=True)
    assert asked[0]["pad_token_id"] == (tokenizer.eos_token_id if pad is None else pad)
