"""What a process holds, and whether it grows."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

# Of prctl() and mallopt().
PR_SET_THP_DISABLE = 41
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
MALLINFO2 = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


def resident_bytes() -> int:
    """What the process holds, less what malloc keeps for later: a model's worth, at times."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back_at_once() -> None:
    """Make malloc keep little of what is freed: threads share one arena, and large pieces go back at once.

    The kernel's huge pages are off, which it fills again where malloc has given back a part of them.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def assert_no_leak(cycle: Callable[[], object], cycles: int = 6, limit: int = 8 << 20) -> None:
    """Call a function again and again; assert that the process does not grow by more than a limit in bytes."""
    for _ in range(2):
        cycle()
    before = resident_bytes()
    for _ in range(cycles):
        cycle()
    grown = resident_bytes() - before
    assert grown < limit, f"{grown / 2**20:.1f} MiB more after {cycles} cycles"


def allocated_bytes() -> int:
    """What malloc has given and not got back: unlike what is resident, no matter of how the pieces lie.

    With one arena (give_back_at_once) it is all of it; Python's own small objects are not in it.
    """

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]

    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2  # glibc 2.33 or newer
    mallinfo2.restype = Info
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)
