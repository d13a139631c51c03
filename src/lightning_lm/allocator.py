"""What hands out memory and takes it back: the C library, where it is glibc, and Python's collector."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, malloc.h


def keep_freed_blocks() -> None:
    """Let glibc keep large blocks instead of giving them back to the system.

    Otherwise each step's activations come as fresh pages, and on small models the page faults can take longer than the
    arithmetic.
    """
    # The second is the most that mallopt(3) promises; new versions take more
    _set(MMAP_THRESHOLD, 1 << 30) or _set(MMAP_THRESHOLD, 1 << 25)
    _set(TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """Within, Python's collector leaves out what exists already.

    Making millions of small objects sets it off, and to walk all that the imports have made takes tenths of a second.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_freed_blocks_back() -> None:
    """Let large blocks lie outside the heap, each by itself. By default, what glibc calls large grows."""
    _set(MMAP_THRESHOLD, 1 << 17)


def _set(option: int, value: int) -> bool:
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(option, value))
