"""Where glibc puts large blocks, by its own account; in processes whose heap holds nothing of other tests."""

import ctypes
import platform

import lightning as L
import pytest
import torch
from conftest import in_fresh_process

from lightning_lm.training.control import KeepFreedMemory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class Mallinfo2(ctypes.Structure):  # mallinfo(3)
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def outside_the_heap():
    """Bytes of the blocks that have a mapping of their own."""
    count = ctypes.CDLL(None).mallinfo2
    count.restype = Mallinfo2
    return count().hblkhd


SIZE = 2**30 - 2**20  # bytes: more than any hole in the heap, and still to be kept


def lies_outside():
    """Whether a block of ``SIZE`` does."""
    before = outside_the_heap()
    block = torch.empty(SIZE, dtype=torch.uint8)
    more = outside_the_heap() - before
    del block
    assert outside_the_heap() == before and (more == 0 or more >= SIZE)
    return more > 0


def outside_before_and_after_each_batch():
    trainer = L.Trainer(accelerator="cpu", accumulate_grad_batches=2, logger=False, enable_checkpointing=False)
    heap = KeepFreedMemory()
    heap.on_train_start(trainer, None)
    outside = [lies_outside()]
    for batch in range(3):
        heap.on_train_batch_end(trainer, None, None, None, batch)
        outside.append(lies_outside())
    return outside


def outside_before_and_after_a_training_without_steps():
    heap = KeepFreedMemory()
    heap.on_train_start(None, None)
    before = lies_outside()
    heap.on_train_end(None, None)
    return before, lies_outside()


def test_the_first_step_is_outside_and_later_ones_are_not():
    assert in_fresh_process(outside_before_and_after_each_batch) == [True, True, False, False]


def test_no_step_was_left_to_do():
    assert in_fresh_process(outside_before_and_after_a_training_without_steps) == (True, False)
