"""The head's loss under DDP and FSDP2, on two processes, against the whole logits in one."""

import pytest
import torch
import torch.distributed as dist
from architectures import assert_same_gradients, gradients, make, make_batch, plain
from test_loss import small_chunks  # noqa: F401
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from lightning_lm.models.activations import recomputed
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head
from lightning_lm.training.fsdp import shard


class Step(torch.nn.Module):
    """What a strategy wraps: a forward pass that returns the loss."""

    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, find_head(model)

    def forward(self, batch):
        with recomputed(self.model):
            return labelled_nll(self.model, self.head, batch).nll


def distributed(rank, port, objective, name, kind, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, batch = make(objective, name), make_batch(objective, seed=rank)
    step = Step(model)
    if kind == "ddp":
        step = DistributedDataParallel(step)
    else:
        shard(model, init_device_mesh("cpu", (2,)))
    for _ in range(2):  # the second pass meets what the first has left behind
        model.zero_grad()
        nll = step(batch)
        nll.backward()
    whole = {name: g.full_tensor() if kind == "fsdp" else g for name, g in gradients(model).items()}
    dist.all_reduce(nll.detach())
    if rank == 0:
        results.put((float(nll), {name: g.numpy().copy() for name, g in whole.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("objective", "name"), [("clm", "gpt2"), ("clm", "gpt_neox"), ("clm", "gemma2"), ("mlm", "bert")]
)
def test_two_processes_have_the_gradients_of_the_mean(objective, name, kind, tmp_path, free_port):
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = start_processes(
        distributed, (free_port, objective, name, kind, results), nprocs=2, join=False, start_method="fork"
    )
    while results.empty():
        processes.join(timeout=0.1)  # raises what a rank has raised
    nll, found = results.get()
    processes.join()

    model = make(objective, name)
    losses = [plain(model, make_batch(objective, seed=rank))[0] for rank in range(2)]
    (sum(losses) / 2).backward()
    assert nll == pytest.approx(float(sum(losses).detach()), rel=1e-5)
    assert_same_gradients({name: torch.from_numpy(g) for name, g in found.items()}, gradients(model))
