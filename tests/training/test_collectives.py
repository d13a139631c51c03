"""What the processes of a job send one another in a training step, and how often a step makes the host wait."""

import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import compose
from ranks import rank_of_a_job, settings
from test_devices import FSDP, assert_same_figures
from torch.multiprocessing import start_processes

from lightning_lm import launch
from lightning_lm.launch import run_job
from lightning_lm.models import loss
from lightning_lm.run import train
from lightning_lm.training.agreement import Agreement
from lightning_lm.training.control import StepSeed

FIRST, LAST = 4, 9  # profiled are the steps after the first of these, up to the last; DDP has made its buckets before
WAITS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
QUESTION = 1  # whether a rank was interrupted
DDP_STEP = {"c10d::allreduce_": 1 + QUESTION}  # the gradients
# Weights of the body and two layers, of these again backwards; their gradients; the norm
FSDP_STEP = {
    "c10d::_allgather_base_": 3 + 2,
    "c10d::_reduce_scatter_base_": 3,
    "c10d::allreduce_": 1 + QUESTION,
}
COMPILED = "hardware.compile=true"


def watched(*arguments):
    """A rank that writes down what the profiler sees in these steps, and how many graphs were compiled in all."""
    environ, original, graphs = arguments[-1][1], StepSeed.on_train_batch_start, []
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    compile_layer = torch.nn.Module.compile

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    def watch(self, trainer, *more):
        original(self, trainer, *more)
        if trainer.global_step == FIRST:
            profiler.start()
        if trainer.global_step == LAST:
            profiler.stop()
            names = Counter(event.name for event in profiler.events() if not of_optimizer(event))
            counts = {name: count / (LAST - FIRST) for name, count in names.items()}
            Path(environ["COUNTS"], os.environ["RANK"]).write_text(json.dumps([counts, len(graphs)]))

    torch.nn.Module.compile = lambda self: compile_layer(self, backend=backend)
    loss._compiled = lambda function: function  # to compile the loss would take each rank 20 s
    StepSeed.on_train_batch_start = watch
    return rank_of_a_job(*arguments)


def of_optimizer(event):
    """On a CPU, torch's fused AdamW reads for each parameter how many steps it has made."""
    return event is not None and (event.name == "aten::_fused_adamw_" or of_optimizer(event.cpu_parent))


@pytest.mark.parametrize(
    ("objective", "more", "expected"),
    [
        ("mlm", (), DDP_STEP),
        ("clm", (FSDP, COMPILED), FSDP_STEP),
        pytest.param("clm", (COMPILED,), DDP_STEP, marks=pytest.mark.slow),
        pytest.param("mlm", (FSDP, COMPILED), FSDP_STEP, marks=pytest.mark.slow),
        pytest.param("clm", (FSDP,), FSDP_STEP, marks=pytest.mark.slow),
        pytest.param("clm", (FSDP, "optimizer=muon"), FSDP_STEP, marks=pytest.mark.slow),
    ],
)
def test_collectives_of_a_step_and_its_waits(
    objective, more, expected, tiny_gpt2, tiny_bert, text, tmp_path, monkeypatch
):
    monkeypatch.setattr(launch, "_rank", watched)
    monkeypatch.setenv("COUNTS", str(tmp_path))
    model = {"clm": tiny_gpt2, "mlm": tiny_bert}[objective]
    common = (f"objective={objective}", "trainer.max_steps=11", "trainer.limit_train_batches=12")
    common += ("trainer.log_every_n_steps=11", *(setting for setting in more if not setting.startswith("hardware.")))
    run_job(compose(*settings(model, text, tmp_path / "run", *common, *more, "hardware.devices=2")))
    for rank in "01":
        counts, graphs = json.loads((tmp_path / rank).read_text())
        assert {name: count for name, count in counts.items() if name.startswith("c10d::")} == expected
        assert not WAITS & counts.keys()
        assert graphs == (COMPILED in more), "both layers have the same graph"
    train(compose(*settings(model, text, tmp_path / "alone", *common)))
    assert_same_figures(tmp_path / "run", tmp_path / "alone")


def asking(rank, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    agreement = Agreement(timeout=20)
    agreement.begin(SimpleNamespace(world_size=2))
    answers = [agreement.largest_before(rank * step, -rank) for step in (1, 2, 3)]
    results.put((rank, [*answers, agreement.largest_now(4 - 4 * rank, rank)]))
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_agree_on_the_largest_one_question_later(free_port):
    results = torch.multiprocessing.get_context("fork").SimpleQueue()
    start_processes(asking, (free_port, results), nprocs=2, start_method="fork")
    expected = [[0, 0], [1, 0], [2, 0], [4, 1]]  # at once: with what was asked before
    assert sorted(results.get() for _ in range(2)) == [(0, expected), (1, expected)]
    alone = Agreement(timeout=20)
    alone.begin(SimpleNamespace(world_size=1))
    assert [alone.largest_before(7), alone.largest_now(8)] == [[7], [8]]
