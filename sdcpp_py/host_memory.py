"""How much memory this process may ever have."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 1 << 30
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of cgroups v2 and v1, as a container sees its own


def host_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that the machine has, or of its container where that is allowed less.

    Returns:
        The bytes; None where the system does not tell.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    for name in _LIMITS:
        try:
            limit = int((root / name).read_text())
        except (OSError, ValueError):  # there is none, or "max"
            continue
        memory = min(memory, limit)
    return memory if memory > 0 else None
