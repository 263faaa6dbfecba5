"""How much memory this process holds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path


def resident_bytes() -> int:
    """Return what the process holds, less what malloc keeps for later: a model's worth, at times."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
