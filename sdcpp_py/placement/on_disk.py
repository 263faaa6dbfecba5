"""Weights that stay in the model's files: where that is possible, and how much of them host memory keeps."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..devices import Device

DISK = "disk"
"""What ``params_backend`` calls the model's files."""
RING_BYTES = 64 << 20
"""Host memory that weights on disk are read into, for each device (``native/sdcpp/disk/read_ahead.h``)."""

BLOCK_BYTES = 1 << 20
"""What host memory keeps of weights on disk, or does not (``native/sdcpp/disk/disk_weights.cpp``)."""


@dataclass(frozen=True)
class Stored:
    """What of a module's weights could stay in the model's files.

    Attributes:
        disk_bytes: that much of them; the others are small, or packed or scaled, so that host memory has them.
        stored_bytes: what that takes in the files.
        converted_bytes: what of it becomes another type as it is read.
    """

    disk_bytes: int
    stored_bytes: int
    converted_bytes: int


def stored_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Stored]:
    """Return module -> what could stay on disk, from the engine's rows of its survey."""
    names = ("disk_bytes", "stored_bytes", "converted_bytes")
    return {row["module"]: Stored(**{name: row[name] for name in names}) for row in rows}


def system_obstacle() -> str | None:
    """Return why no weights can be on disk on this system, or None when they can."""
    return "this package cannot leave weights on disk on Windows" if sys.platform == "win32" else None


def disk_obstacle(runtime: Device) -> str | None:
    """Return why a module that a device computes cannot have its weights on disk, or None when it can.

    Any file will do: what is not stored as it is computed with becomes that as it is read, row by row; packed, scaled
    and strided tensors are read whole and kept.
    """
    if runtime.kind == "cpu":
        return (
            "weights on disk are streamed to another device, and the CPU reads weights where they lie: leave it out of "
            "params_backend where the CPU computes"
        )
    return system_obstacle()


def needed_of(modules: Sequence[str], weights: Mapping[str, int], stored: Mapping[str, Stored], devices: int) -> int:
    """Return the bytes of host memory that modules on disk take in any case: rings, and what cannot stay there.

    Args:
        modules: those on disk.
        weights: module -> bytes.
        stored: module -> what of it could stay; one that is not there could as a whole.
        devices: how many compute them.
    """
    whole = sum(weights.get(module, 0) - stored[module].disk_bytes for module in modules if module in stored)
    return devices * RING_BYTES + max(0, whole)


def possible_of(module: str, weights: Mapping[str, int], stored: Mapping[str, Stored]) -> int:
    """Return the bytes of a module's weights that could stay on disk."""
    return stored[module].disk_bytes if module in stored else weights.get(module, 0)


def kept_of(
    modules: Sequence[str], weights: Mapping[str, int], affordable: int, stored: Mapping[str, Stored]
) -> dict[str, int]:
    """Return how many bytes of the modules' weights that could stay on disk host memory keeps: these are read once.

    Args:
        modules: those on disk, what is read most often first.
        weights: module -> bytes.
        affordable: bytes that host memory has left for it, without those of :func:`needed_of`.
        stored: module -> what of it could stay; one that is not there could as a whole.
    """
    kept = {}
    left = max(0, affordable)
    for module in modules:
        possible = possible_of(module, weights, stored)
        kept[module] = possible if possible <= left else left // BLOCK_BYTES * BLOCK_BYTES
        left -= kept[module]
    return kept
