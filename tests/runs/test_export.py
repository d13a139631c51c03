"""The exported model, as a user of transformers gets it."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_lm.runs.export import export


def test_a_user_gets_the_models_length_and_what_pads_its_text(tiny_gpt2, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    before = tokenizer.model_max_length
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[2, 3, -100]])}
    export(tmp_path, model, tokenizer, "clm", batch)
    assert tokenizer.model_max_length == before > 10**20, "the run's own goes on without a warning for long rows"
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert exported.model_max_length == model.config.n_positions
    generating = AutoModelForCausalLM.from_pretrained(tmp_path / "export").generation_config
    assert generating.pad_token_id == generating.eos_token_id == tokenizer.eos_token_id
