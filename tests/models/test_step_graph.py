"""The step as one graph: the same loss and gradients as the plain path, without masks, breaks and further graphs."""

import logging

import pytest
import torch
from architectures import ALL, assert_same_gradients, gradients, make
from test_attention import OWN_ATTENTION, full_blocks
from torch._inductor.cudagraph_trees import MarkStepBox

from lightning_lm.models import step_graph
from lightning_lm.models.attention import unmasked
from lightning_lm.models.loading import layers
from lightning_lm.models.loss import labelled_nll, whole_nll
from lightning_lm.models.output_head import find_head
from lightning_lm.models.step_graph import StepGraph

CHANGED_LOGITS = {"gemma2", "granite", "cohere"}
QUICK = {"gpt2", "bert"}


class Graphs(list):
    """A backend that runs what it is given as it is, and keeps it."""

    def __call__(self, graph, examples):
        self.append(graph)
        self.label_counts = [len(x) for x in examples if getattr(x, "dtype", None) == torch.int64 and x.ndim == 1]
        return graph.forward

    def masks(self):
        values = [node.meta.get("example_value") for graph in self for node in graph.graph.nodes]
        return [x for x in values if isinstance(x, torch.Tensor) and x.dtype == torch.bool and x.ndim == 4]


def step_of(model, head, backend, label_share=None):
    step = StepGraph(model, head, label_share)
    step.graph = torch.compile(step._nll, backend=backend, fullgraph=True, dynamic=False)
    return step


def labelled(batch, share, blocks=4):
    """The batch's first blocks, with a share of their labels."""
    where = batch["labelled"][batch["labelled"] < blocks * batch["input_ids"].shape[1]]
    blocks = {name: x[:blocks] for name, x in batch.items() if name != "labelled"}
    return blocks | {"labelled": where[: int(len(where) * share)]}


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        pytest.param(*one, marks=[] if one[1] in QUICK else pytest.mark.slow)
        for one in ALL
        if one[1] not in CHANGED_LOGITS
    ],
)
def test_one_graph_for_each_shape_gives_the_plain_paths_loss_and_gradients(objective, name):
    torch._dynamo.reset()
    model, full, graphs = make(objective, name), full_blocks(objective), Graphs()
    for layer in layers(model):
        layer.compile(backend="eager")  # for evaluation; they are part of the graph
    head = find_head(model, compiled=True)
    step = step_of(model, head, graphs)
    with unmasked(model):
        for _ in range(2):  # epochs, whose last batch is partial
            for batch in (full, labelled(full, 0.9), labelled(full, 0.7), labelled(full, 0.8, blocks=3)):
                sums = step.nll(batch)
                sums.nll.backward()
                ours = gradients(model)
                with torch.compiler.set_stance("force_eager"):
                    plain = labelled_nll(model, find_head(model), batch)
                    plain.nll.backward()
                torch.testing.assert_close(sums.nll, plain.nll, rtol=1e-6, atol=0)
                assert_same_gradients(ours, gradients(model))
                assert sums.tokens == plain.tokens
    assert len(graphs) == 2 and (name in OWN_ATTENTION or not graphs.masks())
    assert all(getattr(part, child) is head.linear for part, child in step.places) and step.places


@pytest.mark.parametrize("objective", [pytest.param("clm", marks=pytest.mark.slow), "mlm"])
def test_in_low_precision_as_near_to_the_exact_loss_as_the_plain_path(objective):
    torch._dynamo.reset()
    model, batch = make(objective, "gpt2" if objective == "clm" else "bert"), full_blocks(objective)
    head = find_head(model, compiled=True)
    exact = labelled_nll(model.double(), find_head(model), batch).nll.item()  # compiling the loss takes 20 s
    model.float()
    with torch.autocast("cpu", torch.bfloat16), unmasked(model):
        plain = labelled_nll(model, find_head(model), batch).nll
        whole = step_of(model, head, Graphs()).nll(batch).nll
    assert whole.dtype == torch.float32
    assert abs(whole.item() - exact) < max(2 * abs(plain.item() - exact), 1e-3 * exact)


@pytest.mark.parametrize("name", sorted(CHANGED_LOGITS))
def test_a_model_that_changes_its_logits_keeps_its_layers(name, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning_lm"), "propagate", True)
    model, batch = make("clm", name), full_blocks("clm")
    head = find_head(model, compiled=True)
    with caplog.at_level(logging.INFO, "lightning_lm"):
        step = StepGraph(model, head)
    assert "can't be one graph" in caplog.text
    head = find_head(model)
    step.head = head
    assert torch.equal(step.nll(batch).nll, labelled_nll(model, head, batch).nll)


def test_code_that_breaks_the_graph_and_too_many_logits_take_the_plain_path(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning_lm"), "propagate", True)
    torch._dynamo.reset()
    model, batch, graphs = make("clm", "gpt2"), full_blocks("clm"), Graphs()
    head, step = find_head(model), step_of(model, find_head(model), graphs)
    with monkeypatch.context() as patch:
        patch.setattr(step_graph, "LOGITS_AT_ONCE", 100)
        assert torch.equal(step.nll(batch).nll, labelled_nll(model, head, batch).nll) and not graphs
    model.transformer.h[1].register_forward_hook(lambda module, args, output: print(end="") or output)
    with caplog.at_level(logging.INFO, "lightning_lm"):
        for _ in range(2):
            assert torch.equal(step.nll(batch).nll, labelled_nll(model, head, batch).nll)
    assert caplog.text.count("can't be one graph") == 1 and step.graph is None


def test_the_whole_loss_is_that_of_the_chunks():
    model, batch = make("mlm", "bert"), full_blocks("mlm")
    head = find_head(model)
    hidden = torch.randn(len(batch["labelled"]), 32, requires_grad=True)
    labels = batch["labels"].flatten()[batch["labelled"]]
    loss = whole_nll(hidden, head.linear.weight, head.linear.bias, labels, head)
    (exact,) = torch.autograd.grad(loss, hidden)
    logits = (hidden.double() @ head.linear.weight.double().T + head.linear.bias.double()).log_softmax(-1)
    expected = -logits[torch.arange(len(labels)), labels].sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(exact, torch.autograd.grad(expected, hidden)[0], rtol=1e-4, atol=1e-6)


def test_under_cuda_graphs_other_numbers_of_labels_change_no_shape():
    """Of a masked model with a share of 0.2, in 96 tokens; the last batch has more labels than the graph has room."""
    torch._dynamo.reset()
    model, full, graphs = make("mlm", "bert"), full_blocks("mlm"), Graphs()
    head, places = find_head(model), torch.randperm(96, generator=torch.Generator().manual_seed(0))
    places = torch.cat([places[places == 0], places[places != 0]])  # the one that fills up the batches has a label, too
    full["labels"] = full["input_ids"].roll(1)
    step, room = step_of(model, head, graphs, label_share=0.2), 55  # ⌈19.2 + 8 · √19.2⌉
    for count in (19, 11, 27, room, room + 1):
        where = places[:count].sort().values
        labels = torch.full((96,), -100).index_put((where,), full["labels"].flatten()[where]).view(4, 24)
        batch, begun = full | {"labels": labels, "labelled": where}, MarkStepBox.mark_step_counter
        sums = step.nll(batch)
        sums.nll.backward()
        ours = gradients(model)
        plain = labelled_nll(model, head, batch)
        plain.nll.backward()
        torch.testing.assert_close(sums.nll, plain.nll, rtol=1e-6, atol=0)
        theirs = gradients(model)
        assert_same_gradients(ours, theirs, tolerance=1e-5)
        ours, theirs = (torch.cat([g.flatten() for _, g in sorted(found.items())]) for found in (ours, theirs))
        assert (ours - theirs).norm() < 1e-6 * theirs.norm()
        assert sums.tokens == count and MarkStepBox.mark_step_counter == begun - (count <= room)
    assert len(graphs) == 1 and graphs.label_counts == [room]


def test_under_cuda_graphs_a_causal_batch_stays_as_it_is():
    torch._dynamo.reset()
    model, ids, graphs = make("clm", "gpt2"), full_blocks("clm")["input_ids"], Graphs()
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    batch = {"input_ids": ids, "labels": labels, "labelled": (labels.flatten() != -100).nonzero().squeeze(1)}
    head = find_head(model)
    nll = step_of(model, head, graphs, label_share=23 / 24).nll(batch).nll
    torch.testing.assert_close(nll, labelled_nll(model, head, batch).nll, rtol=1e-6, atol=0)
    assert graphs.label_counts == [4 * 23]


def test_with_more_shapes_than_the_compiler_takes_the_rest_goes_the_plain_way():
    torch._dynamo.reset()
    model, graphs = make("clm", "gpt2"), Graphs()
    head = find_head(model)
    step = step_of(model, head, graphs)
    for size in range(3, 3 + torch._dynamo.config.recompile_limit + 2):
        ids = torch.arange(2 * size).view(2, size)
        labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
        batch = {"input_ids": ids, "labels": labels, "labelled": (labels.flatten() != -100).nonzero().squeeze(1)}
        torch.testing.assert_close(step.nll(batch).nll, labelled_nll(model, head, batch).nll, rtol=1e-6, atol=0)
    assert step.graph is None and len(graphs) == torch._dynamo.config.recompile_limit
