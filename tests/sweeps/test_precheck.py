"""Jobs that can't work are refused before the first one trains, by what tokenizer and config tell."""

import pytest
from conftest import compose

from lightning_lm.sweeps.precheck import model_problems

TEXT = ("data=text", "data.train=a.txt", "data.validation=a.txt", "objective.prompts=[]")
TRAINED = (*TEXT, "model.name_or_path=null", "model.pretrained=false", "model.tokenizer=train", "model.vocab_size=300")


@pytest.mark.parametrize("pretrained", ["true", "false"])
def test_models_are_built_without_weights_text_or_a_trained_tokenizer(tiny_gpt2, tiny_bert, pretrained):
    gpt2 = (*TEXT, f"model.name_or_path={tiny_gpt2}", f"model.pretrained={pretrained}")
    bert = (*TEXT, f"model.name_or_path={tiny_bert}", f"model.pretrained={pretrained}", "objective=mlm")
    right = [compose(*gpt2, "data.block_size=64"), compose(*bert, "data.block_size=64"), compose("model=gpt2")]
    assert model_problems(right) == [], "what is neither here nor in the Hub's cache is left to the job"
    wrong = [
        compose(*gpt2, "data.block_size=65"),
        compose(*gpt2, "data.block_size=65", "optimizer.lr=1"),
        compose(*gpt2, "data.block_size=64", "objective=mlm"),
        compose(*TRAINED, "model.model_type=gpt2", "model.config.n_positions=32"),
        compose(*TRAINED, "model.model_type=t5"),
        compose(*bert, "data.block_size=64", "objective=clm"),
        compose(*gpt2, "data.block_size=64", f"objective.prompts=[{'a ' * 64}]"),
    ]
    assert [(problem.setting, problem.wrong) for problem in model_problems(wrong)] == [
        ("data.block_size", "the model has only 64 positions"),
        ("objective", "the tokenizer has no mask token"),
        ("data.block_size", "the model has only 32 positions"),
        ("objective", "t5 has no head for it in transformers (AutoModelForCausalLM)"),
        ("objective", "bert looks at the tokens that it should predict"),
        ("objective.prompts", "64 tokens and 1 new ones exceed the model's 64 positions"),
    ]
