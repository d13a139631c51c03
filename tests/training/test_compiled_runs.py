"""Runs whose step is one graph: they train what plain runs train, and go on to the bit."""

from functools import partial

import pytest
import torch
from conftest import compose, in_fresh_process
from ranks import settings
from resumable import assert_equal, outcome
from safetensors.torch import load_file
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from lightning_lm.errors import Diverged, Refused
from lightning_lm.models.step_graph import StepGraph
from lightning_lm.run import train
from lightning_lm.training.components import build
from lightning_lm.training.trainer import build_module

# Epochs of a few batches, of which the last one is partial
SHORT = (
    "trainer.max_steps=5",
    "trainer.global_batch_size=16",
    "trainer.limit_train_batches=null",
    "scheduler=constant",
)


class Overwriting:
    """A backend whose results the next forward pass overwrites with NaN, as a replayed CUDA graph does with its own."""

    def __init__(self):
        self.results = []
        self.backend = aot_autograd(fw_compiler=partial(self.compiled, True), bw_compiler=partial(self.compiled, False))

    def compiled(self, forward, graph, examples):
        def run(*args):
            if forward:
                for result in self.results:
                    result.fill_(torch.nan)
                self.results = []
            given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
            results = graph(*args)
            new = [x for x in results if isinstance(x, torch.Tensor) and x.is_floating_point()]
            # Their memory: autograd would copy gradients that are held themselves
            self.results += [x.detach() for x in new if x.untyped_storage().data_ptr() not in given]
            return results

        return make_boxed_func(run)


def exported(folder):
    return load_file(folder / "export" / "model.safetensors")


@pytest.mark.parametrize("objective", [pytest.param("clm", marks=pytest.mark.slow), "mlm"])
def test_a_run_of_one_graph_trains_the_same_model(
    objective, tiny_gpt2, tiny_bert, text, short_text, tmp_path, monkeypatch
):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # inductor takes 20 s
    served, nll = [], StepGraph.nll
    monkeypatch.setattr(StepGraph, "nll", lambda self, batch: (served.append(self.graph), nll(self, batch))[1])
    model = {"clm": tiny_gpt2, "mlm": tiny_bert}[objective]
    for compiled in ("step", "false"):
        more = (f"objective={objective}", f"data.train={short_text}", f"hardware.compile={compiled}", *SHORT)
        train(compose(*settings(model, text, tmp_path / compiled, *more)))
    assert len(served) == 5 and None not in served, "the steps, and nothing else"
    plain = exported(tmp_path / "false")
    for name, weight in exported(tmp_path / "step").items():
        torch.testing.assert_close(weight, plain[name], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_a_run_of_one_graph_goes_on_to_the_bit(objective, dropping, tiny_bert, text, short_text, tmp_path):
    """With dropout, by inductor, from the middle of an epoch whose last batch is partial."""
    model = {"clm": dropping, "mlm": tiny_bert}[objective]
    more = (f"objective={objective}", f"data.train={short_text}", "hardware.compile=step", *SHORT)
    for folder, steps in (("whole", 5), ("parts", 2), ("parts", 5)):
        job = compose(*settings(model, text, tmp_path / folder, *more, f"trainer.max_steps={steps}"))
        in_fresh_process(train, job)
    assert all(
        torch.equal(weight, exported(tmp_path / "whole")[n]) for n, weight in exported(tmp_path / "parts").items()
    )


def test_nothing_is_read_from_a_steps_memory_once_the_next_has_begun(tiny_gpt2, text, tmp_path, monkeypatch):
    more = ("optimizer=muon", "callbacks=ema", "trainer.on_nonfinite=skip")
    compile, backends = torch.compile, {"kept": "aot_eager", "overwritten": Overwriting().backend}

    def run(name, *more):
        def compiled(function, fullgraph=False, **options):  # the step; layers, which evaluation has, stay as they are
            backend = backends[name] if fullgraph else "eager"
            return compile(function, fullgraph=fullgraph, **options | {"backend": backend})

        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", compiled)
        train(compose(*settings(tiny_gpt2, text, tmp_path / name, "hardware.compile=step", *SHORT, *more)))
        checkpoints, rows, _ = outcome(tmp_path / name)
        return checkpoints["last"]["state_dict"], checkpoints["last"]["optimizer_states"], rows

    assert_equal(run("overwritten", *more), run("kept", *more))
    with pytest.raises(Diverged, match="gradients are no numbers at step 1,"):
        run("overwritten", "hardware.micro_batch_size=8", f"run_dir={tmp_path / 'two'}")  # two passes a step


def test_a_run_with_cuda_graphs_has_room_for_every_masked_batch(tiny_bert, text, tmp_path):
    cfg = compose(*settings(tiny_bert, text, tmp_path, "objective=mlm", "hardware.compile=step"))
    components = build(cfg)
    cfg.hardware.cuda_graphs = True  # which a CPU can't do, but has a module for
    step = build_module(cfg, components, budget=None).training_nll.__self__
    batches = components.data._batches("train", components.data.plan("train"), rank=0)
    counts = [len(batches[epoch, micro]["labelled"]) for epoch in range(5) for micro in range(8)]
    room = step._room(counts[0], 8, 32)
    assert len({*counts}) > 5 and max(counts) < room < 4 * min(counts)
    assert room == step._room(counts[1], 8, 32), "a run that goes on has the same graph"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_graphs_are_refused(tiny_bert, text, tmp_path):
    more = ("objective=mlm", "hardware=auto", "hardware.compile=step", "hardware.cuda_graphs=true")
    with pytest.raises(Refused, match="hardware.cuda_graphs=True: torch sees no CUDA device; leave it out"):
        train(compose(*settings(tiny_bert, text, tmp_path / "run", *more)))
    assert not (tmp_path / "run").exists()
