"""What a process holds, and whether it grows."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

M_MMAP_THRESHOLD = -3  # of mallopt()


def resident_bytes() -> int:
    """What the process holds, less what malloc keeps for later: a model's worth, at times."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back_at_once() -> None:
    """Make malloc keep nothing of what is large and freed, from now on."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)


def assert_no_leak(cycle: Callable[[], object], cycles: int = 6, limit: int = 8 << 20) -> None:
    """Call a function again and again; assert that the process does not grow by more than a limit in bytes."""
    for _ in range(2):
        cycle()
    before = resident_bytes()
    for _ in range(cycles):
        cycle()
    grown = resident_bytes() - before
    assert grown < limit, f"{grown / 2**20:.1f} MiB more after {cycles} cycles"
