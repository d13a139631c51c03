"""Likelihoods and pseudo-likelihoods against plain loops: one text at a time, unpadded, in float64."""

from pathlib import Path

import pytest
import torch

from lightning_lm.errors import Refused
from lightning_lm.evaluation import rows
from lightning_lm.evaluation.pseudo_likelihood import LIKELIHOOD, PSEUDO, WITHIN_WORD, text_nll
from lightning_lm.inference.sources import open_model

TEXTS = ["the river", "A stone under the old bridge makes gardens .", "winter", "the summer letterhouses , unmade ."]


@pytest.fixture(scope="module", params=[1.0, 20.0], ids=["small weights", "large weights"])
def models(request, tiny_gpt2: Path, tiny_bert: Path, shifted_bert: Path):
    places = {"clm": tiny_gpt2, "mlm": tiny_bert, "shifted": shifted_bert}
    opened = {name: open_model(str(place), None, strict=False) for name, place in places.items()}
    for of in opened.values():
        for parameter in of.model.parameters():
            if parameter.ndim > 1:
                parameter.data *= request.param**0.5
    return opened


def log_probabilities(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.double()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_causal_likelihoods(models):
    found = text_nll(models["clm"], TEXTS)
    model, tokenizer = models["clm"].model, models["clm"].tokenizer
    expected = []
    for text in TEXTS:
        ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
        at = log_probabilities(model, ids)
        expected.append(-sum(at[i, token].item() for i, token in enumerate(ids[1:])))
    model.float()
    assert list(found) == [LIKELIHOOD] and found[LIKELIHOOD] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "shift"), [("mlm", 0), ("shifted", 1)])
def test_masked_pseudo_likelihoods(name, shift, models):
    found = text_nll(models[name], TEXTS)
    model, tokenizer = models[name].model, models[name].tokenizer
    expected: dict[str, list[float]] = {PSEUDO: [], WITHIN_WORD: []}
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(ids)
        for form, values in expected.items():
            total = 0.0
            for at in range(1, len(ids) - 1):  # without [CLS] and [SEP]
                masked = list(ids)
                masked[at] = tokenizer.mask_token_id
                after = at + 1
                while form == WITHIN_WORD and pieces[after].startswith("##"):
                    masked[after] = tokenizer.mask_token_id
                    after += 1
                total -= log_probabilities(model, masked)[at - shift, ids[at]].item()
            values.append(total)
    model.float()
    for form, values in expected.items():
        assert found[form] == pytest.approx(values, rel=1e-6)
    assert expected[PSEUDO] != expected[WITHIN_WORD], "some words have several tokens"


def test_batches_change_nothing(models, monkeypatch):
    for opened in models.values():
        together = text_nll(opened, TEXTS)
        monkeypatch.setattr(rows, "TOKENS_PER_BATCH", 1)
        alone = text_nll(opened, TEXTS)
        monkeypatch.undo()
        for form, nll in together.items():
            assert nll == pytest.approx(alone[form], rel=1e-6)
        twice = text_nll(opened, [TEXTS[0], *TEXTS, TEXTS[0]])
        assert all(nll[0] == nll[1] == nll[-1] for nll in twice.values()), "to the bit, so that they tie"


def test_a_text_that_is_too_long(models):
    with pytest.raises(Refused, match="exceed the model's 64 positions"):
        text_nll(models["clm"], ["the river " * 50])
