"""Architectures that pool, pad or cut what they get: loss and FLOPs come from the model's own logits."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

from lightning_lm.errors import Refused
from lightning_lm.models.flops import training_flops
from lightning_lm.models.loading import fit_together
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head

VOCABULARY = 200  # as the tokenizer has
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CONFIGS = {
    "longformer": COMMON | {"attention_window": [8, 8]},  # pads, and cuts what it has padded
    "luke": COMMON | {"entity_vocab_size": 8},  # cuts to the block's length
    "funnel": {"vocab_size": VOCABULARY, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},  # pools three times
    "mbart": {"vocab_size": VOCABULARY, "d_model": 32, "pad_token_id": 0, "max_position_embeddings": 64}
    | {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    | {f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},  # looks for what is no padding
    "ibert": COMMON,  # embeddings of a class of its own
}


def make(name):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**CONFIGS[name])
    for key in [key for key in vars(config) if "drop" in key and isinstance(getattr(config, key), float)]:
        setattr(config, key, 0.0)
    return AutoModelForMaskedLM.from_config(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_that_of_the_models_own_logits(name):
    model = make(name)
    ids = torch.randint(3, VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(16) % 4 == 0, ids, -100)  # more than a block has positions
    ours = labelled_nll(model.train(), find_head(model), {"input_ids": ids, "labels": labels})
    expected = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(ours.nll.float(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_and_embeddings(name, tiny_tokenizer):
    model = make(name)
    layers, head = training_flops(model, 16)
    assert layers > 0 and head > 0
    fit_together(model, tiny_tokenizer, 16)


def test_a_model_without_embeddings_of_tokens(tiny_tokenizer):
    small = {"d_model": 16, "d_latents": 16, "num_latents": 4, "num_blocks": 1, "num_self_attends_per_block": 1}
    model = AutoModelForMaskedLM.from_config(CONFIG_MAPPING["perceiver"](vocab_size=VOCABULARY, **small))
    with pytest.raises(Refused, match="^model=PerceiverForMaskedLM: it has no embedding for each token; choose"):
        fit_together(model, tiny_tokenizer, 16)


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)
