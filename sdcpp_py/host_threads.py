"""How many threads this process may compute with."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from . import engine
from .host_memory import cgroup_directories, read_number, read_text

log = logging.getLogger("sdcpp_py")

THREADS_PER_CPU = 4
"""Threads beyond this number for each CPU that may be used only wait for one another."""


def _allowed(root: Path) -> list[int]:
    """Return the numbers of the CPUs that this process may run on, by its affinity mask."""
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    if root == Path("/"):
        return list(range(os.cpu_count() or 1))
    # A fake tree: all that it has.
    return [int(path.name[3:]) for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*")]


def _quota(root: Path) -> float:
    """Return how many CPUs' time cgroups allow, infinity without a limit."""
    least = math.inf
    for version, directory in cgroup_directories(root, "cpu"):
        if version == 2:
            words = read_text(root / directory / "cpu.max").split()
        else:
            files = (root / directory / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
            words = [read_text(file).strip() for file in files]
        numbers = [read_number(word) for word in words]  # "max", and -1 of v1, are no limit
        if len(numbers) == 2 and numbers[0] and numbers[1]:
            least = min(least, numbers[0] / numbers[1])
    return least


def default_threads(root: Path = Path("/")) -> int:
    """Return how many threads compute when none are asked for.

    They are as many as the CPUs that the affinity mask leaves, one for each physical core, and no more than a cgroup's
    CPU quota has work for.

    Args:
        root: the directory that holds ``proc``, ``sys`` and the cgroup file systems; below another than ``/`` every CPU
            counts as allowed.
    """
    allowed = _allowed(root)
    siblings = {read_text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings") for cpu in allowed}
    # Where the system does not tell, the engine knows how many cores the machine has.
    cores = len(siblings) if "" not in siblings else min(len(allowed), engine.physical_cores())
    return max(1, min(cores, math.ceil(min(_quota(root), cores))))


def threads_for(wanted: int | None) -> int:
    """Return how many threads compute for an option's value: so many, or fewer where the rest would only wait."""
    if wanted is None:
        return default_threads()
    most = THREADS_PER_CPU * len(_allowed(Path("/")))
    if wanted > most:
        log.warning("threads=%d is more than this machine has work for; %d compute", wanted, most)
    return min(wanted, most)
