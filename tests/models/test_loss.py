"""The head on labelled positions, in chunks, against the whole batch's logits: loss, hits and every gradient."""

import logging
import math

import pytest
import torch
from architectures import (
    ALL,
    CAUSAL,
    COMMON,
    GPT2,
    PLACES,
    VOCABULARY,
    assert_same_gradients,
    gradients,
    make,
    make_batch,
    plain,
)
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_lm.models import activations as recompute
from lightning_lm.models import loss, output_head
from lightning_lm.models.loading import layers
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import OutputHead, find_head
from lightning_lm.objectives.clm import Clm

COLUMNS = 41


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    # Several chunks, rows and columns, and the last ones shorter
    monkeypatch.setitem(loss.LOGITS_PER_CHUNK, "cpu", 16 * VOCABULARY)
    monkeypatch.setattr(loss, "EVAL_ROWS", 16)
    monkeypatch.setitem(output_head.EVAL_COLUMNS, "cpu", COLUMNS)
    monkeypatch.setitem(output_head.VOCABULARY_MULTIPLE, "cpu", 8)  # as on a GPU, where it is larger
    monkeypatch.setattr(recompute, "LARGE", dict.fromkeys(recompute.LARGE, 1))


@pytest.mark.parametrize(("objective", "name"), ALL)
def test_loss_hits_and_every_gradient_are_those_of_the_whole_logits(objective, name):
    model, batch = make(objective, name), make_batch(objective)
    head = find_head(model)
    place = PLACES.get(name, model.base_model_prefix)
    assert head.sparse is (place and model.get_submodule(place))
    assert head.linear is not None and model.training
    reference, hits = plain(model, batch)
    reference.backward()
    expected = gradients(model)

    sums = labelled_nll(model, head, batch)
    without = {name: x for name, x in batch.items() if name != "labelled"}
    torch.testing.assert_close(labelled_nll(model, head, without).nll, sums.nll)
    assert sums.tokens == (batch["labels"] != -100).sum()
    torch.testing.assert_close(sums.nll.double(), reference, rtol=1e-5, atol=0)
    sums.nll.backward()
    assert_same_gradients(gradients(model), expected)

    with torch.no_grad():
        scored = labelled_nll(model, head, batch, with_hits=True)
    torch.testing.assert_close(scored.nll, reference.detach(), rtol=1e-5, atol=0)
    assert scored.hits.sum() == hits


@pytest.mark.parametrize(("objective", "name"), [*ALL, ("mlm", "esm")])
def test_a_bias_that_begins_at_zero_is_not_overlooked(objective, name):
    model, batch = make(objective, name, noise=0), make_batch(objective)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    head = find_head(model)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert (head.sparse is None) == (name == "opt") and (head.linear is None) == (name == "esm")
    plain(model, batch)[0].backward()
    expected = gradients(model)
    labelled_nll(model, head, batch).nll.backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize(
    ("objective", "name", "mixed"),  # Gemma 2 as a whole in bfloat16 rounds its own capped logits, ours are float32
    [
        ("clm", "gpt2", True),
        ("clm", "gemma2", True),
        ("mlm", "bert", True),
        ("clm", "gpt2", False),
        ("mlm", "bert", False),
    ],
)
def test_in_bfloat16_the_sum_keeps_float32(objective, name, mixed):
    model, batch = make(objective, name), make_batch(objective)
    model = model if mixed else model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        reference, _ = plain(model, batch)
        reference.backward()
        expected = gradients(model)
        sums = labelled_nll(model, find_head(model), batch)
        sums.nll.backward()
    assert sums.nll.dtype == torch.float32
    torch.testing.assert_close(sums.nll.double(), reference, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model), expected, tolerance=6e-2)


@pytest.mark.parametrize(("objective", "name"), [("clm", "gpt2"), ("clm", "llama"), ("mlm", "bert")])
def test_with_gradient_checkpointing(objective, name):
    model, batch = make(objective, name), make_batch(objective)
    labelled_nll(model, find_head(model), batch).nll.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    labelled_nll(model, find_head(model), batch).nll.backward()
    assert_same_gradients(gradients(model), expected, tolerance=1e-6)


@pytest.mark.parametrize(("objective", "name"), [("clm", "gpt2"), ("mlm", "bert")])
def test_no_whole_logits_exist(objective, name):
    model, batch = make(objective, name), make_batch(objective)
    head, shapes = find_head(model), []

    class Shapes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function is not torch.ops.aten.t.default:
                shapes.append(tuple(getattr(result, "shape", ())))
            return result

    def largest():
        logits = [shape for shape in shapes if shape[-1:] in ((VOCABULARY,), (104,))]
        return max(math.prod(shape[:-1]) for shape in logits if shape[0] != 32)  # the head's weights, transposed

    with torch.no_grad(), Shapes():
        labelled_nll(model, head, batch, with_hits=True)
    assert (16, COLUMNS) in shapes and largest() == 1, "one position goes through the model's own head for form's sake"
    with Shapes():
        labelled_nll(model, head, batch).nll.backward()
    assert 1 < largest() <= 16 < len(batch["labelled"])


def test_a_batch_without_a_label_gives_every_parameter_a_zero_gradient():
    model, batch = make("mlm", "bert"), make_batch("mlm")
    batch["labels"], batch["labelled"] = torch.full_like(batch["labels"], -100), torch.arange(0)
    sums = labelled_nll(model, find_head(model), batch)
    sums.nll.backward()
    assert sums.tokens == 0 and sums.nll == 0
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_a_second_backward_pass_is_refused():
    model, batch = make("clm", "gpt2"), make_batch("clm")
    nll = labelled_nll(model, find_head(model), batch).nll
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="needs another loss"):
        nll.backward()


class Changed(torch.nn.Module):
    """A model that does something to its last layer's logits."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change, self.config = model, change, model.config
        self.base_model, self.device = model.base_model, model.device

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, **inputs):
        output = self.model(**inputs)
        output.logits = self.change(output.logits)
        return output


def test_a_scale_and_a_bias_together():
    model, batch = Changed(make("clm", "phi"), lambda logits: 3 * logits).train(), make_batch("clm")
    head = find_head(model)
    assert head.scale == pytest.approx(3) and head.linear.bias is not None
    reference, _ = plain(model, batch)
    reference.backward()
    expected = gradients(model)
    sums = labelled_nll(model, head, batch)
    sums.nll.backward()
    torch.testing.assert_close(sums.nll.double(), reference, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("largest", [33, 330])
def test_logits_as_large_as_trained_models_have_them(largest, monkeypatch):
    """A wider model, whose sums round more."""
    monkeypatch.setitem(CAUSAL, "llama", COMMON | {"hidden_size": 256, "head_dim": 64, "vocab_size": 2000})
    model, batch = make("clm", "llama", noise=0), make_batch("clm")
    with torch.no_grad():
        model.lm_head.weight.mul_(largest / model(input_ids=torch.arange(8).view(2, 4)).logits.abs().max())
    head = find_head(model)
    assert head.linear is model.lm_head and head.sparse is model.model
    reference, _ = plain(model, batch)
    torch.testing.assert_close(labelled_nll(model, head, batch).nll.double(), reference, rtol=1e-5, atol=0)
    Clm().check_model(model)


@pytest.mark.parametrize(("objective", "name"), [("clm", "gpt2"), ("mlm", "bert")])
def test_what_does_not_fit_takes_the_plain_path_and_says_so(objective, name, caplog, monkeypatch):
    def odd(logits):
        return logits + 0.01 * logits.square() + logits.mean((0, 1))

    model, batch = Changed(make(objective, name), odd).train(), make_batch(objective)
    monkeypatch.setattr(logging.getLogger("lightning_lm"), "propagate", True)
    with caplog.at_level(logging.INFO, "lightning_lm"):
        head = find_head(model)
    assert head == OutputHead() and "all positions" in caplog.text
    torch.testing.assert_close(labelled_nll(model, head, batch).nll.double(), plain(model, batch)[0])


@pytest.mark.parametrize("vocabulary", [101, 104])
def test_memory_that_nothing_was_written_to_reaches_no_gradient(vocabulary, monkeypatch):
    """Whatever lies there: a product in bfloat16 may read beyond the end of a row of odd length."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **more: empty(*args, **more).fill_(math.nan))
    monkeypatch.setitem(output_head.VOCABULARY_MULTIPLE, "cpu", 1)
    monkeypatch.setitem(loss.LOGITS_PER_CHUNK, "cpu", 2**20)
    monkeypatch.setitem(GPT2, "vocab_size", vocabulary)
    model, batch = make("clm", "gpt2"), make_batch("clm")
    with torch.autocast("cpu", torch.bfloat16):
        labelled_nll(model, find_head(model), batch).nll.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize(("objective", "name"), [("clm", "llama"), ("mlm", "bert")])
def test_with_compiled_layers_and_head(objective, name, monkeypatch):
    model, batch = make(objective, name), make_batch(objective)
    reference, _ = plain(model, batch)
    reference.backward()
    expected = gradients(model)
    for layer in layers(model):
        layer.compile(backend="aot_eager")
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(loss, "_compiled", lambda function: torch.compile(function, backend=counter))
    head = find_head(model, compiled=True)
    assert head.sparse is model.base_model
    for _ in range(2):
        sums = labelled_nll(model, head, batch)
        sums.nll.backward()
        torch.testing.assert_close(sums.nll.double(), reference, rtol=1e-5, atol=0)
        assert_same_gradients(gradients(model), expected)
    for labels in (17, 21, 30):  # their number differs from batch to batch
        labelled_nll(model, head, batch | {"labelled": batch["labelled"][:labels]}).nll.backward()
    assert 0 < counter.frame_count <= 4
