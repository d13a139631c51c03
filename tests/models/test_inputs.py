"""What an objective puts into a batch reaches the model, or is an error."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head


def batch(**more):
    ids = torch.arange(16).view(2, 8)
    return {"input_ids": ids, "labels": ids.roll(-1, 1), **more}


def test_an_input_of_the_model_reaches_it(tiny_gpt2):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    later_positions = (torch.arange(8) + 5).expand(2, 8)
    sums = labelled_nll(model, find_head(model), batch(position_ids=later_positions))
    expected = model(**{k: v for k, v in batch(position_ids=later_positions).items() if k != "labels"}).logits
    nll = torch.nn.functional.cross_entropy(
        expected.flatten(0, 1).double(), batch()["labels"].flatten(), reduction="sum"
    )
    torch.testing.assert_close(sums.nll.double(), nll, rtol=1e-5, atol=0)
    assert not torch.isclose(sums.nll, labelled_nll(model, find_head(model), batch()).nll)


def test_a_key_that_the_model_does_not_take_is_an_error(tiny_gpt2):
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    with pytest.raises(ValueError, match="GPT2LMHeadModel takes no prefix_mask"):
        labelled_nll(model, find_head(model), batch(prefix_mask=torch.ones(2, 8)))
