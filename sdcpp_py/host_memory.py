"""How much memory this process may ever have, and what the system says of its limits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60
"""Bytes that nothing has; cgroup v1 writes a number near 2**63 for "no limit"."""


def host_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that the machine has, or of its container where that is allowed less.

    Args:
        root: the directory that holds ``proc`` and the cgroup file systems.

    Returns:
        The bytes; None where the system does not tell.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    for version, directory in cgroup_directories(root):
        limit = read_number(read_text(root / directory / ("memory.max" if version == 2 else "memory.limit_in_bytes")))
        memory = memory if limit is None else min(memory, limit)
    return memory if memory > 0 else None


def read_text(path: Path) -> str:
    """Return a file's text, or nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def read_number(text: str) -> int | None:
    """Return a whole number, or None for anything else such as ``max``."""
    return int(text) if re.fullmatch(r"\d+", text.strip(), re.ASCII) else None


def _cgroup_mounts(root: Path, controller: str) -> Iterator[tuple[int, str, str]]:
    """Yield (cgroup version, mount point, root of the mount) of the file systems that limit what a controller does."""
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        mount, kind = left.split(" "), right.split(" ")
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and controller in kind[2].split(",")):
            # proc(5): blanks and backslashes are written in octal.
            base, point = (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), text) for text in mount[3:5])
            yield 2 if kind[0] == "cgroup2" else 1, point, base


def cgroup_directories(root: Path, controller: str = "memory") -> Iterator[tuple[int, str]]:
    """Yield (cgroup version, directory below root) of this process's cgroups and all their ancestors.

    Args:
        root: the directory that holds ``proc`` and the cgroup file systems.
        controller: whose cgroups, where each controller has its own (v1).
    """
    own: dict[int, str] = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            own[2] = path
        elif controller in controllers.split(","):
            own[1] = path
    for version, point, base in _cgroup_mounts(root, controller):
        if version not in own:
            continue
        path, base = own[version].rstrip("/"), base.rstrip("/")
        inside = path[len(base) :] if f"{path}/".startswith(f"{base}/") else ""
        parts = [part for part in inside.split("/") if part]
        if ".." in parts:  # outside of this cgroup namespace
            parts = []
        for depth in range(len(parts), -1, -1):
            yield version, "/".join(part for part in (point.strip("/"), *parts[:depth]) if part)
