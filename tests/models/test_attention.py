"""Training without masks: what is computed is the same, and what was made for the masks is gone."""

from dataclasses import replace

import pytest
import torch
from architectures import ALL, CAUSAL, COMMON, gradients, make, make_batch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lm.models.attention import needs_no_mask, unmasked
from lightning_lm.models.loading import layers
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head

OWN_ATTENTION = {"gpt_neo", "gemma2", "deberta-v2"}  # not of torch's scaled_dot_product_attention
SYNCHRONISING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class Operators(TorchDispatchMode):
    """Counts operators, those for which the host waits, and masks of queries by keys."""

    def __enter__(self):
        self.all = self.waits = self.masks = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.all += 1
        self.waits += function in SYNCHRONISING
        self.masks += isinstance(result, torch.Tensor) and result.dtype == torch.bool and result.ndim == 4
        return result


def full_blocks(objective):
    batch = make_batch(objective)
    del batch["attention_mask"]
    return batch


def step(model, head, batch, mixed):
    with Operators() as operators, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        nll = labelled_nll(model, head, batch).nll
        nll.backward()
    return operators, nll.detach(), gradients(model)


def assert_equal(ours, theirs):
    assert torch.equal(ours[1], theirs[1]) and ours[2].keys() == theirs[2].keys()
    assert all(torch.equal(gradient, theirs[2][name]) for name, gradient in ours[2].items())


@pytest.mark.parametrize(
    ("objective", "name", "mixed"), [*((*one, False) for one in ALL), ("clm", "gpt2", True), ("mlm", "bert", True)]
)
def test_without_masks_loss_and_gradients_are_the_same_to_the_bit(objective, name, mixed):
    model, batch = make(objective, name), full_blocks(objective)
    head = find_head(model)
    assert needs_no_mask(model, head, batch) is (name not in OWN_ATTENTION) and model.training
    if name in OWN_ATTENTION:
        return
    masked = step(model, head, batch, mixed)
    with unmasked(model):
        plain = step(model, head, batch, mixed)
    assert model.config._attn_implementation == "sdpa"
    assert_equal(plain, masked)
    assert plain[0].waits == plain[0].masks == 0
    made = name in CAUSAL and name != "opt"  # it makes none itself
    assert plain[0].all < masked[0].all if made else plain[0].all == masked[0].all


@pytest.mark.parametrize(("window", "enough"), [(64, True), (24, True), (8, False)])
def test_a_window_shorter_than_the_block_keeps_its_masks(window, enough, monkeypatch):
    monkeypatch.setitem(CAUSAL, "mistral", COMMON | {"sliding_window": window})
    model, batch = make("clm", "mistral"), full_blocks("clm")
    assert needs_no_mask(model, find_head(model), batch) is enough


@pytest.mark.parametrize("name", ["attention_mask", "position_ids"])
def test_a_batch_that_says_what_may_be_seen_keeps_the_masks(name):
    model, batch = make("clm", "llama"), full_blocks("clm")
    batch[name] = torch.ones_like(batch["input_ids"])
    assert not needs_no_mask(model, find_head(model), batch)


def test_the_models_own_attention_comes_back_after_an_error():
    model = make("clm", "llama")
    with pytest.raises(KeyboardInterrupt), unmasked(model):
        raise KeyboardInterrupt
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("objective", "name"), [("clm", "gpt2"), ("clm", "llama"), ("mlm", "bert")])
def test_compiled_layers_take_no_mask_and_few_graphs_serve_all_batches(objective, name):
    graphs = []

    def backend(graph, examples):
        graphs.append([x.ndim for x in examples if isinstance(x, torch.Tensor)])
        return graph.forward

    torch._dynamo.reset()
    model, batch = make(objective, name), full_blocks(objective)
    for layer in layers(model):
        layer.compile(backend=backend)
    head = replace(find_head(model, compiled=True), compiled=False)  # compiling the loss takes 20 s
    assert needs_no_mask(model, head, batch) and not graphs
    partial = {key: x[:3] for key, x in batch.items() if key != "labelled"}
    with unmasked(model):
        made = []  # after each epoch
        for _ in range(2):
            for each in (batch, batch, partial):
                labelled_nll(model, head, each).nll.backward()
            made.append(len(graphs))
    assert 0 < made[0] == made[1] <= 4 and max(max(dims) for dims in graphs) < 4
