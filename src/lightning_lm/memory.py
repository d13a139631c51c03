"""How the C library hands out memory on a CPU."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, malloc.h


def keep_freed_blocks() -> None:
    """Let glibc keep large blocks instead of giving them back to the system.

    Otherwise each step's activations come as fresh pages, and on small models the page faults can take longer than the
    arithmetic. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        # The second is the most that mallopt(3) promises; new versions take more
        libc.mallopt(MMAP_THRESHOLD, 1 << 30) or libc.mallopt(MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
