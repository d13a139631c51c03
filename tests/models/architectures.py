"""Small models of many architectures, a batch for them, and the loss and gradients of their own whole logits."""

import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

VOCABULARY = 101
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "cls_token_id": 1,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
CAUSAL = {
    "gpt2": GPT2,
    "gpt_neo": COMMON | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": COMMON,  # untied
    "opt": COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "llama": COMMON,
    "qwen3": COMMON | {"tie_word_embeddings": True},
    "gemma2": COMMON | {"final_logit_softcapping": 0.5},
    "phi": COMMON,  # with a bias
    "granite": COMMON | {"logits_scaling": 3.0},
    "cohere": COMMON | {"logit_scale": 0.25},
}
MASKED = {
    "bert": COMMON,
    "roberta": COMMON,
    "distilbert": DISTILBERT,
    "albert": COMMON | {"embedding_size": 16},
    "electra": COMMON | {"embedding_size": 16},
    "deberta-v2": COMMON | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "xlm-roberta": COMMON,
    "modernbert": COMMON | {"tie_word_embeddings": False},
}
# After which module only labelled positions go on, if it isn't the body, or the hook would never run
PLACES = {name: f"{name}.encoder.layer.1.attention" for name in ("bert", "roberta", "electra")}
PLACES |= {"xlm-roberta": PLACES["roberta"], "deberta-v2": "deberta.encoder.layer.1.attention"}
PLACES |= {"distilbert": "distilbert.transformer.layer.1.sa_layer_norm", "opt": None}
ALL = [("clm", name) for name in CAUSAL] + [("mlm", name) for name in MASKED]
MASKED["esm"] = COMMON | {"mask_token_id": 3}  # adds a bias of zeros outside its last layer


def make(objective, name, noise=0.1):
    torch.manual_seed(0)
    auto, settings = (
        (AutoModelForCausalLM, CAUSAL[name]) if objective == "clm" else (AutoModelForMaskedLM, MASKED[name])
    )
    config = CONFIG_MAPPING[name](**settings)
    for key in [key for key in vars(config) if "drop" in key and isinstance(getattr(config, key), float)]:
        setattr(config, key, 0.0)
    model = auto.from_config(config)
    with torch.no_grad():  # random weights give almost the same logits to every token
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model.train()


def make_batch(objective, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (4, 24), generator=generator)
    labels = torch.randint(3, VOCABULARY, (4, 24), generator=generator)
    valid = torch.ones_like(ids)
    valid[-1, 17:] = 0
    labelled = torch.rand(ids.shape, generator=generator) < (0.9 if objective == "clm" else 0.2)
    labels = torch.where(labelled & (valid == 1), labels, -100)
    where = (labels != -100).flatten().nonzero().squeeze(1)
    return {"input_ids": ids, "attention_mask": valid, "labels": labels, "labelled": where}


def plain(model, batch):
    """Loss by the model's own logits, in float64, with the hits."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = batch["labels"] != -100
    logits, labels = logits[wanted].double(), batch["labels"][wanted]
    return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) == labels).sum()


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    atol = tolerance * 0.1 * float(largest)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=tolerance, atol=atol), name
